"""One partition of predictions as a file that others read, replaced whole, with a manifest beside it.

Decides names: `<folder>/<partition key>.parquet` (or `.csv`), so that `<folder>/*.parquet` is at every moment each partition
once; and `<folder>/_manifests/<partition key>.json`, which says which commit the file holds, its rows and its SHA-256. The
file comes before its manifest: killed in between, the next delivery writes both again.
"""

import json
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from batch_platform.core.data import files
from batch_platform.core.data.consignment import Consignment, Delivered
from batch_platform.core.data.files import Location
from batch_platform.core.data.staging import row_groups
from batch_platform.errors import DeliveryError, SupersededError

MANIFESTS = "_manifests"


def export(
    folder: Location, kind: str, what: Consignment, batches: Iterable[pa.RecordBatch], scratch: Path
) -> Delivered:
    """Let the partition's file hold exactly these rows.

    Args:
        kind: parquet or csv.
        batches: the rows, in `what.schema`; read only where they have to be.
        scratch: a folder of this machine, for a file that goes to object storage.

    Raises:
        DeliveryError: another pipeline writes there.
        SupersededError: the file holds a newer commit.
        StorageError: it cannot be written; the file holds what it held before.
    """
    name = what.partition_key.replace(":", "-")  # of hours, which URLs and some file systems would escape
    target, manifest = folder / f"{name}.{kind}", folder / MANIFESTS / f"{name}.json"
    if _is_delivered(manifest, target, what):
        return Delivered(str(folder), reused=True)
    beside = folder if isinstance(folder, Path) else scratch  # so that it can be renamed
    with files.writing(beside):
        beside.mkdir(parents=True, exist_ok=True)
    unfinished = beside / f".{name}-{what.attempt}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        rows = _WRITERS[kind](unfinished, what.schema, batches)
        if rows != what.rows:
            raise DeliveryError(
                f"{what.about}: {rows} rows were read where {what.rows} are predicted: verify the lake"
            )
        files.fsync_file(unfinished)
        told = _describe(what, target, unfinished)
        files.publish(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    files.replace(manifest, json.dumps(told, indent=2).encode())
    return Delivered(str(folder), written=rows)


def _is_delivered(manifest: Location, target: Location, what: Consignment) -> bool:
    """Whether the file holds this commit already.

    Raises:
        DeliveryError: it is another pipeline's.
        SupersededError: it holds a newer commit.
    """
    known = json.loads(files.read_if_there(manifest) or b"{}")
    if not known:
        return False
    if known["pipeline"] != what.pipeline:
        raise DeliveryError(
            f"{what.about}: {manifest.parent.parent} is filled by pipeline {known['pipeline']}: give each pipeline a folder "
            "of its own"
        )
    if known["commit"] > what.attempt:
        raise SupersededError(
            f"{what.about}: {target} holds the newer commit {known['commit']}, this is {what.attempt}. If the lake was "
            f"made anew, delete {manifest} and materialize delivered again"
        )
    same = (known["commit"], known["fingerprint"], known["file"]) == (
        what.attempt,
        what.fingerprint,
        target.name,
    )
    return same and target.is_file() and target.stat().st_size == known["bytes"]


def _describe(what: Consignment, target: Location, finished: Path) -> dict[str, Any]:
    return {
        "file": target.name,
        "pipeline": what.pipeline,
        "partition_key": what.partition_key,
        "rows": what.rows,
        "bytes": finished.stat().st_size,
        "sha256": files.sha256_of(finished),
        "columns": {field.name: str(field.type) for field in what.schema},
        "commit": what.attempt,
        "fingerprint": what.fingerprint,
        "run_id": what.run_id,
        "delivered_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _write_parquet(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    rows = 0
    with files.writing(path), pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in row_groups(batches, schema):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _write_csv(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    rows = 0
    plain = pa.schema(
        [(field.name, pa.string() if pa.types.is_list(field.type) else field.type) for field in schema]
    )
    with files.writing(path), pacsv.CSVWriter(path, plain) as writer:
        for batch in batches:
            columns = [
                _as_json(column) if pa.types.is_list(column.type) else column for column in batch.columns
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=plain))
            rows += batch.num_rows
    return rows


def _as_json(column: pa.Array) -> pa.Array:
    return pa.array([None if cell is None else json.dumps(cell) for cell in column.to_pylist()], pa.string())


_WRITERS: dict[str, Callable[[Path, pa.Schema, Iterable[pa.RecordBatch]], int]] = {
    "parquet": _write_parquet,
    "csv": _write_csv,
}
