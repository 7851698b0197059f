"""Profiles: nothing may depend on how the rows were cut into batches."""

import json
import zlib
from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_platform.core.monitoring.profile import Profile, bin_middle, bin_of, profile_table
from batch_platform.errors import MonitoringError

SCHEMA = pa.schema(
    [
        ("number", pa.float64()),
        ("whole", pa.int64()),
        ("text", pa.string()),
        ("flag", pa.bool_()),
        ("at", pa.timestamp("us", "UTC")),
        ("vector", pa.list_(pa.float32())),
    ]
)
ROWS = st.fixed_dictionaries(
    {
        "number": st.none() | st.floats(),
        "whole": st.none() | st.integers(-(2**62), 2**62),
        "text": st.none() | st.text(st.characters(codec="utf-8"), max_size=5),
        "flag": st.none() | st.booleans(),
        "at": st.none() | st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)),
        "vector": st.none() | st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=3),
    }
)


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, max_size=12), st.lists(ROWS, max_size=12))
def test_the_profile_of_two_tables_is_the_sum_of_their_profiles(one: list[dict], other: list[dict]) -> None:
    merged = profile_table(table(one)).merge(profile_table(table(other)))
    assert merged == profile_table(table(one + other))
    assert merged == profile_table(table(other)).merge(profile_table(table(one)))


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS, max_size=12))
def test_bytes_bring_back_the_same_profile(rows: list[dict]) -> None:
    profile = profile_table(table(rows))
    assert Profile.from_bytes(profile.to_bytes()) == profile


def test_what_a_column_holds_is_counted() -> None:
    rows = [
        {"number": 1.0, "text": "a", "flag": True, "vector": [1.0, 0.0]},
        {"number": float("nan"), "text": "a", "flag": False, "vector": [3.0, 4.0]},
        {"number": None, "text": None, "flag": True, "vector": None},
        {"number": -np.inf, "text": "ab", "flag": None, "vector": [0.0, 0.0]},
    ]
    columns = profile_table(table(rows)).columns
    assert (columns["number"].rows, columns["number"].nulls, columns["number"].bad) == (4, 1, 2)
    assert sum(columns["number"].bins.values()) == 1
    counts = {columns["text"].names[place]: rows for place, rows in columns["text"].buckets.items()}
    assert counts == {"a": 2, "ab": 1}
    assert columns["flag"].nulls == 1
    assert columns["vector"].sums == (4.0, 4.0)
    assert (columns["whole"].nulls, columns["whole"].bins) == (4, {})


def test_timestamps_are_counted_and_their_values_are_not_kept() -> None:
    at = profile_table(table([{"at": datetime(2026, 1, 1)}, {"at": None}])).columns["at"]
    assert (at.rows, at.nulls, at.bins, at.buckets) == (2, 1, {}, {})


def test_an_empty_table_keeps_its_columns() -> None:
    profile = profile_table(SCHEMA.empty_table())
    assert profile.rows == 0
    assert set(profile.columns) == set(SCHEMA.names)


@given(st.floats(1e-8, 1e12))
def test_a_bin_is_two_percent_wide(value: float) -> None:
    for number in (value, -value):
        middle = bin_middle(int(bin_of(np.array([number]))[0]))
        assert abs(middle / number - 1) < 0.0101


def test_bins_keep_the_order_of_numbers() -> None:
    places = bin_of(np.array([-1e290, -5.0, -1e-3, -1e-12, 0.0, 1e-12, 1e-3, 5.0, 1e290])).tolist()
    assert places == sorted(places)
    assert places == [-place for place in reversed(places)]


def test_profiles_of_columns_of_another_kind_do_not_merge() -> None:
    with pytest.raises(MonitoringError, match="number"):
        profile_table(pa.table({"x": [1.0]})).merge(profile_table(pa.table({"x": ["one"]})))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not compressed",
        zlib.compress(b"[]"),
        zlib.compress(b"{}"),
        zlib.compress(json.dumps({"format": 99, "rows": 0, "columns": {}}).encode()),
        zlib.compress(json.dumps({"format": 1, "rows": 0, "columns": {"x": {"bins": 3}}}).encode()),
    ],
)
def test_bytes_that_are_no_profile_are_refused(content: bytes) -> None:
    with pytest.raises(MonitoringError):
        Profile.from_bytes(content)


VECTORS = st.lists(
    st.none()
    | st.lists(
        st.floats(-1000, 1000, width=32) | st.sampled_from([None, float("nan"), float("inf")]), max_size=3
    ),
    max_size=8,
)


@settings(max_examples=80, deadline=None)
@given(VECTORS, VECTORS, VECTORS)
def test_vectors_of_any_lengths_merge_exactly(one: list, other: list, third: list) -> None:
    def vectors(rows: list) -> Profile:
        return profile_table(pa.table({"v": pa.array(rows, pa.list_(pa.float32()))}))

    whole = vectors(one + other + third)
    assert vectors(one).merge(vectors(other)).merge(vectors(third)) == whole
    assert vectors(one).merge(vectors(other).merge(vectors(third))) == whole


def test_vectors_of_a_fixed_size_are_profiled_like_others() -> None:
    numbers = pa.array([1.0, 2.0, 3.0, 4.0], pa.float32())
    fixed = profile_table(pa.table({"v": pa.FixedSizeListArray.from_arrays(numbers, 2)}))
    assert fixed.columns["v"].sums == (4.0, 6.0)


def test_the_largest_numbers_are_in_the_outermost_bins() -> None:
    places = bin_of(np.array([-1.7e308, -1e300, -5.0, 5.0, 1e300, 1.7e308])).tolist()
    assert places == sorted(places)
