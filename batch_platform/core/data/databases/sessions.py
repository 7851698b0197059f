"""Writing to each kind of database in one transaction, behind one face.

Decides how rows get into a database's temporary table, and the words in which the databases differ. A session ends with
`commit`, or nothing of it has happened. It does not know what is delivered.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import Any, Protocol

import pyarrow as pa

from batch_platform.core.data.databases.address import Address

STAGE = "batch_platform_rows"

# DuckDB knows PostgreSQL's names.
_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "string": "text",
        "bool": "boolean",
        "int32": "integer",
        "int64": "bigint",
        "float": "real",
        "double": "double precision",
        "date32[day]": "date",
        "timestamp[us, tz=UTC]": "timestamptz",
        "binary": "bytea",
    }
)
# Times are texts of ISO 8601, lists texts of JSON.
_SQLITE_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "string": "TEXT",
        "bool": "INTEGER",
        "int32": "INTEGER",
        "int64": "INTEGER",
        "float": "REAL",
        "double": "REAL",
        "date32[day]": "TEXT",
        "timestamp[us, tz=UTC]": "TEXT",
        "binary": "BLOB",
    }
)


class Session(Protocol):
    """A transaction.

    Attributes:
        differs: the operator for "is not the same", nulls included.
        types: names of the column types, by Arrow type as text.
        lists: the type of lists, around that of their values.
    """

    differs: str
    types: Mapping[str, str]
    lists: str

    def mark(self, number: int) -> str:
        """How parameter `number` (from 1) is written."""
        ...

    def lock(self, name: str) -> None:
        """Wait for other sessions that lock the same name, until the end of this one."""
        ...

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and give its rows."""
        ...

    def change(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run an INSERT, UPDATE or DELETE; how many rows it changed."""
        ...

    def columns(self, schema: str | None, table: str) -> list[str]:
        """The columns of a table; none where there is no such table."""
        ...

    def stage(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        """Bring rows into the temporary table `STAGE`."""
        ...

    def commit(self) -> None:
        """Make it so."""
        ...


@contextmanager
def session(address: Address) -> Iterator[Session]:
    """A transaction on a database; rolled back unless it commits."""
    opened: Mapping[str, Callable[[Address], AbstractContextManager[Session]]]
    opened = {"postgresql": _postgresql, "duckdb": _duckdb, "sqlite": _sqlite}
    with opened[address.kind](address) as running:
        yield running


# -- PostgreSQL -------------------------------------------------------------------------------------------


class _PostgresSession:
    differs = "IS DISTINCT FROM"
    types = _TYPES
    lists = "{}[]"

    def __init__(self, connection: Any, cursor: Any) -> None:
        self._connection, self._cursor = connection, cursor

    def mark(self, number: int) -> str:
        return f"${number}"

    def lock(self, name: str) -> None:
        self.rows("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", [f"batch_platform/{name}"])

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        self._cursor.execute(statement, list(values) or None)
        return self._cursor.fetchall() if self._cursor.description else []

    def change(self, statement: str, values: Sequence[Any] = ()) -> int:
        ((changed,),) = self.rows(
            f"WITH changed AS ({statement} RETURNING 1) SELECT count(*) FROM changed", values
        )
        return int(changed)

    def columns(self, schema: str | None, table: str) -> list[str]:
        found = self.rows(
            "SELECT column_name::text FROM information_schema.columns WHERE table_schema = coalesce($1::text, "
            "current_schema()) AND table_name = $2 ORDER BY ordinal_position",
            [schema or "", table] if schema else [None, table],
        )
        return [name for (name,) in found]

    def stage(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        self._cursor.adbc_ingest(STAGE, reader, mode="create", temporary=True)

    def commit(self) -> None:
        self._connection.commit()


@contextmanager
def _postgresql(address: Address) -> Iterator[_PostgresSession]:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(address.target) as connection, connection.cursor() as cursor:
        yield _PostgresSession(connection, cursor)


# -- DuckDB -----------------------------------------------------------------------------------------------


class _DuckDBSession:
    differs = "IS DISTINCT FROM"
    types = _TYPES
    lists = "{}[]"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def mark(self, number: int) -> str:
        return f"${number}"

    def lock(self, name: str) -> None:
        """Nothing to do: one process at a time has the file open for writing."""

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._connection.execute(statement, list(values)).fetchall()
        return found

    def change(self, statement: str, values: Sequence[Any] = ()) -> int:
        ((changed,),) = self.rows(statement, values)
        return int(changed)

    def columns(self, schema: str | None, table: str) -> list[str]:
        found = self.rows(
            "SELECT column_name FROM information_schema.columns WHERE table_catalog = current_database() AND "
            "table_schema = coalesce($1, current_schema()) AND table_name = $2 ORDER BY ordinal_position",
            [schema, table],
        )
        return [name for (name,) in found]

    def stage(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        self._connection.register("arriving", pa.RecordBatchReader.from_batches(schema, batches))
        self._connection.execute(f"CREATE TEMP TABLE {STAGE} AS SELECT * FROM arriving")
        self._connection.unregister("arriving")

    def commit(self) -> None:
        self._connection.commit()


@contextmanager
def _duckdb(address: Address) -> Iterator[_DuckDBSession]:
    import duckdb

    with duckdb.connect(address.target) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.begin()
        yield _DuckDBSession(connection)


# -- SQLite -----------------------------------------------------------------------------------------------


class _SQLiteSession:
    differs = "IS NOT"
    types = _SQLITE_TYPES
    lists = "TEXT"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def mark(self, number: int) -> str:
        return f"?{number}"

    def lock(self, name: str) -> None:
        """Nothing to do: the transaction began by locking the file for writing."""

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, [_plain(value) for value in values]).fetchall()

    def change(self, statement: str, values: Sequence[Any] = ()) -> int:
        return self._connection.execute(statement, [_plain(value) for value in values]).rowcount

    def columns(self, schema: str | None, table: str) -> list[str]:
        found = self.rows("SELECT name FROM pragma_table_info(?1, ?2)", [table, schema or "main"])
        return [name for (name,) in found]

    def stage(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        names = ", ".join(
            f'"{name}"' + (" PRIMARY KEY" if name == "row_key" else "") for name in schema.names
        )
        self._connection.execute(f"CREATE TEMP TABLE {STAGE} ({names})")
        marks = ", ".join("?" * len(schema))
        for batch in batches:
            rows = zip(
                *([_plain(cell) for cell in column.to_pylist()] for column in batch.columns), strict=True
            )
            self._connection.executemany(f"INSERT INTO {STAGE} VALUES ({marks})", rows)

    def commit(self) -> None:
        self._connection.execute("COMMIT")


@contextmanager
def _sqlite(address: Address) -> Iterator[_SQLiteSession]:
    with closing(sqlite3.connect(address.target, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield _SQLiteSession(connection)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    return json.dumps(value) if isinstance(value, list) else value
