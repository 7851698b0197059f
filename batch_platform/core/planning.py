"""`plan`: what materializing partitions would do, before it is done.

Each partition is worked out as the run would do it (source, lookups, recipe, reuse), without the model's computing and
without a commit. Where the source or the recipe has changed, the rows are read and featurized in passing to see which of
them the model would see anew. It reads what the run would read, and writes nothing.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.intake import PartitionReader
from batch_platform.core.data.lake import Commit, Lake, Slot
from batch_platform.core.data.partitions import Partition
from batch_platform.core.featurizing import Featurizer, featurizer, landed
from batch_platform.core.forecasting import Accuracy, Forecast, Forecaster
from batch_platform.core.inference.engine import Scorer
from batch_platform.core.landing import is_landed_as_it_is
from batch_platform.core.layout import Layout
from batch_platform.core.models.registry import RegisteredVersion
from batch_platform.core.reusing import plan_rows
from batch_platform.core.slice import Run, Slice
from batch_platform.core.snapshots import standing_rows
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.work import conditions_of, identity_of, parameters_of, signature_for
from batch_platform.errors import SourceError, SourceMissingError
from batch_platform.settings import Settings


@dataclass(frozen=True)
class PartitionPlan:
    """What would become of one partition.

    Attributes:
        state: done (nothing would be made), to do, or blocked: the source is missing or cannot be read.
        cause: why it is blocked.
        rows: feature rows.
        to_score: of these, rows that the model would compute.
        reasons: of those, by reason.
        reusable: rows that would be copied from the snapshot.
        twins: rows whose equal would be scored in their place.
    """

    partition_key: str
    state: str
    cause: str = ""
    rows: int = 0
    to_score: int = 0
    reasons: Mapping[str, int] | None = None
    reusable: int = 0
    twins: int = 0


@dataclass(frozen=True)
class Plan:
    """What a backfill would do.

    Attributes:
        model: version that would score.
        partitions: in order.
        forecast: seconds of scoring and committing the partitions that are to do, model loading left out; None where
            this pipeline has too few statistics.
        cost: of these seconds, likely, low and high; None without a price.
        accuracy: how good earlier forecasts were.
    """

    pipeline: str
    model: str
    device: str
    partitions: Sequence[PartitionPlan]
    forecast: Forecast | None
    cost: tuple[float, float, float] | None
    accuracy: Accuracy | None

    @property
    def total(self) -> dict[str, Any]:
        """Sums over the partitions."""
        reasons: Counter[str] = Counter()
        for partition in self.partitions:
            reasons.update(partition.reasons or {})
        return {
            "partitions": len(self.partitions),
            **{
                state: sum(p.state == state for p in self.partitions)
                for state in ("done", "to do", "blocked")
            },
            "rows": sum(p.rows for p in self.partitions),
            "to_score": sum(p.to_score for p in self.partitions),
            "reasons": dict(reasons),
            "reusable": sum(p.reusable for p in self.partitions),
            "twins": sum(p.twins for p in self.partitions),
        }


def plan(
    spec: PipelineSpec,
    settings: Settings,
    base: Path,
    partitions: Sequence[Partition],
    model: RegisteredVersion,
    engine: Scorer,
) -> Plan:
    """Work out what materializing these partitions would do.

    Args:
        base: folder that relative URIs of the pipeline file start from.
        model: the version that would score.
        engine: that model, loaded: device and parameters are what it would compute with.

    Raises:
        RecipeError, SignatureError: the run would fail in the same way.
        StorageError: the lake cannot be read.
    """
    lake = Lake(Layout.of(settings, spec.name))
    planner = _Planner(spec, model, engine)
    found = [
        planner.look(Slice(spec, partition, settings, base, Run("plan", "plan"))) for partition in partitions
    ]
    forecaster = Forecaster.of(lake, model.digest, engine.plan.device)
    forecast = forecaster.forecast([p.to_score for p in found if p.state == "to do"])
    cost = None
    if forecast is not None and settings.hourly_rate is not None:
        rate = settings.hourly_rate / 3600
        cost = (forecast.seconds * rate, forecast.low * rate, forecast.high * rate)
    about = f"{model.name} version {model.version}"
    return Plan(spec.name, about, engine.plan.device, found, forecast, cost, forecaster.accuracy)


class _Planner:
    def __init__(self, spec: PipelineSpec, model: RegisteredVersion, engine: Scorer) -> None:
        self._model, self._decision = model, spec.decision
        self._signature = signature_for(model, spec.decision)
        self._inputs = [column.name for column in self._signature.inputs]
        self._parameters = parameters_of(spec, self._signature, engine)

    def look(self, slice_: Slice) -> PartitionPlan:
        raw = slice_.lake.head(Slot("raw", slice_.key))
        try:
            if raw is not None and not is_landed_as_it_is(slice_, raw):
                raw = None
            rows = partial(_read, slice_) if raw is None else partial(landed, slice_)
            with featurizer(slice_, rows, self._model.read_file) as made:
                return self._look(slice_, raw, made)
        except SourceError as error:
            missing = isinstance(error, SourceMissingError)
            words = "the source is not there" if missing else " ".join(str(error).split())
            return PartitionPlan(slice_.key, "blocked", words)

    def _look(self, slice_: Slice, raw: Commit | None, made: Featurizer) -> PartitionPlan:
        self._signature.check_features(made.schema)
        conditions = conditions_of(made.recipe.version, self._model, self._parameters)
        standing = slice_.lake.head(Slot("predictions", slice_.key))
        features = slice_.lake.head(Slot("features", slice_.key))
        if features is not None and (raw is None or features.fingerprint != made.identity(raw.fingerprint)):
            features = None
        done = None if features is None else identity_of(features, conditions, self._decision)
        if features is not None and standing is not None and standing.receipt["work"] == done:
            return PartitionPlan(slice_.key, "done", "", features.rows, reusable=standing.rows)
        batches = _made(made) if features is None else slice_.lake.batches("features", slice_.key)
        known = None if standing is None else standing_rows(slice_, standing)
        with tempfile.TemporaryDirectory() as folder:
            rows = plan_rows(batches, self._inputs, conditions, known, Path(folder))
        return PartitionPlan(
            slice_.key, "to do", "", len(rows.kind), rows.to_score, rows.reasons, rows.reused, rows.twins
        )


def _read(slice_: Slice, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of the source that would be landed."""
    for good, _ in PartitionReader(slice_.spec.source, slice_.partition, slice_.base):
        yield good if columns is None else good.select(columns)


def _made(made: Featurizer) -> Iterator[pa.RecordBatch]:
    rejected: list[Rejected] = []
    for batch in made.rows(rejected):
        rejected.clear()
        yield batch
