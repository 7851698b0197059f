"""A day of the pipeline `mini` made without Dagster: landed, featurized, scored."""

from batch_platform.core import featurizing, landing, scoring
from batch_platform.core.models.registry import Registry
from batch_platform.core.slice import Run, Slice
from batch_platform_tests.mini import Mini


def slice_of(mini: Mini, day: str, run: str = "run-1") -> Slice:
    partition = mini.spec.partitions.calendar().partition(day)
    return Slice(mini.spec, partition, mini.settings, mini.folder, Run(run))


def make(mini: Mini, day: str, run: str = "run-1") -> None:
    """All stages up to the predictions, by the model that is champion now."""
    slice_ = slice_of(mini, day, run)
    landing.land_partition(slice_)
    featurizing.featurize_partition(slice_)
    model = Registry(mini.settings.root).resolve("churn", "champion")
    scoring.score_partition(
        slice_, model, scoring.load_engine(model, mini.spec, mini.settings.root), lambda line: None
    )
