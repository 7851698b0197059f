"""The housekeeping of a pipeline as a job that runs once a day, and whenever someone launches it."""

from datetime import UTC, datetime

import dagster as dg

from batch_platform.core.spec import PipelineSpec
from batch_platform.settings import Settings


def maintenance_job(spec: PipelineSpec) -> dg.JobDefinition:
    """Removes what `retention` has no need to keep."""

    @dg.op(name=f"{spec.name}__housekeeping")
    def housekeeping(context: dg.OpExecutionContext) -> None:
        from batch_platform.core.housekeeping import clean

        cleaned = clean(spec, Settings.from_env(), datetime.now(UTC), context.log.info)
        for reason, count in sorted(cleaned.files.items()):
            context.log.info(f"removed {count} files, {cleaned.bytes[reason]} bytes: {reason}")
        context.log.info(
            f"{sum(cleaned.files.values())} files removed; {cleaned.expired} quarantines without payloads now"
        )

    @dg.job(
        name=f"{spec.name}_maintenance", description=f"Housekeeping of {spec.name} after its `retention`."
    )
    def maintenance() -> None:
        housekeeping()

    return maintenance


def maintenance_schedule(spec: PipelineSpec, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Once a day, early; on from the start, so that `retention` holds wherever a daemon runs."""
    return dg.ScheduleDefinition(
        name=f"{spec.name}_maintenance_schedule",
        job=job,
        cron_schedule="30 4 * * *",
        execution_timezone=spec.partitions.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
