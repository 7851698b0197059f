"""Repeated keys: exact against a plain Python set, within and across batches, whatever the runs."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_platform.core.data import keys as module
from batch_platform.core.data.keys import LastOccurrences, SeenKeys, _Run

BATCHES = st.lists(
    st.lists(st.sampled_from(["", "a", "b", "c", "ä", "a\0", "aa", "d"]), max_size=12), max_size=8
)


def test_keys_are_not_hashed_to_their_own_beginning() -> None:
    assert SeenKeys().add(pa.array(["a", "a\0", "a\0b"])).tolist() == [False, False, False]


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_seen_keys_as_a_set_would_say(batches: list[list[str]]) -> None:
    found, seen = SeenKeys(), set[str]()
    for batch in batches:
        expected = []
        for key in batch:
            expected.append(key in seen)
            seen.add(key)
        assert found.add(pa.array(batch, pa.string())).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_superseded_are_all_but_the_last(batches: list[list[str]]) -> None:
    found = LastOccurrences()
    for batch in batches:
        found.add(pa.array(batch, pa.string()))
    flat = [key for batch in batches for key in batch]
    assert found.superseded().tolist() == [key in flat[place + 1 :] for place, key in enumerate(flat)]


def test_many_keys_over_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RUN", 64)
    keys = np.random.default_rng(1).integers(0, 3_000, 5_000)
    found, seen = SeenKeys(), set[int]()
    for part in np.split(keys, 100):
        repeated = found.add(pa.array([str(key) for key in part]))
        for key, said in zip(part.tolist(), repeated.tolist(), strict=True):
            assert said == (key in seen)
            seen.add(key)
    assert all(len(run.low) <= 64 for run in found._runs)


def test_a_collision_of_half_the_hash_is_no_repetition() -> None:
    same = np.array([5, 5, 9], np.uint64)
    run = _Run(same, np.array([1, 2, 3], np.uint64))
    asked = np.array([5, 5, 5, 9, 10], np.uint64)
    assert run.contains(asked, np.array([2, 1, 7, 4, 3], np.uint64)).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
