"""What is normal: centres and spreads, and how unsure few, thin or dependent days leave them."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta

import numpy as np
import pytest

from batch_platform.core.monitoring.day_statistics import Yardstick
from batch_platform.core.monitoring.evidence import Deviations
from batch_platform.core.monitoring.normal import DayValues, Normal
from batch_platform.core.monitoring.profile import Profile
from batch_platform.core.monitoring.season import Season
from batch_platform_tests.core.monitoring.test_drift import small_topics

START = date(2026, 1, 5)


def moments(count: int) -> list[date]:
    return [START + timedelta(days=place) for place in range(count)]


def normal(values: np.ndarray, sampling: float = 1e-8, season: bool = True) -> Normal:
    """Fitted to (days, statistics) values; without `season` all days are Mondays."""
    days = moments(len(values)) if season else [START + timedelta(weeks=k) for k in range(len(values))]
    return Normal.of(days, [values_of(row, sampling) for row in values], ["mean rank"] * values.shape[1])


def values_of(row: Sequence[float] | np.ndarray, sampling: float = 1e-8) -> DayValues:
    return DayValues(np.array(row, float), np.full(len(row), sampling))


def wander(seed: int, memory: float, count: int = 56, columns: int = 20) -> np.ndarray:
    """Day effects of variance 1 that resemble the day before by `memory`, (count, columns)."""
    noise = np.random.default_rng(seed).normal(size=(count + 100, columns))
    values = np.zeros((count + 100, columns))
    for day in range(1, count + 100):
        values[day] = memory * values[day - 1] + np.sqrt(1 - memory**2) * noise[day]
    return values[100:]


def test_the_spread_between_days_and_the_sampling_add_up() -> None:
    fit = normal(wander(0, 0.0, 400, 1), season=False)
    evidence = Deviations.of(fit, [START], [values_of([10.0])]).evidence(1.5)
    assert evidence.effect[0, 0, 0] == pytest.approx(10, abs=0.4)
    assert evidence.z[0, 0, 0] == pytest.approx(10 / 1.5, rel=0.1)
    noisy = Deviations.of(fit, [START], [values_of([10.0], 99.0)]).evidence(1.0)
    assert noisy.z[0, 0, 0] == pytest.approx(1.0, rel=0.1)


def test_what_sampling_explains_is_no_spread_between_days() -> None:
    assert normal(wander(0, 0.0, 400, 10), sampling=1.0).all_days.between.max() < 0.2


def test_statistics_of_one_kind_tell_together_that_days_do_not_differ() -> None:
    """Alone 56 days of noise leave room for a spread between days; forty columns of them do not."""
    noise = wander(0, 0.0, 56, 40)
    together = normal(noise, sampling=1.0).all_days.between
    alone = [normal(noise[:, [column]], sampling=1.0).all_days.between[0] for column in range(40)]
    assert np.max(together) < 0.6 * np.max(alone)


def test_one_restless_column_among_quiet_ones_keeps_its_own_spread() -> None:
    values = wander(0, 0.0, 56, 20)
    values[:, 3] *= 5
    between = normal(values, sampling=1.0).all_days.between
    assert between[3] == pytest.approx(24, rel=0.5)
    assert np.delete(between, 3).max() < 3


def test_a_quiet_column_among_restless_ones_keeps_its_own_spread() -> None:
    values = wander(0, 0.0, 28, 20)
    values[:, 1:] *= 30
    between = normal(values, sampling=0.1).all_days.between
    assert between[0] < 3
    assert between[1:].min() > 300


def test_a_thin_day_hardly_moves_the_centre() -> None:
    seen = [values_of([0.0], 0.01)] * 20 + [values_of([5.0], 25.0)]
    fit = Normal.of(moments(21), seen, ["mean rank"]).all_days
    assert abs(fit.centres[0, 0]) < 0.05


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_the_memory_of_many_columns_is_found_in_one_short_history(memory: float) -> None:
    found = [np.median(normal(wander(seed, memory)).by_season.memory) for seed in range(10)]
    assert np.mean(found) == pytest.approx(memory, abs=0.08)


def test_a_slow_wander_is_further_ahead_than_the_reference_shows() -> None:
    """Where the wander will be is told as its whole variance, not that of the 56 days which were seen."""
    fits = [normal(wander(seed, 0.9)).by_season for seed in range(20)]
    told = np.mean([np.mean(fit.between) for fit in fits])
    assert told == pytest.approx(1.0, rel=0.25)
    # The mean of the reference is as unsure as that of three days or four.
    assert 0.15 < np.mean([np.mean(fit.common) for fit in fits]) < 0.4


def test_a_column_that_wanders_among_steady_ones_is_told_apart() -> None:
    values = wander(0, 0.0)
    values[:, :4] = wander(1, 0.9)[:, :4]
    memory = normal(values).by_season.memory
    assert memory[:4].min() > 0.5
    assert np.median(memory[4:]) < 0.4


def test_what_moves_steadily_over_the_reference_leaves_more_room_the_further_ahead() -> None:
    steady, moving = wander(0, 0.0), wander(0, 0.0) + 0.04 * np.arange(56)[:, None]

    def spread(values: np.ndarray, ahead: int) -> float:
        day = START + timedelta(days=55 + ahead)
        return float(
            Deviations.of(normal(values), [day], [values_of(values[0])]).evidence(1.0).spread[0, 0, 0]
        )

    # By 91 days on it has moved by 0.04 * (28 + 91) = 4.8 from the middle.
    assert spread(moving, 91) == pytest.approx(4.8, rel=0.25)
    assert spread(moving, 7) < 0.5 * spread(moving, 91)
    assert spread(steady, 91) < 1.3


def test_a_day_that_lacks_a_statistic_gives_no_evidence_on_it() -> None:
    values = wander(0, 0.0, 56, 2)
    values[::2, 1] = np.nan
    fit = normal(values)
    evidence = Deviations.of(fit, moments(2), [values_of([0.0, 9.0]), values_of([0.0, np.nan])]).evidence(1.4)
    assert np.isnan(evidence.p[0, :, 1]).all()
    assert np.isfinite(evidence.p[0, :, 0]).all()


def hours(count: int) -> list[datetime]:
    return [datetime(2026, 1, 5) + timedelta(hours=place) for place in range(count)]


@pytest.mark.parametrize(
    ("days", "season"),
    [
        (moments(27), "none"),
        (moments(28), "weekday"),
        (hours(24 * 3), "none"),
        (hours(24 * 4), "hour of the day"),
        (hours(24 * 28), "hour of the week"),
        ([START + timedelta(weeks=place) for place in range(60)], "none"),
        ([date(2020 + place // 12, place % 12 + 1, 1) for place in range(10)], "none"),
    ],
    ids=["few days", "days", "few hours", "hours", "many hours", "weeks", "months"],
)
def test_the_season_is_the_finest_that_the_history_allows(days: list[date], season: str) -> None:
    assert Season.of(days).name == season


def test_vectors_of_thin_days_are_not_far_from_the_reference_on_average() -> None:
    yardstick = Yardstick([small_topics(seed, 400) for seed in range(10)])

    def distance(day: Profile) -> float:
        return next(value.value for (_, name), value in yardstick.statistics(day) if name == "mean vector")

    assert abs(np.mean([distance(small_topics(900 + seed, 5)) for seed in range(150)])) < 0.02
    assert distance(small_topics(2000, 400, share=0.6)) > 0.03
