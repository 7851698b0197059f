"""Queries as sources, on real databases: what is read, what is refused, and that nothing can be written."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

import duckdb
import pytest

from batch_platform.core.data.databases import reading
from batch_platform.core.data.databases.address import Address
from batch_platform.core.data.databases.query import Query
from batch_platform.core.data.intake import PartitionReader
from batch_platform.core.data.partitions import PartitionCalendar
from batch_platform.core.spec import parse_spec
from batch_platform.errors import ContractError, PipelineFileError, SettingsError, SourceError
from batch_platform_tests.mini import ATTRIBUTES
from batch_platform_tests.postgres import Server, execute

DAY = PartitionCalendar.of("daily", "2026-01-01", None, "UTC").partition("2026-01-02")
COLUMNS = {
    "id": {"type": "int64", "required": True},
    "moment": {"type": "timestamp", "required": True},
    "amount": {"type": "float64"},
    "note": {"type": "string"},
    "active": {"type": "boolean"},
}
WINDOW = {
    "postgresql": "SELECT * FROM sales WHERE moment >= :start AND moment < :end ORDER BY id",
    "duckdb": "SELECT * FROM sales WHERE moment >= :start AND moment < :end ORDER BY id",
    "sqlite": "SELECT * FROM sales WHERE datetime(moment) >= :start AND datetime(moment) < :end ORDER BY id",
}
ROWS = [
    (1, "2026-01-01 23:59:59+00:00", "1.50", "before", True),
    (2, "2026-01-02 00:00:00+00:00", "2.25", "it's; :start 'quoted'", True),
    (3, "2026-01-02 13:00:00.5+02:00", None, None, False),
    (4, "2026-01-03 00:00:00+00:00", "4", "after", None),
]


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    return str(value).upper() if isinstance(value, bool) else "'" + str(value).replace("'", "''") + "'"


def filled(kind: str, folder: Path, postgres: Server) -> str:
    """A database with the table `sales`; its address."""
    types = {
        "postgresql": "id int, moment timestamptz, amount numeric(12,2), note text, active boolean, more text",
        "duckdb": "id int, moment timestamptz, amount decimal(12,2), note text, active boolean, more text",
        "sqlite": "id integer, moment text, amount real, note text, active boolean, more text",
    }
    rows = ", ".join("(" + ", ".join([*map(literal, row), "'x'"]) + ")" for row in ROWS)
    statements = [f"CREATE TABLE sales ({types[kind]})", f"INSERT INTO sales VALUES {rows}"]
    if kind == "postgresql":
        url = postgres.database()
        execute(url, *statements)
        return url
    connect = duckdb.connect if kind == "duckdb" else sqlite3.connect
    connection = connect(folder / f"db.{kind}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return f"{kind}:///db.{kind}"


@pytest.fixture(params=["postgresql", "duckdb", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(kind: str, tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    url = filled(kind, tmp_path, postgres)
    monkeypatch.setenv("SALES_DB", url)
    return url


def attributes(query: str, **source: Any) -> dict[str, Any]:
    columns = source.pop("columns", COLUMNS)
    made = {
        "format": "sql",
        "query": query,
        "connection_env": "SALES_DB",
        "row_key": "id",
        "columns": columns,
    }
    return {**ATTRIBUTES, "source": made | source}


def reader(query: str, folder: Path, **source: Any) -> PartitionReader:
    return PartitionReader(parse_spec(attributes(query, **source), "p").source, DAY, folder)


def rows(read: PartitionReader) -> list[dict[str, Any]]:
    return [row for good, _ in read for row in good.to_pylist()]


def test_a_partitions_rows(kind: str, address: str, tmp_path: Path) -> None:
    read = reader(WINDOW[kind], tmp_path)
    found = rows(read)
    assert [row["row_key"] for row in found] == ["2", "3"]
    assert [row["amount"] for row in found] == [2.25, None]
    assert [row["note"] for row in found] == ["it's; :start 'quoted'", None]
    assert [row["active"] for row in found] == [True, False]
    assert found[1]["moment"].isoformat() == "2026-01-02T11:00:00.500000+00:00"
    assert [(row["source_file"], row["source_row"]) for row in found] == [
        ("sql:SALES_DB", 0),
        ("sql:SALES_DB", 1),
    ]
    assert (read.counts.rows_in, read.counts.ignored_columns) == (2, ["more"])


def test_the_partition_key_is_bound_and_never_pasted(kind: str, address: str, tmp_path: Path) -> None:
    """Keys cannot hold SQL, the calendar sees to that; and if they did, they would be a value."""
    evil = "2026-01-02'; DROP TABLE sales; --"
    query = Query.parse("SELECT id, note FROM sales WHERE note = :partition OR id = 2")
    (batch,) = reading.read_query(Address.from_env("SALES_DB", tmp_path), query, {"partition": evil})
    assert batch.column("id").to_pylist() == [2]
    assert len(rows(reader(WINDOW[kind], tmp_path))) == 2


def test_large_results_come_in_parts(kind: str, address: str, tmp_path: Path) -> None:
    query = Query.parse(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i, :partition AS p "
        "FROM n ORDER BY i"
    )
    if kind == "postgresql":
        query = Query.parse("SELECT i, :partition::text AS p FROM generate_series(1, 20000) i")
    batches = list(reading.read_query(Address.from_env("SALES_DB", tmp_path), query, {"partition": "x"}))
    assert len(batches) > 1
    assert [i for batch in batches for i in batch.column("i").to_pylist()] == list(range(1, 20001))


REFUSED = [
    ("DELETE FROM sales WHERE moment >= :start AND moment < :end", "query begins with DELETE"),
    ("SELECT 1 WHERE :start < :end; DELETE FROM sales", "more than one statement"),
    (
        "WITH gone AS (DELETE FROM sales RETURNING *) SELECT * FROM gone WHERE :start < :end",
        "the word DELETE",
    ),
    ("SELECT * INTO copied FROM sales WHERE moment >= :start AND moment < :end", "the word INTO"),
    ("COPY (SELECT :start, :end) TO '/tmp/x'", "query begins with COPY"),
    ("EXPLAIN ANALYZE DELETE FROM sales WHERE moment BETWEEN :start AND :end", "query begins with EXPLAIN"),
    ("/* SELECT */ DROP TABLE sales -- :start :end", "query begins with DROP"),
    (
        "SELECT * FROM sales WHERE moment >= :begin",
        "the parameter :begin: only :start, :end, :partition are known",
    ),
    ("SELECT * FROM sales WHERE id = ?", "the parameter ?"),
    ("SELECT * FROM sales", "has to select the partition's rows"),
    ("SELECT * FROM sales WHERE moment >= :start", "has to select the partition's rows"),
    ("SELECT * FROM sales WHERE note = ':start :end'", "has to select the partition's rows"),
    ("   ", "query begins with nothing"),
]


@pytest.mark.parametrize(("query", "words"), REFUSED, ids=[query[:30] for query, _ in REFUSED])
def test_what_is_no_single_reading_statement_is_refused_with_the_file(query: str, words: str) -> None:
    with pytest.raises(PipelineFileError, match=r"^source: ") as caught:
        parse_spec(attributes(query), "p")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"connection_env": None}, "format: sql needs query and connection_env"),
        ({"uri": "x/{partition}"}, "uri and partition_column have no effect with format: sql"),
        ({"format": "csv", "uri": "x/{partition}"}, "have no effect without format: sql"),
        ({"connection_env": "postgresql://u:secret@h/d"}, "String should match pattern"),
    ],
)
def test_fields_that_contradict_each_other(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PipelineFileError) as caught:
        parse_spec(attributes(WINDOW["duckdb"], **changes), "p")
    assert words in str(caught.value)


# What writes although it is a SELECT, past the check of the text; the database is the one that refuses.
SLY = {
    "postgresql": [
        "SELECT nextval('counter') AS id WHERE :start < :end",
        "SELECT set_config('transaction_read_only', 'off', false) AS id WHERE :start < :end",
    ],
    "duckdb": ["SELECT nextval('counter') AS id WHERE :start < :end"],
    "sqlite": ["SELECT load_extension('x') AS id WHERE :start < :end"],
}


def test_the_database_refuses_to_write_too(kind: str, address: str, tmp_path: Path) -> None:
    if kind == "postgresql":
        execute(address, "CREATE SEQUENCE counter")
    if kind == "duckdb":
        with duckdb.connect(tmp_path / "db.duckdb") as connection:
            connection.execute("CREATE SEQUENCE counter")
    for query in SLY[kind]:
        with pytest.raises(SourceError, match="the database of SALES_DB refuses or ended the query"):
            rows(reader(query, tmp_path, columns={"id": {"type": "int64"}}))


def test_a_lost_connection_fails_the_partition(
    postgres: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = postgres.database()
    monkeypatch.setenv("SALES_DB", url)
    query = "SELECT i AS id FROM generate_series(1, 200000) i WHERE :start < :end"
    read = iter(reader(query, tmp_path, columns={"id": {"type": "int64"}}))
    next(read)
    name = url.rpartition("/")[2]
    execute(
        postgres.url("postgres"),
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    with pytest.raises(SourceError, match=r"terminating connection|server closed the connection"):
        for _ in read:
            pass


def test_what_a_partition_reads_is_one_moment(
    postgres: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = postgres.database()
    execute(url, "CREATE TABLE t AS SELECT i AS id FROM generate_series(1, 50000) i")
    monkeypatch.setenv("SALES_DB", url)
    read = iter(reader("SELECT id FROM t WHERE :start < :end", tmp_path, columns={"id": {"type": "int64"}}))
    first, _ = next(read)
    writer = threading.Thread(target=execute, args=(url, "DELETE FROM t WHERE id > 10"))
    writer.start()
    writer.join()
    assert first.num_rows + sum(good.num_rows for good, _ in read) == 50_000


@pytest.mark.parametrize(
    "value", ["", "mysql://u:secret@h/d", "secret", "sqlite://relative.db", "duckdb:///"]
)
def test_an_address_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SALES_DB", value)
    with pytest.raises(SettingsError, match="the environment variable SALES_DB") as caught:
        rows(reader(WINDOW["sqlite"], tmp_path))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://tests:p%40ss-word@127.0.0.1:1/x",
        "postgresql://tests:p%40ss-word@127.0.0.1:notaport/x",
        "postgresql://tests:p%40ss-word@[::1/x?bad=1",
    ],
)
def test_passwords_are_never_told(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SALES_DB", value)
    with pytest.raises(SourceError) as caught:
        rows(reader(WINDOW["postgresql"], tmp_path))
    error: BaseException | None = caught.value
    while error is not None and not error.__suppress_context__:
        assert "p%40ss-word" not in str(error)
        assert "p@ss-word" not in str(error)
        error = error.__cause__ or error.__context__
    assert "p%40ss-word" not in repr(Address.from_env("SALES_DB", tmp_path))


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("sqlite", "duckdb"):
        monkeypatch.setenv("SALES_DB", f"{kind}:///nowhere.db")
        with pytest.raises(SourceError, match="SALES_DB"):
            rows(reader(WINDOW[kind], tmp_path))
        assert not (tmp_path / "nowhere.db").exists()


def test_columns_and_types_that_do_not_fit(kind: str, address: str, tmp_path: Path) -> None:
    with pytest.raises(
        ContractError, match="sql:SALES_DB lacks column price of the contract; it has: id, moment"
    ):
        rows(reader(WINDOW[kind], tmp_path, columns={**COLUMNS, "price": {"type": "float64"}}))
    if kind != "sqlite":  # where it is a text
        with pytest.raises(
            ContractError, match=r"column moment is of type timestamp.*CAST it in source\.query"
        ):
            rows(
                reader(WINDOW[kind], tmp_path, columns={"id": {"type": "int64"}, "moment": {"type": "int64"}})
            )


def test_cells_that_do_not_fit_are_rows_for_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite types each cell by itself, so that a column can change in the middle."""
    connection = sqlite3.connect(tmp_path / "odd.db")
    connection.execute("CREATE TABLE t (id, amount)")
    odd = [(1, 1), (2, 2.5), (3, "3.5"), (4, "many"), (5, b"\xff"), (6, None), (7, 2**60)]
    connection.executemany("INSERT INTO t VALUES (?, ?)", odd)
    connection.commit()
    monkeypatch.setenv("SALES_DB", "sqlite:///odd.db")
    columns = {"id": {"type": "int64"}, "amount": {"type": "float64"}}
    read = reader("SELECT * FROM t WHERE :start < :end ORDER BY id", tmp_path, columns=columns)
    found = [(good.to_pylist(), bad) for good, bad in read]
    good = {row["row_key"]: row["amount"] for rows_, _ in found for row in rows_}
    assert good == {"1": 1.0, "2": 2.5, "3": 3.5, "6": None, "7": float(2**60)}
    assert [(row.row_key, row.error_type) for _, bad in found for row in bad] == [
        ("4", "wrong_type"),
        ("5", "wrong_type"),
    ]
