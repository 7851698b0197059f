"""Stage `delivered`: the committed predictions of one partition brought to where they are used.

Only what passed the gate is committed, and only what is committed is delivered. Each sink remembers what it was given last,
so that killed deliveries are repeated and done ones are not; the lake remembers it too. It does not know how a sink writes.
"""

from collections.abc import Iterator

import pyarrow as pa

from batch_platform.core import deliveries
from batch_platform.core.data.consignment import Consignment, Delivered
from batch_platform.core.data.databases.address import Address
from batch_platform.core.data.databases.delivery import deliver
from batch_platform.core.data.exports import export
from batch_platform.core.data.finding import place_of
from batch_platform.core.data.lake import PARTITION_COLUMN, Commit, Slot
from batch_platform.core.data.staging import read_files
from batch_platform.core.gate import CheckResult
from batch_platform.core.provenance.fingerprint import fingerprint
from batch_platform.core.slice import Slice, StageResult
from batch_platform.core.spec import SinkSpec
from batch_platform.errors import DeliveryError, SupersededError


def deliver_partition(slice_: Slice) -> StageResult:
    """Deliver one partition's predictions to all sinks.

    Raises:
        UpstreamMissingError: the partition has not been scored.
        DeliveryError: a sink refuses; it holds what it held before.
        SupersededError: a newer commit of the partition was delivered already.
        SettingsError: a database's address is not in the environment.
    """
    commit = slice_.committed("predictions")
    what = _consignment(slice_, commit)
    try:
        done = [_deliver(slice_, sink, what, commit) for sink in slice_.spec.sinks]
    except SupersededError as error:
        standing = slice_.committed("predictions")
        if standing.attempt == commit.attempt:  # no newer run delivered it: the sink knows another lake
            raise DeliveryError(str(error)) from None
        raise
    if slice_.committed("predictions").attempt != commit.attempt:
        # A file has no transaction: a newer commit's may just have been overwritten, and is written again.
        return deliver_partition(slice_)
    words = f"{what.rows} rows are predicted, and every sink holds them and no others"
    return StageResult(
        table="delivered",
        rows=what.rows,
        data_version=fingerprint({"predictions": commit.fingerprint, "sinks": [sink.sink for sink in done]}),
        reused=all(sink.reused for sink in done),
        checks=(CheckResult("delivered", True, words, {"rows": what.rows}),),
        metadata={
            "predictions_commit": commit.attempt,
            **{
                sink.sink: {"written": sink.written, "removed": sink.removed, "reused": sink.reused}
                for sink in done
            },
        },
    )


def _consignment(slice_: Slice, commit: Commit) -> Consignment:
    schema = slice_.lake.schema("predictions")
    assert schema is not None  # there is a commit
    return Consignment(
        pipeline=slice_.spec.name,
        partition_key=slice_.key,
        attempt=commit.attempt,
        fingerprint=commit.fingerprint,
        rows=commit.rows,
        schema=pa.schema([(PARTITION_COLUMN, pa.string()), *schema]),
        run_id=slice_.run.run_id,
    )


def _deliver(slice_: Slice, sink: SinkSpec, what: Consignment, commit: Commit) -> Delivered:
    rows = _rows(slice_, commit, what.schema)
    if sink.uri is not None:
        with slice_.workspace("delivered", commit.attempt) as scratch:
            done = export(place_of(sink.uri, slice_.base), sink.type, what, rows, scratch)
    else:
        assert sink.connection_env is not None and sink.table is not None  # the pipeline file was checked
        done = deliver(Address.from_env(sink.connection_env, slice_.base), sink.table, what, rows)
    deliveries.remember(slice_, commit, done)
    return done


def _rows(slice_: Slice, commit: Commit, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of exactly this commit, whatever stands by now; columns that it has not are null."""
    slot = Slot("predictions", slice_.key)
    for batch in read_files(slice_.lake.location(slot, file["path"]) for file in commit.receipt["files"]):
        keys = pa.repeat(pa.scalar(slice_.key), batch.num_rows)
        there = set(batch.schema.names)
        columns = [
            batch[field.name].cast(field.type)
            if field.name in there
            else pa.nulls(batch.num_rows, field.type)
            for field in list(schema)[1:]
        ]
        yield pa.RecordBatch.from_arrays([keys, *columns], schema=schema)
