"""The table `delivered`: what each sink was given last of a partition, as the lake remembers it.

The sink's own memory decides whether a delivery is done; this one answers, without asking any sink, where rows are. A sink
that is no longer in the pipeline file keeps what it was given, and stays in the table. It delivers nothing.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from batch_platform.core.data.consignment import Delivered
from batch_platform.core.data.lake import Commit, Lake
from batch_platform.core.provenance.fingerprint import fingerprint
from batch_platform.core.provenance.receipts import inherited, read_from
from batch_platform.core.slice import Slice, commit_small
from batch_platform.errors import SupersededError

TABLE = "delivered"
_SCHEMA = pa.schema(
    [
        ("sink", pa.string()),
        ("predictions_attempt", pa.int64()),  # the commit of predictions that the sink holds
        ("predictions_fingerprint", pa.string()),
        ("rows", pa.int64()),
        ("run_id", pa.string()),
        ("delivered_at", pa.timestamp("us", "UTC")),
    ]
)

Row = dict[str, Any]


def remember(slice_: Slice, commit: Commit, done: Delivered) -> None:
    """Write down that a sink holds this commit of predictions.

    Raises:
        StorageError: the lake cannot be written.
    """
    while not _is_known(slice_, commit, done):
        try:
            _write(slice_, commit, done)
        except SupersededError:
            continue  # another run has written down a delivery to another sink meanwhile


def _is_known(slice_: Slice, commit: Commit, done: Delivered) -> bool:
    """Whether this or a newer delivery to the sink is written down."""
    known = [row for row in standing(slice_.lake, slice_.key) if row["sink"] == done.sink]
    newer = [row for row in known if row["predictions_attempt"] > commit.attempt]
    return bool(newer) or (commit.attempt, commit.fingerprint) in map(_given, known)


def _write(slice_: Slice, commit: Commit, done: Delivered) -> None:
    known = {row["sink"]: row for row in standing(slice_.lake, slice_.key)}
    known[done.sink] = {
        "sink": done.sink,
        "predictions_attempt": commit.attempt,
        "predictions_fingerprint": commit.fingerprint,
        "rows": commit.rows,
        "run_id": slice_.run.run_id,
        "delivered_at": datetime.now(UTC),
    }
    rows = pa.RecordBatch.from_pylist([known[sink] for sink in sorted(known)], _SCHEMA)
    what = {**inherited(commit.receipt), **read_from("predictions", commit.receipt), "rows_in": commit.rows}
    commit_small(slice_, TABLE, rows, fingerprint({sink: _given(row) for sink, row in known.items()}), **what)


def standing(lake: Lake, partition_key: str) -> list[Row]:
    """What the sinks hold of a partition: a row for each, by its name."""
    return [row for batch in lake.batches(TABLE, partition_key) for row in batch.to_pylist()]


def _given(row: Mapping[str, Any]) -> tuple[int, str]:
    return row["predictions_attempt"], row["predictions_fingerprint"]
