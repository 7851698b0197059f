"""How far days lie from what is normal: one day alone, and the mean of several days in a row.

Decides which windows are looked at, how sure each mean is, and how unusual it is beside the reference's own. What
is enough for an alert `decision` decides. Many days are done at once, as the back-test judges a history many times.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

from batch_platform.core.monitoring.normal import DayValues, Normal, Statistic, times_of

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

# A change that is small beside the scatter of days is seen by what several days have in common.
WINDOWS = (1, 3, 7, 14)
LONGEST_WINDOW = max(WINDOWS)
# In a mean over days no day counts for more than so many of its spreads: one odd day is no trend.
_CLIP = 3.5
# Odd days with no more than so many others between them are one burst; bursts of more columns are no column's own.
_GAP = 2
_FEW = 0.25
_LIKE_A_BELL = 1e6
_TINY = 1e-300
# Nearer than so many spreads nothing is worth a p.
_NEAR = 2.0
# Numbers of one array that are worked on at once: days beyond that are done in parts.
_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Evidence:
    """Deviations of the windows that end with each judged day; (days, windows, statistics), NaN where there are none.

    Attributes:
        effect: mean deviation from the centres.
        z: the same in units of its expected spread, where no day counts for more than a few of its spreads.
        p: two-sided, by Student's t; its degrees of freedom by Satterthwaite (Biometrics 2, 1946); 1 where z is small.
        spread: the expected spread.
        degrees: its degrees of freedom.
        unusual: |z| were the strictness 1, over the largest that the reference has for this window and kind.
        deviations: what it was made of.
    """

    effect: Floats
    z: Floats
    p: Floats
    spread: Floats
    degrees: Floats
    unusual: Floats
    deviations: "Deviations"

    def median_effect(self, wanted: Booleans) -> Floats:
        """Deviation of the median day of each wanted window, (days, windows, statistics), NaN elsewhere."""
        found = np.full(self.effect.shape, np.nan)
        for day, place, statistic in zip(*np.nonzero(wanted), strict=True):
            window = self.deviations.windows[place]
            present = window.present[day, :, statistic]
            found[day, place, statistic] = np.median(window.away[day, present, statistic])
        return found


@dataclass(frozen=True)
class _Window:
    """Windows of one width; (days, width, statistics) what belongs to a day, (days, statistics) the rest."""

    away: Floats
    present: Booleans
    weights: Floats
    noise: Floats
    of_a_day: Floats
    effect: Floats
    between: Floats
    sampled: Floats
    degrees: Floats
    seen: Booleans

    def at(self, strictness: float) -> tuple[Floats, Floats, Floats]:
        """z, expected spread and degrees of freedom."""
        total = self.effect
        if self.away.shape[1] > 1:
            most = _CLIP * np.sqrt(strictness**2 * self.of_a_day + self.noise)
            total = (self.weights * np.clip(self.away, -most, most)).sum(axis=1)
        between = strictness**2 * self.between + _TINY
        variance = between + self.sampled
        beyond = np.minimum(variance / between, np.sqrt(_LIKE_A_BELL))
        degrees = np.minimum(self.degrees * beyond**2, _LIKE_A_BELL)
        spread = np.sqrt(variance)
        return np.where(self.seen, total / spread, np.nan), spread, degrees


@dataclass(frozen=True)
class Deviations:
    """Windows of every width that end with each judged day, before it is said how strict to be."""

    windows: tuple[_Window, ...]

    @classmethod
    def of(
        cls,
        normal: Normal,
        moments: Sequence[date],
        days: Sequence[DayValues],
        judged: int = 1,
        widths: Sequence[int] = WINDOWS,
    ) -> Self:
        """Of the last `judged` of these days, which are in the order of time; windows reach back as far as they do."""
        values = np.array([day.values for day in days])
        sampling = np.array([day.sampling for day in days])
        groups, ahead = normal.groups(moments), times_of(moments[-judged:]) - normal.middle
        return cls(tuple(_window(normal, width, groups, ahead, values, sampling) for width in widths))

    @cached_property
    def usual_z(self) -> Floats:
        """What z were at strictness 1, (days, windows, statistics)."""
        return np.stack([window.at(1.0)[0] for window in self.windows], axis=1)

    def evidence(self, strictness: float, held_against: "Precedents | None" = None) -> Evidence:
        """What they say, where the spread between days is taken `strictness` times.

        Args:
            strictness: how often the spread between days is taken.
            held_against: what the reference itself has had; None: nothing is known of it.
        """
        from scipy.special import stdtr

        parts = (window.at(strictness) for window in self.windows)
        z, spread, degrees = (np.stack(each, axis=1) for each in zip(*parts, strict=True))
        effect = np.stack([np.where(w.seen, w.effect, np.nan) for w in self.windows], axis=1)
        p = np.where(np.isnan(z), np.nan, 1.0)
        far = np.abs(z) > _NEAR
        p[far] = 2 * stdtr(degrees[far], -np.abs(z[far]))
        unusual = np.full(z.shape, np.inf)
        if held_against is not None:
            unusual = np.abs(self.usual_z) / (held_against.largest + _TINY)
        return Evidence(effect, z, p, spread, degrees, unusual, self)


@dataclass(frozen=True)
class Precedents:
    """The largest |z| of the reference days that each statistic is held against.

    Attributes:
        largest: (windows, statistics).
        is_own: whether it is the column's own, and no other column's, as it comes again and again, (statistics,).
    """

    largest: Floats
    is_own: Booleans

    def with_own_of(self, other: "Precedents") -> "Precedents":
        """These, and what columns have again and again by others."""
        larger = np.where(other.is_own, np.maximum(self.largest, other.largest), self.largest)
        return Precedents(larger, self.is_own | other.is_own)


def precedents(
    normal: Normal, moments: Sequence[date], days: Sequence[DayValues], statistics: Sequence[Statistic]
) -> Precedents:
    """What the reference itself has had.

    A burst comes to any column: what one has had once tells what is to be expected of each. What comes again and
    again to a column is its own, unless it comes to many. They are held against the spread of the days without
    bursts, as the next one comes to a column that had none. The centres were drawn to the very days that are looked
    at: made good for, by how many days a centre rests on.
    """
    clean = _without_bursts(normal, moments, days, [each.kind for each in statistics])
    names, column = np.unique([each.column for each in statistics], return_inverse=True)
    by_column = np.argsort(column, kind="stable")
    largest = np.zeros((len(WINDOWS), len(statistics)))
    parts = max(1, len(days) * LONGEST_WINDOW * len(statistics) // _AT_ONCE)
    bounds = np.linspace(0, len(days), min(parts, len(days)) + 1).round().astype(int).tolist()
    odd = np.zeros((len(days), len(names)), bool)
    for first, end in pairwise(bounds):
        start = max(0, first + 1 - LONGEST_WINDOW)
        found = np.abs(Deviations.of(clean, moments[start:end], days[start:end], end - first).usual_z)
        most = found.max(axis=0, initial=0.0, where=np.isfinite(found))
        largest = np.maximum(largest, most)
        day, statistic = np.nonzero(found[:, 0] > _CLIP)
        odd[first + day, column[statistic]] = True
    begins = np.searchsorted(column[by_column], np.arange(len(names)))
    own = np.maximum.reduceat(largest[:, by_column], begins, axis=1)  # (windows, columns)
    is_own = _again_and_again(odd)
    shared = own[:, ~is_own].max(axis=1, initial=0.0, keepdims=True)
    days_a_group = len(days) / len(normal.by_season.centres)
    largest = np.maximum(own, shared)[:, column] / (1 - 1 / max(2.0, days_a_group))
    return Precedents(largest, is_own[column])


def _again_and_again(odd: Booleans) -> Booleans:
    """Columns whose odd days, (days, columns), come in more than one run; none if many columns have them."""
    before = np.zeros_like(odd)
    for gap in range(1, _GAP + 1):
        before[gap:] |= odd[:-gap]
    several = (odd & ~before).sum(axis=0) > 1
    return several & (several.sum() <= max(1.0, _FEW * len(several)))


def _without_bursts(
    normal: Normal, moments: Sequence[date], days: Sequence[DayValues], kinds: Sequence[str]
) -> Normal:
    """What is normal for the days without what lies far out."""
    z = Deviations.of(normal, moments, days, len(days), widths=(1,)).usual_z[:, 0]
    with np.errstate(invalid="ignore"):
        kept = np.where(np.abs(z) > _CLIP, np.nan, [day.values for day in days])
    return Normal.of(moments, [replace(day, values=row) for day, row in zip(days, kept, strict=True)], kinds)


def _window(
    normal: Normal, width: int, groups: Integers, ahead: Floats, values: Floats, sampling: Floats
) -> _Window:
    """All windows of one width that end with a judged day, of which each lies `ahead` days from the reference's middle."""
    judged = len(ahead)
    places = np.arange(len(values) - judged, len(values))[:, None] + np.arange(1 - width, 1)
    inside = places >= 0
    places = np.maximum(places, 0)
    group = np.where(inside, groups[places], 0)
    known = np.all(group >= 0, axis=1)  # where not, the window is judged by the centre of all days
    group = np.where(known[:, None], group, 0)
    fit, plain = normal.by_season, normal.all_days
    between, memory, common, freedom, trend = (
        np.where(known[:, None], *(getattr(each, name) for each in (fit, plain)))
        for name in ("between", "memory", "common", "degrees", "trend")
    )
    common = common + trend * (ahead**2)[:, None]
    centres, unsure = (
        np.where(known[:, None, None], getattr(fit, name)[group], getattr(plain, name)[0])
        for name in ("centres", "unsure")
    )
    present = np.isfinite(values[places]) & inside[:, :, None]
    noise = np.where(present, sampling[places], 0.0)
    away = np.where(present, values[places] - centres, 0.0)
    weights = present / ((between * (1 - memory))[:, None] + noise + _TINY)
    weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), _TINY)
    return _Window(
        away,
        present,
        weights,
        noise,
        of_a_day=between[:, None] + unsure + common[:, None],
        effect=(weights * away).sum(axis=1),
        between=between * _remembered(weights, memory) + common + _of_centres(weights, unsure, group),
        sampled=(weights**2 * noise).sum(axis=1),
        degrees=freedom,
        # Of a first day alone the longer windows say nothing: it would pass for several.
        seen=present[:, -1] & (np.array(width == 1) | (inside.sum(axis=1) > 1))[:, None],
    )


def _remembered(weights: Floats, memory: Floats) -> Floats:
    """Variance of the weighted mean of day effects of variance 1: sum over i, j of w_i w_j memory^|i-j|."""
    carried, total = np.zeros(memory.shape), np.zeros(memory.shape)
    for weight in np.moveaxis(weights, 1, 0):
        total += weight**2 + 2 * weight * memory * carried
        carried = memory * carried + weight
    return total


def _of_centres(weights: Floats, unsure: Floats, group: Integers) -> Floats:
    """Variance of the weighted mean of the centres' errors, which days of one group share."""
    if (group == group[:, :1]).all():
        return unsure[:, 0] * weights.sum(axis=1) ** 2
    total = (weights**2 * unsure).sum(axis=1)
    for first, second in _pairs(group.shape[1]):
        alike = group[:, first] == group[:, second]
        if alike.any():
            shared = 2 * weights[alike, first] * weights[alike, second] * unsure[alike, first]
            total[alike] += shared
    return total


def _pairs(width: int) -> Iterator[tuple[int, int]]:
    return ((first, second) for second in range(width) for first in range(second))
