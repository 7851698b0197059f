"""What data quality remembers of a partition: a few numbers a column, taken from its profile.

Decides what is remembered, so that the history of many partitions is small in memory. It judges nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from batch_platform.core.monitoring.histogram import numbers_of
from batch_platform.core.monitoring.profile import ColumnProfile, Kind, Profile

# A string column with more distinct values than this share of its rows is text or a key: it has no set of values.
_TEXT_SHARE = 0.5
_FEWEST_TO_TELL = 20


@dataclass(frozen=True)
class ColumnFacts:
    """One column of one partition.

    Attributes:
        kind: what it holds.
        rows: all rows.
        missing: share of the rows without a value; NaN and infinite numbers are none.
        empty: share of the rows that are a string without a character.
        low: the smallest number, or the oldest moment in microseconds since 1970; None where there is none.
        high: the largest, or the newest.
        typical: median magnitude of its numbers; 0 for other kinds.
        is_constant: all values are the same.
        top_share: of the values, the share of the most frequent one (of numbers: of the fullest bin).
        values: rows by the hash of the value; None where the values are no set that can be known.
        names: value by its hash.
    """

    kind: Kind
    rows: int
    missing: float
    empty: float
    low: float | None
    high: float | None
    typical: float
    is_constant: bool
    top_share: float
    values: Mapping[int, int] | None
    names: Mapping[int, str]


@dataclass(frozen=True)
class Facts:
    """A partition's table."""

    rows: int
    columns: Mapping[str, ColumnFacts] = field(default_factory=dict)


@lru_cache(maxsize=256)
def facts_in(content: bytes) -> Facts:
    """Facts of a profile's bytes; a range of dates reads most of its history again and again.

    Raises:
        MonitoringError: the bytes are no profile that this version reads.
    """
    return facts_of(Profile.from_bytes(content))


def facts_of(profile: Profile) -> Facts:
    """Facts of a profile."""
    return Facts(profile.rows, {name: _column(column) for name, column in profile.columns.items()})


def _column(column: ColumnProfile) -> ColumnFacts:
    usable = column.rows - column.missing
    low, high, typical = column.low, column.high, 0.0
    if column.kind == "number" and column.numbers.places:
        numbers = numbers_of(column.numbers)
        if low is None or high is None:  # a profile of an earlier format
            low, high = float(numbers[0]), float(numbers[-1])
        typical = _median(np.abs(numbers), np.array(column.numbers.counts))
    counted = column.numbers if column.kind == "number" else column.values
    is_set = column.kind == "boolean" or (
        column.kind == "string"
        and column.values.level == 0
        and len(column.values.places) <= max(1, _TEXT_SHARE * usable)
    )
    values = dict(zip(column.values.places, column.values.counts, strict=True)) if is_set else None
    return ColumnFacts(
        column.kind,
        column.rows,
        column.missing / max(column.rows, 1),
        column.empty / max(column.rows, 1),
        low,
        high,
        typical,
        column.is_constant and usable >= _FEWEST_TO_TELL,
        max(counted.counts, default=0) / max(usable, 1),
        values,
        dict(zip(column.values.places, column.names, strict=True)) if is_set else {},
    )


def _median(numbers: np.ndarray, counts: np.ndarray) -> float:
    order = np.argsort(numbers)
    below = np.cumsum(counts[order])
    return float(numbers[order][np.searchsorted(below, below[-1] / 2)])
