"""Counts on bins that grow coarser where they become many: bounded in size, and exactly mergeable.

A place is an integer; a level puts together the places whose magnitudes agree but for their last bits. A histogram
stands on the lowest level on which it has at most `limit` bins. That level follows from the places alone, whatever
the order in which they came, so histograms of parts, merged, are the histogram of the whole, bit for bit.
It does not know what the places stand for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

from batch_platform.errors import MonitoringError

Integers = npt.NDArray[np.int64]

_HIGHEST_LEVEL = 63
# Where there are more rows than this, counting in an array of 2**18 bins is faster than sorting.
_MANY_ROWS = 10_000
_BITS_COUNTED = 18
_SIGN = np.int64(np.iinfo(np.int64).max)  # all bits but the sign


@dataclass(frozen=True)
class Histogram:
    """How many rows lie on each place.

    Attributes:
        limit: bins that it may have.
        level: last bits that are left out of each place.
        places: bins in use, ascending.
        counts: rows of each, above 0.
    """

    limit: int
    level: int = 0
    places: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, places: Integers, limit: int) -> Self:
        """Count places, (rows,) int64 above the smallest int64."""
        level = _roughly(places)
        if level:
            # Counted without sorting, on a level that leaves so many bins that the right one is no finer.
            coarse = _coarser(places, level)
            lowest = int(coarse.min())
            counts = np.bincount(coarse - lowest)
            used = np.flatnonzero(counts)
            if len(used) > limit:
                return cls._settled(used + lowest, counts[used], level, limit)
        return cls._settled(*np.unique(places, return_counts=True), 0, limit)

    @classmethod
    def counted(cls, places: Integers, counts: Integers, limit: int) -> Self:
        """Of distinct values, each counted: their places, which may repeat, and their counts, (values,) int64."""
        return cls._settled(*_summed(places, counts), 0, limit)

    @classmethod
    def merged(cls, parts: Iterable["Histogram"], limit: int) -> Self:
        """The histogram of all parts' rows together; all parts have this limit."""
        parts = list(parts)
        level = max((part.level for part in parts), default=0)
        each = [part.arrays(level) for part in parts]
        empty = np.empty(0, np.int64)
        places = np.concatenate([empty, *(places for places, _ in each)])
        counts = np.concatenate([empty, *(counts for _, counts in each)])
        return cls._settled(*_summed(places, counts), level, limit)

    def arrays(self, level: int) -> tuple[Integers, Integers]:
        """Places and counts on a level not below the own one, (bins,) int64 each, ascending."""
        places, counts = np.array(self.places, np.int64), np.array(self.counts, np.int64)
        if level == self.level:
            return places, counts
        return _summed(_coarser(places, level - self.level), counts)

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def to_values(self) -> list:
        """Plain values for JSON; `from_values` reads them back."""
        steps = [after - before for before, after in pairwise((0, *self.places))]
        return [self.limit, self.level, steps, list(self.counts)]

    @classmethod
    def from_values(cls, values: Sequence) -> Self:
        """Read plain values.

        Raises:
            MonitoringError: they are no histogram.
        """
        limit, level, steps, counts = values
        places = tuple(accumulate(steps))
        rising = all(step > 0 for step in steps[1:])
        if not (len(places) == len(counts) <= limit and rising and min(counts, default=1) > 0 and level >= 0):
            raise MonitoringError("its counts are not those of a histogram")
        return cls(limit, level, places, tuple(counts))

    @classmethod
    def _settled(cls, places: Integers, counts: Integers, level: int, limit: int) -> Self:
        more = 0
        if len(places) > limit:
            low, high = 0, _HIGHEST_LEVEL  # too fine, coarse enough
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _distinct(places, middle) > limit else (low, middle)
            more = high
            places, counts = _summed(_coarser(places, more), counts)
        return cls(limit, level + more, tuple(places.tolist()), tuple(counts.tolist()))


def places_of(numbers: npt.NDArray[np.float64]) -> Integers:
    """Places of finite numbers in their order, (rows,) int64; a level then leaves out digits of the mantissa."""
    bits = (numbers + 0.0).view(np.int64)  # + 0.0: the negative zero is a zero
    return np.where(bits < 0, -(bits & _SIGN), bits)


def numbers_of(histogram: Histogram) -> npt.NDArray[np.float64]:
    """The number of each bin that is nearest to zero, (bins,) ascending: what `places_of` undoes."""
    places = np.array(histogram.places, np.int64)
    magnitudes = (np.abs(places) << min(histogram.level, _HIGHEST_LEVEL)).view(np.float64)
    return np.sign(places) * magnitudes


def _roughly(places: Integers) -> int:
    """A level on which the places span few enough bins to be counted in an array; 0 for few rows."""
    if len(places) < _MANY_ROWS:
        return 0
    span = int(places.max()) - int(places.min())
    return max(0, span.bit_length() - _BITS_COUNTED)


def _coarser(places: Integers, bits: int) -> Integers:
    return np.sign(places) * (np.abs(places) >> min(bits, _HIGHEST_LEVEL))


def _distinct(ascending: Integers, bits: int) -> int:
    return 1 + int(np.count_nonzero(np.diff(_coarser(ascending, bits))))


def _summed(places: Integers, counts: Integers) -> tuple[Integers, Integers]:
    found, inverse = np.unique(places, return_inverse=True)
    total = np.zeros(len(found), np.int64)
    np.add.at(total, inverse, counts)
    return found, total
