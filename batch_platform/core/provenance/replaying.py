"""Scoring rows again from what was recorded, by the model version that was recorded, and comparing.

The inputs are the committed features of that time; where the recipe is still the same, they are made again of the raw
row as well. Numbers may differ within the tolerance of golden rows, because devices and batches round; texts and labels may
not. A suspended version is replayed: nothing of it is published. It writes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batch_platform.core.data.lake import Lake
from batch_platform.core.deciding import decide
from batch_platform.core.features.chunks import piece_number
from batch_platform.core.layout import Layout
from batch_platform.core.models.golden import TOLERANCE, agree
from batch_platform.core.models.source import recorded_version
from batch_platform.core.provenance.explaining import ORIGIN
from batch_platform.core.provenance.fingerprint import input_hashes
from batch_platform.core.provenance.trail import Receipt, Trail, partition_of
from batch_platform.core.spec import DecisionSpec, PipelineSpec
from batch_platform.errors import InferenceError, ModelError, RowNotFoundError, StorageError
from batch_platform.settings import Settings

if TYPE_CHECKING:
    from batch_platform.core.inference.engine import Engine
    from batch_platform.core.models.versions import RegisteredVersion


@dataclass(frozen=True)
class Difference:
    """A value that did not come out as it was recorded."""

    column: str
    recorded: Any
    again: Any


@dataclass(frozen=True)
class Replay:
    """What came of scoring a row again.

    Attributes:
        differences: beyond the tolerance; empty where all is equal.
        remade: what was said of making the features again: "equal", "different", or why it was not tried.
        device: that it was computed on now; `recorded_device` that of the prediction.
        tolerance: absolute and relative, of numbers.
    """

    row_key: str
    partition_key: str
    model: str
    model_version: str
    model_digest: str
    recorded: Mapping[str, Any]
    again: Mapping[str, Any]
    differences: tuple[Difference, ...]
    remade: str
    device: str
    recorded_device: str
    tolerance: float = TOLERANCE

    @property
    def equal(self) -> bool:
        return not self.differences


class Replayer:
    """Replays rows of one pipeline; a model is loaded once."""

    def __init__(self, spec: PipelineSpec, settings: Settings) -> None:
        self._spec, self._settings = spec, settings
        self._lake = Lake(Layout.of(settings, spec.name))
        self._engines: dict[str, Engine] = {}

    def replay(self, row_key: str, partition_key: str | None = None) -> Replay:
        """Score a row again.

        Args:
            partition_key: by default the newest partition that has a prediction of the row.

        Raises:
            RowNotFoundError: no such row, or it has no prediction.
            PartitionKeyError: the pipeline has no such partition.
            ModelError: the model's version is not there as it was recorded.
            StorageError: the recorded inputs are not there any more.
        """
        key = partition_of(self._spec, self._lake, row_key, partition_key)
        trail = Trail(self._lake, key)
        found = trail.row(trail.predictions, row_key)
        if found is None:
            raise RowNotFoundError(
                f"{trail.about}: the row {row_key!r} has no prediction: batch-platform explain says what became of it"
            )
        recorded = found.to_pylist()[0]
        scored_by, _ = trail.scoring(recorded)
        engine = self._engine(scored_by, recorded["model_digest"])
        features = trail.row(trail.features, row_key)
        if features is None:
            raise StorageError(f"{trail.about}: the features of the row {row_key!r} are not there any more")
        again = self._score(engine, features, trail)
        again["input_hash"] = _input_hash(engine, features)
        names = [name for name in recorded if name not in ORIGIN or name == "input_hash"]
        return Replay(
            row_key=row_key,
            partition_key=key,
            model=scored_by["model"],
            model_version=recorded["model_version"],
            model_digest=recorded["model_digest"],
            recorded={name: recorded[name] for name in names},
            again=again,
            differences=tuple(
                Difference(name, recorded[name], again.get(name))
                for name in names
                if not agree(again.get(name), recorded[name])
            ),
            remade=self._remake(trail, engine, features, recorded, row_key),
            device=engine.plan.device,
            recorded_device=scored_by["parameters"]["device"],
        )

    def _score(self, engine: "Engine", features: pa.Table, trail: Trail) -> dict[str, Any]:
        result = engine.score(features)
        if result.failures:
            failure = result.failures[0]
            return {"row_key": failure.row_key, "failure": f"{failure.error_type}: {failure.message}"}
        outputs = result.outputs
        # The rule of the commit that stands: a reused row is decided about anew.
        decision = _decision(trail.predictions)
        if decision is not None:
            columns = {name: features[name].combine_chunks() for name in features.column_names}
            columns |= {name: outputs[name].combine_chunks() for name in outputs.column_names}
            decided = decide(decision, engine.predictor.signature, columns)
            outputs = outputs.append_column("decision", decided)
        return outputs.to_pylist()[0]

    def _remake(
        self, trail: Trail, engine: "Engine", features: pa.Table, recorded: Mapping[str, Any], row_key: str
    ) -> str:
        from batch_platform.core.featurizing import recipe_of

        if self._spec.lookups:
            return "not tried: a lookup may say something else now"
        recipe = recipe_of(self._spec)
        if recipe.reads:
            assert trail.predictions is not None  # it has the row
            version = recorded["model_version"]
            model = recorded_version(trail.predictions["model"], version, self._settings.root)
            recipe = recipe.with_files(model.read_file)
        if recipe.version != recorded["recipe_version"]:
            return f"not tried: the recipe is {recipe.version} now"
        raw = trail.raw_row(row_key)
        if raw is None:
            return "not tried: the raw row is not there any more"
        made = pa.Table.from_batches([recipe.apply(raw.combine_chunks().to_batches()[0])])
        if recipe.expands:
            made = made.slice(piece_number(row_key), 1)
        return "equal" if _input_hash(engine, made) == _input_hash(engine, features) else "different"

    # -- the model ----------------------------------------------------------------------------------------

    def _engine(self, scored_by: Receipt, digest: str) -> "Engine":
        name, version = scored_by["model"], scored_by["model_version"]
        model = recorded_version(name, version, self._settings.root)
        if model.digest != digest:
            raise ModelError(
                f"model {name} version {version} is {model.digest} now, and was {digest} when it scored the row: "
                "restore the registry from a backup"
            )
        identity = f"{digest} {scored_by['parameters']}"
        if identity not in self._engines:
            self._engines[identity] = _load(replace(model, suspended=None), scored_by, self._spec)
        return self._engines[identity]


def _load(model: "RegisteredVersion", scored_by: Receipt, spec: PipelineSpec) -> "Engine":
    """The model as it was loaded then; on this machine's device where the recorded one is not there."""
    from batch_platform.core.inference.engine import Engine

    recorded = scored_by["parameters"]
    asked = {name: recorded[name] for name in ("device", "dtype", "batch_rows")}
    # For text models; `auto` means the same where there are no tokens.
    asked["batch_tokens"] = recorded["batch_tokens"] or "auto"
    positive = recorded["positive_class"]
    signature = model.signature if positive is None else model.signature.with_positive_class(positive)
    try:
        return Engine.load(model, signature, spec.inference.model_copy(update=asked))
    except InferenceError:
        if recorded["device"] == "cpu":
            raise
        return Engine.load(
            model, signature, spec.inference.model_copy(update={**asked, "device": "cpu", "dtype": "auto"})
        )


def _decision(receipt: Receipt | None) -> DecisionSpec | None:
    assert receipt is not None  # it has the row
    # Releases that scored anew for another rule had it among the parameters.
    recorded = receipt["decision"] if "decision" in receipt else receipt["parameters"]["decision"]
    if recorded is None:
        return None
    return DecisionSpec.model_validate({name: value for name, value in recorded.items() if name != "version"})


def _input_hash(engine: "Engine", features: pa.Table) -> str:
    columns = [column.name for column in engine.predictor.signature.inputs]
    return input_hashes(features, columns)[0].as_py()
