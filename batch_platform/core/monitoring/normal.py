"""What is normal for a statistic: its centre, by weekday where the history allows, and how days scatter about it.

Decides the estimates; which statistic, and what follows from a deviation, is not known here. A day counts for as
much as it is sure: with variance b between days and s by its sampling it weighs 1 / (b + s).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Self

import numpy as np
import numpy.typing as npt

from batch_platform.core.monitoring.day_statistics import DayValue

# A weekday's centre is used where each weekday that occurs was seen so often.
_DAYS_PER_WEEKDAY = 4
_ROUNDS = 3
# How far the spread between the reference days may understate that of the days to come: they are few, and their
# effects have heavier tails than a bell curve. The sampling of rows needs no such allowance.
_ALLOWANCE = 1.25
_LONGEST_MEMORY = 0.95
_FEWEST_DAYS = 2.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Fit:
    """Centres by group, the variance of each centre's estimate, and the variance between days about them."""

    centres: dict[int, tuple[float, float]]
    between: float
    degrees: int


@dataclass(frozen=True)
class Normal:
    """A statistic's distribution over the reference days."""

    all_days: _Fit
    by_weekday: _Fit | None

    @classmethod
    def of(cls, days: Sequence[date], values: Sequence[DayValue]) -> Self:
        """Estimate from reference days, at least two."""
        seen = np.array([value.value for value in values])
        sampling = np.array([value.sampling for value in values])
        weekdays = np.array([day.weekday() for day in days])
        counts = np.unique(weekdays, return_counts=True)[1]
        enough = len(counts) > 1 and counts.min() >= _DAYS_PER_WEEKDAY
        return cls(
            _fit(seen, sampling, np.zeros(len(seen), int)), _fit(seen, sampling, weekdays) if enough else None
        )

    def deviation(self, day: date, seen: DayValue) -> tuple[float, float, int]:
        """Effect, effect over its expected spread, and the degrees of freedom of that spread."""
        fit, group = self.all_days, 0
        if self.by_weekday is not None and day.weekday() in self.by_weekday.centres:
            fit, group = self.by_weekday, day.weekday()
        centre, unsure = fit.centres[group]
        effect = seen.value - centre
        spread = float(np.sqrt(_ALLOWANCE**2 * (fit.between + unsure) + seen.sampling))
        return effect, effect / spread, fit.degrees


def _fit(seen: Floats, sampling: Floats, groups: npt.NDArray[np.int_]) -> _Fit:
    found = np.unique(groups)
    degrees = max(1, len(seen) - len(found))
    between = float(seen.var())
    for _ in range(_ROUNDS):
        weights = 1 / (between + sampling)
        centres = {int(group): _centre(seen, weights, groups == group) for group in found}
        left = seen - np.array([centres[int(group)][0] for group in groups])
        # Estimating the centres has taken as many degrees of freedom as there are.
        scaled = left**2 * len(seen) / degrees
        between = max(0.0, float(np.average(scaled - sampling, weights=weights)))
    independent = _independent_days(left, between)
    if independent < len(seen):
        # A slow wander: the reference shows only part of it, and its centre is as unsure as few days make it.
        between *= independent / (independent - 1)
        degrees = min(degrees, max(3, round(2 * independent)))
        centres = {
            group: (value, max(unsure, between / independent)) for group, (value, unsure) in centres.items()
        }
    return _Fit(centres, between, degrees)


def _centre(seen: Floats, weights: Floats, chosen: npt.NDArray[np.bool_]) -> tuple[float, float]:
    return float(np.average(seen[chosen], weights=weights[chosen])), float(1 / weights[chosen].sum())


def _independent_days(left: Floats, between: float) -> float:
    """How many independent days tell as much of the centre as these, which may resemble the day before.

    Args:
        left: (days,) what the centres leave, in the order of time.
        between: variance between days; the rest of the variance of `left` is sampling, which has no memory.
    """
    days, total = len(left), float((left**2).mean())
    if not between or not total:
        return days
    resemblance = float((left[1:] * left[:-1]).mean()) / total
    if resemblance < 2 / np.sqrt(days):
        return days  # as much as independent days show by chance
    # Kendall's correction of the bias of short series (Biometrika 41, 1954).
    memory = min(_LONGEST_MEMORY, (resemblance + (1 + 3 * resemblance) / days) * max(1.0, total / between))
    return max(_FEWEST_DAYS, days * (1 - memory) / (1 + memory))
