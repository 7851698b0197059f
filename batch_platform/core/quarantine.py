"""The quarantine table: every row that could not be used, with its cause and place.

Decides what is kept of a bad row. It does not decide which rows are bad, or how many are too many.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.lake import Slot
from batch_platform.core.data.staging import StagedFile, stage
from batch_platform.core.gate import CheckResult, enforce
from batch_platform.core.slice import Slice
from batch_platform.errors import GateError, SupersededError

Stage = Literal["raw", "features", "predictions"]
_PAYLOAD_CHARACTERS = 2_000

# Without the partition columns `partition_key` and `stage`.
SCHEMA = pa.schema(
    [
        ("row_key", pa.string()),
        ("error_type", pa.string()),
        ("message", pa.string()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("payload", pa.string()),
        ("attempt", pa.int64()),
        ("run_id", pa.string()),
        ("quarantined_at", pa.timestamp("us", tz="UTC")),
    ]
)


def commit_quarantine(
    slice_: Slice, stage_name: Stage, rejected: Sequence[Rejected], fingerprint: str, attempt: int
) -> None:
    """Make these rows the quarantine of one stage of the slice; none clears it.

    Args:
        fingerprint: of the work that rejected them, so that a repeated run changes nothing.
        attempt: the stage's own, so that rows and quarantine of two attempts are never mixed.

    Raises:
        SupersededError: a newer attempt of the stage has committed.
        StorageError: the lake cannot be written.
    """
    lake, slot = slice_.lake, Slot("quarantine", slice_.key, stage_name)
    stage_head = lake.head(Slot(stage_name, slice_.key))
    if stage_head is not None and stage_head.attempt > attempt and stage_head.fingerprint != fingerprint:
        raise SupersededError(
            f"{slice_.about}: attempt {attempt} of {stage_name} is superseded by attempt {stage_head.attempt}; "
            "there is nothing left to do"
        )
    standing = lake.head(slot)
    if standing is None and not rejected:
        return
    if standing is not None and standing.fingerprint == fingerprint:
        return
    staged = _stage_rows(slice_, stage_name, rejected, attempt, f"quarantine-{attempt}")
    lake.commit(slot, staged, SCHEMA, slice_.receipt(fingerprint), attempt)


def publishable(
    slice_: Slice, stage_name: Stage, checks: tuple[CheckResult, ...], rejected: Sequence[Rejected]
) -> None:
    """Pass the gate; a refused result is not published, and its bad rows are kept where they can be read.

    Raises:
        GateError: names every failed check, and the file with the bad rows.
    """
    try:
        enforce(checks, slice_.about)
    except GateError as error:
        if not rejected:
            raise
        (file,) = _stage_rows(slice_, stage_name, rejected, 0, f"refused-{stage_name}")
        raise GateError(f"{error}; the rows are in {file.path}", error.checks) from None


def _stage_rows(
    slice_: Slice, stage_name: Stage, rejected: Sequence[Rejected], attempt: int, folder: str
) -> list[StagedFile]:
    now = datetime.now(UTC)
    origin = {"attempt": attempt, "run_id": slice_.run.run_id, "quarantined_at": now}
    rows = [asdict(row) | origin for row in rejected]
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    return stage([batch], SCHEMA, slice_.layout.staging(slice_.key) / folder, stage_name)


def standing_quarantine(slice_: Slice, stage_name: Stage) -> list[Rejected]:
    """The rows that one stage of the slice has in quarantine."""
    names = ["row_key", "error_type", "message", "source_file", "source_row", "payload"]
    return [
        Rejected(**row)
        for batch in slice_.lake.batches("quarantine", slice_.key, names, stage=stage_name)
        for row in batch.to_pylist()
    ]


def payload_of(slice_: Slice, row: Mapping[str, Any]) -> str | None:
    """A row as it may be kept: as JSON, or nothing where the pipeline has sensitive columns."""
    if any(column.sensitive for column in slice_.spec.source.columns.values()):
        return None
    return json.dumps(row, default=str, ensure_ascii=False)[:_PAYLOAD_CHARACTERS]


def locate(slice_: Slice, keys: set[str]) -> dict[str, tuple[str, int]]:
    """Where rows of the slice came from: row key -> (source file, row number)."""
    places: dict[str, tuple[str, int]] = {}
    if not keys:
        return places
    wanted = pa.array(sorted(keys), pa.string())
    for batch in slice_.lake.batches("raw", slice_.key, ["row_key", "source_file", "source_row"]):
        found = batch.filter(pc.is_in(batch["row_key"], value_set=wanted))
        for key, file, row in zip(*(column.to_pylist() for column in found.columns), strict=True):
            places[key] = (file, row)
    return places
