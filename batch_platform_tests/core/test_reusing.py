"""Only what is new or changed is scored; everything else is copied with its run and its time."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from batch_platform.core import arranging, reusing, work
from batch_platform.core.data import record_file
from batch_platform.core.data.lake import Slot
from batch_platform.core.rescoring import Rescored, rescore_rows
from batch_platform.errors import GateError, RescoreError
from batch_platform_tests.core.scoring_bench import DAY, OUTPUTS, ROWS, Bench
from batch_platform_tests.mini import Mini, good_row

Rows = list[dict[str, Any]]


@pytest.fixture
def bench(mini: Mini) -> Bench:
    return Bench(mini)


def source(bench: Bench, rows: Rows) -> None:
    bench.mini.write(DAY, rows)
    bench.prepare()


def good_rows(count: int = ROWS) -> Rows:
    return [good_row(DAY, number) for number in range(count)]


def by_key(bench: Bench) -> dict[str, dict[str, Any]]:
    return {row["row_key"]: row for row in bench.mini.table("predictions").to_dicts()}


def receipt(bench: Bench) -> dict[str, Any]:
    head = bench.slice().lake.head(Slot("predictions", DAY))
    assert head is not None
    return dict(head.receipt)


def counts(bench: Bench) -> tuple[int, int, int, dict[str, int]]:
    found = receipt(bench)
    return found["rows_scored"], found["rows_reused"], found["rows_equal_to_scored"], found["reasons"]


def test_new_and_changed_rows_alone_are_scored(bench: Bench) -> None:
    bench.score("first")
    before = by_key(bench)
    rows = good_rows()
    rows[4]["amount"] = 1000.0
    rows[17]["age"] = 99
    del rows[9]
    source(bench, [*rows, good_row(DAY, 50)])
    result = bench.score("second")
    assert bench.scored == [3]
    assert counts(bench) == (3, ROWS - 3, 0, {"new": 1, "changed": 2})
    assert (result.metadata["scored new"], result.metadata["rows_reused"]) == (1, ROWS - 3)
    after = by_key(bench)
    anew = {key for key, row in after.items() if row["run_id"] == "second"}
    assert anew == {f"{DAY}-4", f"{DAY}-17", f"{DAY}-50"}
    assert all(after[key] == before[key] for key in after.keys() - anew)
    assert (
        bench.mini.table("predictions")["row_key"].to_list()
        == bench.mini.table("features")["row_key"].to_list()
    )
    assert bench.score("third").reused


def test_rows_that_came_in_another_order_are_not_scored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arranging, "WINDOW_ROWS", 6)
    bench.score("first")
    before = by_key(bench)
    rows = good_rows()
    random.Random(0).shuffle(rows)
    source(bench, rows)
    bench.score("second")
    assert (bench.scored, counts(bench)) == ([], (0, ROWS, 0, {}))
    table = bench.mini.table("predictions")
    assert table["row_key"].to_list() == [row["id"] for row in rows]
    assert by_key(bench) == before


def test_equal_inputs_are_scored_once(bench: Bench) -> None:
    rows = [
        good_row(DAY, number) | {"amount": float(number % 4), "age": 30, "plan": "pro"}
        for number in range(ROWS)
    ]
    source(bench, rows)
    bench.score("first")
    assert bench.scored == [4]
    assert counts(bench) == (4, 0, ROWS - 4, {"new": 4})
    table = bench.mini.table("predictions")
    assert table["row_key"].to_list() == [row["id"] for row in rows]
    amounts = pl.Series([row["amount"] for row in rows])
    assert (
        table.with_columns(amounts.alias("amount"))
        .group_by("amount")
        .agg(pl.col("score").n_unique())["score"]
        .to_list()
        == [1] * 4
    )
    assert table["input_hash"].n_unique() == table["score"].n_unique() == 4

    # A row that is new and equal to one that stands is copied from it, under its own key.
    source(bench, [*rows, good_row(DAY, 99) | {"amount": 3.0, "age": 30, "plan": "pro"}])
    bench.score("second")
    assert (bench.scored, counts(bench)) == ([], (0, ROWS + 1, 0, {}))
    assert by_key(bench)[f"{DAY}-99"]["run_id"] == "first"


def test_twins_of_a_failing_row_fail_with_it(bench: Bench) -> None:
    bench.mini.change(inference={"max_error_share": 0.5, "shard_rows": 2})
    rows = [
        good_row(DAY, number) | {"amount": float(number % 4), "age": 30, "plan": "pro"}
        for number in range(ROWS)
    ]
    source(bench, rows)
    bench.score("first", poison=[f"{DAY}-1"])
    expected = [row["id"] for row in rows if row["amount"] == 1.0]
    assert bench.mini.table("quarantine")["row_key"].to_list() == expected
    assert bench.predictions().height == ROWS - 5
    assert bench.mini.table("quarantine")["source_row"].to_list() == [1, 5, 9, 13, 17]

    source(bench, [*rows, good_row(DAY, 77)])
    bench.score("second")
    assert counts(bench) == (2, ROWS - 5, 4, {"new": 1, "quarantined": 1})
    assert bench.mini.table("quarantine").is_empty()

    bench.mini.change(inference={"max_error_share": 0.2, "shard_rows": 2})  # 5 of 21 are more
    bench.model = bench.mini.register(seed=1)
    with pytest.raises(GateError, match="5 of 21 rows quarantined"):
        bench.score("third", poison=[f"{DAY}-1"])


def other_model(bench: Bench) -> None:
    bench.model = bench.mini.register(seed=1)


def other_parameters(bench: Bench) -> None:
    bench.mini.change(decision={"positive_class": "stays", "threshold": 0.9})


def other_code(bench: Bench) -> None:
    bench.monkeypatch.setattr(work, "code_version", lambda: "other")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "reason"), [(other_model, "model"), (other_parameters, "parameters"), (other_code, "code")]
)
def test_other_conditions_score_all_and_are_named(
    bench: Bench, change: Callable[[Bench], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.monkeypatch = monkeypatch  # type: ignore[attr-defined]
    bench.score("first")
    change(bench)
    source(bench, [*good_rows(), good_row(DAY, 60)])
    bench.score("second")
    assert counts(bench) == (ROWS + 1, 0, 0, {"new": 1, reason: ROWS})
    assert set(bench.predictions()["run_id"]) == {"second"}


def test_killed_while_only_some_rows_are_scored(bench: Bench) -> None:
    bench.score("first")
    rows = [
        row | {"amount": row["amount"] + 0.25} if number % 20 else row
        for number, row in enumerate(good_rows())
    ]
    rows[3], rows[12] = good_row(DAY, 3), good_row(DAY, 12)
    source(bench, rows)
    bench.killed_after(1, run="second")
    assert set(bench.predictions()["run_id"]) == {"first"}
    bench.score("third")
    assert bench.scored == [8, 1]
    runs = bench.mini.table("predictions")["run_id"].to_list()
    assert runs == ["first" if n in (0, 3, 12) else "second" if n < 10 else "third" for n in range(ROWS)]


def test_a_snapshot_that_changed_meanwhile_is_not_resumed_over(bench: Bench) -> None:
    """Shards of rows chosen against one snapshot are not those against another."""
    bench.score("first")
    rows = good_rows()
    for row in rows[:10]:
        row["amount"] += 0.5
    source(bench, rows)
    bench.killed_after(1, run="second")
    changed = bench.mini.folder / "data" / f"{DAY}.csv"
    content = changed.read_text()
    source(bench, good_rows()[:15])
    bench.score("between")
    changed.write_text(content)
    bench.prepare()
    bench.score("third")
    assert bench.scored == [8, 7]  # 10 changed, 5 new again
    table = bench.mini.table("predictions")
    assert table["run_id"].to_list() == ["third"] * 10 + ["first"] * 5 + ["third"] * 5


def test_any_history_gives_what_one_undisturbed_run_gives(bench: Bench) -> None:
    chance = random.Random(7)
    for step in range(12):
        amounts = [float(chance.randrange(6)) for _ in range(30)]
        rows = [
            good_row(DAY, n) | {"amount": amount, "age": 30 + n % 3, "plan": "pro"}
            for n, amount in enumerate(amounts)
        ]
        rows = chance.sample(rows, chance.randrange(1, 30))
        source(bench, rows)
        bench.score(f"run-{step}")
        found = receipt(bench)
        assert found["rows_scored"] + found["rows_reused"] + found["rows_equal_to_scored"] == len(rows)
        assert found["rows_scored"] == sum(bench.scored) == sum(found["reasons"].values())
        last = bench.mini.table("predictions").select(OUTPUTS)
        bench.mini.change(inference={"shard_rows": 31}, name="undisturbed")
        bench.prepare()
        bench.score("whole")
        whole = bench.mini.table("predictions").filter(pl.col("run_id") == "whole").select(OUTPUTS)
        _drop(bench)
        bench.mini.change()
        assert last.drop("score", "scores").equals(whole.drop("score", "scores"))
        assert (last["score"] - whole["score"]).abs().max() < 1e-6


def _drop(bench: Bench) -> None:
    import shutil

    shutil.rmtree(bench.mini.layout.table("x").parent)
    shutil.rmtree(bench.mini.layout.receipts("x", "x").parent.parent)


# -- exactly given rows -----------------------------------------------------------------------------------


def rescore(bench: Bench, run: str, keys: list[str]) -> Rescored:
    engine = bench.engine()
    bench.scored.clear()
    return rescore_rows(bench.slice(run), pa.array(keys, pa.string()), bench.model, engine, bench.said.append)


def test_exactly_the_given_rows_are_scored_again(bench: Bench) -> None:
    bench.score("first")
    before = by_key(bench)
    other_model(bench)
    keys = [f"{DAY}-{number}" for number in (2, 3, 11)]
    found = rescore(bench, "second", keys)
    assert (bench.scored, found.rows, found.comparison.rows) == ([3], 3, 3)
    after = by_key(bench)
    assert {key for key, row in after.items() if row != before[key]} == set(keys)
    assert {after[key]["model_version"] for key in keys} == {"2"}
    assert found.comparison.changed == 3
    moved = [after[key]["score"] - before[key]["score"] for key in keys]
    assert found.comparison.shift == pytest.approx(sum(moved))
    flipped = sum(after[key]["label"] != before[key]["label"] for key in keys)
    assert found.comparison.flipped == flipped
    assert counts(bench) == (3, ROWS - 3, 0, {"forced": 3})

    # The next materialization scores the rows of the old model, and no other.
    result = bench.score("third")
    assert (bench.scored, result.reused) == ([8, 8, 1], False)
    assert counts(bench) == (ROWS - 3, 3, 0, {"model": ROWS - 3})
    assert bench.score("fourth").reused


def test_forced_rows_under_unchanged_conditions_leave_the_work_done(bench: Bench) -> None:
    bench.score("first")
    found = rescore(bench, "second", [f"{DAY}-5"])
    assert (found.comparison.rows, found.comparison.flipped) == (1, 0)
    assert found.comparison.largest < 1e-6
    assert bench.score("third").reused
    assert by_key(bench)[f"{DAY}-5"]["run_id"] == "second"


def test_rows_in_quarantine_stay_there_untried(bench: Bench) -> None:
    bench.mini.change(inference={"max_error_share": 0.5})
    bench.score("first", poison=[f"{DAY}-1", f"{DAY}-2"])
    found = rescore(bench, "second", [f"{DAY}-0", f"{DAY}-2"])
    assert bench.scored == [2]
    assert (found.comparison.rows, found.comparison.only_after) == (1, 1)
    assert bench.mini.table("quarantine")["row_key"].to_list() == [f"{DAY}-1"]
    assert bench.predictions().height == ROWS - 1


def test_rows_that_do_not_fit_the_partition_are_refused(bench: Bench) -> None:
    bench.score("first")
    with pytest.raises(RescoreError, match=r"partition 2026-01-01: no row has the key 'nobody'; materialize"):
        rescore(bench, "second", ["nobody"])
    source(bench, [*good_rows(), good_row(DAY, 40)])
    with pytest.raises(RescoreError, match="row 20 of the features was never scored"):
        rescore(bench, "second", [f"{DAY}-1"])
    source(bench, good_rows(19))
    with pytest.raises(RescoreError, match="rows of the predictions have no features any more"):
        rescore(bench, "second", [f"{DAY}-1"])


def test_a_killed_rescore_goes_on(bench: Bench) -> None:
    bench.score("first")
    other_model(bench)
    keys = [f"{DAY}-{number}" for number in range(10)]
    done: list[str] = []

    def interrupt(line: str) -> None:
        done.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rescore_rows(bench.slice("second"), pa.array(keys), bench.model, bench.engine(), interrupt)
    rescore(bench, "third", keys)
    assert bench.scored == [2]
    runs = bench.mini.table("predictions")["run_id"].to_list()
    assert runs == ["second"] * 8 + ["third"] * 2 + ["first"] * 10


def test_hashes_are_given_as_they_were_taken(tmp_path: Path) -> None:
    table = pa.table({"row_key": ["a", "b"], "x": [1.5, None]})
    (batch,) = table.to_batches()
    plan = reusing.plan_rows([batch], ["x"], {}, None, tmp_path)
    expected = reusing.input_hashes(table, ["x"])
    (positions,) = plan.positions(reusing.SCORED)
    assert plan.hashes_of(positions).equals(expected)


CONDITIONS = {"model": "m", "recipe": "r", "parameters": {}, "code": "c"}


@pytest.mark.parametrize("held_bytes", [0, 1 << 17], ids=["on disk", "in memory"])
@pytest.mark.parametrize("seed", range(5))
def test_a_plan_is_what_a_look_at_every_row_says(
    seed: int, held_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_file, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(reusing, "WINDOW_ROWS", 100)
    chance = random.Random(seed)
    rows = _rows(chance, 1000)
    # Some rows went, some came, some changed, all in another order; two runs made them, one of them with another model.
    before = [(key, chance.choice([x, chance.randrange(300)])) for key, x in _rows(chance, 1000)]
    runs = [chance.choice(["same", "other"]) for _ in before]
    standing = reusing.Standing(
        [
            pa.record_batch(
                {
                    "row_key": [key for key, _ in part],
                    "input_hash": reusing.input_hashes(pa.table({"x": [x for _, x in part]}), ["x"]),
                    "run_id": runs[first : first + 150],
                }
            )
            for first in range(0, len(before), 150)
            for part in [before[first : first + 150]]
        ],
        [
            reusing.Origin(CONDITIONS, ("same",)),
            reusing.Origin(CONDITIONS | {"model": "old"}, ("other",)),
        ],
        frozenset({"row-1", "row-2"}),
    )
    batches = [
        pa.record_batch({"row_key": [key for key, _ in part], "x": [x for _, x in part]})
        for first in range(0, len(rows), 70)
        for part in [rows[first : first + 70]]
    ]
    plan = reusing.plan_rows(batches, ["x"], CONDITIONS, standing, tmp_path)

    kinds, sources, reasons = [], [], Counter()
    first_scored: dict[int, int] = {}
    usable = [number for number, run in enumerate(runs) if run == "same"]
    own = {before[number]: number for number in reversed(usable)}
    twins = {before[number][1]: number for number in reversed(usable)}
    standing_runs = {key: run for (key, _), run in zip(before, runs, strict=True)}
    for key, x in rows:
        if (key, x) in own:
            kind, source = reusing.OWN, own[key, x]
        elif x in twins:
            kind, source = reusing.TWIN_OF_STANDING, twins[x]
        elif x in first_scored:
            kind, source = reusing.TWIN_OF_SCORED, first_scored[x]
        else:
            kind, source = reusing.SCORED, len(first_scored)
            first_scored[x] = source
            missing = "quarantined" if key in standing.quarantined else "new"
            reasons[{"same": "changed", "other": "model"}.get(standing_runs.get(key, ""), missing)] += 1
        kinds.append(kind)
        sources.append(source)
    assert plan.kind.tolist() == kinds
    assert plan.source.tolist() == sources
    assert plan.reasons == reasons
    positions = np.concatenate([*plan.positions(reusing.SCORED)])
    hashes = reusing.input_hashes(pa.table({"x": [x for _, x in rows]}), ["x"])
    assert plan.hashes_of(positions).equals(hashes.take(pa.array(positions)))


def _rows(chance: random.Random, count: int) -> list[tuple[str, int]]:
    """Keys in any order, of more rows than there are inputs."""
    return [(f"row-{number}", number // 4) for number in chance.sample(range(count * 6 // 5), count)]
