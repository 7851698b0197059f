"""Performance is measured, and the challenger compared, again when labels land after their partition was measured."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from batch_platform.core.data.partitions import contiguous
from batch_platform.core.spec import PipelineSpec
from batch_platform.orchestration.stages import asset_key
from batch_platform.settings import Settings, project_root

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_SECONDS = 600


def late_labels_sensor(spec: PipelineSpec, job: "UnresolvedAssetJobDefinition") -> list[dg.SensorDefinition]:
    """Asks for `performance` of the partitions whose label files changed; none without labels. On from the start.

    Args:
        job: the pipeline's job over all stages.
    """
    if spec.labels is None:
        return []

    @dg.sensor(
        name=f"{spec.name}_late_labels",
        job=job,
        minimum_interval_seconds=_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Measures performance again where label files are new or changed.",
    )
    def late_labels() -> Iterator[dg.RunRequest | dg.SkipReason]:
        from batch_platform.core.evaluating import with_new_labels
        from batch_platform.core.provenance.fingerprint import fingerprint

        stamps = dict(with_new_labels(spec, Settings.from_env(), project_root(), datetime.now(UTC)))
        if not stamps:
            yield dg.SkipReason("no label file is new or changed")
        calendar = spec.partitions.calendar()
        asked = ["performance", *(["challenger_predictions"] if spec.model.challenger is not None else [])]
        for first, last in contiguous([calendar.partition(key) for key in stamps]):
            seen = {key: stamp for key, stamp in stamps.items() if first.key <= key <= last.key}
            yield dg.RunRequest(
                run_key=f"labels {first.key} {fingerprint(seen)}",
                asset_selection=[asset_key(spec, stage) for stage in asked],
                tags={ASSET_PARTITION_RANGE_START_TAG: first.key, ASSET_PARTITION_RANGE_END_TAG: last.key},
            )

    return [late_labels]
