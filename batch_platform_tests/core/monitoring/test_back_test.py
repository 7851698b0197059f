"""Strictness by back-test: restless histories are judged more strictly, and changes are found as the table says."""

from collections.abc import Sequence
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
from batch_platform.core.monitoring.evidence import Deviations, precedents
from batch_platform.core.monitoring.normal import DayValues, Normal, Statistic

COLUMNS, DAYS = 12, 56
STATISTICS = [Statistic(f"n{place}", "mean rank") for place in range(COLUMNS)]
KINDS = [each.kind for each in STATISTICS]
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
    return walked(MOMENTS, days)


def walked(moments: list[date], days: list[DayValues]) -> WalkForward:
    had = precedents(Normal.of(moments, days, KINDS), moments, days, STATISTICS)
    return WalkForward.of(moments, days, STATISTICS, had)


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


def odd_days(columns: Sequence[int], at: Sequence[int]) -> WalkForward:
    values = 0.5 + np.random.default_rng(3).normal(0, 0.01, (DAYS, COLUMNS))
    values[list(at), list(columns)] += 0.4
    return walked(MOMENTS, [DayValues(row, np.full(COLUMNS, 1 / 12 / 2000)) for row in values])


def test_a_single_odd_day_in_the_history_is_told_and_makes_nobody_stricter() -> None:
    trial = next(tried(odd_days([4], [40]), RULE, 91.0))
    assert (trial.episodes, trial.odd, trial.lasting_per_quarter) == (1, 1, 0.0)
    assert chosen([trial], 1.0) == trial


def test_what_one_column_has_again_and_again_is_no_measure_for_the_others() -> None:
    """Of its own it goes on being one; of many columns it is everybody's."""
    for columns, is_own in (([4, 4], True), ([4, 5], False), ([4, 4, 5, 5, 6, 6, 7, 7], False)):
        history = odd_days(columns, [8, 30] * (len(columns) // 2))
        had = precedents(Normal.of(MOMENTS, history.days, KINDS), MOMENTS, history.days, STATISTICS)
        assert had.largest[0, 4] > 20.0
        assert (had.largest[0, 0] < 5.0) == is_own


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
        had = precedents(normal, moments[:DAYS], days[:DAYS], STATISTICS)
        quiet = Deviations.of(normal, moments[DAYS:], days[DAYS:], 91).evidence(1.4, had)
        alarms += episodes(RULE.alarms(quiet).any(axis=(1, 2)).tolist())
        for day in range(DAYS, DAYS + 3):
            days[day].values[0] += 0.15
        lasting = Deviations.of(normal, moments[DAYS : DAYS + 3], days[DAYS : DAYS + 3], 3)
        found += bool(RULE.alarms(lasting.evidence(1.4, had))[:, :, 0].any())
    assert alarms <= 4
    assert found == 8


def test_where_no_strictness_keeps_the_budget_the_strictest_is_taken() -> None:
    trials = [Trial(strictness, 28, 5, 5, 0, 16.0, 30.0) for strictness in STRICTNESS]
    assert chosen(trials, 1.0) == trials[-1]


def test_a_short_history_is_not_back_tested() -> None:
    days = [DayValues(np.full(COLUMNS, 0.5), np.full(COLUMNS, 1e-4))] * 13
    short = walked(MOMENTS[:13], days)
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
