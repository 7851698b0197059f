"""`affected`, row by row against polars over the Delta tables: random pipelines' histories, random questions."""

import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from deltalake import DeltaTable

from batch_platform.core.data.lake import Lake
from batch_platform.core.delivering import deliver_partition
from batch_platform.core.provenance.carrying import carried
from batch_platform.core.provenance.impact import Impact, Question, affected, affected_keys
from batch_platform_tests.core.deliveries import SINK
from batch_platform_tests.core.provenance.made import make, slice_of
from batch_platform_tests.mini import ATTRIBUTES, COLUMNS, DAYS, Mini, good_row

SCENARIOS = 24
SINKS = [SINK, {"type": "parquet", "uri": "exports"}]
DATABASE, FOLDER = "SCORES_DB: scores", "exports"


class History:
    """Five days of two or three files each, scored, scored again and delivered to two sinks at random."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.mini = Mini(folder, instance)
        self.change(source={"uri": "data/{partition}/*.csv"})
        # By day, what was delivered last: the file that each row came out of.
        self.delivered: dict[str, dict[str, str]] = {}
        self.chance = random.Random(20260101)
        self.digests = {version.version: version.digest for version in map(self.mini.register, range(3))}
        for day in DAYS:
            self.write(day)
        for run in range(14):
            day = self.chance.choice(DAYS) if run >= len(DAYS) else DAYS[run]
            self.mini.register(self.chance.randrange(3))
            if self.chance.random() < 0.5:
                self.write(day)
            if self.chance.random() < 0.3:
                self.other_contract()
            make(self.mini, day, f"run-{run}")
            if self.chance.random() < 0.6:
                self.deliver(day)
        self.predictions = self.mini.table("predictions")
        self.raw = self.mini.table("raw")

    def change(self, **sections: Any) -> None:
        self.mini.change(**sections, inference={"max_error_share": 0.5}, sinks=SINKS)

    def deliver(self, day: str) -> None:
        deliver_partition(slice_of(self.mini, day))
        raw = self.mini.table("raw").filter(pl.col("partition_key") == day)
        self.delivered[day] = dict(raw.select("row_key", "source_file").iter_rows())

    def write(self, day: str) -> None:
        """New files of the day: some rows as before, some changed, some that go to quarantine."""
        folder = self.mini.folder / "data" / day
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        numbers = self.chance.sample(range(40), 24)
        for part in range(self.chance.choice([1, 2, 3])):
            lines = [",".join([*COLUMNS, "note"])]
            for number in numbers[part::3]:
                row = good_row("customer", number) | {"age": self.chance.choice([20, 30, 200]), "note": "x"}
                lines.append(",".join(str(value) for value in row.values()))
            (folder / f"{part}.csv").write_text("\n".join(lines))

    def other_contract(self) -> None:
        """With a column more or less the recipe that passes all columns on has another version."""
        columns = dict(ATTRIBUTES["source"]["columns"])
        if self.chance.random() < 0.5:
            columns["note"] = {"type": "string"}
        source = {"uri": "data/{partition}/*.csv", "columns": columns}
        self.change(source=source)

    def question(self, by: str | None) -> Question:
        first, last = sorted(self.chance.choices([None, *DAYS], k=2), key=str)
        values: dict[str | None, Callable[[], Any]] = {
            "model": lambda: "churn",
            "recipe": lambda: self.chance.choice(self.everything["recipe_version"].to_list()),
            "run": lambda: self.chance.choice(self.everything["run_id"].to_list()),
            "source_file": lambda: self.chance.choice(self.raw["source_file"].to_list()),
            None: lambda: "",
        }
        version = self.chance.choice([None, *self.digests]) if by == "model" else None
        history = by != "source_file" and self.chance.random() < 0.5
        return Question(by, values[by](), version, first, last and first and last, history)  # type: ignore[arg-type]

    @property
    def everything(self) -> pl.DataFrame:
        """The predictions of all versions of the table, one below the other."""
        folder = str(self.mini.layout.table("predictions"))
        versions = range(DeltaTable(folder).version() + 1)
        frames = [pl.read_delta(folder, version=version) for version in versions]
        return pl.concat([frame for frame in frames if frame.height], how="diagonal_relaxed")

    def answer(self, asked: Question) -> set[tuple[str, str]]:
        """The rows that polars finds: partition and key."""
        frame = self.everything if asked.history else self.predictions
        if asked.by == "source_file":
            rows = self.raw.filter(pl.col("source_file") == asked.value).select("partition_key", "row_key")
            frame = frame.join(rows, on=["partition_key", "row_key"], how="semi")
        return self.matching(frame, asked)

    def answer_in_sink(self, asked: Question, sink: str) -> set[tuple[str, str]]:
        """The rows that polars finds in what the sink itself holds."""
        frame = self.held[sink]
        if asked.by == "source_file":
            theirs = [
                self.delivered[day][key] == asked.value
                for day, key in frame.select("partition_key", "row_key").iter_rows()
            ]
            frame = frame.filter(theirs)
        return self.matching(frame, asked)

    @property
    def held(self) -> dict[str, pl.DataFrame]:
        """What the sinks hold, as others read it."""
        columns = ["partition_key", "row_key", "model_digest", "recipe_version", "run_id"]
        with sqlite3.connect(self.mini.folder / "scores.sqlite") as connection:
            rows = connection.execute(f"SELECT {', '.join(columns)} FROM scores").fetchall()
        files = sorted((self.mini.folder / "exports").glob("*.parquet"))
        return {
            DATABASE: pl.DataFrame(rows, columns, orient="row"),
            FOLDER: pl.concat(
                [pl.read_parquet(path, columns=columns, hive_partitioning=False) for path in files]
            ),
        }

    def matching(self, frame: pl.DataFrame, asked: Question) -> set[tuple[str, str]]:
        if asked.by == "model" and asked.version is not None:
            frame = frame.filter(pl.col("model_digest") == self.digests[asked.version])
        elif asked.by == "recipe":
            frame = frame.filter(pl.col("recipe_version") == asked.value)
        elif asked.by == "run":
            frame = frame.filter(pl.col("run_id") == asked.value)
        if asked.first is not None:
            frame = frame.filter(pl.col("partition_key") >= asked.first)
        if asked.last is not None:
            frame = frame.filter(pl.col("partition_key") <= asked.last)
        return set(frame.select("partition_key", "row_key").iter_rows())


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with dg.instance_for_test() as instance, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCORES_DB", "sqlite:///scores.sqlite")
        yield History(tmp_path_factory.mktemp("mini"), instance)


def counts(impact: Impact) -> dict[str, int]:
    return {found.partition_key: found.rows for found in impact.partitions}


def test_equal_to_polars_row_by_row(history: History) -> None:
    lake = Lake(history.mini.layout)
    sizes = set()
    old = 0
    for number in range(SCENARIOS):
        asked = history.question(["model", "recipe", "run", "source_file", None][number % 5])
        wanted = history.answer(asked)
        found = affected(history.mini.settings, asked)
        by_day = {day: sum(key == day for key, _ in wanted) for day in DAYS}
        assert counts(found) == {day: rows for day, rows in by_day.items() if rows}, asked
        assert (found.rows, found.notes) == (len(wanted), ())
        if not asked.history:
            keys = {
                (day, key)
                for day in DAYS
                if asked.covers(day)
                for key in affected_keys(lake, asked, day).to_pylist()
            }
            assert keys == wanted, asked
        sizes.add(len(wanted))
        sinks = carried(history.mini.settings, asked)
        told = {(one.sink.rpartition("/")[2], one.partition_key): one.rows for one in sinks.sinks}
        in_sinks = {
            (sink, day) for sink in (DATABASE, FOLDER) for day, _ in history.answer_in_sink(asked, sink)
        }
        assert told == {
            (sink, day): sum(key == day for key, _ in history.answer_in_sink(asked, sink))
            for sink, day in in_sinks
        }, asked
        old += sum(not one.stands for one in sinks.sinks)
    assert len(sizes) > 8  # the questions were not all about nothing, or about everything
    assert old  # nor the sinks all of one mind with the lake


def test_by_code_and_what_nobody_made(history: History) -> None:
    settings = history.mini.settings
    head = next(iter(Lake(history.mini.layout).heads("predictions")))[1]
    everything = affected(settings, Question(None))
    assert everything.rows == history.predictions.height
    assert everything.seconds > 0
    assert affected(settings, Question("code", head.receipt["code_version"])) == everything
    for by in ("model", "recipe", "run", "source_file", "code"):
        assert affected(settings, Question(by, "nobody")).rows == 0  # type: ignore[arg-type]
    assert affected(settings, Question("model", "churn", "9")).rows == 0
    assert affected(settings, Question(None), ["other"]).rows == 0


def test_what_cannot_be_concerned_is_not_read(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_words: Any, **_named: Any) -> Any:
        raise AssertionError("a row group was read")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile.read_row_group", refuse)
    monkeypatch.setattr("pyarrow.parquet.ParquetFile.iter_batches", refuse)
    settings = history.mini.settings
    assert affected(settings, Question("run", "nobody")).rows == 0
    assert affected(settings, Question("model", "churn")).rows == history.predictions.height


def test_removed_history_is_told(tmp_path: Path) -> None:
    with dg.instance_for_test() as instance:
        mini = Mini(tmp_path, instance)
        mini.register()
        mini.write(DAYS[0])
        make(mini, DAYS[0])
        mini.register(seed=1)
        make(mini, DAYS[0], "run-2")
        asked = Question("model", "churn", "1", history=True)
        assert affected(mini.settings, asked).rows == 20
        (place,) = [
            path for path in mini.layout.table("predictions").rglob("*.parquet") if "-1-pred" in path.name
        ]
        place.unlink()
        (note,) = affected(mini.settings, asked).notes
        assert "the 20 rows of" in note and "not counted" in note
