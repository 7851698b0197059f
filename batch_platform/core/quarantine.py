"""The quarantine table: every row that could not be used, with its cause and place.

Decides what is kept of a bad row. It does not decide which rows are bad, or how many are too many.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.lake import Lake, Slot
from batch_platform.core.data.staging import StagedFile, stage
from batch_platform.core.features.chunks import parent_key
from batch_platform.core.slice import Slice

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


def stage_rejected(
    slice_: Slice, stage_name: Stage, rejected: Sequence[Rejected], attempt: int, folder: Path
) -> list[StagedFile]:
    """Write rejected rows as they stand in the table; no rows give no file."""
    origin = {"attempt": attempt, "run_id": slice_.run.run_id, "quarantined_at": datetime.now(UTC)}
    batch = pa.RecordBatch.from_pylist([asdict(row) | origin for row in rejected], SCHEMA)
    return stage([batch], SCHEMA, folder, stage_name)


def standing_quarantine(slice_: Slice, stage_name: Stage) -> list[Rejected]:
    """The rows that one stage of the slice has in quarantine."""
    names = ["row_key", "error_type", "message", "source_file", "source_row", "payload"]
    return [
        Rejected(**row)
        for batch in slice_.lake.batches("quarantine", slice_.key, names, stage=stage_name)
        for row in batch.to_pylist()
    ]


@dataclass(frozen=True)
class Cause:
    """Rows of a pipeline that were set aside for the same reason.

    Attributes:
        partitions: keys of the partitions they are in, in order.
        example: message of the first.
    """

    stage: str
    error_type: str
    rows: int
    partitions: tuple[str, ...]
    example: str


def causes(lake: Lake, partition_key: str | None = None) -> list[Cause]:
    """What stands in quarantine by stage and cause, the most frequent first.

    Args:
        partition_key: look at this partition alone.
    """
    counts: Counter[tuple[str, str]] = Counter()
    partitions: dict[tuple[str, str], dict[str, None]] = {}
    examples: dict[tuple[str, str], str] = {}
    for slot, rows in _standing(lake, partition_key, ["error_type", "message"]):
        for row in rows:
            cause = (slot.stage, row["error_type"])
            counts[cause] += 1
            partitions.setdefault(cause, {})[slot.partition_key] = None
            examples.setdefault(cause, row["message"])
    return [
        Cause(*cause, count, tuple(partitions[cause]), examples[cause])
        for cause, count in counts.most_common()
    ]


def quarantined_rows(
    lake: Lake, partition_key: str | None = None, stage_name: str | None = None, error_type: str | None = None
) -> Iterator[dict[str, Any]]:
    """The rows that stand in quarantine, as the table has them, by partition and stage."""
    for slot, rows in _standing(lake, partition_key, SCHEMA.names):
        for row in rows:
            if stage_name in (None, slot.stage) and error_type in (None, row["error_type"]):
                yield {"partition_key": slot.partition_key, "stage": slot.stage, **row}


def _standing(
    lake: Lake, partition_key: str | None, columns: list[str]
) -> Iterator[tuple[Slot, Iterator[dict[str, Any]]]]:
    for slot in lake.filled_slots("quarantine"):
        if partition_key in (None, slot.partition_key):
            batches = lake.batches(slot.table, slot.partition_key, columns, stage=slot.stage)
            yield slot, (row for batch in batches for row in batch.to_pylist())


def payload_of(slice_: Slice, row: Mapping[str, Any]) -> str | None:
    """A row as it may be kept: as JSON, or nothing where the pipeline has sensitive columns."""
    if slice_.spec.sensitive_columns:
        return None
    return json.dumps(row, default=str, ensure_ascii=False)[:_PAYLOAD_CHARACTERS]


def locate(slice_: Slice, keys: set[str]) -> dict[str, tuple[str, int]]:
    """Where feature rows of the slice came from: row key -> (source file, row number)."""
    if not keys:
        return {}
    features = slice_.lake.head(Slot("features", slice_.key))
    if features is not None and features.receipt.get("expands", False):
        parents = locate_raw(slice_, {parent_key(key) for key in keys})
        return {key: parents[parent_key(key)] for key in keys}
    return locate_raw(slice_, keys)


def locate_raw(slice_: Slice, keys: set[str]) -> dict[str, tuple[str, int]]:
    """Where raw rows of the slice came from: row key -> (source file, row number)."""
    places: dict[str, tuple[str, int]] = {}
    wanted = pa.array(sorted(keys), pa.string())
    for batch in slice_.lake.batches("raw", slice_.key, ["row_key", "source_file", "source_row"]):
        found = batch.filter(pc.is_in(batch["row_key"], value_set=wanted))
        for key, file, row in zip(*(column.to_pylist() for column in found.columns), strict=True):
            places[key] = (file, row)
        if len(places) == len(keys):  # a key is unique in a partition
            break
    return places
