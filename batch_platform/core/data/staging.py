"""Writing a table's Parquet files outside the table, before anyone can see them.

Decides file and row-group sizes and what is remembered of each file. It does not know tables or commits.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.data.files import fsync_folder, sha256_of

ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 16 * 2**20
FILE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StagedFile:
    """A finished Parquet file: its path, bytes, rows and hex digest."""

    path: Path
    size: int
    rows: int
    sha256: str

    def describe(self) -> dict[str, Any]:
        """The file as it stands in a receipt: by name, without this machine's folders."""
        return {**asdict(self), "path": self.path.name}


def stage(batches: Iterable[pa.RecordBatch], schema: pa.Schema, folder: Path, stem: str) -> list[StagedFile]:
    """Write batches into Parquet files `<folder>/<stem>-<n>.parquet`, each fsynced.

    Memory is bounded by one row group. No rows give no files.

    Args:
        batches: rows in the order in which they shall stand; each batch is cast to `schema`.
        schema: the columns of the files.
        folder: created when absent; files of the same names are replaced.
        stem: start of the file names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[StagedFile] = []
    writer: pq.ParquetWriter | None = None
    path = folder
    written = 0

    def close() -> None:
        nonlocal writer
        if writer is not None:
            writer.close()
            files.append(finish_file(path, written))
            writer = None

    try:
        for table in _row_groups(batches, schema):
            if writer is None:
                path, written = folder / f"{stem}-{len(files):05d}.parquet", 0
                writer = pq.ParquetWriter(path, schema, compression="zstd")
            writer.write_table(table)
            written += table.num_rows
            if path.stat().st_size >= FILE_BYTES:
                close()
        close()
    finally:
        if writer is not None:
            writer.close()
    fsync_folder(folder)
    return files


def finish_file(path: Path, rows: int) -> StagedFile:
    """Make a written file durable and take its measure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return StagedFile(path, path.stat().st_size, rows, sha256_of(path))


def read_files(paths: Iterable[Path], columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of Parquet files in file and row order, a bounded batch at a time."""
    for path in paths:
        # partitioning=None: a folder named partition_key=... must not become a column.
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=ROW_GROUP_ROWS // 4, columns=columns)


def _row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        held.append(batch.select(schema.names).cast(schema))
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield pa.Table.from_batches(held, schema)
            held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held, schema)
