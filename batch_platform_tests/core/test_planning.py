"""What `plan` says is what the run then does; its times come from the pipeline's own statistics."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from batch_platform.cli.main import cli
from batch_platform.core import scoring
from batch_platform.core.data.lake import Slot
from batch_platform.core.forecasting import Forecaster
from batch_platform.core.planning import Plan, plan
from batch_platform_tests.core.provenance.made import make
from batch_platform_tests.core.scoring_bench import DAY, ROWS, Bench
from batch_platform_tests.mini import ATTRIBUTES, DAYS, Mini, good_row
from batch_platform_tests.project import Project


@pytest.fixture
def bench(mini: Mini) -> Bench:
    return Bench(mini)


def look(bench: Bench, *days: str) -> Plan:
    calendar = bench.mini.spec.partitions.calendar()
    partitions = [calendar.partition(day) for day in days or (DAY,)]
    engine = scoring.load_engine(bench.model, bench.mini.spec, bench.mini.settings.root)
    return plan(bench.mini.spec, bench.mini.settings, bench.mini.folder, partitions, bench.model, engine)


def nothing(_bench: Bench) -> None:
    """The partition is as it was scored."""


def rows_changed(bench: Bench) -> None:
    rows = [good_row(DAY, number) for number in range(ROWS)]
    rows[3]["amount"] = 77.0
    rows[4] = rows[4] | {"age": 61}
    rows[5] = {**rows[4], "id": "equal"}
    bench.mini.write(DAY, rows)


def rows_changed_and_landed(bench: Bench) -> None:
    rows_changed(bench)
    bench.prepare()


def a_bad_row(bench: Bench) -> None:
    rows = [good_row(DAY, number) for number in range(ROWS)]
    bench.mini.write(DAY, [*rows, {"id": "bad", "amount": -1, "age": 3, "plan": "pro"}])


def contract_changed(bench: Bench) -> None:
    columns = {**ATTRIBUTES["source"]["columns"], "age": {"type": "int64", "required": True, "max": 140}}
    bench.mini.change(source={"columns": columns})


def other_model(bench: Bench) -> None:
    bench.model = bench.mini.register(seed=1)


def other_parameters(bench: Bench) -> None:
    bench.mini.change(decision={"positive_class": "churned", "threshold": 0.9})


@pytest.mark.parametrize("scored_before", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        *(nothing, rows_changed, rows_changed_and_landed, a_bad_row),
        *(contract_changed, other_model, other_parameters),
    ],
)
def test_the_run_does_what_was_planned(
    bench: Bench, change: Callable[[Bench], None], scored_before: bool
) -> None:
    if scored_before:
        bench.score("first")
    change(bench)
    said = look(bench)
    (planned,) = said.partitions
    before = bench.slice().lake.head(Slot("predictions", DAY))
    bench.prepare()
    result = bench.score("second")
    after = bench.slice().lake.head(Slot("predictions", DAY))
    assert after is not None
    assert planned.rows == after.receipt["rows_in"]
    assert planned.to_score == sum(bench.scored)
    # A source that was read again may turn out to be as it was: the plan cannot know that raw will be adopted.
    assert result.reused == (before is not None and after.attempt == before.attempt)
    assert result.reused or planned.state == "to do"
    assert planned.to_score == 0 or not result.reused
    if not result.reused:
        receipt = after.receipt
        assert planned.reasons == receipt["reasons"]
        assert (planned.reusable, planned.twins) == (receipt["rows_reused"], receipt["rows_equal_to_scored"])
    assert said.total["to_score"] == planned.to_score


def test_planning_writes_nothing(bench: Bench) -> None:
    rows_changed(bench)
    before = {path: path.stat().st_mtime_ns for path in bench.mini.settings.root.rglob("*") if path.is_file()}
    look(bench, *DAYS[:2])
    after = {path: path.stat().st_mtime_ns for path in bench.mini.settings.root.rglob("*") if path.is_file()}
    assert after == before


def test_what_is_not_there_is_blocked(bench: Bench) -> None:
    bench.mini.write(DAYS[2], [{"id": "x", "amount": 1, "age": 30, "plan": "pro"}] * 2)
    found = look(bench, DAYS[1], DAYS[2])
    missing, doubled = found.partitions
    assert (missing.state, missing.cause) == ("blocked", "the source is not there")
    assert doubled.state == "blocked"
    assert "repeat the key" in doubled.cause
    assert (found.total["blocked"], found.forecast) == (2, None)


def sample(seconds: float, rows: int = 100, overhead: float = 1.0, **more: Any) -> dict[str, Any]:
    known = {"model_digest": "m", "device": "cpu"}
    return {**known, "rows": rows, "wall_seconds": seconds, "stage_seconds": seconds + overhead, **more}


def test_forecasts_are_of_the_pipelines_own_times() -> None:
    samples = [sample(seconds) for seconds in (10.0, 11.0, 12.0, 13.0, 14.0)]
    found = Forecaster(samples, "m", "cpu").forecast([100, 300])
    assert found is not None
    assert found.seconds == pytest.approx(2 * 1 + 4 * 12)
    assert (found.low, found.high) == (pytest.approx(2 + 4 * 10.4), pytest.approx(2 + 4 * 13.6))
    assert (found.based_on, found.same_model) == (5, True)


def test_other_models_count_only_where_nothing_else_is_known() -> None:
    mine = [sample(10.0)] * 3
    others = [sample(90.0, model_digest="other")] * 20
    found = Forecaster([*mine, *others], "m", "cpu").forecast([100])
    assert found is not None
    assert (found.seconds, found.based_on) == (11.0, 3)
    found = Forecaster([*mine[:2], *others], "m", "cpu").forecast([100])
    assert found is not None
    assert (found.seconds, found.based_on, found.same_model) == (91.0, 22, False)
    assert (
        Forecaster([sample(1.0), sample(2.0, rows=0), {"rows": 3, "wall_seconds": 1}], "m", "cpu").forecast(
            [1]
        )
        is None
    )


def test_forecast_and_time_are_recorded_and_compared(bench: Bench) -> None:
    lake = bench.slice().lake
    engine = scoring.load_engine(bench.model, bench.mini.spec, bench.mini.settings.root)

    class Lately(Forecaster):
        def __init__(self) -> None:
            super().__init__([sample(0.5, rows=10)] * 3, "m", "cpu")

    result = scoring.score_partition(bench.slice(), bench.model, engine, lambda line: None, False, Lately())
    assert result.metadata["stats predicted_seconds"] == 2.0
    forecaster = Forecaster.of(lake, bench.model.digest, "cpu")
    accuracy = forecaster.accuracy
    assert accuracy is not None
    assert (accuracy.partitions, accuracy.predicted_seconds) == (1, 2.0)
    assert accuracy.actual_seconds == pytest.approx(result.metadata["stats stage_seconds"], abs=0.01)
    assert Forecaster([], "m", "cpu").accuracy is None


def test_the_command(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    mini = bench.mini
    project = Project(mini.folder / "shop")
    project.add_pipeline("mini", ATTRIBUTES)
    (project.folder / "data").symlink_to(mini.folder / "data")
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("BATCH_PLATFORM_HOURLY_RATE", "3.6")
    bench.score("first")
    rows_changed(bench)

    def ask(*words: str) -> Any:
        return CliRunner().invoke(cli, ["plan", "mini", *words])

    found = json.loads(ask("--from", DAYS[0], "--to", DAYS[1], "--json").output)
    assert found["total"] == {
        **{"partitions": 2, "done": 0, "to do": 1, "blocked": 1, "rows": ROWS, "to_score": 2},
        **{"reasons": {"changed": 2}, "reusable": ROWS - 3, "twins": 1},
    }
    assert (found["forecast"], found["cost"]) == (None, None)
    words = ask("--from", DAYS[0], "--to", DAYS[1]).output
    assert (
        "2026-01-01 to do: 20 rows: 2 to score (2 changed), 17 reusable, 1 equal to one that is scored"
        in words
    )
    assert "2026-01-02 blocked: the source is not there" in words
    assert "time: unknown" in words
    answer = ask("--from", DAYS[1], "--to", DAYS[0])
    assert "comes after" in str(answer.exception)


def test_a_price_gives_a_cost(mini: Mini) -> None:
    bench = Bench(mini)
    for day in DAYS[:3]:
        mini.write(day, 20)
        make(mini, day)
    other_model(bench)
    mini.settings = replace(mini.settings, hourly_rate=3600.0)
    found = look(bench, *DAYS[:2])
    assert found.forecast is not None
    assert not found.forecast.same_model
    assert found.forecast.low <= found.forecast.seconds <= found.forecast.high
    assert found.cost == (found.forecast.seconds, found.forecast.low, found.forecast.high)
    assert found.total["reasons"] == {"model": 40}
