"""The job and the schedule of a pipeline.

At a tick the schedule asks for the newest partition that has ended and for those within `catch_up` that are
missing or failed, or stale where the pipeline file says so, in as few runs as contiguous ranges allow, and never
for one that a run is working on or waiting for.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from batch_platform.core import outcomes
from batch_platform.core.data.partitions import Partition, PartitionCalendar, contiguous
from batch_platform.core.layout import Layout
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.staleness import code_versions, digests_now, stale_stages
from batch_platform.orchestration.partitions import partitions_definition
from batch_platform.orchestration.stages import asset_key, stages_of
from batch_platform.settings import Settings

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

PIPELINE_TAG = "batch_platform/pipeline"
_ALIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def pipeline_job(spec: PipelineSpec) -> "UnresolvedAssetJobDefinition":
    """A job over all partitioned assets of the pipeline."""
    return dg.define_asset_job(
        spec.name,
        selection=[asset_key(spec, stage.name) for stage in stages_of(spec)],
        tags={PIPELINE_TAG: spec.name},
        description=f"All stages of {spec.name} for a partition or a range of them.",
    )


def pipeline_schedule(spec: PipelineSpec, job: "UnresolvedAssetJobDefinition") -> list[dg.ScheduleDefinition]:
    """The pipeline's schedule; none for `trigger: manual`."""
    if spec.automation.trigger != "schedule":
        return []
    assert spec.automation.cron is not None

    @dg.schedule(
        name=f"{spec.name}_schedule",
        job=job,
        cron_schedule=spec.automation.cron,
        execution_timezone=spec.partitions.timezone,
        description=f"Newest partition, and missing or failed ones of the {spec.automation.catch_up} before it.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        layout = Layout.of(Settings.from_env(), spec.name)
        window = due_window(
            spec.partitions.calendar(), context.scheduled_execution_time, spec.automation.catch_up
        )
        stages = [stage.name for stage in stages_of(spec)]
        old = _stale(spec, layout, window) if spec.automation.redo_stale else set()
        unfinished = [
            partition
            for partition in window
            if partition.key in old or not outcomes.finished(layout, partition.key, stages)
        ]
        busy = _partitions_in_progress(context.instance, spec)
        wanted = [partition for partition in unfinished if partition.key not in busy]
        if not wanted:
            yield dg.SkipReason(
                f"nothing to do: of {len(window)} partitions {len(window) - len(unfinished)} are done and "
                f"{len(unfinished)} are being worked on"
            )
        for first, last in contiguous(wanted):
            yield dg.RunRequest(
                # A tick that the daemon repeats after a crash asks for nothing twice.
                run_key=f"{context.scheduled_execution_time.isoformat()} {first.key}",
                tags={
                    PIPELINE_TAG: spec.name,
                    ASSET_PARTITION_RANGE_START_TAG: first.key,
                    ASSET_PARTITION_RANGE_END_TAG: last.key,
                },
            )

    return [schedule]


def due_window(calendar: PartitionCalendar, now: datetime, catch_up: int) -> list[Partition]:
    """The newest partition that has ended by `now`, and the `catch_up` ones before it, oldest first."""
    return calendar.newest(now, catch_up + 1)


def _stale(spec: PipelineSpec, layout: Layout, window: list[Partition]) -> set[str]:
    """Keys of the partitions that were made by another model, recipe, contract or setting than those of now."""
    versions = code_versions(spec, [stage.name for stage in stages_of(spec)])
    digests = digests_now(spec, Settings.from_env().root)
    return {
        partition.key
        for partition in window
        if stale_stages(outcomes.recall(layout, partition.key), versions, digests)
    }


def _partitions_in_progress(instance: dg.DagsterInstance, spec: PipelineSpec) -> set[str]:
    """Keys of the partitions that queued or running runs of this pipeline cover."""
    definition = partitions_definition(spec.partitions)
    busy: set[str] = set()
    # Runs of the pipeline's job carry its tag; runs launched from the asset pages are found by their assets.
    predictions = {asset_key(spec, stage.name) for stage in stages_of(spec)}
    for run in instance.get_runs(dg.RunsFilter(statuses=_ALIVE)):
        ours = run.tags.get(PIPELINE_TAG) == spec.name or predictions & set(run.asset_selection or ())
        if not ours:
            continue
        first, last = (
            run.tags.get(ASSET_PARTITION_RANGE_START_TAG),
            run.tags.get(ASSET_PARTITION_RANGE_END_TAG),
        )
        if first and last:
            busy.update(definition.get_partition_keys_in_range(dg.PartitionKeyRange(first, last)))
        elif key := run.tags.get("dagster/partition"):
            busy.add(key)
    return busy
