"""One partition of predictions brought into a table of a database, exactly once.

Decides what a delivery changes: rows that are new or differ are written, rows that are predicted no more are removed, the
others are left alone. What was delivered is remembered in a table of the same database (`DELIVERIES`) by the same
transaction: killed anywhere, either both have happened or neither, and a repeated delivery finds that it is done.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from batch_platform.core.data.consignment import Consignment, Delivered
from batch_platform.core.data.databases.address import Address
from batch_platform.core.data.databases.reading import database_errors
from batch_platform.core.data.databases.sessions import STAGE, Session, session
from batch_platform.errors import DeliveryError, SupersededError

DELIVERIES = "batch_platform_deliveries"
_KEY = ("partition_key", "row_key")
_STATE = {
    "sink_table": "string",
    "partition_key": "string",
    "pipeline": "string",
    "attempt": "int64",
    "fingerprint": "string",
    "row_count": "int64",
    "run_id": "string",
    "delivered_at": "timestamp[us, tz=UTC]",
}


@dataclass(frozen=True)
class Table:
    """A table's name, as `name` or `schema.name`."""

    name: str

    @property
    def parts(self) -> tuple[str | None, str]:
        schema, _, table = self.name.rpartition(".")
        return schema or None, table

    @property
    def quoted(self) -> str:
        return ".".join(quoted(part) for part in self.name.split("."))


def quoted(name: str) -> str:
    """A name as SQL quotes it."""
    return '"' + name.replace('"', '""') + '"'


def deliver(address: Address, table: str, what: Consignment, batches: Iterable[pa.RecordBatch]) -> Delivered:
    """Let a table hold exactly these rows for the partition; it is made where it is not there.

    Args:
        table: its name, as `name` or `schema.name`.
        batches: the rows, in `what.schema`; read only where they have to be.

    Raises:
        DeliveryError: the database refuses or goes away; the table holds what it held before.
        SupersededError: a newer commit of the partition was delivered already.
    """
    sink = f"{address.variable}: {table}"
    try:
        with session(address) as running:
            return _deliver(running, sink, Table(table), what, batches)
    except database_errors() as error:
        raise DeliveryError(
            f"{what.about}: {sink}: the database refuses the predictions or went away ({address.said(error)}); the table "
            "holds what it held before. Mend the cause, then materialize delivered again"
        ) from None  # the cause may hold what is secret


def _deliver(
    running: Session, sink: str, table: Table, what: Consignment, batches: Iterable[pa.RecordBatch]
) -> Delivered:
    running.lock(DELIVERIES)
    running.rows(
        f"CREATE TABLE IF NOT EXISTS {DELIVERIES} ("
        + ", ".join(f"{name} {running.types[kind]} NOT NULL" for name, kind in _STATE.items())
        + ", PRIMARY KEY (sink_table, partition_key))"
    )
    if _is_delivered(running, sink, table, what):
        return Delivered(sink, reused=True)
    _need_table(running, sink, table, what)
    running.stage(batches, what.schema)
    written = running.change(_upsert(running, table, what.schema))
    removed = running.change(
        f"DELETE FROM {table.quoted} AS t WHERE t.partition_key = {running.mark(1)} AND NOT EXISTS "
        f"(SELECT 1 FROM {STAGE} AS s WHERE s.row_key = t.row_key)",
        [what.partition_key],
    )
    ((held,),) = running.rows(
        f"SELECT count(*) FROM {table.quoted} WHERE partition_key = {running.mark(1)}", [what.partition_key]
    )
    if held != what.rows:
        raise DeliveryError(
            f"{what.about}: {sink} would hold {held} rows where {what.rows} are predicted; nothing was delivered. Look "
            "for triggers or rules on the table"
        )
    _remember(running, table, what)
    running.commit()
    return Delivered(sink, written, removed)


def _is_delivered(running: Session, sink: str, table: Table, what: Consignment) -> bool:
    """Whether this commit is what was delivered last.

    Raises:
        SupersededError: a newer one was.
        DeliveryError: the table belongs to another pipeline.
    """
    others = running.rows(
        f"SELECT pipeline FROM {DELIVERIES} WHERE sink_table = {running.mark(1)} AND pipeline <> {running.mark(2)}",
        [table.name, what.pipeline],
    )
    if others:
        raise DeliveryError(
            f"{what.about}: {sink} is filled by pipeline {others[0][0]}: give each pipeline a table of its own"
        )
    known = running.rows(
        f"SELECT attempt, fingerprint FROM {DELIVERIES} WHERE sink_table = {running.mark(1)} AND "
        f"partition_key = {running.mark(2)}",
        [table.name, what.partition_key],
    )
    if not known:
        return False
    attempt, fingerprint = known[0]
    if attempt > what.attempt:
        raise SupersededError(
            f"{what.about}: {sink} holds the newer commit {attempt}, this is {what.attempt}. If the lake was made anew, "
            f"delete the partition's row from {DELIVERIES} and materialize delivered again"
        )
    return (attempt, fingerprint) == (what.attempt, what.fingerprint)


def _need_table(running: Session, sink: str, table: Table, what: Consignment) -> None:
    """Make the table where there is none.

    Raises:
        DeliveryError: it is there and lacks columns.
    """
    wanted = {field.name: _type_of(running, field) for field in what.schema}
    there = running.columns(*table.parts)
    if not there:
        columns = [
            f"{quoted(name)} {kind}" + (" NOT NULL" if name in _KEY else "") for name, kind in wanted.items()
        ]
        running.rows(f"CREATE TABLE {table.quoted} ({', '.join(columns)}, PRIMARY KEY ({', '.join(_KEY)}))")
        return
    missing = [name for name in wanted if name not in there]
    if missing:
        added = "; ".join(
            f"ALTER TABLE {table.quoted} ADD COLUMN {quoted(name)} {wanted[name]}" for name in missing
        )
        raise DeliveryError(f"{what.about}: {sink} lacks columns of the predictions. Add them: {added}")


def _type_of(running: Session, column: pa.Field) -> str:
    kind = column.type
    if pa.types.is_list(kind):
        return running.lists.format(running.types[str(kind.value_type)])
    return running.types[str(kind)]


def _upsert(running: Session, table: Table, schema: pa.Schema) -> str:
    names = ", ".join(quoted(name) for name in schema.names)
    values = [quoted(name) for name in schema.names if name not in _KEY]
    changes = ", ".join(f"{name} = excluded.{name}" for name in values)
    differs = " OR ".join(f"t.{name} {running.differs} excluded.{name}" for name in values)
    return (
        f"INSERT INTO {table.quoted} AS t ({names}) SELECT {names} FROM {STAGE} WHERE true "
        f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET {changes} WHERE {differs}"
    )


def _remember(running: Session, table: Table, what: Consignment) -> None:
    values = [
        table.name,
        what.partition_key,
        what.pipeline,
        what.attempt,
        what.fingerprint,
        what.rows,
        what.run_id,
        datetime.now(UTC),
    ]
    marks = ", ".join(running.mark(number) for number in range(1, len(values) + 1))
    changes = ", ".join(f"{name} = excluded.{name}" for name in list(_STATE)[2:])
    running.change(
        f"INSERT INTO {DELIVERIES} AS d ({', '.join(_STATE)}) VALUES ({marks}) "
        f"ON CONFLICT (sink_table, partition_key) DO UPDATE SET {changes}",
        values,
    )
