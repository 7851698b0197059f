"""Words looked up give the ids that the tokenizer gives."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from batch_platform.core.models import word_cache
from batch_platform.core.models.text_tokens import TextTokenizer
from batch_platform.core.models.word_cache import WordCache, can_be_remembered
from batch_platform_tests import tiny_models

ODD = [
    "well-known",
    "a.b,c",
    "it's",
    "[",
    "SEP]",
    "—",
    "。",
    "\x01",
    "\u0301",
    "xyz!",
    "\x0b",
    "\x0c",
    "\u00a0",
    "\u2028",
    "中文",
    "İ",
    "[SEP]",
    "[MASK]x",
    "a" * 300,
    "🙂",
    "ﬁ",
]
SPACES = [" ", "  ", "\n", "\t", "\r\n", "", "\x1c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.text_embedder(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def _ids(tokenizer, texts, most=8):
    ids, counts = TextTokenizer(tokenizer, most)(pa.array(texts, pa.large_string()))
    assert ids.dtype == np.int32
    return [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])]


def _wanted(tokenizer, texts, most=8):
    return tokenizer(texts, truncation=True, max_length=most)["input_ids"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([*tiny_models.WORDS, *ODD]), st.sampled_from(SPACES)), max_size=12
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([3, 8, 64]),
)
def test_the_ids_are_the_tokenizer_s_own(tokenizer, rows, most):
    texts = ["".join(word + space for word, space in row) for row in rows]
    assert can_be_remembered(tokenizer.backend_tokenizer)
    assert _ids(tokenizer, texts, most) == _wanted(tokenizer, texts, most)


def test_no_texts_and_texts_without_words(tokenizer):
    ids, counts = TextTokenizer(tokenizer, 8)(pa.array([], pa.large_string()))
    assert len(ids) == len(counts) == 0
    texts = ["", " ", "\n\t", "money", ""]
    assert _ids(tokenizer, texts) == _wanted(tokenizer, texts)


def test_many_texts_are_read_in_parts_and_words_are_forgotten(tokenizer, monkeypatch):
    monkeypatch.setattr(word_cache, "_MOST_WORDS", 60)
    draw = np.random.default_rng(3)
    words = np.array([*tiny_models.WORDS, *ODD, *(f"w{number}" for number in range(200))])
    cache = WordCache(TextTokenizer(tokenizer, 16)._backend, 16)
    for _ in range(3):
        texts = [" ".join(row) for row in draw.choice(words, (word_cache._LEAST_ROWS + 7, 3))]
        ids, counts, others = cache(pa.array(texts, pa.large_string()))
        wanted = _wanted(tokenizer, texts, 16)
        left = [any(part in text for part in ("a" * 300, "[SEP]", "[MASK]")) for text in texts]
        assert others.tolist() == np.flatnonzero(left).tolist()
        read = [row for is_left, row in zip(left, wanted, strict=True) if not is_left]
        assert [count for count in counts.tolist() if count] == [len(row) for row in read]
        assert ids.tolist() == [number for row in read for number in row]


@pytest.mark.parametrize(
    ("token", "is_read"),
    [
        (AddedToken("<tag>", lstrip=True, normalized=False), True),
        (AddedToken("on", single_word=True, normalized=False), True),
        (AddedToken("<Tag>", normalized=True), False),
    ],
)
def test_added_tokens(folder, token, is_read):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token])
    assert can_be_remembered(tokenizer.backend_tokenizer) == is_read
    texts = ["money <tag> now", "<tag>", "<TAG> on", "money on time", "money only"]
    assert _ids(tokenizer, texts) == _wanted(tokenizer, texts)
