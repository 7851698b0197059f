"""Profiles: nothing may depend on how the rows were cut into batches."""

import json
import zlib
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_platform.core.monitoring import profile as module
from batch_platform.core.monitoring.heavy import HEAVY_VALUES, HeavyValue, heaviest
from batch_platform.core.monitoring.profile import DIFFERING, VALUE_BINS, Profile, profile_table, rows_in
from batch_platform.core.monitoring.vector_sample import SAMPLE_ROWS
from batch_platform.errors import MonitoringError

SCHEMA = pa.schema(
    [
        ("number", pa.float64()),
        ("whole", pa.int64()),
        ("text", pa.string()),
        ("flag", pa.bool_()),
        ("at", pa.timestamp("us", "UTC")),
        ("embedding", pa.list_(pa.float32())),
        ("ragged", pa.list_(pa.float32())),
        ("nothing", pa.null()),
    ]
)
NUMBER = st.floats(-1000, 1000, width=32) | st.sampled_from([None, float("nan"), float("-inf"), 1e30])
ROWS = st.fixed_dictionaries(
    {
        "number": st.none() | st.floats(),
        "whole": st.none() | st.integers(-(2**62), 2**62),
        "text": st.none() | st.text(st.characters(codec="utf-8"), max_size=5),
        "flag": st.none() | st.booleans(),
        "at": st.none() | st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)),
        "embedding": st.none() | st.lists(NUMBER, min_size=3, max_size=3),
        "ragged": st.none() | st.lists(NUMBER, max_size=3),
        "nothing": st.none(),
    }
)
TABLES = st.lists(ROWS, max_size=12)


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


@settings(max_examples=80, deadline=None)
@given(TABLES, TABLES, TABLES)
def test_profiles_of_parts_merged_are_the_profile_of_the_whole(
    a: list[dict], b: list[dict], c: list[dict]
) -> None:
    whole = profile_table(table(a + b + c))
    one, two, three = (profile_table(table(rows)) for rows in (a, b, c))
    for merged in (one.merge(two).merge(three), one.merge(two.merge(three)), three.merge(one).merge(two)):
        assert merged == whole
        assert merged.to_bytes() == whole.to_bytes()
    assert profile_table(pa.concat_tables([table(a), table(b), table(c)])) == whole


@pytest.mark.parametrize("limit", [4, 512])
def test_many_rows_merge_exactly_where_bins_had_to_grow_coarser(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NUMBER_BINS", limit)
    monkeypatch.setattr(module, "VALUE_BINS", limit)
    random = np.random.default_rng(0)
    rows = 6000
    vectors = random.normal(size=(rows, 8)).astype("f4")
    columns = {
        "n": random.normal(size=rows) * 10.0 ** random.integers(-5, 5, rows),
        "text": [f"value {k}" for k in random.integers(0, 3000, rows)],
        "v": pa.FixedSizeListArray.from_arrays(vectors.ravel(), 8),
    }
    whole = pa.table(columns)
    cuts = np.sort(random.choice(rows, 7, replace=False))
    parts = [whole.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]
    profiles = [profile_table(part) for part in parts]
    for place in random.permutation(len(profiles)):
        profiles.append(profiles[place])
    once, again = profiles[: len(parts)], profiles[len(parts) :]
    found = [unnamed(each) for each in (Profile.merged(once), Profile.merged(again), profile_table(whole))]
    assert found[0] == found[1] == found[2]
    assert profile_table(whole).columns["text"].names == ()


def unnamed(profile: Profile) -> Profile:
    """Without the heavy values, which are the only thing that depends on the order of merging."""
    return Profile(
        {name: replace(column, heavy=()) for name, column in profile.columns.items()}, profile.rows
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 400), max_size=200), min_size=1, max_size=6),
    st.integers(0, 5),
    st.integers(0, 150),
)
def test_heavy_values_are_known_within_their_error_however_they_are_merged(
    parts: list[list[int]], split: int, often: int
) -> None:
    parts = [[*part, *[7] * often] for part in parts]
    summaries = [heaviest([[HeavyValue(value, f"v{value}", 1) for value in part]]) for part in parts]
    left, right = summaries[:split], summaries[split:]
    merged = heaviest([heaviest(left), heaviest(right)])
    rows = sum(map(len, parts))
    met = {value.place: value.rows for value in merged}
    assert len(met) <= HEAVY_VALUES
    for value, count in Counter(one for part in parts for one in part).items():
        assert 0 <= count - met.get(value, 0) <= rows / (HEAVY_VALUES + 1)


def test_the_frequent_values_of_many_are_kept_by_name() -> None:
    random = np.random.default_rng(0)
    texts = [f"value {k}" for k in random.integers(0, 5000, 9000)] + ["often"] * 1000 + ["more often"] * 2000
    random.shuffle(texts)
    table = pa.table({"t": texts})
    whole = profile_table(table)
    parts = Profile.merged(profile_table(table.slice(start, 3000)) for start in range(0, 12_000, 3000))
    for profile in (whole, parts, Profile.from_bytes(parts.to_bytes())):
        column = profile.columns["t"]
        found = {heavy.name: heavy.rows for heavy in column.heavy}
        assert column.names == ()
        error = 12_000 / (HEAVY_VALUES + 1)
        assert 1000 - error <= found["often"] <= 1000
        assert 2000 - error <= found["more often"] <= 2000


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_bytes_bring_back_the_same_profile(rows: list[dict]) -> None:
    content = profile_table(table(rows)).to_bytes()
    assert Profile.from_bytes(content) == profile_table(table(rows))
    assert rows_in(content[: module.HEADER_BYTES]) == len(rows)


def test_what_a_column_holds_is_counted() -> None:
    rows = [
        {"number": 1.0, "text": "a", "flag": True, "embedding": [1.0, 0.0]},
        {"number": float("nan"), "text": "a", "flag": False, "embedding": [3.0, 4.0]},
        {"number": None, "text": None, "flag": True, "embedding": None},
        {"number": -np.inf, "text": "ab", "flag": None, "embedding": [0.0, np.nan]},
    ]
    columns = profile_table(table(rows)).columns
    number, text, vector = columns["number"], columns["text"], columns["embedding"]
    assert (number.rows, number.nulls, number.bad, number.missing, number.numbers.rows) == (4, 1, 2, 3, 1)
    assert dict(zip(text.names, text.values.counts, strict=True)) == {"a": 2, "ab": 1}
    assert sorted(text.numbers.counts) == [1, 2]
    assert columns["flag"].nulls == 1
    assert (vector.nulls, vector.bad, vector.dimension) == (1, 1, 2)
    assert ([total / 2**20 for total in vector.sums], vector.squares / 2**20) == ([4.0, 4.0], 26.0)
    assert (columns["whole"].nulls, columns["whole"].numbers.rows) == (4, 0)


def test_vectors_of_several_lengths_are_counted_but_not_summed() -> None:
    vectors = profile_table(pa.table({"v": [[1.0, 2.0], [3.0], [], None]})).columns["v"]
    assert (vectors.dimension, vectors.sums, vectors.squares) == (DIFFERING, (), 0)
    assert (vectors.rows, vectors.nulls, vectors.bad, vectors.numbers.rows) == (4, 1, 1, 2)


def test_of_timestamps_the_ends_are_kept() -> None:
    moments = [datetime(2026, 1, 1), datetime(1969, 12, 31, 23), None]
    at = profile_table(table([{"at": moment} for moment in moments])).columns["at"]
    assert (at.rows, at.nulls, at.numbers.places, at.values.places) == (3, 1, (), ())
    assert (at.low, at.high) == (-3600e6, datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6)
    days = profile_table(pa.table({"on": [date(2026, 1, 1), date(1970, 1, 2)]})).columns["on"]
    assert (days.low, days.high) == (86_400e6, at.high)


def test_other_types_of_the_same_values_give_the_same_profile() -> None:
    plain = pa.table({"s": ["a", "b", None], "n": [1.0, 2.5, None], "v": [[1.0, 2.0], [3.0, 4.0], None]})
    other = pa.table(
        {
            "s": plain["s"].combine_chunks().dictionary_encode(),
            "n": pa.array([Decimal("1.0"), Decimal("2.5"), None]),
            "v": plain["v"].combine_chunks().cast(pa.list_(pa.float64(), 2)),
        }
    )
    assert profile_table(other) == profile_table(plain)
    large = plain.cast(
        pa.schema([("s", pa.large_string()), ("n", pa.float32()), ("v", pa.large_list(pa.float32()))])
    )
    assert profile_table(large) == profile_table(plain)


def test_a_column_of_a_type_that_is_not_profiled_is_left_out() -> None:
    profile = profile_table(pa.table({"b": [b"x"], "n": [1]}))
    assert set(profile.columns) == {"n"}


def test_an_empty_table_keeps_its_columns() -> None:
    profile = profile_table(SCHEMA.empty_table())
    assert profile.rows == 0
    assert set(profile.columns) == set(SCHEMA.names)


def test_an_untyped_column_of_nulls_merges_with_any() -> None:
    nulls, numbers = pa.table({"x": pa.nulls(3)}), pa.table({"x": [1.0]})
    merged = profile_table(nulls).merge(profile_table(numbers)).columns["x"]
    assert (merged.kind, merged.rows, merged.nulls) == ("number", 4, 3)


def test_a_profile_stays_small_however_many_rows_and_values() -> None:
    rows = 20_000
    columns = {
        "n": np.random.default_rng(0).lognormal(0, 3, rows),
        "text": [f"{row} {'x' * 500}" for row in range(rows)],
    }
    profile = profile_table(pa.table(columns))
    assert len(profile.columns["text"].values.places) <= VALUE_BINS
    assert len(profile.to_bytes()) < 6000


def test_profiles_of_columns_of_another_kind_do_not_merge() -> None:
    with pytest.raises(MonitoringError, match="column x: columns of number and string values"):
        profile_table(pa.table({"x": [1.0]})).merge(profile_table(pa.table({"x": ["one"]})))


GOOD = profile_table(pa.table({"x": [1.0, 2.0]})).to_bytes()
HEADER = b"batch_platform profile 3 rows 0\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a profile"),
        (b"not compressed", "not a profile"),
        (zlib.compress(b'{"format":1,"rows":0,"columns":{}}'), "not a profile that this version reads"),
        (b"batch_platform profile 99 rows 0\n", "format 99; this version reads 2 and 3"),
        (HEADER, "cut or altered"),
        (GOOD[:-3], "cut or altered"),
        (HEADER + zlib.compress(b"[]"), "cut or altered"),
        (HEADER + zlib.compress(json.dumps({"columns": {"x": {"kind": 3}}}).encode()), "cut or altered"),
        (HEADER + zlib.compress(b"\xff"), "cut or altered"),
    ],
)
def test_bytes_that_are_no_profile_are_refused(content: bytes, words: str) -> None:
    with pytest.raises(MonitoringError, match=words):
        Profile.from_bytes(content)


def test_bytes_with_any_one_flipped_are_refused() -> None:
    for place in range(len(GOOD)):
        altered = bytearray(GOOD)
        altered[place] ^= 0x41
        with pytest.raises(MonitoringError):
            Profile.from_bytes(bytes(altered))


def vectors(matrix: np.ndarray) -> Profile:
    return profile_table(
        pa.table({"v": pa.FixedSizeListArray.from_arrays(matrix.astype("f4").ravel(), matrix.shape[1])})
    )


def test_the_sample_of_vectors_is_the_same_whatever_the_batches_were() -> None:
    """More vectors than a sample holds, in three batches of any order, many of them twice and one very often."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(900, 40))
    matrix = np.concatenate([matrix, matrix[:300], np.repeat(matrix[:1], 50, axis=0)])
    whole = vectors(matrix)
    parts = [vectors(part) for part in np.array_split(matrix[random.permutation(len(matrix))], 3)]
    assert Profile.merged(parts).to_bytes() == whole.to_bytes()
    assert Profile.from_bytes(whole.to_bytes()) == whole
    sample = whole.columns["v"].sample
    assert len(sample.hashes) == SAMPLE_ROWS
    assert set(sample.counts) <= {1, 2, 52}
    assert len(whole.to_bytes()) < 50_000
