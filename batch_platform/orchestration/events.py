"""The events that one stage of one date leaves in Dagster.

Everything that uses a private name of Dagster is here; `pyproject.toml` pins its version and a test guards
the behaviour. A step that reports many dates by itself must write the tags that Dagster otherwise writes.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    INPUT_DATA_VERSION_TAG_PREFIX,
    INPUT_EVENT_POINTER_TAG_PREFIX,
)
from dagster._core.definitions.source_asset import (
    SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION as NO_AUTOMATIC_EVENT,
)
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.storage.tags import RETRY_ON_ASSET_OR_OP_FAILURE_TAG

from batch_platform.core.gate import CheckResult
from batch_platform.orchestration.metadata import as_metadata, model_metadata

if TYPE_CHECKING:
    from batch_platform.core.models.registry import RegisteredVersion

# One check per asset tells whether the stage ended well for the date. Without it, Dagster's "re-execute
# from failure" finds nothing to retry.
COMPLETE = "complete"

# What a run meets that is stopped by a signal: from a person, or from a machine that is preempted.
INTERRUPTED = (KeyboardInterrupt, DagsterExecutionInterruptedError)


def materialization(
    key: dg.AssetKey,
    partition: str,
    metadata: Mapping[str, dg.MetadataValue],
    data_version: str,
    code_version: str,
    inputs: Mapping[dg.AssetKey, tuple[str, str]],
) -> dg.AssetMaterialization:
    """The event that a partition of an asset was made.

    Args:
        inputs: what it was made of: upstream key -> (data version, storage id of the upstream's event, or
            "NULL" for an upstream that has none).
    """
    tags = {
        DATA_VERSION_TAG: data_version,
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
        CODE_VERSION_TAG: code_version,
    }
    for upstream, (version, pointer) in inputs.items():
        name = upstream.to_user_string()
        tags[f"{INPUT_DATA_VERSION_TAG_PREFIX}/{name}"] = version
        tags[f"{INPUT_EVENT_POINTER_TAG_PREFIX}/{name}"] = pointer
    return dg.AssetMaterialization(key, partition=partition, metadata=metadata, tags=tags)


def model_observation(key: dg.AssetKey, model: "RegisteredVersion") -> dg.AssetObservation:
    """The event that the pipeline's alias was seen to point to a version; its digest is the data version."""
    return version_observation(key, model.digest, model_metadata(model))


def version_observation(
    key: dg.AssetKey, digest: str, metadata: Mapping[str, dg.MetadataValue] | None = None
) -> dg.AssetObservation:
    """The same of a version of which only the digest is known."""
    return dg.AssetObservation(
        key,
        tags={DATA_VERSION_TAG: digest, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"},
        metadata=metadata,
    )


def newest_materialization(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> tuple[str, str]:
    """Data version and storage id of a partition's newest materialization; ("", "NULL") without one."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
    ).records
    if not records:
        return "", "NULL"
    made = records[0].asset_materialization
    tags = {} if made is None else made.tags or {}
    return tags.get(DATA_VERSION_TAG, ""), str(records[0].storage_id)


def evaluation(
    key: dg.AssetKey, partition: str, check: CheckResult, blocking: bool = True
) -> dg.AssetCheckEvaluation:
    """One verdict of the gate, as Dagster shows it for the partition."""
    return dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=check.name,
        passed=check.passed,
        partition=partition,
        blocking=blocking and check.severity == "error",
        severity=dg.AssetCheckSeverity.ERROR if check.severity == "error" else dg.AssetCheckSeverity.WARN,
        description=check.description,
        metadata=as_metadata(check.values),
    )


def complete(key: dg.AssetKey, partition: str, cause: str = "") -> dg.AssetCheckEvaluation:
    """The verdict on the stage as a whole; a cause says why it is incomplete."""
    return evaluation(key, partition, CheckResult(COMPLETE, not cause, cause or "the stage ended well"))


def release_downstream(assets: dg.AssetsDefinition, selected: Iterable[dg.AssetKey]) -> Iterator[dg.Output]:
    """Let assets of other definitions that depend on these run, without a second event per date."""
    for key in selected:
        yield dg.Output(
            None,
            output_name=assets.get_output_name_for_asset_key(key),
            metadata={NO_AUTOMATIC_EVENT: True},
        )


def let_be_retried(instance: dg.DagsterInstance, run_id: str) -> None:
    """Allow the daemon to start a run again that did not fail by itself; one that a person canceled is not failed."""
    instance.add_run_tags(run_id, {RETRY_ON_ASSET_OR_OP_FAILURE_TAG: "true"})
