"""Predictions in databases, on real ones: what is there afterwards, whatever happens on the way."""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batch_platform.core import delivering
from batch_platform.core.deliveries import TABLE, standing
from batch_platform.core.spec import parse_spec
from batch_platform.errors import (
    DeliveryError,
    PipelineFileError,
    SettingsError,
    SupersededError,
    UpstreamMissingError,
)
from batch_platform_tests.core.deliveries import SCHEMA, SINK, Shop, ask
from batch_platform_tests.mini import ATTRIBUTES, DAYS
from batch_platform_tests.postgres import Server, execute
from batch_platform_tests.project import REPOSITORY

ODD = {"a": 0.5, 'it\'s "b"; --': 0.25, "ünï\ncode": 1.0}


@pytest.fixture(params=["postgresql", "duckdb", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, postgres: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    made = postgres.database() if kind == "postgresql" else f"{kind}:///scores.{kind}"
    monkeypatch.setenv("SCORES_DB", made)
    return made


@pytest.fixture
def server_url(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database of PostgreSQL."""
    made = postgres.database()
    monkeypatch.setenv("SCORES_DB", made)
    return made


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def scores(shop: Shop, url: str, day: str = DAYS[0], table: str = "scores") -> dict[str, float]:
    query = f"SELECT row_key, score FROM {table} WHERE partition_key = '{day}'"
    found = ask(url, shop.folder, query)
    assert len(dict(found)) == len(found)
    return dict(found)


def changes(shop: Shop) -> tuple[int, int, bool]:
    told = shop.deliver().metadata["SCORES_DB: scores"]
    return told["written"], told["removed"], told["reused"]


def test_a_delivered_partition(shop: Shop, url: str, kind: str) -> None:
    attempt = shop.commit(ODD, "f1")
    result = shop.deliver()
    assert (result.table, result.rows, result.reused) == ("delivered", 3, False)
    assert all(check.passed for check in result.checks)
    assert scores(shop, url) == ODD
    ((label, both, at),) = ask(
        url, shop.folder, "SELECT label, scores, scored_at FROM scores WHERE row_key = 'a'"
    )
    assert label == "yes"
    assert both == ("[0.5, 0.5]" if kind == "sqlite" else [0.5, 0.5])
    assert str(at).startswith("2026-01-02T03:04:05.6" if kind == "sqlite" else "2026-01-02 03:04:05.6")
    state = ask(
        url, shop.folder, "SELECT pipeline, partition_key, attempt, row_count FROM batch_platform_deliveries"
    )
    assert state == [("mini", DAYS[0], attempt, 3)]
    again = shop.deliver()
    assert (again.reused, again.data_version) == (True, result.data_version)


def test_the_lake_remembers_what_each_sink_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORES_DB", "sqlite:///scores.sqlite")
    shop = Shop(tmp_path, sinks=[SINK, {"type": "csv", "uri": "exports"}])
    lake = shop.slice().lake

    def held() -> dict[str, tuple[int, int]]:
        rows = standing(lake, DAYS[0])
        return {row["sink"].rpartition("/")[2]: (row["predictions_attempt"], row["rows"]) for row in rows}

    shop.commit({"a": 0.1, "b": 0.2}, "f1")
    assert held() == {}
    shop.deliver()
    assert held() == {"SCORES_DB: scores": (1, 2), "exports": (1, 2)}
    commits = len(list(lake.receipts(TABLE)))
    shop.deliver()
    assert len(list(lake.receipts(TABLE))) == commits  # nothing was delivered, nothing is written
    # The first sink is done before the second one fails.
    shop.commit({"a": 0.1}, "f2")
    (tmp_path / "exports" / "_manifests" / f"{DAYS[0]}.json").write_text('{"pipeline": "other"}')
    with pytest.raises(DeliveryError, match="filled by pipeline other"):
        shop.deliver()
    assert held() == {"SCORES_DB: scores": (2, 1), "exports": (1, 2)}
    # A sink that is no longer asked for keeps what it was given.
    shop.spec = parse_spec({**ATTRIBUTES, "sinks": [SINK]}, "mini")
    shop.commit({}, "f3")
    shop.deliver()
    assert held() == {"SCORES_DB: scores": (3, 0), "exports": (1, 2)}


def test_a_rescored_partition_delivers_the_difference(shop: Shop, url: str) -> None:
    shop.commit({"a": 0.1, "b": 0.2, "c": 0.3}, "f1")
    assert changes(shop) == (3, 0, False)
    shop.commit({"a": 0.1, "b": 0.9, "d": 0.4}, "f2")
    assert changes(shop) == (2, 1, False)
    assert scores(shop, url) == {"a": 0.1, "b": 0.9, "d": 0.4}
    assert changes(shop) == (0, 0, True)
    shop.commit({}, "f3")
    assert changes(shop) == (0, 3, False)
    assert scores(shop, url) == {}


def test_other_partitions_and_other_columns_are_left_alone(shop: Shop, url: str) -> None:
    shop.commit({"a": 0.1, "b": 0.2}, "f1")
    shop.commit({"a": 0.7}, "g1", DAYS[1])
    shop.deliver()
    shop.deliver(DAYS[1])
    ask(url, shop.folder, "ALTER TABLE scores ADD COLUMN remark VARCHAR(20)")
    ask(url, shop.folder, "UPDATE scores SET remark = 'called' WHERE row_key = 'a'")
    shop.commit({"a": 0.2}, "f2")
    shop.deliver()
    assert scores(shop, url) == {"a": 0.2}
    assert scores(shop, url, DAYS[1]) == {"a": 0.7}
    assert ask(url, shop.folder, "SELECT DISTINCT remark FROM scores") == [("called",)]


def test_columns_that_are_predicted_no_more_become_null(shop: Shop, url: str) -> None:
    shop.commit({"a": 0.1}, "f1")
    shop.deliver()
    shop.commit({"a": 0.1}, "f2", schema=pa.schema([field for field in SCHEMA if field.name != "label"]))
    shop.deliver()
    assert ask(url, shop.folder, "SELECT label FROM scores") == [(None,)]


def test_a_table_without_the_columns_or_the_key(shop: Shop, url: str) -> None:
    ask(
        url,
        shop.folder,
        "CREATE TABLE scores (partition_key VARCHAR(20), row_key VARCHAR(20), label VARCHAR(9))",
    )
    shop.commit({"a": 0.1}, "f1")
    with pytest.raises(
        DeliveryError, match=r'lacks columns .*: ALTER TABLE "scores" ADD COLUMN "score" [a-zA-Z]'
    ) as caught:
        shop.deliver()
    for statement in str(caught.value).partition("Add them: ")[2].split("; "):
        ask(url, shop.folder, statement)
    with pytest.raises(DeliveryError, match=r"(?i)pipeline mini, partition 2026-01-01: .*constraint"):
        shop.deliver()
    ask(url, shop.folder, "CREATE UNIQUE INDEX by_key ON scores (partition_key, row_key)")
    shop.deliver()
    assert scores(shop, url) == {"a": 0.1}


def test_only_what_is_committed_is_delivered(shop: Shop, url: str) -> None:
    with pytest.raises(UpstreamMissingError, match="predictions is not there yet"):
        shop.deliver()


def test_an_older_commit_after_a_newer_one(shop: Shop, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runs the older one is late: its rows must not come over the newer ones."""
    shop.commit({"a": 0.1}, "f1")
    late = shop.slice()
    old = late.committed("predictions")
    shop.commit({"a": 0.9}, "f2")
    shop.deliver()
    standing = type(late).committed
    answers = iter([old])
    monkeypatch.setattr(
        type(late), "committed", lambda self, table: next(answers, None) or standing(self, table)
    )
    with pytest.raises(SupersededError, match="holds the newer commit 2, this is 1"):
        delivering.deliver_partition(late)
    assert scores(shop, url) == {"a": 0.9}


def test_a_lake_made_anew_is_told_apart(shop: Shop, url: str, tmp_path: Path) -> None:
    shop.commit({"a": 0.1}, "f1")
    shop.commit({"a": 0.2}, "f2")
    shop.deliver()
    (tmp_path / "root").rename(tmp_path / "away")
    shop.commit({"a": 0.3}, "f3")
    with pytest.raises(DeliveryError, match="delete the partition's row from batch_platform_deliveries"):
        shop.deliver()
    ask(url, shop.folder, "DELETE FROM batch_platform_deliveries")
    shop.deliver()
    assert scores(shop, url) == {"a": 0.3}


def test_two_pipelines_do_not_share_a_table(shop: Shop, url: str, tmp_path: Path) -> None:
    shop.commit({"a": 0.1}, "f1")
    shop.deliver()
    other = Shop(tmp_path, "other")
    other.commit({"z": 0.9}, "g1")
    with pytest.raises(
        DeliveryError, match="is filled by pipeline mini: give each pipeline a table of its own"
    ):
        other.deliver()
    assert scores(shop, url) == {"a": 0.1}


def test_a_table_of_a_schema(shop: Shop, server_url: str, tmp_path: Path) -> None:
    execute(server_url, "CREATE SCHEMA serving")
    named = Shop(tmp_path, sinks=[SINK | {"table": "serving.scores"}])
    named.commit({"a": 0.1}, "f1")
    named.deliver()
    assert scores(named, server_url, table="serving.scores") == {"a": 0.1}


def test_rows_that_a_trigger_swallows_are_noticed(shop: Shop, server_url: str) -> None:
    shop.commit({"a": 0.1}, "f1")
    shop.deliver()
    execute(
        server_url,
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER swallow BEFORE INSERT ON scores FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    shop.commit({"a": 0.1, "b": 0.2}, "f2")
    with pytest.raises(DeliveryError, match="would hold 1 rows where 2 are predicted"):
        shop.deliver()


# -- databases in trouble ---------------------------------------------------------------------------------


def test_a_connection_lost_in_mid_write(
    shop: Shop, server_url: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.commit({"a": 0.1}, "f1")
    shop.deliver()
    shop.commit({"a": 0.2, "b": 0.3}, "f2")
    name = server_url.rpartition("/")[2]
    rows = delivering._rows

    def cut_off(*what: Any) -> Iterator[pa.RecordBatch]:
        yield from rows(*what)
        kill = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        execute(postgres.url("postgres"), kill)

    with monkeypatch.context() as patch:
        patch.setattr(delivering, "_rows", cut_off)
        with pytest.raises(DeliveryError, match="the table holds what it held before"):
            shop.deliver()
    assert scores(shop, server_url) == {"a": 0.1}
    shop.deliver()
    assert scores(shop, server_url) == {"a": 0.2, "b": 0.3}


def test_a_database_that_is_read_only(shop: Shop, server_url: str) -> None:
    execute(
        server_url, f"ALTER DATABASE {server_url.rpartition('/')[2]} SET default_transaction_read_only = on"
    )
    shop.commit({"a": 0.1}, "f1")
    with pytest.raises(DeliveryError, match="read-only transaction"):
        shop.deliver()


def test_a_database_that_is_full(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "sqlite:///scores.db"
    monkeypatch.setenv("SCORES_DB", url)
    shop.commit({"a": 0.1}, "f1")
    shop.deliver()
    shop.commit({f"k{number}": 0.5 for number in range(5_000)}, "f2")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))  # no file may grow beyond it
    try:
        with pytest.raises(DeliveryError, match=r"full|disk I/O error"):
            shop.deliver()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert scores(shop, url) == {"a": 0.1}
    shop.deliver()
    assert len(scores(shop, url)) == 5_000


def test_a_database_that_is_not_there(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.commit({"a": 0.1}, "f1")
    monkeypatch.delenv("SCORES_DB", raising=False)
    with pytest.raises(SettingsError, match="SCORES_DB is not set"):
        shop.deliver()
    monkeypatch.setenv("SCORES_DB", "postgresql://tests:hush@127.0.0.1:1/x")
    with pytest.raises(DeliveryError, match="SCORES_DB: scores") as caught:
        shop.deliver()
    assert "hush" not in str(caught.value)


_WORKER = """
import sys
from pathlib import Path
from batch_platform_tests.core.deliveries import Shop
shop = Shop(Path(sys.argv[1]))
print("ready", flush=True)
shop.deliver()
"""


def test_deliveries_that_are_killed(shop: Shop, server_url: str) -> None:
    """Killed at some moment of it and repeated, each commit is delivered once and whole."""
    for attempt in range(4):
        wanted = {f"k{number}": (number % 97 + attempt) / 200 for number in range(attempt, 20_000)}
        shop.commit(wanted, f"f{attempt}")
        command = [sys.executable, "-c", _WORKER, str(shop.folder)]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.05 + 0.1 * attempt)
            process.send_signal(signal.SIGKILL)
        shop.deliver()
        assert scores(shop, server_url) == wanted


# -- the pipeline file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sinks", "words"),
    [
        ([{"type": "sql", "table": "t"}], "sinks.0: type: sql needs connection_env and table, and no uri"),
        ([{"type": "csv"}], "sinks.0: type: csv needs uri, and no connection_env or table"),
        ([{"type": "csv", "uri": "out/{partition}"}], "sinks.0.uri: String should match pattern"),
        (
            [{"type": "parquet", "uri": "out", "mode": "upsert"}],
            "sinks.0: mode has no effect with type: parquet",
        ),
        ([SINK | {"table": "t; DROP TABLE x"}], "sinks.0.table: String should match pattern"),
        ([SINK | {"mode": "append"}], "sinks.0.mode: Input should be 'upsert'"),
        ([SINK, SINK], "sinks: two sinks write to the same place"),
    ],
)
def test_sinks_that_are_refused(sinks: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(PipelineFileError) as caught:
        parse_spec({**ATTRIBUTES, "sinks": sinks}, "p")
    assert words in str(caught.value)
