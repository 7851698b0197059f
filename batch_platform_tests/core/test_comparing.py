"""Two results for the same rows, held against each other: by key, by decision, by number, by label."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from batch_platform.core.comparing import Comparison, compare


def table(**columns: Any) -> list[pa.RecordBatch]:
    return pa.table(columns).to_batches(max_chunksize=2)


def keys_of(*keys: str) -> Iterator[pa.Array]:
    yield pa.array(keys[:3], pa.string())
    yield pa.array(keys[3:], pa.string())


def test_rows_are_compared_by_key() -> None:
    before = table(row_key=["a", "b", "d", "e"], label=["x", "x", "y", "y"], score=[0.9, 0.8, 0.3, 0.2])
    after = table(row_key=["a", "c", "d", "e"], label=["x", "x", "x", "y"], score=[0.9, 0.7, 0.6, 0.1])
    found = compare(before, after, keys_of("a", "b", "c", "d", "e"), {"a": "x", "d": "x", "e": "y"})
    assert (found.rows, found.only_before, found.only_after, found.changed) == (3, 1, 1, 2)
    assert (found.flips, found.flip_rate) == ({"y -> x": 1}, pytest.approx(1 / 3))
    assert (found.shift, found.distance, found.largest) == tuple(map(pytest.approx, (0.2, 0.4, 0.3)))
    assert (found.labelled, found.right_before, found.right_after) == (3, 0, 1)
    assert found.verdict == "undecided"
    twice = found + found
    assert (twice.rows, twice.flips, twice.largest) == (6, {"y -> x": 2}, found.largest)


def test_no_rows_and_no_labels_say_nothing() -> None:
    nothing = compare([], table(row_key=["a"], label=["x"], score=[1.0]), keys_of("a", "b", "c", "d"))
    assert (nothing.rows, nothing.only_after, nothing.flip_rate, nothing.p_value) == (0, 1, None, None)
    assert nothing.verdict == "undecided"


def test_mcnemar_says_which_is_better() -> None:
    better = Comparison(labelled=100, right_before=2, right_after=18)
    assert better.p_value == pytest.approx(stats.binomtest(2, 20).pvalue)
    assert better.verdict == "better"
    assert Comparison(labelled=100, right_before=18, right_after=2).verdict == "worse"
    assert Comparison(labelled=100, right_before=10, right_after=9).verdict == "undecided"
    assert (
        Comparison(labelled=100, right_before=6, right_after=0).verdict == "undecided"
    )  # six rows prove nothing


def test_numbers_are_compared_by_their_errors() -> None:
    truth = [float(n) for n in range(12)]
    old, new = [t + 1 + 0.1 * (n % 3) for n, t in enumerate(truth)], [t - 0.3 for t in truth]
    keys = [f"{n:02}" for n in range(12)]
    found = compare(
        table(row_key=keys, prediction=old),
        table(row_key=keys, prediction=new),
        iter([pa.array(keys)]),
        dict(zip(keys, map(str, truth), strict=True)),
    )
    expected = stats.ttest_rel([abs(a - t) for a, t in zip(old, truth, strict=True)], [0.3] * 12)
    assert math.isclose(found.p_value or 1, expected.pvalue, rel_tol=1e-6)
    assert (found.verdict, found.flip_rate, found.labelled) == ("better", None, 12)


def test_embeddings_and_texts() -> None:
    found = compare(
        table(row_key=["a", "b"], embedding=[[1.0, 0.0], [0.0, 2.0]]),
        table(row_key=["a", "b"], embedding=[[0.0, 1.0], [0.0, 1.0]]),
        keys_of("a", "b"),
    )
    assert (found.changed, found.distance, found.largest) == (2, pytest.approx(1.0), pytest.approx(1.0))
    found = compare(
        table(row_key=["a", "b"], generated_text=["secret", "same"]),
        table(row_key=["a", "b"], generated_text=["other", "same"]),
        keys_of("a", "b"),
    )
    assert (found.flips, found.flip_rate) == ({"another text": 1}, 0.5)


def test_embeddings_of_another_size_have_nothing_in_common() -> None:
    found = compare(
        table(row_key=["a"], embedding=[[1.0, 0.0]]), table(row_key=["a"], embedding=[[1.0]]), keys_of("a")
    )
    assert (found.changed, found.distance) == (1, 1.0)


def test_one_bit_is_a_change() -> None:
    scores = [0.1, 0.2, 0.7]
    other = [0.1, 0.2, float(np.nextafter(0.7, 1))]
    found = compare(
        table(row_key=["a", "b"], label=["x", "x"], scores=[scores, scores]),
        table(row_key=["a", "b"], label=["x", "x"], scores=[scores, other]),
        keys_of("a", "b"),
    )
    assert (found.rows, found.changed, found.flipped) == (2, 1, 0)
    assert found.describe()["agreement"] == 1.0


def test_the_decision_comes_before_the_label() -> None:
    found = compare(
        table(row_key=["a"], label=["x"], decision=["act"]),
        table(row_key=["a"], label=["y"], decision=["act"]),
        keys_of("a"),
    )
    assert (found.changed, found.flipped, found.decided) == (1, 0, 1)


def test_a_rule_s_words_are_not_held_against_labels() -> None:
    old = table(row_key=["a", "b"], label=["x", "x"], decision=["act", "act"])
    new = table(row_key=["a", "b"], label=["y", "x"], decision=["act", "wait"])
    found = compare(old, new, keys_of("a", "b"), {"a": "y"}, judged="label")
    assert (found.flips, found.labelled, found.right_before, found.right_after) == (
        {"act -> wait": 1},
        1,
        0,
        1,
    )
    found = compare(old, new, keys_of("a", "b"), {"a": "y"})
    assert (found.labelled, found.right_after) == (1, 0)


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_a_join_by_hand(seed: int) -> None:
    """Random streams in batches of random sizes, some keys in one of them alone."""
    chance = np.random.default_rng(seed)
    keys = [f"{n:04}" for n in range(500)]

    def result() -> dict[str, tuple[str, float]]:
        kept = [key for key in keys if chance.random() < 0.9]
        return {key: (str(chance.choice(["x", "y"])), float(chance.random())) for key in kept}

    def batches(rows: dict[str, tuple[str, float]]) -> list[pa.RecordBatch]:
        columns = {
            "row_key": [*rows],
            "label": [label for label, _ in rows.values()],
            "score": [score for _, score in rows.values()],
        }
        return pa.table(columns).to_batches(max_chunksize=int(chance.integers(1, 90)))

    before, after = result(), result()
    labels = {key: str(chance.choice(["x", "y"])) for key in keys[::3]}
    cuts = sorted(chance.choice(500, 6, replace=False).tolist())
    windows = [pa.array(keys[a:b], pa.string()) for a, b in zip([0, *cuts], [*cuts, 500], strict=True)]
    found = compare(batches(before), batches(after), windows, labels)
    both = [key for key in keys if key in before and key in after]
    assert found.rows == len(both)
    assert (found.only_before, found.only_after) == (len(before) - len(both), len(after) - len(both))
    assert found.flipped == sum(before[key][0] != after[key][0] for key in both)
    assert found.shift == pytest.approx(sum(after[key][1] - before[key][1] for key in both))
    known = [key for key in both if key in labels]
    assert found.labelled == len(known)
    assert found.right_after == sum(after[key][0] == labels[key] != before[key][0] for key in known)
