"""The stages as Dagster sees them: names, dependencies, checks, versions, and the function each calls.

Adding a stage is adding an entry here. Loading this module imports no model library.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import dagster as dg

from batch_platform.core.overview import stage_names
from batch_platform.core.slice import Slice, StageResult
from batch_platform.core.spec import PipelineSpec
from batch_platform.orchestration.services import Services


@dataclass(frozen=True)
class Stage:
    """One asset of the chain.

    Attributes:
        name: last part of the asset key, and the table's name.
        upstream: names of the assets that it reads, `model` or `challenger` among them.
        work: makes one partition.
        checks: its checks, without `complete`: name -> what is checked.
        blocking: whether a failed check keeps what is below from running.
    """

    name: str
    upstream: tuple[str, ...]
    work: Callable[[Slice, Services], StageResult]
    checks: Mapping[str, str]
    description: str
    blocking: bool = True
    kinds: frozenset[str] = frozenset()


def stages_of(spec: PipelineSpec) -> list[Stage]:
    """The pipeline's stages in the order of their work.

    Raises:
        RecipeError: the recipe cannot be loaded.
        PipelineFileError: a rule is about a column that there is not.
    """
    from batch_platform.core.deciding import check_rules
    from batch_platform.core.featurizing import recipe_of

    recipe = recipe_of(spec)
    check_rules(spec, recipe)
    features = replace(_FEATURES, upstream=("raw", "model")) if recipe.reads else _FEATURES
    every = (_RAW, features, _PREDICTIONS, _DELIVERED, _DRIFT_REPORT, _PERFORMANCE, _CHALLENGER)
    known = {stage.name: stage for stage in every}
    return [known[name] for name in stage_names(spec)]


def asset_key(spec: PipelineSpec, stage: str) -> dg.AssetKey:
    return dg.AssetKey([spec.name, stage])


def outer_upstream(spec: PipelineSpec, stage: str) -> list[dg.AssetKey]:
    """Assets of other pipelines that a stage reads."""
    other = spec.source.upstream_pipeline
    return [dg.AssetKey([other, "predictions"])] if stage == "raw" and other is not None else []


def _land(slice_: Slice, _services: Services) -> StageResult:
    from batch_platform.core.landing import land_partition

    return land_partition(slice_)


def _featurize(slice_: Slice, services: Services) -> StageResult:
    from batch_platform.core.featurizing import featurize_partition

    return featurize_partition(slice_, services.model_file)


def _score(slice_: Slice, services: Services) -> StageResult:
    from batch_platform.core.scoring import score_partition

    return score_partition(
        slice_,
        services.model,
        services.engine,
        services.progress,
        services.redrive,
        services.forecaster,
    )


def _deliver(slice_: Slice, _services: Services) -> StageResult:
    from batch_platform.core.delivering import deliver_partition

    return deliver_partition(slice_)


def _score_challenger(slice_: Slice, services: Services) -> StageResult:
    from batch_platform.core.challenging import score_challenger

    return score_challenger(slice_, services.challenger, services.challenger_engine, services.progress)


def _judge_drift(slice_: Slice, services: Services) -> StageResult:
    from batch_platform.core.drift_reporting import report_drift

    return report_drift(slice_, services.renderer)


def _evaluate(slice_: Slice, _services: Services) -> StageResult:
    from batch_platform.core.evaluating import evaluate_partition

    return evaluate_partition(slice_)


_QUARANTINED = "Rows set aside by this stage are at most max_error_share of those that entered it."
# Learned from the partitions before; below 14 of them: not enough history.
_USUAL = {
    "usual_nulls": "As many rows without a value, or with an empty one, as usual.",
    "usual_ranges": "No number or moment far beyond those before; no column that became constant.",
    "known_values": "No more values than usual that no partition before has.",
}

_RAW = Stage(
    "raw",
    (),
    _land,
    {
        "contract": "Landed rows keep the contract: types, required values, bounds, allowed values.",
        "volume": "There are rows, or allow_empty permits that there are none.",
        "duplicates": "Row keys are unique within the partition.",
        "quarantined_share": _QUARANTINED,
        "usual_volume": "As many rows as usual, by the partitions before.",
        "freshness": "The newest moments are as near to the partition's end as usual.",
        **_USUAL,
    },
    "The source's rows, landed under their contract; bad rows are in quarantine.",
    kinds=frozenset({"parquet"}),
)
_FEATURES = Stage(
    "features",
    ("raw",),
    _featurize,
    {
        "schema": "The columns and types that the recipe promises.",
        "nulls": "No null where the recipe allows none; a warning for a column without a single value.",
        "finite": "No infinite number and no NaN.",
        "quarantined_share": _QUARANTINED,
        **_USUAL,
    },
    "The feature recipe applied.",
)
_PREDICTIONS = Stage(
    "predictions",
    ("features", "model"),
    _score,
    {
        "reconciliation": "Feature rows = predictions + quarantined rows, key by key, in order.",
        "finite": "No null, infinite number or NaN in the outputs.",
        "range": "Labels are the model's, probabilities are probabilities, embeddings have their length.",
        "quarantined_share": _QUARANTINED,
    },
    "One row per feature row, or a quarantine entry; committed after the gate.",
)
_DELIVERED = Stage(
    "delivered",
    ("predictions",),
    _deliver,
    {"delivered": "Every sink holds the partition's predictions and no others."},
    "The committed predictions, delivered to the sinks.",
    blocking=False,
)
_DRIFT_REPORT = Stage(
    "drift_report",
    ("features", "predictions"),
    _judge_drift,
    {
        "features_drift": "The features look like those of the reference partitions.",
        "predictions_drift": "The model's outputs look like those of the reference partitions.",
    },
    "Verdict on data and prediction drift, with an Evidently report.",
    blocking=False,
)
_PERFORMANCE = Stage(
    "performance",
    ("predictions",),
    _evaluate,
    {"performance": "Labels arrive in time, fit the model, and show that it is of use."},
    "Realised performance, as labels arrive.",
    blocking=False,
)
_CHALLENGER = Stage(
    "challenger_predictions",
    ("features", "predictions", "challenger"),
    _score_challenger,
    {
        "reconciliation": "Feature rows = rows that it scored + rows that it cannot score, key by key, in order.",
        "finite": "No null, infinite number or NaN in the outputs.",
        "range": "Labels are the model's, probabilities are probabilities, embeddings have their length.",
        "failed_share": "Rows that it cannot score are at most max_error_share.",
        "comparison": "It reads the same features, and on the labels that are there it is not worse than the champion.",
    },
    "The challenger's predictions for the same rows, compared with the champion's; nothing acts on them.",
    blocking=False,
)
