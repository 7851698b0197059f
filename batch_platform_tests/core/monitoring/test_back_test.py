"""Strictness by back-test: restless histories are judged more strictly, and changes are found as the table says."""

from datetime import date, timedelta

import numpy as np
import pytest

from batch_platform.core.monitoring.back_test import (
    Trial,
    WalkForward,
    chosen,
    detections,
    episodes,
    trial_of,
    tried,
)
from batch_platform.core.monitoring.decision import STRICTNESS, Rule
from batch_platform.core.monitoring.evidence import Deviations, largest_of
from batch_platform.core.monitoring.normal import DayValues, Normal

COLUMNS, DAYS = 12, 56
KINDS = ["mean rank"] * COLUMNS
MOMENTS = [date(2026, 1, 5) + timedelta(days=place) for place in range(DAYS)]
RULE = Rule.of(KINDS, 1.0, 91.0)


def history(seed: int, bursts: bool = False) -> WalkForward:
    """Mean ranks of 2,000 rows a day; with bursts of three days in the later half, as none were before."""
    random = np.random.default_rng(seed)
    values = 0.5 + random.normal(0, 0.01, (DAYS, COLUMNS))
    if bursts:
        for day in (32, 41, 50):
            values[day : day + 3, random.integers(COLUMNS)] += 0.09
    days = [DayValues(row, np.full(COLUMNS, 1 / 12 / 2000)) for row in values]
    return WalkForward.of(MOMENTS, days, KINDS)


def test_a_quiet_history_needs_no_more_than_the_least_strictness() -> None:
    found = [chosen(tried(history(seed), RULE, 91.0), 1.0) for seed in range(5)]
    assert {trial.strictness for trial in found if trial} == {STRICTNESS[0]}


def test_a_history_with_bursts_is_judged_more_strictly() -> None:
    trials = list(tried(history(0, bursts=True), RULE, 91.0))
    assert trials[0].episodes > 0
    picked = chosen(trials, 1.0)
    assert picked is not None
    assert picked.strictness > STRICTNESS[0]
    assert [trial.days for trial in trials] == [DAYS] * len(STRICTNESS)
    assert [trial.alarms for trial in trials] == sorted((trial.alarms for trial in trials), reverse=True)


def test_bursts_that_the_reference_has_had_raise_no_alarm_and_a_lasting_change_of_their_size_does() -> None:
    """Bursts of a day in one of a hundred columns and days, as large as the change."""
    alarms, found = 0, 0
    for seed in range(8):
        random = np.random.default_rng(seed)
        values = 0.5 + random.normal(0, 0.01, (DAYS + 91, COLUMNS))
        values += 0.15 * (random.random(values.shape) < 0.01)
        days = [DayValues(row, np.full(COLUMNS, 1 / 12 / 2000)) for row in values]
        moments = [date(2026, 1, 5) + timedelta(days=place) for place in range(len(days))]
        normal = Normal.of(moments[:DAYS], days[:DAYS], KINDS)
        largest = largest_of(normal, moments[:DAYS], days[:DAYS], KINDS)
        quiet = Deviations.of(normal, moments[DAYS:], days[DAYS:], 91).evidence(1.4, largest)
        alarms += episodes(RULE.alarms(quiet).any(axis=(1, 2)).tolist())
        for day in range(DAYS, DAYS + 3):
            days[day].values[0] += 0.15
        lasting = Deviations.of(normal, moments[DAYS : DAYS + 3], days[DAYS : DAYS + 3], 3)
        found += bool(RULE.alarms(lasting.evidence(1.4, largest))[:, :, 0].any())
    assert alarms <= 4
    assert found == 8


def test_where_no_strictness_keeps_the_budget_the_strictest_is_taken() -> None:
    trials = [Trial(strictness, 28, 5, 5, 16.0, 30.0) for strictness in STRICTNESS]
    assert chosen(trials, 1.0) == trials[-1]


def test_a_short_history_is_not_back_tested() -> None:
    days = [DayValues(np.full(COLUMNS, 0.5), np.full(COLUMNS, 1e-4))] * 13
    short = WalkForward.of(MOMENTS[:13], days, KINDS)
    assert list(tried(short, RULE, 91.0)) == []
    assert list(detections(short, KINDS, RULE)) == []
    assert chosen([], 1.0) is None


def test_changes_are_found_sooner_the_larger_they_are_and_later_the_stricter_the_rule() -> None:
    found = {(each.strictness, each.change): each for each in detections(history(1), KINDS, RULE)}
    small, large = (found[STRICTNESS[0], f"mean + {size} sd"] for size in ("0.25", "0.5"))
    assert large.tries == 2 * COLUMNS
    assert large.found == 1.0
    assert large.delay is not None
    assert small.delay is not None
    assert large.delay <= small.delay <= 7
    strictest = found[STRICTNESS[-1], "mean + 0.25 sd"]
    assert strictest.delay is None or strictest.delay > small.delay


@pytest.mark.parametrize(
    ("alarms", "runs"), [([], 0), ([True, True, False, True], 2), ([False, True], 1), ([False], 0)]
)
def test_alarms_in_a_row_are_one_episode(alarms: list[bool], runs: int) -> None:
    assert episodes(alarms) == runs


def test_the_upper_bound_is_that_of_a_poisson_count() -> None:
    """With no event in a quarter the rate is below -log(0.05) = 2.996, 95 % sure."""
    trial = trial_of(1.4, [False] * 91, 91.0)
    assert (trial.per_quarter, trial.at_most) == (0.0, pytest.approx(2.996, abs=0.001))
