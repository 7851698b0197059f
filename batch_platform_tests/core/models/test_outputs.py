import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core.models.outputs import bad_rows, columns
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.errors import SignatureError

INPUTS = (InputColumn("a", "float64"),)
TWO = ModelSignature(INPUTS, "classification", ("no", "yes"), positive_class="yes")
THREE = ModelSignature(INPUTS, "classification", ("x", "y", "z"))
EMBEDDING = ModelSignature(INPUTS, "embedding", output_size=2)


def test_score_is_that_of_the_positive_class_and_the_label_the_largest():
    rows = columns(np.array([[1.0, 0.0], [0.0, 3.0]], np.float32), TWO).to_pylist()
    assert [row["label"] for row in rows] == ["no", "yes"]
    assert rows[0]["score"] == pytest.approx(1 / (1 + np.e))
    assert rows[1]["score"] == pytest.approx(1 / (1 + np.exp(-3)))
    assert rows[0]["scores"] == pytest.approx([1 - rows[0]["score"], rows[0]["score"]])


def test_without_a_positive_class_the_score_is_that_of_the_label():
    row = columns(np.array([[0.0, 2.0, 1.0]], np.float32), THREE).to_pylist()[0]
    assert row["label"] == "y"
    assert row["score"] == pytest.approx(max(row["scores"]))
    assert sum(row["scores"]) == pytest.approx(1)


def test_huge_logits_do_not_overflow():
    row = columns(np.array([[3e38, -3e38]], np.float32), TWO).to_pylist()[0]
    assert row == {"label": "no", "score": 0.0, "scores": [1.0, 0.0]}


def test_no_rows_give_no_rows():
    assert columns(np.empty((0, 3), np.float32), THREE).num_rows == 0


def test_another_width_than_the_signature_says_is_refused():
    with pytest.raises(SignatureError, match=r"gives 2 numbers a row, its signature .* says 3"):
        columns(np.zeros((1, 2), np.float32), THREE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_with_values_that_are_no_answer_are_found(value):
    raw = np.array([[1, 2], [value, 0], [3, 4]], np.float32)
    for signature in (TWO, EMBEDDING):
        assert list(bad_rows(raw, columns(raw, signature), signature)) == [1]


def test_values_out_of_range_are_found():
    raw = np.zeros((4, 2), np.float32)
    named = pa.record_batch(
        {
            "label": ["yes", "maybe", "no", "no"],
            "score": [0.5, 0.5, 1.5, 0.5],
            "scores": pa.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5]], pa.list_(pa.float32())),
        }
    )
    assert set(bad_rows(raw, named, TWO)) == {1, 2, 3}


def test_an_embedding_of_another_length_is_found():
    named = pa.record_batch({"embedding": pa.array([[1, 2], [1]], pa.list_(pa.float32()))})
    assert list(bad_rows(np.zeros((2, 2), np.float32), named, EMBEDDING)) == [1]
