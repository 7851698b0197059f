"""What is normal: centres and spreads, and how unsure few or dependent days leave them."""

from datetime import date, timedelta

import numpy as np
import pytest

from batch_platform.core.monitoring.day_statistics import DayValue, Yardstick
from batch_platform.core.monitoring.normal import Normal
from batch_platform.core.monitoring.profile import Profile
from batch_platform_tests.core.monitoring.test_drift import small_topics

START = date(2026, 1, 5)


def normal(values: np.ndarray, sampling: float = 1e-8) -> Normal:
    days = [START + timedelta(days=place) for place in range(len(values))]
    return Normal.of(days, [DayValue(float(value), sampling) for value in values])


def wander(seed: int, memory: float, count: int = 56) -> np.ndarray:
    """Day effects of variance 1 that resemble the day before by `memory`, (count,)."""
    noise = np.random.default_rng(seed).normal(size=count + 100)
    values = np.zeros(count + 100)
    for day in range(1, count + 100):
        values[day] = memory * values[day - 1] + np.sqrt(1 - memory**2) * noise[day]
    return values[100:]


def test_the_spread_between_days_and_the_sampling_add_up() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400)
    effect, z, degrees = normal(values).deviation(START, DayValue(10.0, 0.0))
    assert effect == pytest.approx(10, abs=0.4)
    assert z == pytest.approx(10 / 1.25, rel=0.1)  # 1.25: the allowance
    assert degrees in (393, 399)
    assert normal(values).deviation(START, DayValue(10.0, 99.0))[1] == pytest.approx(1.0, rel=0.1)


def test_what_sampling_explains_is_no_spread_between_days() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400)
    assert normal(values, sampling=1.0).all_days.between < 0.15


def test_a_thin_day_hardly_moves_the_centre() -> None:
    seen = [DayValue(0.0, 0.01)] * 20 + [DayValue(5.0, 25.0)]
    days = [START + timedelta(days=place) for place in range(21)]
    assert abs(Normal.of(days, seen).all_days.centres[0][0]) < 0.05


def test_a_slow_wander_is_less_sure_than_independent_days() -> None:
    far = DayValue(4.0, 0.0)
    independent = [normal(wander(seed, 0.0)).all_days for seed in range(20)]
    slow = [normal(wander(seed, 0.9)).deviation(START, far) for seed in range(20)]
    assert np.median([fit.degrees for fit in independent]) == 55
    assert np.median([degrees for _, _, degrees in slow]) < 20
    # By its own variance alone the wander seen in 56 days would be taken for all of it.
    assert np.median([abs(z) for _, z, _ in slow]) < 3.2


def test_vectors_of_thin_days_are_not_far_from_the_reference_on_average() -> None:
    yardstick = Yardstick([small_topics(seed, 400) for seed in range(10)])

    def distance(day: Profile) -> float:
        return next(value.value for (_, name), value in yardstick.statistics(day) if name == "mean vector")

    assert abs(np.mean([distance(small_topics(900 + seed, 5)) for seed in range(150)])) < 0.02
    assert distance(small_topics(2000, 400, share=0.6)) > 0.03
