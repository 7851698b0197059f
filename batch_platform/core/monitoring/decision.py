"""Which deviations are an alert: the rule, on arrays of statistics.

Decides how sure and how large a deviation must be. An alert needs a false-discovery-controlled finding and an
effect that is worth a look; one day alone needs a larger one than what several days have in common. It
knows neither columns nor profiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batch_platform.core.monitoring.evidence import WINDOWS, Evidence

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

# How often the spread between days is taken: the reference days are few, and the days to come have heavier tails.
# The sampling of rows needs no such allowance. The back-test chooses among these, the least strict first.
STRICTNESS = (1.4, 1.6, 1.8, 2.1, 2.5, 3.0, 4.0, 5.0)
# Effects below these are not worth anybody's time, however sure.
FLOORS = {
    "mean rank": 0.05,
    "spread of ranks": 0.02,
    "null rate": 0.05,
    "infinite": 0.05,
    "empty": 0.05,
    "share": 0.04,
    "mean vector": 0.005,
}
# Of the budget: what the rule may spend if all its assumptions hold. The rest is for those that do not.
_SPENT = 0.5
_MOST_A_DAY = 0.02
# One odd day is an alert only where it is plain: bursts of a day are common in quiet streams.
_ONE_DAY_EFFECT = 2.5
_ONE_DAY_P = 10.0
# In a window of several days the median day has to show so much of the least effect.
_MEDIAN_EFFECT = 0.7
# And only where the reference has nothing like it: so many times the largest deviation of its own.
_BEYOND = 1.25
_ONE_DAY_BEYOND = 1.5


@dataclass(frozen=True)
class Rule:
    """The rule for one table.

    Attributes:
        floors: smallest effect of each statistic that is worth a look, (statistics,).
        rate: false-discovery rate of one judgement.
    """

    floors: Floats
    rate: float

    @classmethod
    def of(
        cls, kinds: Sequence[str], false_alarms_per_quarter: float, judgements_per_quarter: float
    ) -> "Rule":
        """The rule that keeps a budget if all its assumptions hold."""
        rate = min(_MOST_A_DAY, _SPENT * false_alarms_per_quarter / judgements_per_quarter)
        return cls(np.array([FLOORS[kind] for kind in kinds]), rate)

    def alarms(self, evidence: Evidence) -> Booleans:
        """Where the evidence is enough, (days, windows, statistics)."""
        with np.errstate(invalid="ignore"):
            found = [_discoveries(day, self.rate) for day in np.minimum(1.0, evidence.p * _EXTRA_P)]
        return self._worth(evidence, np.array(found))

    def single_alarms(self, evidence: Evidence) -> Booleans:
        """The same for each statistic as if all others were quiet, (days, windows, statistics)."""
        with np.errstate(invalid="ignore"):
            tests = np.isfinite(evidence.p).sum(axis=(1, 2), keepdims=True)
            return self._worth(evidence, evidence.p * _EXTRA_P <= self.rate / np.maximum(1, tests))

    def _worth(self, evidence: Evidence, sure: Booleans) -> Booleans:
        """Those of the sure ones that are large, unlike the reference's own, and no matter of a few odd days.

        The median day of a window has to show an effect too: what a burst leaves in the mean is not enough.
        """
        with np.errstate(invalid="ignore"):
            large = sure & (np.abs(evidence.effect) >= _EXTRA_EFFECT * self.floors)
            large &= evidence.unusual >= BEYOND
            median = evidence.median_effect(large) * np.sign(evidence.effect)
            return large & (median >= _MEDIAN_EFFECT * self.floors)

    def threshold(self, statistics: int) -> float:
        """The p below which one changed statistic among so many is found by the windows of several days."""
        return self.rate / (statistics * len(WINDOWS))


ALONE = np.array([width == 1 for width in WINDOWS])  # (windows,)
_ONE_DAY = ALONE[:, None]
_EXTRA_P = np.where(_ONE_DAY, _ONE_DAY_P, 1.0)
BEYOND = np.where(_ONE_DAY, _ONE_DAY_BEYOND, _BEYOND)  # (windows, 1)
_EXTRA_EFFECT = np.where(_ONE_DAY, _ONE_DAY_EFFECT, 1.0)


def kind_of(statistic: str) -> str:
    """Kind of a statistic, by the beginning of its name."""
    return next(kind for kind in FLOORS if statistic.startswith(kind))


def _discoveries(p: Floats, rate: float) -> Booleans:
    """Benjamini and Hochberg's step-up rule (J. R. Statist. Soc. B 57, 1995); NaN is no discovery."""
    ranked = np.sort(p[np.isfinite(p)])
    passed = np.flatnonzero(ranked <= rate * np.arange(1, len(ranked) + 1) / max(1, len(ranked)))
    return p <= (ranked[passed[-1]] if len(passed) else -1.0)
