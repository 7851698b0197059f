"""The frequent values of a column with very many: which they are, within a stated error.

The summary of Misra and Gries (Sci. Comput. Program. 2, 1982), merged as by Agarwal et al. (Mergeable Summaries, PODS
2012): the counts are added, and the largest one that does not fit is taken off all. However the rows were cut and
merged, of n rows each value was met at least `rows` times and at most `rows` + n / (`HEAVY_VALUES` + 1), so that
every value of more than 1.6 % of the rows is there. Which of the rarer ones are there depends on the order of merging.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

HEAVY_VALUES = 64


class HeavyValue(NamedTuple):
    """A value: the hash that is its place, its name, and how often it was met at the least."""

    place: int
    name: str
    rows: int


def heaviest(parts: Iterable[Sequence[HeavyValue]]) -> tuple[HeavyValue, ...]:
    """The frequent values of all parts together, by their hashes; those of one hash are taken for one value."""
    counts: Counter[int] = Counter()
    names: dict[int, str] = {}
    for part in parts:
        for place, name, rows in part:
            counts[place] += rows
            names[place] = min(names.get(place, name), name)
    largest = counts.most_common(HEAVY_VALUES + 1)
    beyond = largest[HEAVY_VALUES][1] if len(largest) > HEAVY_VALUES else 0
    kept = ((place, count - beyond) for place, count in largest if count > beyond)
    return tuple(HeavyValue(place, names[place], count) for place, count in sorted(kept))
