"""The line that says how far a run is."""

from batch_platform.core.inference.progress import ProgressMeter
from batch_platform.core.inference.stats import RunStats


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_speed_is_of_what_was_scored_here() -> None:
    clock = Clock()
    meter = ProgressMeter(1000, clock)
    meter.found(400)
    clock.now += 2
    meter.scored(RunStats(rows=100, tokens=5000))
    assert meter.line() == "500 of 1000 rows scored, 50 rows/s, 2500 tokens/s, 10 s left"


def test_rows_of_tables_have_no_tokens_and_an_end_has_no_time_left() -> None:
    clock = Clock()
    meter = ProgressMeter(100, clock)
    clock.now += 4
    meter.scored(RunStats(rows=100, tokens=100))
    assert meter.line() == "100 of 100 rows scored, 25 rows/s"


def test_long_runs_are_told_in_hours() -> None:
    clock = Clock()
    meter = ProgressMeter(10_000_000, clock)
    clock.now += 10
    meter.scored(RunStats(rows=10_000, tokens=10_000))
    assert meter.line().endswith("2 h 46 min left")


def test_nothing_scored_yet() -> None:
    meter = ProgressMeter(10, Clock())
    meter.found(10)
    assert meter.line() == "10 of 10 rows scored"
