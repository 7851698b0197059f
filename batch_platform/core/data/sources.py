"""The rows of a source that belong to a partition.

Decides in what order what is read, and leaves out the rows of other partitions. Which files there are is in `finding`,
the formats in `readers`, the judgement of rows in `contract`; `intake` puts them together. Nothing here holds more than
a batch of rows at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from batch_platform.core.data.cells import CellType, arrow_type
from batch_platform.core.data.contract import SourceBatch
from batch_platform.core.data.databases.reading import Values
from batch_platform.core.data.files import Location, sha256_of
from batch_platform.core.data.finding import find_files, folder_of, source_name
from batch_platform.core.data.partitions import Partition
from batch_platform.core.data.readers.delimited import read_csv
from batch_platform.core.data.readers.delta import read_delta
from batch_platform.core.data.readers.documents import read_documents
from batch_platform.core.data.readers.jsonl import read_jsonl
from batch_platform.core.data.readers.parquet import read_parquet
from batch_platform.core.data.readers.predictions import prediction_digests, read_predictions
from batch_platform.core.data.readers.sql import read_sql
from batch_platform.core.data.window import Window
from batch_platform.core.spec import SourceSpec, TableSpec
from batch_platform.errors import ContractError, SourceMissingError
from batch_platform.settings import Settings


def read_source(
    source: SourceSpec, partition: Partition, base: Path, root: Location | None = None
) -> Iterator[SourceBatch]:
    """The rows of a source that belong to a partition: of files in the order of their names, of a query as it gives them.

    Args:
        source: the source.
        partition: the partition; its key stands for `{partition}` in the uri.
        base: the project's folder.
        root: the platform's root, for format predictions; the environment's without it.

    Raises:
        SourceMissingError: there is no such file.
        SourceError: a file cannot be read, or the database refuses.
        ContractError: a file or result has not the columns of the contract.
        SettingsError: there is no address of the database in the environment.
    """
    types: dict[str, CellType] = {name: spec.type for name, spec in source.columns.items()}
    if source.query is not None and source.connection_env is not None:
        values: Values = {"start": partition.start, "end": partition.end, "partition": partition.key}
        return read_sql(source.connection_env, source.query, types, values, base)
    assert source.uri is not None  # the pipeline file was checked
    if source.format == "predictions":
        return read_predictions(root or Settings.from_env().root, source.uri, partition.key, types)
    shown = not any(spec.sensitive for spec in source.columns.values())
    uri = source.uri.replace("{partition}", partition.key)
    window = None if source.partition_column is None else Window(source.partition_column, partition)
    optional = frozenset(name for name, spec in source.columns.items() if spec.optional)
    batches = read_files(uri, source.format, types, base, window=window, show_lines=shown, optional=optional)
    return _completed(batches, types) if optional else batches


def read_table(
    table: TableSpec,
    partition: Partition,
    columns: Mapping[str, CellType],
    base: Path,
    *,
    window: Window | None = None,
    show_lines: bool = True,
) -> Iterator[SourceBatch]:
    """The rows of a lookup, or labels, for a partition.

    Args:
        partition: its key stands for `{partition}`, its start, end and key for a query's parameters.
        columns, base, window, show_lines: as for `read_files`.

    Raises:
        As `read_source`.
    """
    if table.query is not None and table.connection_env is not None:
        values: Values = {"start": partition.start, "end": partition.end, "partition": partition.key}
        batches = read_sql(table.connection_env, table.query, columns, values, base)
        return batches if window is None else _within(batches, window, table.place)
    assert table.uri is not None  # the pipeline file was checked
    uri = table.uri.replace("{partition}", partition.key)
    return read_files(uri, table.format, columns, base, window=window, show_lines=show_lines)


def read_files(
    uri: str,
    file_format: str,
    columns: Mapping[str, CellType],
    base: Path,
    *,
    window: Window | None = None,
    show_lines: bool = True,
    optional: frozenset[str] = frozenset(),
) -> Iterator[SourceBatch]:
    """The rows of all files that a uri names.

    Args:
        uri: file, folder or glob without placeholders.
        file_format: parquet, csv, jsonl, documents or delta.
        columns: the columns wanted and their types; `text` takes any scalar as its text.
        base: folder that relative uris start from.
        window: rows outside it are left out.
        show_lines: whether lines that cannot be parsed may be quoted in `unparsable`.
        optional: columns that a file (Parquet, CSV) or table (Delta) may lack; they are not in its batches then.

    Raises:
        As `read_source`, and NotYetSupportedError for another format.
    """
    if file_format == "delta":
        batches = read_delta(uri, columns, base, window, optional)
        yield from batches if window is None else _within(batches, window, uri)
        return
    if file_format == "documents":
        named = [(path, source_name(path, base)) for path in find_files(uri, file_format, base)]
        yield from read_documents(named, folder_of(uri, base), columns)
        return
    for path in find_files(uri, file_format, base):
        name = source_name(path, base)
        if file_format == "parquet":
            batches = read_parquet(path, name, columns, window, optional)
        elif file_format == "csv":
            batches = read_csv(path, name, columns, show_lines, optional)
        else:
            batches = read_jsonl(path, name, columns, show_lines)
        yield from batches if window is None else _within(batches, window, name)


def source_digests(
    source: SourceSpec, partition: Partition, base: Path, root: Location | None = None
) -> dict[str, str]:
    """SHA-256 of the files of a source that may hold rows of a partition, by the name that they have in tables.

    A file is read once a process, as long as its size, time and inode stay. What is no file by itself (a query, a Delta
    table) has none.
    """
    if source.uri is None or source.format == "delta":
        return {}
    if source.format == "predictions":
        return prediction_digests(root or Settings.from_env().root, source.uri, partition.key)
    uri = source.uri.replace("{partition}", partition.key)
    try:
        found = find_files(uri, source.format, base)
    except SourceMissingError:
        return {}
    return {source_name(path, base): _digest(path) for path in found}


def _digest(location: Location) -> str:
    if isinstance(location, Path):
        stat = location.stat()
        return _digest_once(location, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    found = location.stat()
    return _digest_once(location, found.st_size, int(found.st_mtime * 1e9), 0)


@cache
def _digest_once(location: Location, _size: int, _modified: int, _inode: int) -> str:
    return sha256_of(location)


def _completed(batches: Iterator[SourceBatch], columns: Mapping[str, CellType]) -> Iterator[SourceBatch]:
    """The same batches with all columns; null where a file lacks an optional one."""
    for source in batches:
        there = source.batch.schema.names
        cells = [
            source.batch.column(name) if name in there else pa.nulls(source.batch.num_rows, arrow_type(kind))
            for name, kind in columns.items()
        ]
        yield replace(source, batch=pa.RecordBatch.from_arrays(cells, names=list(columns)))


def _within(batches: Iterator[SourceBatch], window: Window, name: str) -> Iterator[SourceBatch]:
    rows, seen = 0, False
    for batch in batches:
        rows += batch.batch.num_rows
        seen = seen or window.column in batch.columns_seen
        yield _filtered(batch, window)
    if rows and not seen:
        # A file of JSON lines has no header that could be checked beforehand.
        raise ContractError(
            f"{name}: no line has the partition column {window.column}, so that no row belongs to any "
            "partition. Correct the file, or source.partition_column in the pipeline file"
        )


def _filtered(source: SourceBatch, window: Window) -> SourceBatch:
    """The rows inside the window; the others only counted where they belong to no window at all."""
    column = source.batch.column(window.column)
    inside = window.inside(column)
    kept = np.flatnonzero(inside)
    place = {row: index for index, row in enumerate(kept.tolist())} if source.bad_cells else {}
    return replace(
        source,
        batch=source.batch.take(pa.array(kept)),
        source_rows=source.source_rows[kept],
        bad_cells=[replace(cell, row=place[cell.row]) for cell in source.bad_cells if cell.row in place],
        unparsable=[],
        unplaced=source.unplaced + column.null_count + len(source.unparsable),
    )
