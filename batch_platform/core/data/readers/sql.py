"""The result of a query on a database, as rows of a source.

Decides how a database's types stand for the contract's: a text is read as in a CSV file where the contract wants
something else, because SQLite has no times and drivers give exact numbers as texts. Rows are numbered in the order of
the result.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from batch_platform.core.data.cells import CellType, Parsed, cast_column, convertible, parse_text, text_of
from batch_platform.core.data.contract import BadCell, SourceBatch
from batch_platform.core.data.databases.address import Address
from batch_platform.core.data.databases.query import Query
from batch_platform.core.data.databases.reading import Values, read_query
from batch_platform.core.data.readers.opening import bad_cells, batch_of, columns_there
from batch_platform.errors import ContractError


def read_sql(
    variable: str, query: str, columns: Mapping[str, CellType], values: Values, base: Path
) -> Iterator[SourceBatch]:
    """The rows of a query, a few megabytes at a time.

    Args:
        variable: environment variable that holds the database's address.
        query: one statement that reads.
        columns: the columns wanted and their types.
        values: of the query's parameters.
        base: folder that relative paths of database files start from.

    Raises:
        SourceError: the database refuses the query, or goes away.
        ContractError: the result lacks columns, or they are of a type that cannot stand for the contract's.
        SettingsError: the variable holds no address.
    """
    address = Address.from_env(variable, base)
    name = f"sql:{variable}"
    first = 0
    for batch in read_query(address, Query.parse(query), values):
        yield _source_batch(batch, first, name, columns_there(name, columns, batch.schema.names))
        first += batch.num_rows


def _source_batch(
    batch: pa.RecordBatch, first: int, name: str, columns: Mapping[str, CellType]
) -> SourceBatch:
    parsed: dict[str, pa.Array] = {}
    bad: list[BadCell] = []
    for column, kind in columns.items():
        cells = batch.column(column)
        plain = cells.storage if isinstance(cells, pa.ExtensionArray) else cells
        parsed[column], marks = _cells(plain, kind, f"{name}: column {column}")
        texts = {row: str(plain[row].as_py()) for row in np.flatnonzero(marks).tolist()}
        bad += bad_cells(column, marks, texts, "wrong_type")
    rows = np.arange(first, first + batch.num_rows, dtype=np.int64)
    return SourceBatch(batch_of(parsed), name, rows, bad, columns_seen=frozenset(batch.schema.names))


def _cells(cells: pa.Array, kind: CellType, about: str) -> Parsed:
    is_text = pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)
    if is_text and kind not in ("string", "text"):
        return parse_text(cells.cast(pa.string()), kind)
    if kind == "boolean" and pa.types.is_integer(cells.type):  # SQLite has no other truth values than 0 and 1
        return parse_text(text_of(cells), kind)
    if not convertible(cells.type, kind):
        raise ContractError(
            f"{about} is of type {cells.type}, which cannot be read as {kind}. CAST it in source.query, or correct "
            "the column's type in the pipeline file"
        )
    return cast_column(cells, kind)
