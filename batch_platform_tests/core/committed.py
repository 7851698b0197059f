"""Committed tables without the stages that make them: what a test of a later stage starts from."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_platform.core.data.lake import Slot
from batch_platform.core.data.staging import stage
from batch_platform.core.slice import Run, Slice
from batch_platform.core.spec import parse_spec
from batch_platform.settings import Settings

ATTRIBUTES: dict[str, Any] = {
    "partitions": {"start": "2026-01-01", "end": "2026-03-01"},
    "source": {
        "uri": "data/{partition}.csv",
        "format": "csv",
        "row_key": "id",
        "columns": {"id": {"type": "string", "required": True}, "amount": {"type": "float64"}},
    },
    "model": {"name": "churn"},
}


def slice_of(folder: Path, key: str, **sections: Any) -> Slice:
    """A partition of a pipeline file whose sections are replaced."""
    spec = parse_spec({**ATTRIBUTES, **sections}, "mini")
    return Slice(
        spec, spec.partitions.calendar().partition(key), Settings(root=folder / "root"), folder, Run("run")
    )


def commit(slice_: Slice, table: str, rows: pa.Table, fingerprint: str = "", **receipt: Any) -> None:
    """Make rows the content of a table's partition, with what is given in the receipt."""
    slot = Slot(table, slice_.key)
    attempt = slice_.lake.begin(slot)
    place = slice_.layout.staging(slice_.key) / f"{table}-{attempt}"
    staged = stage(rows.to_batches(), rows.schema, place, table)
    made = slice_.receipt(fingerprint or f"{table}_{attempt}", **receipt)
    slice_.lake.commit(slot, staged, rows.schema, made, attempt)
