"""Bad input, and what it gets: a sentence that names place and next step, or a quarantine row with cause and place.

Every bad day is tried over a result that stands, so that a half-written table would show; afterwards the day is
mended and run again. Pipeline files are in test_component.py.
"""

import json
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_platform.core import outcomes
from batch_platform.core.layout import Layout
from batch_platform.core.models.registry import Registry
from batch_platform.errors import StorageError
from batch_platform_tests import tiny_models
from batch_platform_tests.mini import DAYS, Mini, failure_message, good_row

CHAIN = ["raw", "features", "predictions"]
ROWS = 20
Rows = list[dict[str, Any]]
# How to spoil a day, and words that its cause must have; DAY stands for the day.
Refused = tuple[Callable[[str], Any], list[str]]
# How to spoil a row, by values or in the written file; the error type; words of the quarantine row.
Quarantined = tuple[dict[str, Any] | Callable[[str, int], None], str, str]


def month(count: int) -> list[str]:
    return [f"2026-01-{day:02d}" for day in range(1, count + 1)]


def good(day: str) -> Rows:
    return [good_row(day, number) for number in range(ROWS)]


def one(day: str, **changes: Any) -> Rows:
    """Good rows, but for the one in place 3."""
    return [row | (changes if number == 3 else {}) for number, row in enumerate(good(day))]


def every(day: str, **changes: Any) -> Rows:
    return [row | changes for row in good(day)]


def lines_by_day(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """The cause of each bad date, from the message that the run ended with."""
    found = {}
    for line in failure_message(result).splitlines():
        if line.startswith("2026-"):
            day, _, cause = line.partition(": ")
            found[day] = cause
    return found


def standing(mini: Mini) -> dict[str, pl.DataFrame]:
    """All tables as another reader sees them, in one order."""
    found = {name: mini.table(name) for name in (*CHAIN, "quarantine")}
    return {
        name: frame if frame.is_empty() else frame.sort("partition_key", "row_key")
        for name, frame in found.items()
    }


def of_day(frame: pl.DataFrame, day: str) -> pl.DataFrame:
    return frame if frame.is_empty() else frame.filter(pl.col("partition_key") == day)


class Trial:
    """Good days that stand, then bad ones over them, then good ones again."""

    def __init__(self, mini: Mini, write: Callable[[str, Rows], Path], suffix: str) -> None:
        self.mini, self.write, self.suffix = mini, write, suffix

    def run(self, refused: list[Refused], quarantined: list[Quarantined]) -> None:
        """Try every bad day, and every bad row in the day after them."""
        mini = self.mini
        days = month(len(refused) + 1)
        *bad, mixed = days
        for day in days:
            self.write(day, good(day))
        mini.run(days[0], days[-1], CHAIN)
        before = standing(mini)
        assert before["predictions"].height == ROWS * len(days)
        assert before["quarantine"].is_empty()

        for day, (spoil, _) in zip(bad, refused, strict=True):
            if isinstance(made := spoil(day), list):
                self.write(day, made)
        self._spoil_rows(mixed, [spoil for spoil, *_ in quarantined])
        causes = lines_by_day(mini.run(days[0], days[-1], CHAIN, fail=True))
        after = standing(mini)
        assert sorted(causes) == bad
        for day, (_, words) in zip(bad, refused, strict=True):
            self._refused(day, words, causes[day], before, after)
        self._quarantined(mixed, quarantined, after)

        for day in days:
            self.write(day, good(day))
        mini.run(days[0], days[-1], CHAIN)
        for day in days:
            assert (mini.rows("predictions", day), mini.rows("quarantine", day)) == (ROWS, 0)
            assert mini.check("predictions", "complete", day) is True

    def _spoil_rows(self, day: str, spoilers: list[Any]) -> None:
        """Spoil the rows 0, 1, ... of a day: by other values, or in the file as written."""
        changes = [spoil if isinstance(spoil, dict) else {} for spoil in spoilers]
        rows = good(day)
        self.write(day, [rows[place] | change for place, change in enumerate(changes)] + rows[len(changes) :])
        for place, spoil in enumerate(spoilers):
            if not isinstance(spoil, dict):
                spoil(day, place)

    def _refused(
        self, day: str, words: list[str], cause: str, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        assert f"pipeline mini, partition {day}" in cause
        for word in words:
            assert word.replace("DAY", day) in cause, cause
        assert "Traceback" not in cause
        assert self.mini.check("raw", "complete", day) is False
        for table in CHAIN:
            assert of_day(after[table], day).equals(of_day(before[table], day))
        assert of_day(after["quarantine"], day).is_empty()

    def _quarantined(self, day: str, expected: list[Quarantined], after: dict[str, Any]) -> None:
        found = of_day(after["quarantine"], day).sort("source_row").to_dicts()
        assert [row["source_row"] for row in found] == list(range(len(expected)))
        for row, (_, error_type, words) in zip(found, expected, strict=True):
            assert row["error_type"] == error_type, row
            assert (row["stage"], row["source_file"]) == ("raw", f"data/{day}.{self.suffix}")
            assert words in row["message"], row
            assert len(row["payload"]) < 3_000
        keys = set(of_day(after["predictions"], day)["row_key"])
        assert keys == {f"{day}-{number}" for number in range(len(expected), ROWS)}


def test_csv(mini: Mini) -> None:
    folder = mini.folder / "data"

    def text(day: str) -> Path:
        return folder / f"{day}.csv"

    def other_key(new: bytes) -> Callable[[str, int], None]:
        def change(day: str, place: int) -> None:
            content = text(day).read_bytes()
            key = f"{day}-{place},".encode()
            assert content.count(key) == 1
            text(day).write_bytes(content.replace(key, new))

        return change

    mini.change(inference={"shard_rows": 64, "max_error_share": 0.5})
    only = "data/DAY.csv"
    Trial(mini, mini.write, "csv").run(
        refused=[
            (lambda day: text(day).unlink(), [f"{only}: no such csv file", "allow_empty: true"]),
            (
                lambda day: mini.write(day, []),
                ["no rows", "Check whether the data has arrived", "allow_empty"],
            ),
            (lambda day: text(day).write_text(""), [f"{only} is empty", "run the partition again"]),
            (
                lambda day: mini.write(day, [{"name": "x"}], ["name"]),
                [
                    f"{only} lacks column id, amount, age, plan",
                    "it has: name",
                    "source.columns in the pipeline file",
                ],
            ),
            (
                # Another version of the schema: a column has a new name.
                lambda day: text(day).write_text(text(day).read_text().replace("age", "years", 1)),
                [f"{only} lacks column age", "it has: id, amount, years, plan", "source.columns"],
            ),
            (
                lambda day: every(day, age=""),
                [
                    "20 of 20 rows quarantined",
                    f"{only} row 0: column age is required and empty",
                    "the rows are in",
                ],
            ),
            (
                lambda day: one(day, id=f"{day}-2"),
                ["1 rows repeat", "column id", f"'DAY-2' in {only} row 3", "source.on_duplicate"],
            ),
            (
                lambda day: text(day).write_bytes(b"\x00\xff" * 500),
                [f"{only}: the header cannot be read", "source.format"],
            ),
        ],
        quarantined=[
            ({"id": ""}, "null_key", "column id is the row key and is empty"),
            ({"amount": "inf"}, "not_finite", "column amount is not a finite number: inf"),
            ({"amount": "NaN"}, "not_finite", "column amount is not a finite number: nan"),
            ({"age": "1e400"}, "wrong_type", "column age is no int64: '1e400'"),
            ({"age": "9" * 20}, "wrong_type", "column age is no int64: '999"),
            ({"age": "old"}, "wrong_type", "column age is no int64: 'old'"),
            ({"plan": "x" * 1_000_000}, "not_allowed", "column plan is not one of"),
            (other_key(b"\xff\xfe,"), "invalid_utf8", "not valid UTF-8"),
            # The bytes of a lone surrogate, as some programs write them.
            (other_key(b"\xed\xa0\x80,"), "invalid_utf8", "not valid UTF-8"),
            (other_key(b'"open,'), "unparsable", "not valid CSV"),
        ],
    )


PARQUET = pa.schema(
    [("id", pa.string()), ("amount", pa.float64()), ("age", pa.int64()), ("plan", pa.string())]
)


def test_parquet(mini: Mini) -> None:
    mini.change(
        source={"uri": "data/{partition}.parquet", "format": "parquet"},
        inference={"shard_rows": 64, "max_error_share": 0.5},
    )
    (mini.folder / "data").mkdir()

    def path(day: str) -> Path:
        return mini.folder / "data" / f"{day}.parquet"

    def write(day: str, rows: Rows) -> Path:
        pq.write_table(pa.Table.from_pylist(rows, PARQUET), path(day))
        return path(day)

    def no_utf8(day: str, place: int) -> None:
        table = pq.read_table(path(day))
        plans = [plan.encode() for plan in table["plan"].to_pylist()]
        plans[place] = b"\xff\xfe"
        broken = pa.array(plans, pa.binary()).view(pa.string())
        pq.write_table(table.set_column(3, "plan", broken), path(day))

    def lists(day: str) -> None:
        table = pq.read_table(path(day))
        pq.write_table(table.set_column(2, "age", pa.array([[1.0]] * ROWS)), path(day))

    def cut_off(day: str) -> None:
        path(day).write_bytes(path(day).read_bytes()[:-100])

    def damaged(day: str) -> None:
        content = bytearray(path(day).read_bytes())
        content[4:400] = b"\x5a" * 396
        path(day).write_bytes(content)

    only = "data/DAY.parquet"
    Trial(mini, write, "parquet").run(
        refused=[
            (
                lambda day: path(day).write_bytes(b"not parquet at all"),
                [f"{only} is not a readable Parquet file"],
            ),
            (cut_off, [f"{only} is not a readable Parquet file", "fetch it again"]),
            (damaged, [only, "fetch it again, then run the partition again"]),
            (
                lists,
                [
                    f"{only}: column age is of type list<",
                    "cannot be read as int64",
                    "the column's type in the pipeline",
                ],
            ),
            (
                lambda day: pq.write_table(
                    pa.Table.from_pylist(good(day), PARQUET).drop(["plan"]), path(day)
                ),
                [f"{only} lacks column plan"],
            ),
            (
                lambda day: pq.write_table(PARQUET.empty_table(), path(day)),
                ["no rows", "source.allow_empty: true"],
            ),
            (lambda day: one(day, id=f"{day}-0"), ["repeat the key", f"'DAY-0' in {only} row 3"]),
        ],
        quarantined=[
            ({"id": None}, "null_key", "column id is the row key and is empty"),
            ({"amount": float("-inf")}, "not_finite", "column amount is not a finite number: -inf"),
            ({"amount": float("nan")}, "not_finite", "column amount is not a finite number: nan"),
            ({"age": 151}, "out_of_range", "column age is above the maximum 150: 151"),
            (no_utf8, "invalid_utf8", "column plan is not valid UTF-8"),
        ],
    )


def test_all_null_and_empty_partitions_go_through_every_stage(mini: Mini) -> None:
    """A column that is null throughout, for a model made for nulls, is shown; an allowed empty day is done."""
    mini.change(source={"allow_empty": True})
    mini.write(DAYS[0], every(DAYS[0], amount="", plan=""))
    mini.write(DAYS[1], [])
    # DAYS[2] has no file at all.
    mini.run(DAYS[0], DAYS[2])
    assert [mini.rows("predictions", day) for day in DAYS[:3]] == [ROWS, 0, 0]
    assert mini.check("features", "nulls", DAYS[0]) is False
    assert mini.check("raw", "volume", DAYS[2]) is True
    for day in DAYS[:3]:
        for stage in (*CHAIN, "drift_report"):
            assert mini.check(stage, "complete", day) is True, (stage, day)


# -- texts ------------------------------------------------------------------------------------------------


def use_text_model(mini: Mini) -> None:
    mini.change(
        source={
            "uri": "data/{partition}.jsonl",
            "format": "jsonl",
            "columns": {"id": {"type": "string"}, "text": {"type": "string", "required": True}},
        },
        model={"name": "mail"},
        inference={"max_error_share": 0.2},
    )
    Registry(mini.settings.root).register(
        "mail",
        tiny_models.text_classifier(mini.folder / "mail"),
        "transformers",
        tiny_models.TEXT_SIGNATURE,
        card=tiny_models.CARD,
        golden=None,
        alias="champion",
        by="tests",
        why="a test",
    )


def test_texts_of_a_megabyte_and_texts_that_are_none(mini: Mini) -> None:
    use_text_model(mini)
    lines = [
        json.dumps({"id": f"k{place}", "text": text}).encode()
        for place, text in enumerate(tiny_models.texts(ROWS))
    ]
    # 1 MB: of many words, of one, of characters outside the vocabulary, of NUL.
    for place, text in enumerate(
        ("money " * 170_000, "a" * 1_000_000, "\U0001f600" * 250_000, "\0" * 1_000_000)
    ):
        lines[place] = json.dumps({"id": f"k{place}", "text": text}).encode()
    spoiled = {
        4: (b'{"id": "k4", "text": "free \xff money"}', "invalid_utf8", "not valid UTF-8 (byte 27)"),
        5: (
            b'{"id": "k5", "text": "free \\ud800 money"}',
            "invalid_utf8",
            "column text holds a lone surrogate",
        ),
        6: (b'{"id": "k6", "text": 17}', "wrong_type", "column text is no string: '17'"),
        7: (b"[1, 2]", "unparsable", "JSON, but not an object"),
    }
    good_lines = list(lines)
    for place, (line, *_) in spoiled.items():
        lines[place] = line
    path = mini.folder / "data" / f"{DAYS[0]}.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"\n".join(lines))
    mini.run(DAYS[0], stages=[*CHAIN, "drift_report"])
    scored = mini.table("predictions")
    assert set(scored["row_key"]) == {f"k{place}" for place in range(ROWS) if place not in spoiled}
    assert scored["score"].is_finite().all()
    for row in mini.table("quarantine").to_dicts():
        _, error_type, words = spoiled[row["source_row"]]
        assert (row["error_type"], row["source_file"]) == (error_type, f"data/{DAYS[0]}.jsonl")
        assert words in row["message"]
    assert mini.rows("quarantine", DAYS[0]) == len(spoiled)

    path.write_bytes(b"\n".join(good_lines))
    mini.run(DAYS[0], stages=CHAIN)
    assert (mini.rows("predictions", DAYS[0]), mini.rows("quarantine", DAYS[0])) == (ROWS, 0)


# -- models -----------------------------------------------------------------------------------------------


def test_a_model_that_does_not_fit_or_is_not_there(mini: Mini) -> None:
    mini.write(DAYS[0])
    mini.run(DAYS[0], stages=CHAIN)
    before = mini.table("predictions")

    columns = mini.spec.model_dump(mode="json", exclude_none=True)["source"]["columns"]
    fewer = {name: column for name, column in columns.items() if name != "age"}
    text_age = {**columns, "age": {"type": "string"}}
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"model": {"alias": "nobody"}}, ["'nobody'", "churn", "champion"]),
        ({"model": {"name": "unknown"}}, ["'unknown'", "batch-platform models register"]),
        (
            {"decision": {"positive_class": "gone"}},
            ["model churn version 1", "decision.positive_class 'gone' is none of ['stays', 'churned']"],
        ),
        (
            {"name": "fewer", "source": {"columns": fewer}},
            [
                f"pipeline fewer, partition {DAYS[0]}, model churn version 1",
                "column 'age' (float64) is missing",
                "Change the recipe or the contract",
            ],
        ),
        (
            {"name": "text_age", "source": {"columns": text_age}},
            ["column 'age' is string, the model reads float64", "Change the recipe or the contract"],
        ),
    ]
    for change, words in cases:
        mini.change(**change)
        cause = lines_by_day(mini.run(DAYS[0], stages=CHAIN, fail=True))[DAYS[0]]
        assert cause.startswith("predictions: "), cause
        for word in words:
            assert word in cause, cause
        assert mini.check("predictions", "complete", DAYS[0]) is False
        assert mini.check("features", "complete", DAYS[0]) is True
        if mini.spec.name != "mini":
            assert mini.table("predictions").is_empty()
    mini.change()
    assert mini.table("predictions").equals(before)
    mini.run(DAYS[0], stages=CHAIN)
    assert mini.table("predictions").equals(before)


# -- a full disk ------------------------------------------------------------------------------------------


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let every write beyond this size fail in the middle, as on a full disk; Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("stage", CHAIN)
def test_a_full_disk_in_the_middle_of_a_write(mini: Mini, stage: str) -> None:
    limit = 2**20
    mini.change(inference={"shard_rows": 8192})
    mini.write(DAYS[0])
    mini.run(DAYS[0], stages=CHAIN)
    before = standing(mini)
    # Keys that do not compress make the file of every stage larger than the limit.
    draw = random.Random(0)
    rows = [good_row(DAYS[0], number) | {"id": draw.randbytes(250).hex()} for number in range(6_000)]
    mini.write(DAYS[0], rows)
    above = CHAIN[: CHAIN.index(stage)]
    if above:
        mini.run(DAYS[0], stages=above)
    with files_limited_to(limit):
        result = mini.run(DAYS[0], stages=[stage], fail=True)
    cause = lines_by_day(result)[DAYS[0]]
    assert cause.startswith(f"{stage}: "), cause
    assert f"staging/.scratch/mini/{DAYS[0]}/" in cause
    assert ".parquet cannot be written" in cause
    assert "File too large" in cause
    assert "free some space" in cause
    assert mini.check(stage, "complete", DAYS[0]) is False
    for table in CHAIN[CHAIN.index(stage) :]:
        assert standing(mini)[table].equals(before[table])
    half_written = [path for path in mini.layout.staging(DAYS[0]).rglob("*") if path.stat().st_size == limit]
    assert not half_written

    mini.run(DAYS[0], stages=CHAIN)
    assert {table: mini.rows(table, DAYS[0]) for table in CHAIN} == dict.fromkeys(CHAIN, 6_000)


def test_an_outcome_that_cannot_be_recorded_hides_nothing(
    mini: Mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk without room for the smallest file: each date still tells its own cause."""
    real = outcomes.record

    def full(layout: Layout, key: str, ended: Any) -> None:
        if key != DAYS[2]:
            raise StorageError("no room")
        real(layout, key, ended)

    monkeypatch.setattr(outcomes, "record", full)
    for day in DAYS[1:3]:
        mini.write(day)
    causes = lines_by_day(mini.run(DAYS[0], DAYS[2], CHAIN, fail=True))
    assert sorted(causes) == DAYS[:2]
    assert "no such csv file" in causes[DAYS[0]]
    assert causes[DAYS[0]].endswith("; the outcome cannot be recorded: no room")
    assert causes[DAYS[1]].endswith("the outcome cannot be recorded: no room")
    assert mini.rows("predictions", DAYS[2]) == ROWS


def test_a_suspended_model_scores_nothing(mini: Mini) -> None:
    mini.register()
    mini.write(DAYS[0])
    registry = Registry(mini.settings.root)
    registry.suspend("churn", "1", by="risk", why="scores rose")
    message = failure_message(mini.run(DAYS[0], stages=CHAIN, fail=True))
    assert "model churn version 1 was suspended by risk at 20" in message
    assert "scores rose" in message
    assert mini.rows("predictions", DAYS[0]) == 0
    registry.lift("churn", "1", by="risk", why="it was the data")
    mini.run(DAYS[0], stages=CHAIN)
    assert mini.rows("predictions", DAYS[0]) == ROWS
