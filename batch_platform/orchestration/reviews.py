"""The owner's decision in the Dagster UI: a job with a form, and a sensor that lets every decision take effect.

However a decision was recorded (the form, the command line), the sensor judges the alarms again that it speaks of,
so that checks show it, and starts the training that it asks for.
"""

from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from pydantic import Field

from batch_platform.core.layout import Layout
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import BatchPlatformError
from batch_platform.orchestration.metadata import link
from batch_platform.orchestration.stages import asset_key
from batch_platform.settings import Settings

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_SECONDS = 30


class OwnersDecision(Enum):
    """What may be decided on an alarm."""

    accept = "accept"
    reject = "reject"
    new_reference = "new_reference"


class AlarmOf(Enum):
    """What the alarm is about."""

    drift = "drift"
    quality = "quality"


class ReviewConfig(dg.Config):
    """The form of a decision."""

    partition: str = Field(description="The partition whose alarm is decided on, e.g. 2026-01-31.")
    decision: OwnersDecision = Field(
        description="accept: expected, does not fire again. reject: not as it should be, goes on firing. "
        "new_reference: compare with the partitions up to this one from now on."
    )
    by: str = Field(description="Who decides.")
    why: str = Field(description="The reason; shown wherever the alarm is.")
    about: AlarmOf = Field(
        default=AlarmOf.drift,
        description="drift, or quality: what is unusual in the data quality, also where the partition was not "
        "published for it.",
    )
    retrain: bool = Field(default=False, description="With reject: start the asset `training`.")
    since: str = Field(
        default="",
        description="With new_reference: its first partition. Empty: as many as drift.reference_partitions says.",
    )


def review_job(spec: PipelineSpec, is_trained: bool) -> dg.JobDefinition:
    """The job `<pipeline>_drift_review`; launch it from the UI's launchpad.

    Args:
        is_trained: whether the pipeline has the asset `training`.
    """

    @dg.op(
        name=f"{spec.name}__decision",
        description="Records what an owner decided on an alarm of a partition.",
    )
    def decision(context: dg.OpExecutionContext, config: ReviewConfig) -> None:
        from batch_platform.core.reviewing import as_values, decide
        from batch_platform.core.trending import write_trend

        settings = Settings.from_env()
        try:
            if config.retrain and not is_trained:
                raise BatchPlatformError(f"pipeline {spec.name} has no asset `training`: leave `retrain` out")
            made = decide(
                spec,
                settings,
                config.partition,
                config.decision.value,
                config.by,
                config.why,
                config.retrain,
                config.since or None,
                config.about.value,
            )
            page = write_trend(Layout.of(settings, spec.name))
        except BatchPlatformError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        context.log.info(f"decision {made.number}: {made.partition_key} {made.words}")
        shown = {"decision": dg.MetadataValue.json(dict(as_values(made))), "trend": link(page, settings)}
        context.add_output_metadata(shown)

    @dg.job(
        name=f"{spec.name}_drift_review",
        description=f"An owner's decision on an alarm of {spec.name}, of drift or data quality: fill in the form, launch.",
    )
    def review() -> None:
        decision()

    return review


def training_job(spec: PipelineSpec) -> "UnresolvedAssetJobDefinition":
    """A job over the asset `training` alone."""
    return dg.define_asset_job(
        f"{spec.name}_training",
        selection=[asset_key(spec, "training")],
        description=f"Trains the model of {spec.name}.",
    )


def review_sensor(
    spec: PipelineSpec, job: "UnresolvedAssetJobDefinition", training: "UnresolvedAssetJobDefinition | None"
) -> dg.SensorDefinition:
    """Lets each new decision take effect, once; on from the start.

    Args:
        job: the pipeline's job over all stages.
        training: the job that trains; None for a pipeline without a training.
    """

    @dg.sensor(
        name=f"{spec.name}_reviews",
        jobs=[job, training] if training else [job],
        minimum_interval_seconds=_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="After an owner's decision: judges the alarms again that it speaks of; trains where it says so.",
    )
    def reviews(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        from batch_platform.core.monitoring.reviews import ReviewStore
        from batch_platform.core.reviewing import ranges_to_judge_again

        layout = Layout.of(Settings.from_env(), spec.name)
        seen = int(context.cursor or 0)
        new = [review for review in ReviewStore(layout.monitoring).all() if review.number > seen]
        if not new:
            yield dg.SkipReason("no new decision")
            return
        for review in new:
            # What was refused for its quality goes through all stages now.
            selection = [asset_key(spec, "drift_report")] if review.about == "drift" else None
            for first, last in ranges_to_judge_again(spec, layout, review):
                yield dg.RunRequest(
                    run_key=f"decision {review.number} {first.key}",
                    job_name=job.name,
                    asset_selection=selection,
                    tags={
                        ASSET_PARTITION_RANGE_START_TAG: first.key,
                        ASSET_PARTITION_RANGE_END_TAG: last.key,
                    },
                )
            if review.retrain and training is not None:
                yield dg.RunRequest(run_key=f"decision {review.number} training", job_name=training.name)
        context.update_cursor(str(new[-1].number))

    return reviews
