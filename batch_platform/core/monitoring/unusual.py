"""Whether a partition's numbers are further from usual than the partitions before it explain.

Decides the test, for all series of one kind at once. Medians and median deviations, so that a bad day among the days
before does not hide the next one. The tails between partitions are those of Student's t with as few degrees of freedom
as these series show; those of sampling are a bell curve's. What the numbers mean is not known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

FEWEST_PARTITIONS = 14
_FEWEST_OF_A_SEASON = 4
_QUARTILE = 0.6745  # of the bell curve
# Degrees of freedom that are tried, and how likely each is held before anything was seen: about a bell curve with
# somewhat heavier tails.
_DEGREES = np.array([1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 30.0])
_PRIOR = -0.5 * (np.log(_DEGREES / 8.0) / np.log(2.0)) ** 2
_TAIL = 1.0
# One bad day, however bad, does not make all tails heavy.
_MOST_COUNTED = 8.0
# The median deviation of few partitions is itself unsure; so is a centre.
_UNSURE = 1.5
_CENTRE = 1.57
_TINY = 1e-300
# Beyond everything that was seen, by so much.
_FURTHER = 1.1


@dataclass(frozen=True)
class Series:
    """One number over the partitions.

    Attributes:
        past: (partitions,) oldest first; NaN where a partition has not that number.
        noise: (partitions,) the variance that sampling so many rows gives each.
        now: the judged partition's number.
        now_noise: its variance by sampling.
        floor: smallest deviation that is worth a look.
        sides: the directions that are unusual: 1 up, -1 down.
        least_spread: deviations smaller than this are the same number.
        is_extreme: the logarithm of a largest or smallest value, which has an exponential tail (Gumbel's distribution)
            whatever the values' own.
    """

    past: Floats
    noise: Floats
    now: float
    now_noise: float
    floor: float
    sides: tuple[int, ...] = (-1, 1)
    least_spread: float = 0.0
    is_extreme: bool = False


@dataclass(frozen=True)
class Judged:
    """What is usual, and how unusual each series is, (series,).

    Attributes:
        centre: what was to be expected.
        spread: a standard deviation about it.
        z: deviation in spreads.
        unusual: the verdict.
        enough: whether there is enough history.
    """

    centre: Floats
    spread: Floats
    z: Floats
    unusual: Booleans
    enough: Booleans


def judge(series: Sequence[Series], groups: npt.NDArray[np.int64], group: int, rate: float) -> Judged:
    """Judge the series of one kind.

    Args:
        groups: season of each partition before, (partitions,).
        group: of the judged one.
        rate: probability that any of the series is called unusual by chance.
    """
    past = np.array([each.past for each in series])  # (series, partitions)
    noise = np.where(np.isfinite(past), np.array([each.noise for each in series]), np.nan)
    count = np.isfinite(past).sum(axis=1)
    enough = (count >= FEWEST_PARTITIONS) & np.isfinite([each.now for each in series])
    centres, members = _centres(past, groups)
    left = past - centres[:, groups]
    seasons = len(np.unique(groups))
    lost = np.sqrt(count / np.maximum(count - seasons, 1))
    deviation = _median(np.abs(left)) / _QUARTILE * lost
    least = np.array([each.least_spread for each in series])
    sampled = _median(noise)
    # What sampling hides of the variance between partitions may be there: the less so the more were seen.
    hidden = sampled / np.sqrt(np.maximum(count, 1))
    between = np.maximum(np.maximum(deviation**2 - sampled, 0.0) + hidden, least**2)
    z_past = left / np.sqrt(between[:, None] + noise + _TINY)
    now_noise = np.array([each.now_noise for each in series])
    now = np.array([each.now for each in series])
    away = now - centres[:, group]
    between = between * (1 + _CENTRE / np.maximum(members[:, group], 1))
    spread = np.sqrt(between + now_noise + _TINY)
    allowed = rate / max(1, int(enough.sum()))
    bell, student = _quantiles(allowed, _degrees(z_past[enough]))
    unsure = 1 + _UNSURE / np.sqrt(np.maximum(count, 1))
    heavy = np.where([each.is_extreme for each in series], -np.log(allowed), student)
    limit = np.sqrt((heavy * unsure) ** 2 * between + bell**2 * now_noise + _TINY)
    # The tails were seen of both together.
    limit = np.maximum(limit, heavy * spread)
    unusual = enough & (np.abs(away) > limit)
    for place in np.flatnonzero(unusual).tolist():
        each, side = series[place], int(np.sign(away[place]))
        most = np.nanmax(side * z_past[place])
        is_further = side * away[place] / spread[place] >= _FURTHER * most
        unusual[place] = side in each.sides and abs(away[place]) >= each.floor and is_further
    return Judged(centres[:, group], spread, away / spread, unusual, enough)


def _centres(past: Floats, groups: npt.NDArray[np.int64]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Centre of each season, and of how many partitions it is, (series, seasons) each."""
    overall = _median(past)
    whole = np.isfinite(past).sum(axis=1)
    centres, members = [], []
    for group in range(int(groups.max(initial=0)) + 1):
        own = past[:, groups == group]
        count = np.isfinite(own).sum(axis=1)
        known = count >= _FEWEST_OF_A_SEASON
        centres.append(np.where(known, _median(own), overall))
        members.append(np.where(known, count, whole))
    return np.array(centres).T, np.array(members).T


def _median(values: Floats) -> Floats:
    """Median of each row, NaN left out; 0 of a row without a number."""
    there = np.isfinite(values).any(axis=1)
    found = np.zeros(len(values))
    if there.any():
        found[there] = np.nanmedian(values[there], axis=1)
    return found


def _degrees(z: Floats) -> float:
    """Degrees of freedom of Student's t that fit the tails of these deviations best."""
    from scipy.stats import t

    tail = np.minimum(np.abs(z[np.isfinite(z) & (np.abs(z) > _TAIL)]), _MOST_COUNTED)
    scale = _scales()
    # Of what lies beyond one spread: the middle says nothing about tails, and is crowded where counts are small.
    likely = [
        (t.logpdf(tail * factor, degrees) + np.log(factor) - t.logsf(_TAIL * factor, degrees)).sum()
        for degrees, factor in zip(_DEGREES, scale, strict=True)
    ]
    return float(_DEGREES[int(np.argmax(np.array(likely) + _PRIOR))])


def _quantiles(p: float, degrees: float) -> tuple[float, float]:
    """Deviations with this two-sided probability: of a bell curve, and of Student's t in median deviations of one."""
    from scipy.special import ndtri, stdtrit

    factor = _scales()[_DEGREES.tolist().index(degrees)]
    return -float(ndtri(p / 2)), -float(stdtrit(degrees, p / 2)) / float(factor)


@cache
def _scales() -> Floats:
    """By how much a deviation counted in median deviations of a bell curve is larger in the unit of each t."""
    from scipy.stats import t

    return t.ppf(0.75, _DEGREES) / _QUARTILE
