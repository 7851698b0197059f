"""What is normal for each statistic: its centre, by season where the history allows, and how days scatter about it.

Decides the estimates, for all statistics of a table at once; what a statistic means, and what follows from a
deviation, is not known here. A day counts for as much as it is sure: with variance b between days and s by its
sampling it weighs 1 / (b + s).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from batch_platform.core.monitoring.memory import expected, memories
from batch_platform.core.monitoring.season import Season

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_ROUNDS = 3
_FEWEST_TO_POOL = 3
_MOST_GAINED = 10.0
_LEAST_TOTAL = 0.1  # has a logarithm
# The mean of what is above 0 is more than the estimate, the more so the fewer the days: it stands for so many days.
_PRIOR_DEGREES = 4
_TINY = 1e-300
# Statistics of one column hang together: so many tell as much as one. A trend must be plain.
_STATISTICS_A_COLUMN = 3
_SIGMAS = 1.0


class Statistic(NamedTuple):
    """Whose statistic it is, and of which kind."""

    column: str
    kind: str


@dataclass(frozen=True)
class DayValues:
    """Statistics of one day.

    Attributes:
        values: (statistics,) NaN where the day has not that one.
        sampling: (statistics,) the variance that sampling so many rows gives each.
    """

    values: Floats
    sampling: Floats


@dataclass(frozen=True)
class Fit:
    """Centres of groups of days, and the scatter about them.

    Attributes:
        centres: (groups, statistics).
        unsure: (groups, statistics) variance of each centre's estimate beyond `common`.
        common: (statistics,) variance that the estimates of all centres share.
        between: (statistics,) variance between days.
        memory: (statistics,) how much the effect of a day resembles that of the day before, 0..0.98.
        degrees: (statistics,) degrees of freedom of `between`.
        trend: (statistics,) variance of how much a day lies from the one before for good.
    """

    centres: Floats
    unsure: Floats
    common: Floats
    between: Floats
    memory: Floats
    degrees: Floats
    trend: Floats


@dataclass(frozen=True)
class Normal:
    """The distribution of statistics over the reference days; `middle` is the mean of their times in days."""

    season: Season
    by_season: Fit
    all_days: Fit
    middle: float

    @classmethod
    def of(cls, moments: Sequence[date], days: Sequence[DayValues], kinds: Sequence[str]) -> Self:
        """Estimate from reference days, at least two.

        Args:
            moments: of each day, oldest first; with the time of day where there are several partitions a day.
            days: their statistics.
            kinds: kind of each statistic; of one kind the variances between days are estimated together.
        """
        values = np.array([day.values for day in days])
        sampling = np.array([day.sampling for day in days])
        season = Season.of(moments)
        groups = np.array([season.group(moment) for moment in moments])
        names = np.array(kinds)
        times = times_of(moments)
        all_days = _fit(values, sampling, np.zeros(len(days), int), names, times)
        if season.name == "none":
            return cls(season, all_days, all_days, float(times.mean()))
        fit = _with_gaps(_fit(values, sampling, groups, names, times), values, groups, all_days)
        return cls(season, fit, all_days, float(times.mean()))

    def groups(self, moments: Sequence[date]) -> Integers:
        """The group of each day, (days,); -1 where the reference does not know it."""
        found = (self.season.group(moment) for moment in moments)
        return np.array([-1 if group is None else group for group in found])


def times_of(moments: Sequence[date]) -> Floats:
    """Moments in days, (days,)."""
    hours = (moment.hour if isinstance(moment, datetime) else 0 for moment in moments)
    return np.array([moment.toordinal() + hour / 24 for moment, hour in zip(moments, hours, strict=True)])


def _fit(
    values: Floats, sampling: Floats, groups: Integers, kinds: npt.NDArray[np.str_], times: Floats
) -> Fit:
    present = np.isfinite(values)
    seen, noise = np.where(present, values, 0.0), np.where(present, sampling, 0.0)
    member = np.eye(int(groups.max()) + 1)[groups]  # (days, groups)
    count = present.sum(axis=0)
    degrees = np.maximum(1, count - member.shape[1])
    between = np.where(present, (seen - seen.sum(axis=0) / np.maximum(count, 1)) ** 2, 0).sum(axis=0)
    between = between / np.maximum(count, 1)
    for _ in range(_ROUNDS):
        weights = present / (between + noise + _TINY)
        centres = (member.T @ (weights * seen)) / np.maximum(member.T @ weights, _TINY)
        left = (seen - centres[groups]) * present
        share = weights / np.maximum(weights.sum(axis=0), _TINY)
        # Estimating the centres has taken as many degrees of freedom as there are.
        between = np.maximum(0.0, (share * (left**2 * count / degrees - noise)).sum(axis=0))
    pairs = np.sqrt(weights[1:] * weights[:-1])
    product = (pairs * left[1:] * left[:-1]).sum(axis=0) / np.maximum(pairs.sum(axis=0), _TINY)
    square, mean_noise = (share * left**2).sum(axis=0), (share * noise).sum(axis=0)
    known = expected(tuple(groups.tolist()))
    memory = memories(known, square, product, mean_noise, len(values))
    shown = known.variance_at(memory)  # the part of the variance between days that the residuals show
    between, gained = _pooled(
        (square - mean_noise * known.variance[0]) / shown,
        square * np.sqrt(2 / degrees) / shown,
        mean_noise,
        degrees,
        kinds,
    )
    in_group = np.maximum(member.T @ present, 1)
    unsure = (between * (1 - memory) + mean_noise) / in_group
    trend = _trends(
        left,
        present,
        noise,
        times - (member / member.sum(axis=0)) @ (member.T @ times),
        between,
        memory,
        kinds,
    )
    return Fit(
        centres,
        unsure,
        between * known.centre_at(memory),
        between,
        memory,
        degrees * gained + _PRIOR_DEGREES,
        trend,
    )


def _trends(
    left: Floats,
    present: npt.NDArray[np.bool_],
    noise: Floats,
    times: Floats,
    between: Floats,
    memory: Floats,
    kinds: npt.NDArray[np.str_],
) -> Floats:
    """Variance of the slopes of all statistics of a kind beyond what memory and noise make, a day, (statistics,).

    What has moved steadily over the reference will go on to; that it does is no news.
    """
    levers = present * times[:, None]
    square = np.maximum((levers**2).sum(axis=0), np.sqrt(_TINY))
    slope = (levers * left).sum(axis=0) / square
    carried, remembered = np.zeros(len(between)), np.zeros(len(between))
    for lever in levers:
        remembered += lever**2 + 2 * lever * memory * carried
        carried = memory * carried + lever
    by_chance = (between * remembered + (levers**2 * noise).sum(axis=0)) / square**2
    ratio = slope**2 / np.maximum(by_chance, _TINY)
    trend = np.zeros(len(between))
    for kind in np.unique(kinds):
        chosen = (kinds == kind) & (by_chance > 0)
        if chosen.sum():
            least = 1 + _SIGMAS * np.sqrt(2 * _STATISTICS_A_COLUMN / chosen.sum())
            trend[chosen] = by_chance[chosen] * max(0.0, float(ratio[chosen].mean()) - least)
    return trend


def _pooled(
    between: Floats, error: Floats, noise: Floats, degrees: Integers, kinds: npt.NDArray[np.str_]
) -> tuple[Floats, Floats]:
    """Variances between days, never below 0: each between its own estimate and that of its kind (empirical Bayes).

    Where the noise of sampling hides the variance of every statistic of a kind, they tell together that it is
    small; where they differ, each stands for itself. Then the mean of what is above 0 of a bell curve about it.

    Args:
        between: estimates, (statistics,).
        error: their standard errors.
        noise: mean variance by sampling.
        degrees: of freedom of each.
        kinds: of each statistic.

    Returns:
        The variances, and how many times as much is known of each as by itself.
    """
    between, gained = between.copy(), np.ones(len(between))
    pooled = np.zeros(len(between), bool)
    for kind in np.unique(kinds):
        chosen = (kinds == kind) & (noise > 0)
        if chosen.sum() >= _FEWEST_TO_POOL:
            parts = (each[chosen] for each in (between, error, noise, degrees))
            between[chosen], gained[chosen] = _pooled_of_kind(*parts)
            pooled |= chosen
    own = ~pooled
    between[own] = _above_zero(between[own], error[own])
    return between, gained


def _pooled_of_kind(
    between: Floats, error: Floats, noise: Floats, degrees: Integers
) -> tuple[Floats, Floats]:
    """The same of statistics of one kind.

    On the logarithm of variance between days and sampling together, over that of sampling: there the error of an
    estimate does not depend on what is estimated, so columns that hardly move and columns that move a lot stay apart
    (as Smyth moderates variances, Stat. Appl. Genet. Mol. Biol. 3, 2004).
    """
    by_sampling = 2 / degrees
    # Values that are nowhere vary less than sampling makes frequent ones: that is no news of the others.
    total = np.maximum(1 + between / noise, np.maximum(_LEAST_TOTAL, 1 - 2 * np.sqrt(by_sampling)))
    logs, own = np.log(total), np.maximum((error / noise / np.maximum(total, 1.0)) ** 2, by_sampling)
    logs = logs + own / 2  # the logarithm of an estimate is too small in the mean
    mean, by_chance = float(logs.mean()), float(own.mean())
    # How much they differ is not known better than this: what cannot be seen may be there.
    differing = max(0.0, float(logs.var(ddof=1)) - by_chance) + by_chance * float(np.sqrt(2 / len(logs)))
    found = (differing * logs + own * mean) / (differing + own)
    unsure = np.sqrt(differing * own / (differing + own) + own / len(logs))
    found = _above_zero(found + unsure, unsure)  # on the careful side
    return noise * np.expm1(found), np.clip(own / unsure**2, 1.0, _MOST_GAINED)


def _above_zero(estimate: Floats, error: Floats) -> Floats:
    """The mean of what is above 0 of a bell curve about each estimate."""
    from scipy.special import ndtr

    sigmas = np.clip(estimate / np.maximum(error, _TINY), -8.0, 40.0)
    return np.maximum(estimate + error * np.exp(-(sigmas**2) / 2) / np.sqrt(2 * np.pi) / ndtr(sigmas), 0.0)


def _with_gaps(fit: Fit, values: Floats, groups: Integers, all_days: Fit) -> Fit:
    """The fit, with the centre of all days where a statistic was never seen in a group."""
    seen = np.array([np.isfinite(values[groups == group]).any(axis=0) for group in range(len(fit.centres))])
    centres = np.where(seen, fit.centres, all_days.centres)
    unsure = np.where(seen, fit.unsure, all_days.between + all_days.unsure)
    return replace(fit, centres=centres, unsure=unsure)
