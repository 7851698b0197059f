"""OpenLineage events: every materialization of every stage, for catalogs that draw lineage across platforms.

Off unless OPENLINEAGE_URL or OPENLINEAGE_CONFIG is set; where events go, and with which credentials, is for
openlineage-python's own settings to say. Events carry names, versions, schemas and counts, and no row. A receiver that does
not answer stops no partition: what it missed is told, and in the receipts.
"""

import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_platform.core.data.files import Location
from batch_platform.core.data.finding import place_of
from batch_platform.core.data.lake import Slot
from batch_platform.core.slice import Slice, StageResult
from batch_platform.core.spec import SinkSpec
from batch_platform.errors import SettingsError

_SETTINGS = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
_PRODUCER = f"urn:batch-platform:{version('batch_platform')}"  # a URI, as the standard wants
_NAMESPACE = uuid.UUID("5b0e53ae-4a5e-5f0c-9d8b-6f1f6a0f2d11")


class LineageEvents:
    """Sends events; after the first that is not taken, no more are tried in this run.

    Args:
        client: of openlineage-python.
        tell: told where an event was not taken.
    """

    def __init__(self, client: Any, tell: Callable[[str], None]) -> None:
        self._client, self._tell = client, tell
        self._namespace = os.environ.get("OPENLINEAGE_NAMESPACE") or "batch_platform"

    @classmethod
    def from_env(cls, tell: Callable[[str], None]) -> "LineageEvents | None":
        """The sender that the environment asks for; None where it asks for none.

        Raises:
            SettingsError: openlineage-python is not installed, or does not accept its settings.
        """
        if not any(os.environ.get(name) for name in _SETTINGS):
            return None
        try:
            from openlineage.client import OpenLineageClient
        except ImportError:
            raise SettingsError(
                "OpenLineage is configured and not installed: pip install 'batch_platform[openlineage]'"
            ) from None
        try:
            return cls(OpenLineageClient(), tell)
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise SettingsError(f"OpenLineage's settings cannot be used: {error}") from error

    def materialized(
        self,
        slice_: Slice,
        stage: str,
        upstream: Iterable[str],
        result: StageResult,
        models: Mapping[str, str],
    ) -> None:
        """Say that a stage of a partition was made.

        Args:
            stage: its name.
            upstream: names of the assets that it was made of.
            models: digests of those that are a model.
        """
        if self._client is None:
            return
        import requests
        from openlineage.client.event_v2 import Job, RunEvent, RunState

        event = RunEvent(
            eventType=RunState.COMPLETE,
            eventTime=datetime.now(UTC).isoformat(),
            run=self._run(slice_, stage),
            job=Job(namespace=self._namespace, name=f"{slice_.spec.name}.{stage}"),
            producer=_PRODUCER,
            inputs=_inputs(slice_, stage, upstream, models),
            outputs=_outputs(slice_, stage, result),
        )
        try:
            self._client.emit(event)
        except requests.RequestException as error:
            self._client = None
            self._tell(
                f"{slice_.about}: OpenLineage's receiver did not take the event of {stage} ({type(error).__name__}); no "
                "more are sent in this run. The receipts have everything"
            )

    def _run(self, slice_: Slice, stage: str) -> Any:
        from openlineage.client.event_v2 import Run
        from openlineage.client.facet_v2 import nominal_time_run, parent_run

        partition = slice_.partition
        made = f"{slice_.run.run_id}/{slice_.spec.name}/{stage}/{slice_.key}"
        parent = parent_run.ParentRunFacet(
            parent_run.Run(runId=_uuid(slice_.run.run_id)),
            parent_run.Job(namespace=self._namespace, name=slice_.spec.name),
        )
        window = nominal_time_run.NominalTimeRunFacet(partition.start.isoformat(), partition.end.isoformat())
        facets = {"parent": parent, "nominalTime": window}
        return Run(runId=str(uuid.uuid5(_NAMESPACE, made)), facets=facets)


def _uuid(run_id: str) -> str:
    """The run's own id, which is a UUID for a run of Dagster."""
    try:
        return str(uuid.UUID(run_id))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, run_id))


def _inputs(slice_: Slice, stage: str, upstream: Iterable[str], models: Mapping[str, str]) -> list[Any]:
    from openlineage.client.event_v2 import InputDataset

    found = []
    if stage == "raw":
        files = slice_.committed("raw").receipt["counts"]["files"]
        for name in files:
            found.append(InputDataset(**_source(slice_, name)))
    for name in upstream:
        if name in models:
            place = slice_.settings.registry / slice_.spec.model.name
            found.append(InputDataset(**_named(place), facets=_version(models[name])))
        else:
            head = slice_.committed(name)
            facets = {**_version(str(head.receipt["version"])), **_schema(slice_.lake.schema(name))}
            found.append(InputDataset(**_named(slice_.layout.table(name)), facets=facets))
    return found


def _outputs(slice_: Slice, stage: str, result: StageResult) -> list[Any]:
    """The table that was committed to, or the databases and folders that were delivered to."""
    return (
        [_delivered(slice_, sink, result) for sink in slice_.spec.sinks]
        if stage == "delivered"
        else [_output(slice_, result)]
    )


def _delivered(slice_: Slice, sink: SinkSpec, result: StageResult) -> Any:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    if sink.uri is not None:
        named = _named(place_of(sink.uri, slice_.base))
    else:
        named = {"namespace": "sql", "name": f"{sink.connection_env}.{sink.table}"}
    counted = statistics.OutputStatisticsOutputDatasetFacet(rowCount=result.rows)
    facets = dict(_schema(slice_.lake.schema("predictions")))
    return OutputDataset(**named, facets=facets, outputFacets={"outputStatistics": counted})


def _output(slice_: Slice, result: StageResult) -> Any:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    head = slice_.lake.head(Slot(result.table, slice_.key))
    facets = dict(_schema(slice_.lake.schema(result.table)))
    size = None
    if head is not None:
        facets |= _version(str(head.receipt["version"]))
        size = sum(file["size"] for file in head.receipt["files"])
    counted = statistics.OutputStatisticsOutputDatasetFacet(rowCount=result.rows, size=size)
    return OutputDataset(
        **_named(slice_.layout.table(result.table)), facets=facets, outputFacets={"outputStatistics": counted}
    )


def _source(slice_: Slice, name: str) -> dict[str, Any]:
    """A source by its name in tables: a file, an object, or a query by the variable that names its database."""
    kind, separator, variable = name.partition(":")
    if separator and kind == "sql":
        return {"namespace": "sql", "name": variable}
    return _named(place_of(name, slice_.base))


def _named(place: Location) -> dict[str, Any]:
    """Namespace and name of a dataset as OpenLineage names files: `file` and the path, or the bucket and the key."""
    if isinstance(place, Path):
        return {"namespace": "file", "name": str(place)}
    return {"namespace": f"s3://{place.bucket.name}", "name": place.key}


def _version(text: str) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_version_dataset as versions

    return {"version": versions.DatasetVersionDatasetFacet(datasetVersion=text)}


def _schema(schema: pa.Schema | None) -> Mapping[str, Any]:
    from openlineage.client.facet_v2 import schema_dataset

    if schema is None:
        return {}
    fields = [schema_dataset.SchemaDatasetFacetFields(name=each.name, type=str(each.type)) for each in schema]
    return {"schema": schema_dataset.SchemaDatasetFacet(fields=fields)}
