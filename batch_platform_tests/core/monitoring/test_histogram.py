"""Histograms: bounded, ordered, and the same however the rows were cut."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_platform.core.monitoring.histogram import Histogram, places_of
from batch_platform.errors import MonitoringError

LIMIT = 8
NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=40)


def counted(numbers: list[float], limit: int = LIMIT) -> Histogram:
    return Histogram.of(places_of(np.array(numbers, float)), limit)


@settings(max_examples=200, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_parts_merged_are_the_whole_also_where_bins_grow_coarser(parts: list[list[float]]) -> None:
    whole = counted([number for part in parts for number in part])
    assert Histogram.merged([counted(part) for part in parts], LIMIT) == whole
    one_by_one = counted([])
    for part in reversed(parts):
        one_by_one = Histogram.merged([one_by_one, counted(part)], LIMIT)
    assert one_by_one == whole
    assert len(whole.places) <= LIMIT
    assert whole.rows == sum(map(len, parts))


@settings(max_examples=50, deadline=None)
@given(NUMBERS)
def test_values_for_json_bring_the_same_back(numbers: list[float]) -> None:
    assert Histogram.from_values(counted(numbers).to_values()) == counted(numbers)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=20))
def test_places_keep_the_order_of_numbers(numbers: list[float]) -> None:
    numbers = sorted(numbers)
    places = places_of(np.array(numbers)).tolist()
    assert places == sorted(places)
    assert [a == b for a, b in pairwise(places)] == [a == b for a, b in pairwise(numbers)]


def test_few_values_are_kept_apart_and_many_are_not() -> None:
    few = counted([1.0, 1.0000001, -0.0, 0.0])
    assert (few.level, few.counts) == (0, (2, 1, 1))
    many = Histogram.of(places_of(np.random.default_rng(0).normal(1000, 1, 5000)), 512)
    assert 100 < len(many.places) <= 512
    # A large offset does not hide a small spread: no bin has more than a few hundredths of the rows.
    assert max(many.counts) < 150


def test_numbers_of_every_size_fit_into_the_bins() -> None:
    numbers = [sign * 10.0**size for sign in (-1, 1) for size in range(-307, 308)]
    assert len(counted(numbers).places) <= LIMIT
    assert counted(numbers).rows == len(numbers)


@pytest.mark.parametrize(
    "values",
    [
        [LIMIT, 0, [1, 1], [3]],
        [LIMIT, 0, [1, 0], [3, 3]],
        [LIMIT, 0, [1], [0]],
        [LIMIT, -1, [1], [1]],
        [1, 0, [1, 1], [1, 1]],
    ],
)
def test_values_that_are_no_histogram_are_refused(values: list) -> None:
    with pytest.raises(MonitoringError):
        Histogram.from_values(values)


@pytest.mark.parametrize("limit", [16, 512])
@pytest.mark.parametrize("kind", ["bell", "wide", "few", "one", "whole", "far"])
def test_counting_without_sorting_gives_the_same_histogram(kind: str, limit: int) -> None:
    random = np.random.default_rng(0)
    rows = 30_000
    numbers = {
        "bell": random.normal(size=rows),
        "wide": random.normal(size=rows) * 10.0 ** random.integers(-300, 300, rows),
        "few": random.choice([-1e300, 0.0, 1.5, 2.5], rows),
        "one": np.full(rows, 7.25),
        "whole": random.integers(-5, 2000, rows).astype(float),
        "far": 1e9 + random.random(rows),
    }[kind]
    places = places_of(numbers)
    pieces = [Histogram.of(places[start : start + 5000], limit) for start in range(0, rows, 5000)]
    assert Histogram.of(places, limit) == Histogram.merged(pieces, limit)
