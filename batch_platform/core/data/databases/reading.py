"""Rows of a query, a few megabytes at a time, whatever the database.

Decides how each database is read so that neither side holds the result: PostgreSQL by a server-side cursor, DuckDB and
SQLite as they stream by themselves. Nothing can be written: the databases are opened or told so. It does not know what
the rows mean.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from batch_platform.core.data.databases.address import Address
from batch_platform.core.data.databases.query import Query
from batch_platform.errors import SourceError

# A fetch is as many rows as make up the bytes, as measured on the fetch before it.
_FIRST_ROWS = 64
_MOST_ROWS = 16_384
_BYTES = 8 << 20

Values = Mapping[str, datetime | str]


def read_query(address: Address, query: Query, values: Values) -> Iterator[pa.RecordBatch]:
    """The rows of a query, in the database's own types.

    Args:
        values: of the parameters; times with a zone.

    Raises:
        SourceError: the database refuses the query or goes away.
    """
    with _reading(address):
        yield from _READERS[address.kind](address, query, values)


@contextmanager
def _reading(address: Address) -> Iterator[None]:
    """Turn what a database says into a SourceError."""
    try:
        yield
    except database_errors() as error:
        raise SourceError(
            f"the database of {address.variable} refuses or ended the query ({address.said(error)}): check it, and "
            "source.query in the pipeline file, then run the partition again"
        ) from None  # the cause may hold what is secret


def database_errors() -> tuple[type[Exception], ...]:
    """What the databases' packages raise."""
    import adbc_driver_manager
    import duckdb

    return adbc_driver_manager.Error, duckdb.Error, sqlite3.Error


# -- PostgreSQL -------------------------------------------------------------------------------------------


def _read_postgresql(address: Address, query: Query, values: Values) -> Iterator[pa.RecordBatch]:
    from adbc_driver_postgresql import StatementOptions, dbapi

    with dbapi.connect(address.target) as connection, connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute("SET LOCAL TIME ZONE 'UTC'")
        # With bound parameters the driver would hold the whole result; a cursor of the server's gives it in parts.
        cursor.adbc_statement.set_options(**{StatementOptions.USE_COPY.value: "false"})
        declared = f"DECLARE source_rows NO SCROLL CURSOR FOR {query.numbered()}"
        cursor.execute(declared, [values[name] for name in query.parameters] or None)
        wanted = _FIRST_ROWS
        while True:
            cursor.execute(f"FETCH {wanted} FROM source_rows")
            got = size = 0
            for batch in cursor.fetch_record_batch():
                yield batch
                got += batch.num_rows
                size += batch.nbytes
            if not got:
                return
            wanted = max(1, min(_MOST_ROWS, _BYTES * got // max(size, 1)))


# -- DuckDB -----------------------------------------------------------------------------------------------


def _read_duckdb(address: Address, query: Query, values: Values) -> Iterator[pa.RecordBatch]:
    import duckdb

    with duckdb.connect(address.target, read_only=True) as connection:
        statement = query.numbered()
        # A database that is opened for reading still carries out COPY ... TO a file.
        if [parsed.type for parsed in connection.extract_statements(statement)] != [
            duckdb.StatementType.SELECT
        ]:
            raise duckdb.InvalidInputException("source.query is more than one SELECT")
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.sql(statement, params=[values[name] for name in query.parameters])
        yield from rows.to_arrow_reader(_MOST_ROWS)


# -- SQLite -----------------------------------------------------------------------------------------------


def _read_sqlite(address: Address, query: Query, values: Values) -> Iterator[pa.RecordBatch]:
    place = f"file:{quote(str(Path(address.target).absolute()))}?mode=ro"
    texts = {name: _sqlite_text(values[name]) for name in query.parameters}
    with closing(sqlite3.connect(place, uri=True)) as connection:
        cursor = connection.execute(query.written({name: f":{name}" for name in query.parameters}), texts)
        names = [column[0] for column in cursor.description]
        wanted = _FIRST_ROWS
        while rows := cursor.fetchmany(wanted):
            columns = [_sqlite_column(cells) for cells in zip(*rows, strict=True)]
            batch = pa.RecordBatch.from_arrays(columns, names=names)
            yield batch
            wanted = max(1, min(_MOST_ROWS, _BYTES * len(rows) // max(batch.nbytes, 1)))


def _sqlite_text(value: datetime | str) -> str:
    """As SQLite's own functions write a time: in UTC, to the second."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else value


def _sqlite_column(cells: Sequence[Any]) -> pa.Array:
    """Cells of one column. SQLite types each cell by itself; kinds that do not go together become texts."""
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds == {int, float}:
        return pa.array([None if cell is None else float(cell) for cell in cells], pa.float64())
    if len(kinds) <= 1:
        return pa.array(cells)
    return pa.array(
        [cell if cell is None or isinstance(cell, str) else _text(cell) for cell in cells], pa.string()
    )


def _text(cell: object) -> str:
    return cell.decode("utf-8", "backslashreplace") if isinstance(cell, bytes) else str(cell)


_READERS = {"postgresql": _read_postgresql, "duckdb": _read_duckdb, "sqlite": _read_sqlite}
