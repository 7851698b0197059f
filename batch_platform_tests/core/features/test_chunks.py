"""Cutting texts: nothing is lost, nothing is too long, and every piece knows whose it is."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_platform.core.features.chunks import TOKENIZER, _spans, chunk, chunk_keys, parent_key
from batch_platform.core.features.recipe import Recipe
from batch_platform.errors import RecipeError
from batch_platform_tests import tiny_models


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """WordPiece as of BERT, and one of whole words with an end token."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "wordpiece": (tiny_models.text_embedder(folder / "bert") / TOKENIZER).read_bytes(),
        "words": (tiny_models.text_answerer(folder / "t5") / TOKENIZER).read_bytes(),
    }


def recipe(content: bytes, **params: int) -> Recipe:
    output = pa.schema([("text", pa.string()), ("n", pa.int64()), ("parent_key", pa.string())])
    return Recipe("r", [chunk(column="text", **params)], output).with_files({TOKENIZER: content}.__getitem__)


def batch(*texts: str | None) -> pa.RecordBatch:
    keys = [f"d{place}" for place in range(len(texts))]
    rows = {
        "row_key": keys,
        "text": pa.array(texts, pa.string()),
        "n": pa.array(range(len(texts)), pa.int64()),
    }
    return pa.RecordBatch.from_pydict(rows)


def encoding(content: bytes, text: str, special: bool = False):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content.decode())
    tokenizer.no_truncation()
    return tokenizer.encode(text, add_special_tokens=special)


def count(content: bytes, text: str, special: bool = True) -> int:
    return len(encoding(content, text, special).ids)


_WORDS = st.sampled_from([*tiny_models.WORDS, "unbelievable", "état", "x" * 30, "naïve-ish", "東京", "."])
_TEXTS = st.lists(_WORDS, min_size=1, max_size=60).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(
    text=_TEXTS,
    kind=st.sampled_from(["wordpiece", "words"]),
    room=st.integers(5, 20),
    overlap=st.integers(0, 2),
)
def test_pieces_hold_every_word_in_order_and_none_is_too_long(
    tokenizers: dict[str, bytes], text: str, kind: str, room: int, overlap: int
) -> None:
    content = tokenizers[kind]
    features, origin, failures = recipe(content, max_tokens=room, overlap=overlap).apply_with_failures(
        batch(text)
    )
    assert not failures
    pieces = features["text"].to_pylist()
    assert origin.to_pylist() == [0] * len(pieces)
    assert all(count(content, piece) <= room for piece in pieces)
    end = 0
    for start, stop in _spans(encoding(content, text), room, overlap):
        assert start <= end < stop <= start + room
        assert start == 0 or start >= end - overlap
        end = stop
    assert end == count(content, text, special=False)
    if not overlap:
        assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def test_a_text_that_fits_stays_as_it_is(tokenizers: dict[str, bytes]) -> None:
    features, *_ = recipe(tokenizers["words"], max_tokens=9, overlap=2).apply_with_failures(
        batch("  a lunch  offer ")
    )
    assert features.to_pylist() == [{"text": "  a lunch  offer ", "n": 0, "parent_key": "d0"}]


def test_pieces_overlap_and_keep_the_other_columns(tokenizers: dict[str, bytes]) -> None:
    text = "a the money free meeting now click tomorrow win report"
    features, origin, _ = recipe(tokenizers["words"], max_tokens=5, overlap=1).apply_with_failures(
        batch("win", text)
    )
    assert features["text"].to_pylist() == [
        "win", "a the money free", "free meeting now click", "click tomorrow win report",
    ]  # fmt: skip
    assert features["n"].to_pylist() == [0, 1, 1, 1]
    assert features["parent_key"].to_pylist() == ["d0", "d1", "d1", "d1"]
    keys = chunk_keys(batch("win", text)["row_key"], origin).to_pylist()
    assert keys == ["d0#0", "d1#0", "d1#1", "d1#2"]
    assert [parent_key(key) for key in keys] == features["parent_key"].to_pylist()
    assert parent_key("with#hash#12") == "with#hash"


def test_rows_without_text_are_named_and_the_others_go_on(tokenizers: dict[str, bytes]) -> None:
    features, origin, failures = recipe(tokenizers["wordpiece"], overlap=1).apply_with_failures(
        batch("win", None, "", " \n", "report")
    )
    assert features["parent_key"].to_pylist() == ["d0", "d4"]
    assert origin.to_pylist() == [0, 4]
    assert [(each.row, each.error_type) for each in failures] == [
        (place, "feature_error") for place in (1, 2, 3)
    ]
    assert "there is no text to cut" in failures[0].message


def test_the_version_is_that_of_the_tokenizer_too(tokenizers: dict[str, bytes]) -> None:
    versions = {recipe(content).version for content in tokenizers.values()}
    versions |= {recipe(tokenizers["words"], overlap=3).version}
    assert len(versions) == 3
    assert list(recipe(tokenizers["words"]).file_digests) == [TOKENIZER]


def test_wrong_parameters_and_files(tokenizers: dict[str, bytes]) -> None:
    rows = batch("a text")
    for params, message in (
        ({"max_tokens": 8, "overlap": 8}, "overlap is 8; it must be at least 0 and less than max_tokens"),
        (
            {"max_tokens": 3, "overlap": 2},
            "max_tokens 3 leaves 1 tokens beside the special ones, and overlap is 2",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe(tokenizers["wordpiece"], **params).apply_with_failures(rows)
    with pytest.raises(RecipeError, match=r"tokenizer\.json of the model cannot be read"):
        recipe(json.dumps({"version": "1.0"}).encode()).apply_with_failures(rows)
    without = Recipe("r", [chunk(column="text")], pa.schema([("text", pa.string())]))
    with pytest.raises(
        RecipeError, match=r"step chunk reads tokenizer\.json of a registered model, and none was given"
    ):
        without.apply_with_failures(rows)
    assert without.apply_with_failures(rows.slice(0, 0))[0].num_rows == 0
