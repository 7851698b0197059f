"""The join behind a lookup, in DuckDB: under a memory limit, beyond which it works on disk.

Decides which of a key's events count for a row: those within its own first and last moment, and of these the
newest, or all for aggregates. Of events at one moment the one that was read last is the newest. All names in its SQL are
its own (v0, v1, ...), so that nothing of a user is ever in a query. It does not know where the events come from.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import pyarrow as pa

from batch_platform.core.data.staging import StagedFile
from batch_platform.errors import StorageError

if TYPE_CHECKING:
    pass

# Of the join alone; what is more goes to disk.
MEMORY = "512MB"
_BATCH_ROWS = 16_384

Function = Literal["count", "sum", "mean", "min", "max", "join"]

# Of the rows to join to: number from 0, key, first and last microsecond since 1970 that counts.
ROWS = pa.schema([("n", pa.int64()), ("k", pa.string()), ("since", pa.int64()), ("until", pa.int64())])


def known_schema(values: Sequence[pa.DataType]) -> pa.Schema:
    """Columns of the events: place in the order of reading, key, microsecond, values v0, v1, ..., origin."""
    named = [(f"v{place}", kind) for place, kind in enumerate(values)]
    origin = [("source_file", pa.string()), ("source_row", pa.int64())]
    return pa.schema([("place", pa.int64()), ("k", pa.string()), ("moment", pa.int64()), *named, *origin])


@dataclass(frozen=True)
class Ambiguous:
    """Two events that differ, of one key and moment, of which a row would need the newest."""

    key: str
    moment: int
    first: str
    second: str


class AsOfJoin:
    """Rows and events, joined once by `newest` or `aggregate`, then read by `result`. A context manager.

    Args:
        rows: files of `ROWS`.
        known: files of `schema`.
        schema: from `known_schema`.
        folder: for what does not fit into memory.

    Raises:
        StorageError: (by every method) the disk is full, or DuckDB cannot go on for another reason.
    """

    def __init__(
        self, rows: Sequence[StagedFile], known: Sequence[StagedFile], schema: pa.Schema, folder: Path
    ) -> None:
        import duckdb

        self._folder = folder
        self._values = [name for name in schema.names if name.startswith("v")]
        self._connection: duckdb.DuckDBPyConnection = duckdb.connect(
            config={
                "memory_limit": MEMORY,
                "temp_directory": str(folder / "spilled"),
                # One thread: a sum must not depend on the order in which threads come.
                "threads": "1",
                "preserve_insertion_order": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            }
        )
        with self._telling():
            self._view("rows", rows, ROWS)
            self._view("known", known, schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def newest(self) -> int:
        """For each row find the newest event that counts; returns how many rows have one."""
        with self._telling():
            self._connection.execute(_KEYED)
            self._connection.execute(_CHOSEN)
            self._query = (
                f"SELECT {', '.join(f'o.{name}' for name in self._values)} "  # noqa: S608 - names are ours
                "FROM chosen c LEFT JOIN known o ON o.place = c.place ORDER BY c.n"
            )
            return self._number("SELECT count(place) FROM chosen")

    def ambiguous(self) -> Ambiguous | None:
        """After `newest`: the first two events that differ where one had to be taken; equal ones are one."""
        a, b = (
            "struct_pack(" + ", ".join(f"{name} := {table}.{name}" for name in self._values) + ")"
            for table in "ab"
        )
        with self._telling():
            found = self._connection.execute(
                "SELECT a.k, a.moment, b.source_file, b.source_row, a.source_file, a.source_row "  # noqa: S608
                "FROM (SELECT DISTINCT place FROM chosen WHERE copies > 1) c JOIN known a ON a.place = c.place "
                "JOIN known b ON b.k = a.k AND b.moment = a.moment AND b.place < a.place "
                f"AND {a} IS DISTINCT FROM {b} ORDER BY a.place, b.place LIMIT 1"
            ).fetchall()
        if not found:
            return None
        key, moment, *places = found[0]
        return Ambiguous(key, moment, f"{places[0]} row {places[1]}", f"{places[2]} row {places[3]}")

    def aggregate(self, calls: Sequence[tuple[Function, int | None]]) -> int:
        """For each row make values of all events that count; returns how many rows have events.

        Args:
            calls: functions and the place of the value each is made of; None to count events.
        """
        made = ", ".join(f"{_call(*call)} AS a{place}" for place, call in enumerate(calls))
        with self._telling():
            self._connection.execute(
                f"CREATE TEMP TABLE made AS SELECT r.n, count(o.place) AS found, {made} "  # noqa: S608
                "FROM rows r LEFT JOIN known o ON r.k = o.k AND o.moment >= r.since AND o.moment <= r.until GROUP BY r.n"
            )
            self._query = (
                f"SELECT {', '.join(f'a{place}' for place in range(len(calls)))} FROM made ORDER BY n"  # noqa: S608
            )
            return self._number("SELECT count(*) FROM made WHERE found > 0")

    def result(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """What was found, under the names and types of `schema`, a row for each of the rows, in order."""
        with self._telling():
            for batch in self._connection.sql(self._query).to_arrow_reader(_BATCH_ROWS):
                columns = [
                    column.cast(kind) for column, kind in zip(batch.columns, schema.types, strict=True)
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def _view(self, name: str, files: Sequence[StagedFile], schema: pa.Schema) -> None:
        if files:
            self._connection.read_parquet([str(file.path) for file in files]).create_view(name)
        else:
            self._connection.register(name, schema.empty_table())

    def _number(self, query: str) -> int:
        [[number]] = self._connection.execute(query).fetchall()
        return int(number)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        import duckdb

        try:
            yield
        except duckdb.Error as error:
            raise StorageError(
                f"a lookup cannot be joined: {str(error).splitlines()[0]}; check the free space below {self._folder}"
            ) from None


_KEYED = """
CREATE TEMP TABLE keyed AS
SELECT k, moment, max(place) AS place, count(*) AS copies FROM known SEMI JOIN rows USING (k) GROUP BY k, moment
"""
_CHOSEN = """
CREATE TEMP TABLE chosen AS
SELECT r.n, CASE WHEN o.moment >= r.since THEN o.place END AS place, o.copies
FROM rows r ASOF LEFT JOIN keyed o ON r.k = o.k AND r.until >= o.moment
"""


def _call(function: Function, value: int | None) -> str:
    if function == "count":
        return f"count({'o.place' if value is None else f'o.v{value}'})"
    if function == "join":
        return f"string_agg(o.v{value}::VARCHAR, ' ' ORDER BY o.moment DESC, o.place DESC)"
    return f"{'avg' if function == 'mean' else function}(o.v{value}::DOUBLE)"
