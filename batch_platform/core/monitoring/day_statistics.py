"""What is compared between days: a few signed numbers a column, each with the variance that sampling gives it.

Decides the statistics and on what scale they are told, relative to the reference's pooled profile. What is
normal for them, and what an alert is, `drift` decides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from batch_platform.core.monitoring.clusters import MOST_CLUSTERS, Clusters
from batch_platform.core.monitoring.histogram import Histogram, Integers
from batch_platform.core.monitoring.profile import DIFFERING, ColumnProfile, Profile
from batch_platform.core.monitoring.vector_sample import VectorSample

TOP_VALUES = 20
OTHERS = "share of other values"
# A string column with more distinct values than this share of its rows is text or a key: its lengths are judged,
# and of its values only those that are frequent.
_TEXT_SHARE = 0.5
_FREQUENT_SHARE = 0.01
# Components of a vector hang together: its mean varies as if so many of them were independent, or less.
_INDEPENDENT_COMPONENTS = 16
_SCHEMA_SHARE = 0.5
_MOST_IN_A_BIN = 0.9
# Of texts, besides their lengths: attribute of the profile -> end of the statistics' names.
TEXT_MEASURES = {"token_lengths": " of token lengths", "symbols": " of symbols"}
# Of so many reference days every third lays down what vectors are compared with; the others tell what is usual.
_FEWEST_TO_SPLIT = 12
_EVERY = 3


@dataclass(frozen=True)
class DayValue:
    """A statistic of one day: its value, and the variance that sampling so many rows gives it."""

    value: float
    sampling: float


class Yardstick:
    """The reference's columns, prepared for comparing days with them.

    Args:
        days: profile of each reference day, oldest first, each with rows.

    Attributes:
        known: columns that most reference days have.
        spent: places of the reference days to which the centre and the clusters of vectors were fitted. What these days
            lie from them is less than what others do, so they cannot tell what is usual (`is_spent_on`).
    """

    def __init__(self, days: list[Profile]) -> None:
        self.spent = range(1, len(days), _EVERY) if len(days) >= _FEWEST_TO_SPLIT else range(0)
        names = list(dict.fromkeys(name for day in days for name in day.columns))
        self._columns: dict[str, _Column] = {}
        self.known: list[str] = []
        for name in names:
            present = [day.columns[name] for day in days if name in day.columns]
            typed = [column.kind for column in present if column.kind != "empty"]
            kind = max(typed, key=typed.count, default="empty")
            fitting = [column for column in present if column.kind in (kind, "empty")]
            apart = [days[place].columns[name] for place in self.spent if name in days[place].columns]
            vectors = [column for column in apart if column.kind == kind == "vector"]
            self._columns[name] = _Column(ColumnProfile.merged(fitting), vectors)
            if len(present) >= _SCHEMA_SHARE * len(days):
                self.known.append(name)

    def statistics(self, day: Profile) -> Iterator[tuple[tuple[str, str], DayValue]]:
        """Column and name of each statistic that the day has in common with the reference, and its value."""
        for name, column in day.columns.items():
            reference = self._columns.get(name)
            if reference is None or not column.rows:
                continue
            if column.kind in ("empty", reference.pooled.kind):
                for statistic, value in reference.statistics(column):
                    yield (name, statistic), value

    def is_spent_on(self, column: str, statistic: str) -> bool:
        """Whether a statistic was fitted to the days `spent`."""
        return self._columns[column].pooled.kind == "vector" and statistic in (
            "mean vector",
            *_CLUSTER_SHARES,
        )

    def schema_changes(self, day: Profile) -> Iterator[str]:
        """Columns that came, went or hold another kind of values than on most reference days."""
        yield from day.columns.keys() - self._columns.keys()
        for name in self.known:
            if name not in day.columns or not self._columns[name].fits(day.columns[name]):
                yield name


class _Column:
    """One column of the reference.

    Args:
        pooled: all reference days together.
        apart: the days to which the centre and the clusters of vectors are fitted.
    """

    def __init__(self, pooled: ColumnProfile, apart: Sequence[ColumnProfile]) -> None:
        self.pooled = pooled
        centre = ColumnProfile.merged(apart) if apart else pooled
        self._centre = centre if centre.sums else pooled
        self._clusters = Clusters.of([day.sample for day in apart]) if apart else None
        self._places, self._counts = pooled.numbers.arrays(pooled.numbers.level)
        usable = pooled.rows - pooled.missing
        distinct = len(pooled.values.places)
        self._is_text = pooled.values.level > 0 or distinct > max(TOP_VALUES, _TEXT_SHARE * usable)
        self._top = dict(self._top_values(usable))

    def fits(self, column: ColumnProfile) -> bool:
        """Whether a day's column holds the same kind of values; of vectors also the same number of components."""
        if "empty" in (column.kind, self.pooled.kind) or column.kind != self.pooled.kind:
            return column.kind in ("empty", self.pooled.kind)
        return column.dimension in (0, self.pooled.dimension) or self.pooled.dimension in (0, DIFFERING)

    def statistics(self, column: ColumnProfile) -> Iterator[tuple[str, DayValue]]:
        yield "null rate", _share(column.missing, column.rows)
        usable = column.rows - column.missing
        if not usable or column.kind in ("time", "empty") or self.pooled.rows == self.pooled.missing:
            return
        if column.kind == "number":
            yield from self._ranks(column.numbers, "")
        elif column.kind == "vector":
            if self.fits(column):
                yield from self._ranks(column.numbers, " of norms")
            if column.sums and len(column.sums) == len(self._centre.sums):
                yield "mean vector", _distance(self._centre, column)
                yield from self._cluster_shares(column.sample, usable)
        else:
            if self._is_text and column.kind == "string":
                yield from self._ranks(column.numbers, " of lengths")
                for measure, suffix in TEXT_MEASURES.items():
                    yield from self._ranks(getattr(column, measure), suffix, getattr(self.pooled, measure))
            yield from self._shares(column.values, usable)

    def _top_values(self, usable: int) -> Iterator[tuple[int, str]]:
        """Bin and statistic of the values that are judged one by one."""
        values = self.pooled.values
        ranked = sorted(zip(values.places, values.counts, strict=True), key=lambda pair: (-pair[1], pair[0]))
        names = dict(zip(values.places, self.pooled.names, strict=False)) or self._heavy_names()
        taken: set[str] = set()
        for place, count in ranked[:TOP_VALUES]:
            if self._is_text and count < _FREQUENT_SHARE * usable:
                break
            # With very many values a bin holds several; two long ones may begin alike.
            name = repr(names[place]) if place in names else f"the values of bin {place:x}"
            is_several = name in taken or (place in names and values.level)
            name = f"{name} (bin {place:x})" if is_several else name
            taken.add(name)
            yield place, f"share of {name}"

    def _heavy_names(self) -> dict[int, str]:
        """Of the bins with very many values, those of which one value makes up most."""
        values = self.pooled.values
        counts = dict(zip(values.places, values.counts, strict=True))
        places = {heavy: heavy.place >> values.level for heavy in self.pooled.heavy}
        return {place: heavy.name for heavy, place in places.items() if 2 * heavy.rows > counts.get(place, 0)}

    def _shares(self, values: Histogram, usable: int) -> Iterator[tuple[str, DayValue]]:
        if not self._top:
            return
        level = self.pooled.values.level
        # A day of more distinct values than the whole reference has coarser bins: each value is in one of them.
        coarser = max(0, values.level - level)
        counts = dict(
            zip(*(array.tolist() for array in values.arrays(max(level, values.level))), strict=True)
        )
        for place, statistic in self._top.items():
            yield statistic, _share(counts.get(place >> coarser, 0), usable)
        in_top = sum(counts.get(place, 0) for place in {place >> coarser for place in self._top})
        yield OTHERS, _share(usable - in_top, usable)

    def _cluster_shares(self, sample: VectorSample, usable: int) -> Iterator[tuple[str, DayValue]]:
        """Share of the rows in each cluster, and far from all, by the sample."""
        if self._clusters is None or not sample.rows:
            return
        in_each, far = self._clusters.counts(sample)
        counts = np.array(sample.counts, float)
        # A sample of distinct vectors tells less the more rows share one.
        rows = usable if sample.rows == usable else counts.sum() ** 2 / (counts**2).sum()
        for name, count in zip(_CLUSTER_SHARES, [far, *in_each.tolist()], strict=False):
            yield name, _share(count * rows / sample.rows, rows)

    def _ranks(
        self, day: Histogram, suffix: str, pooled: Histogram | None = None
    ) -> Iterator[tuple[str, DayValue]]:
        """Mean rank of the day's values among the reference's, and the mean distance of the ranks from 1/2."""
        if pooled is not None and not (_is_varied(pooled) and day.places):
            return  # hardly ever another number; or a profile of the format before, which has none
        places, counts = self._places, self._counts
        known = self.pooled.numbers if pooled is None else pooled
        level = max(day.level, known.level)
        if pooled is not None or level > known.level:
            places, counts = known.arrays(level)
        own, weights = day.arrays(level)
        ranks = _midranks(places, counts, own)
        for name, values in (("mean rank", ranks), ("spread of ranks", np.abs(ranks - 0.5))):
            mean = float(np.average(values, weights=weights))
            # At least the variance of ranks spread evenly, so that a day of equal values is not taken for sure.
            variance = max(float(np.average((values - mean) ** 2, weights=weights)), 1 / 48)
            yield name + suffix, DayValue(mean, variance / int(weights.sum()))


def _is_varied(histogram: Histogram) -> bool:
    """Whether ranks among these numbers tell something: no bin has nearly all of them."""
    return bool(histogram.counts) and max(histogram.counts) <= _MOST_IN_A_BIN * histogram.rows


_CLUSTER_SHARES = (
    "share far from every cluster",
    *(f"share of cluster {number}" for number in range(1, MOST_CLUSTERS + 1)),
)


def only_grows(days: list[ColumnProfile]) -> bool:
    """Whether each day's numbers begin where the day before ended: a counter or a time, which always moves on."""
    level = max((day.numbers.level for day in days), default=0)
    ends = [
        (places[0], places[-1]) for day in days for places, _ in [day.numbers.arrays(level)] if len(places)
    ]
    return all(before[0] < after[0] and before[1] <= after[0] for before, after in pairwise(ends))


def _midranks(places: Integers, counts: Integers, own: Integers) -> np.ndarray:
    """Share of the reference's rows below each of the day's bins, rows in it counted half: (bins,) float64."""
    below = np.concatenate([[0], np.cumsum(counts)])
    left, right = np.searchsorted(places, own), np.searchsorted(places, own, side="right")
    return (below[left] + below[right]) / 2 / below[-1]


def _share(count: float, rows: float) -> DayValue:
    """A share on the arcsine scale, where its sampling variance is 1/(4 rows + 2) whatever the share.

    With Anscombe's correction (Biometrika 35, 1948): without it a few expected rows scatter half as much again.
    """
    return DayValue(float(np.arcsin(np.sqrt((count + 0.375) / (rows + 0.75)))), 1 / (4 * rows + 2))


def _distance(reference: ColumnProfile, column: ColumnProfile) -> DayValue:
    """Squared distance of the day's mean vector from the reference's, over the variance of the reference's rows.

    Less what the noise of so many rows adds to it: without drift a day of any size has 0 on average.
    """
    unit = 2**20
    known, rows = reference.rows - reference.missing, column.rows - column.missing
    centre = np.array(reference.sums, float) / unit / known
    mean = np.array(column.sums, float) / unit / rows
    length = float(centre @ centre)
    variance = max(reference.squares / unit / known - length, 1e-6 * length, 1e-12)
    distance = float(((mean - centre) ** 2).sum()) / variance - 1 / rows
    # Twice the variance of a chi-square, whose upper tail is heavier than a bell curve's.
    return DayValue(distance, 4 / (_INDEPENDENT_COMPONENTS * rows**2))
