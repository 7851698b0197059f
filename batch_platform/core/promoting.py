"""The promotion gate: what stands between a challenger and the alias that a pipeline scores by.

Decides, from the newest partitions that champion and challenger have both scored, whether something speaks against a
promotion: it was never compared, or it is worse on labels. People may decide otherwise, which the registry's history keeps.
It moves no alias.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from batch_platform.core.challenging import TABLE, comparison_of, told, words_of
from batch_platform.core.comparing import Comparison
from batch_platform.core.data.lake import Commit, Lake, Slot
from batch_platform.core.layout import Layout
from batch_platform.core.models.registry import Registry
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import ModelNotFoundError
from batch_platform.settings import Settings

# The newest partitions that count, as in the calibration of estimates: four weeks of days.
PARTITIONS = 28


@dataclass(frozen=True)
class Evidence:
    """A version as challenger against the version that is champion, over a pipeline's newest partitions.

    Attributes:
        partitions: comparisons by partition key, of those that both have scored from the same features, oldest first.
    """

    pipeline: str
    champion: str
    challenger: str
    partitions: Mapping[str, Comparison]

    @property
    def total(self) -> Comparison:
        return sum(self.partitions.values(), Comparison())

    @property
    def words(self) -> str:
        """The evidence as one line."""
        about = f"{self.pipeline}: {self.champion} -> {self.challenger}"
        if not self.partitions:
            return f"{about}: never compared"
        return f"{about} over {len(self.partitions)} partitions: {words_of(self.total)}"

    @property
    def refusal(self) -> str | None:
        """Why the challenger should not be promoted; None where nothing speaks against it."""
        if not self.partitions:
            return (
                f"pipeline {self.pipeline}: version {self.challenger} was never compared with the champion, version "
                f"{self.champion}: point the challenger's alias to it and run some partitions"
            )
        if self.total.verdict == "worse":
            return (
                f"pipeline {self.pipeline}: on labels version {self.challenger} is worse than {self.champion}"
            )
        return None

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "pipeline": self.pipeline,
            "champion": self.champion,
            "challenger": self.challenger,
            "partitions": {key: told(found) for key, found in self.partitions.items()},
            "total": told(self.total),
            "refusal": self.refusal,
        }


def evidence(
    specs: Iterable[PipelineSpec], settings: Settings, name: str, alias: str, version: str | None = None
) -> list[Evidence]:
    """What the pipelines that score by an alias, and have a challenger beside it, say of a version.

    Args:
        name: of the model.
        version: by default the one that each pipeline's challenger is now.

    Returns:
        An entry for each such pipeline; none where the alias points to nothing yet, or to that version already.

    Raises:
        ModelNotFoundError: no such model, version or challenger.
        ModelError: the registry was altered.
        StorageError: a lake cannot be read.
    """
    registry = Registry(settings.root)
    found = []
    for spec in guarding(specs, name, alias):
        try:
            champion = registry.pointed(name, alias).version
        except ModelNotFoundError:  # the first champion has nothing to be held against
            return []
        assert spec.model.challenger is not None  # it is guarding
        chosen = registry.get(name, version) if version else registry.pointed(name, spec.model.challenger)
        if chosen.version != champion:
            found.append(_evidence(spec, settings, champion, chosen.version))
    return found


def guarding(specs: Iterable[PipelineSpec], model: str, alias: str) -> list[PipelineSpec]:
    """The pipelines that score by an alias of a model and have a challenger beside it."""
    return [
        spec
        for spec in specs
        if (spec.model.name, spec.model.alias) == (model, alias) and spec.model.challenger is not None
    ]


def _evidence(spec: PipelineSpec, settings: Settings, champion: str, challenger: str) -> Evidence:
    lake = Lake(Layout.of(settings, spec.name))
    partitions: dict[str, Comparison] = {}
    for key in sorted(lake.partition_rows(TABLE), reverse=True):
        first, second = (lake.head(Slot(table, key)) for table in ("predictions", TABLE))
        if (
            first is None
            or second is None
            or (_versions(first), _versions(second))
            != (
                {champion},
                {challenger},
            )
        ):
            continue
        found = comparison_of(lake, first, second)
        if found is not None:
            partitions[key] = found
        if len(partitions) == PARTITIONS:
            break
    return Evidence(spec.name, champion, challenger, dict(sorted(partitions.items())))


def _versions(commit: Commit) -> set[str]:
    """The versions that scored a commit's rows: several where exactly given rows were scored again."""
    origins = commit.receipt.get("origins")
    if origins is None:
        return {commit.receipt["model_version"]}
    return {origin["conditions"]["model"][1] for origin in origins}
