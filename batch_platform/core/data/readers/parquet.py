"""Parquet files, row group by row group.

Decides which row groups can hold rows of the partition, how many rows to decode at once, and whether the
file's types can stand for the contract's. Cells that do not fit although the types do (an integer out of
range, bytes that are no UTF-8) are bad cells, not errors. It judges no row otherwise.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.data.cells import CellType, cast_column, convertible
from batch_platform.core.data.contract import BadCell, SourceBatch
from batch_platform.core.data.files import Location
from batch_platform.core.data.readers.opening import (
    BATCH_BYTES,
    BATCH_ROWS,
    bad_cells,
    batch_of,
    columns_there,
    open_searchable,
    readable,
)
from batch_platform.core.data.window import Window
from batch_platform.errors import ContractError, SourceError

_PAGE_BUFFER = 1 << 20
_UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError)


def read_parquet(
    path: Location,
    name: str,
    columns: Mapping[str, CellType],
    window: Window | None,
    optional: frozenset[str] = frozenset(),
) -> Iterator[SourceBatch]:
    """The rows of a Parquet file, a few megabytes at a time.

    Args:
        path: the file.
        name: what it is called in messages and in `source_file`.
        columns: the columns wanted and their types.
        window: row groups that its statistics exclude are skipped; other rows are not filtered here.
        optional: columns that the file may lack; they are not in its batches then.

    Raises:
        SourceError: the file is no Parquet, damaged or cut off.
        ContractError: columns are missing, there twice, or of a type that cannot stand for the contract's.
    """
    with readable(name):
        file = _opened(path, name)
        with file:
            columns = check_types(file.schema_arrow, name, columns, optional)
            first_row = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                nulls = _skippable(file, group, window)
                if nulls is None:
                    yield from _group(file, group, first_row, name, columns)
                elif nulls:
                    yield _nothing(file, name, columns, nulls)
                first_row += rows


def _opened(path: Location, name: str) -> pq.ParquetFile:
    try:
        # A buffer makes Arrow stream the pages of a column instead of loading its whole row group.
        # From object storage, where each request costs time, a row group is fetched at once.
        is_near = isinstance(path, Path)
        return pq.ParquetFile(open_searchable(path), buffer_size=_PAGE_BUFFER, pre_buffer=not is_near)
    except _UNREADABLE as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> SourceError:
    return SourceError(
        f"{name} is not a readable Parquet file ({str(error).splitlines()[0]}): it may be cut off or of "
        "another format; fetch it again, then run the partition again"
    )


def check_types(
    schema: pa.Schema, name: str, columns: Mapping[str, CellType], optional: frozenset[str]
) -> dict[str, CellType]:
    """The columns that are there, each of a type that can stand for the contract's."""
    there = columns_there(name, columns, schema.names, optional)
    for column, kind in there.items():
        found = schema.field(column).type
        if not convertible(found, kind):
            raise ContractError(
                f"{name}: column {column} is of type {found}, which cannot be read as {kind}. "
                "Correct the file, or the column's type in the pipeline file"
            )
    return there


def _skippable(file: pq.ParquetFile, group: int, window: Window | None) -> int | None:
    """Nulls of the partition column in a row group without rows of the window; None where it must be read."""
    metadata = file.metadata.row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    known = [chunk.statistics for chunk in chunks if window and chunk.path_in_schema == window.column]
    if window is None or not known or known[0] is None:
        return None
    statistics = known[0]
    if not statistics.has_null_count:
        return None
    if statistics.null_count == metadata.num_rows:
        return int(statistics.null_count)
    if not statistics.has_min_max:
        return None
    try:
        lowest, highest = statistics.min, statistics.max
    except (OverflowError, ValueError):  # a year that Python cannot name
        return None
    return None if window.may_hold(lowest, highest) else int(statistics.null_count)


def _nothing(file: pq.ParquetFile, name: str, columns: Mapping[str, CellType], unplaced: int) -> SourceBatch:
    empty = {column: file.schema_arrow.field(column).type for column in columns}
    batch = batch_of(
        {column: cast_column(pa.array([], kind), columns[column])[0] for column, kind in empty.items()}
    )
    return SourceBatch(
        batch, name, np.zeros(0, np.int64), columns_seen=frozenset(file.schema_arrow.names), unplaced=unplaced
    )


def _group(
    file: pq.ParquetFile, group: int, first_row: int, name: str, columns: Mapping[str, CellType]
) -> Iterator[SourceBatch]:
    row = first_row
    try:
        for batch in file.iter_batches(_rows_at_once(file, group), [group], columns=list(columns)):
            yield source_batch(batch, row, name, columns, file.schema_arrow.names)
            row += batch.num_rows
    except _UNREADABLE as error:
        raise _damaged(name, error) from error


def _rows_at_once(file: pq.ParquetFile, group: int) -> int:
    metadata = file.metadata.row_group(group)
    width = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
    return int(min(BATCH_ROWS, max(1, BATCH_BYTES // width)))


def source_batch(
    batch: pa.RecordBatch, first_row: int, name: str, columns: Mapping[str, CellType], seen: list[str]
) -> SourceBatch:
    parsed: dict[str, pa.Array] = {}
    bad: list[BadCell] = []
    for column, kind in columns.items():
        cells = batch.column(column)
        parsed[column], marks = cast_column(cells, kind)
        texts = {row: _text(cells[row]) for row in np.flatnonzero(marks).tolist()}
        bad += bad_cells(column, marks, texts, "invalid_utf8" if kind in ("string", "text") else "wrong_type")
    rows = np.arange(first_row, first_row + batch.num_rows, dtype=np.int64)
    return SourceBatch(batch_of(parsed), name, rows, bad, columns_seen=frozenset(seen))


def _text(cell: pa.Scalar) -> str:
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    try:
        value = cell.as_py()
    except UnicodeDecodeError:
        value = cell.cast(pa.binary()).as_py()
    except (OverflowError, ValueError):  # a moment outside Python's years
        return f"{cell.value} since 1970 in {cell.type}"
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
