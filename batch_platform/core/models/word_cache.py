"""Token ids of words that were seen before: looked up, not made again.

A WordPiece tokenizer looks at one word at a time, and natural text repeats its words: the ids of a text are those of its
words in a row. So texts are cut at white space with numpy, Arrow numbers the distinct words, and the tokenizer itself is
asked for the new ones alone. Measured on package descriptions, one thread: see docs/performance.md. It decides
which texts can be read so (the others go through the tokenizer whole); it does not know what a model does with ids.
"""

import string
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

T = TypeVar("T")

# White space to every tokenizer that this is used for. Others (U+000B, U+00A0, ...) stay inside a word, and the
# tokenizer does with them there what it does with them anywhere.
_SPACES = np.zeros(256, bool)
_SPACES[[ord(character) for character in " \t\n\r"]] = True
# Marks that stand alone to a `BertPreTokenizer`, whatever is beside them.
_MARKS = np.zeros(256, bool)
_MARKS[[ord(character) for character in string.punctuation]] = True
# A longer "word" is no word: its text is not worth remembering.
_MOST_BYTES = 256
# Forgotten all at once beyond this: some 100 MB.
_MOST_WORDS = 500_000
# Few threads are enough: numpy and Arrow work without Python's lock, and do so faster than any device computes.
_THREADS = 6
_LEAST_ROWS = 4096


@dataclass(frozen=True)
class _Cut:
    """Texts cut into words.

    Attributes:
        words: of all texts, one text after the other, numbered among the distinct ones.
        firsts: (kept + 1,) int64, number of each text's first word.
        kept, others: numbers of the texts that are here, and of those that cannot be.
        rows: all of them.
    """

    words: pa.DictionaryArray
    firsts: np.ndarray
    kept: np.ndarray
    others: np.ndarray
    rows: int


@dataclass(frozen=True)
class _Known:
    """Words that were seen before, and their ids."""

    words: pa.LargeStringArray
    ids: np.ndarray  # (ids,) int32: the constant ends, then all words, one word after the other
    begins: np.ndarray  # (words + 1,) int32, where in them each word begins

    @classmethod
    def nothing(cls, ends: list[int]) -> "_Known":
        return cls(pa.array([], pa.large_string()), np.array(ends, np.int32), np.array([len(ends)], np.int32))

    def and_also(self, words: pa.LargeStringArray, ids: list[list[int]]) -> "_Known":
        ends = self.begins[-1] + np.cumsum(np.fromiter(map(len, ids), np.int32, len(ids)), dtype=np.int32)
        return _Known(
            pa.concat_arrays([self.words, words]),
            np.concatenate([self.ids, np.fromiter(chain.from_iterable(ids), np.int32)]),
            np.concatenate([self.begins, ends]),
        )


class WordCache:
    """Texts to token ids, for a tokenizer whose ids of a text are those of its words, between constant ends.

    Args:
        backend: a tokenizer of the library `tokenizers` for which `is_local` holds; it truncates to `max_tokens`.
        max_tokens: most ids of a text, special ones included.
    """

    def __init__(self, backend: Any, max_tokens: int) -> None:
        self._backend = backend
        ends = _ends(backend)
        assert ends is not None  # `can_be_remembered` has looked
        self._before, self._after = ends
        self._added = [token.content.encode() for token in backend.get_added_tokens_decoder().values()]
        self._room = max_tokens - len(self._before) - len(self._after)
        self._known = self._nothing = _Known.nothing([*self._before, *self._after])
        self._threads = ThreadPoolExecutor(_THREADS, "words")

    def __call__(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids of texts.

        Args:
            texts: without nulls.

        Returns:
            ids: (tokens,) int32, those of all texts, one text after the other.
            counts: (texts,) int64, ids of each text; 0 where the text cannot be read so, or is not.
            others: numbers of the texts that cannot: they hold an added token, such as [SEP] spelled out, or a
                word too long to be remembered.
        """
        size = -(-len(texts) // _THREADS) if len(texts) >= _LEAST_ROWS else max(1, len(texts))
        parts = [texts.slice(start, size) for start in range(0, len(texts), size)] or [texts]
        cut = self._each(self._cut, parts)
        others = [part.others + place * size for place, part in enumerate(cut)]
        numbers = self._numbers([part.words.dictionary for part in cut])
        joined = self._each(self._joined, cut, numbers)
        return (
            np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in joined)]),
            np.concatenate([np.empty(0, np.int64), *(counts for _, counts in joined)]),
            np.concatenate([np.empty(0, np.int64), *others]),
        )

    def _cut(self, texts: pa.LargeStringArray) -> _Cut:
        data, offsets = _buffers(texts)
        starts, firsts = _words(data, offsets)
        others = np.union1d(
            _rows_with(np.diff(starts) > _MOST_BYTES, firsts), _rows_of(self._added, data, offsets)
        )
        kept = np.delete(np.arange(len(texts)), others)
        if len(others):
            data, offsets = _buffers(texts.take(pa.array(kept)))
            starts, firsts = _words(data, offsets)
        words = pa.LargeStringArray.from_buffers(len(starts) - 1, pa.py_buffer(starts), pa.py_buffer(data))
        return _Cut(words.dictionary_encode(), firsts, kept, others, len(texts))

    def _each(self, work: Callable[..., T], *parts: list[Any]) -> list[T]:
        return list(self._threads.map(work, *parts) if len(parts[0]) > 1 else map(work, *parts))

    def _numbers(self, words: list[pa.LargeStringArray]) -> list[np.ndarray]:
        """Number of each word of each part among the known ones; the unknown become known."""
        if not any(map(len, words)):
            return [np.empty(0, np.int64) for _ in words]
        parts = pa.chunked_array(words, pa.large_string()).dictionary_encode().chunks
        together = parts[0].dictionary  # the same of all
        numbers = pc.index_in(together, self._known.words)
        if numbers.null_count:
            new = together.filter(numbers.is_null())
            if len(self._known.words) + len(new) > _MOST_WORDS:
                self._known, new = self._nothing, together
            self._known = self._known.and_also(new, self._encode(new.to_pylist()))
            numbers = pc.index_in(together, self._known.words)
        return [numbers.to_numpy()[part.indices.to_numpy()] for part in parts]

    def _encode(self, words: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(words, add_special_tokens=False)]

    def _joined(self, cut: "_Cut", numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the words of each text, cut to the room there is, between the constant ends; and their counts.

        All arrays as long as the tokens are of int32: making their memory ready takes most of the time.
        """
        known = self._known
        places = numbers[cut.words.indices.to_numpy()]
        lengths = np.diff(known.begins)[places]
        ends = np.concatenate([[0], np.cumsum(lengths)])  # (words + 1,)
        texts = ends[cut.firsts]  # (texts + 1,), where each text's ids begin among those of all words
        whole = np.diff(texts)
        words = np.diff(cut.firsts)
        if (whole > self._room).any():
            left = self._room - (ends[:-1] - np.repeat(texts[:-1], words))
            lengths = np.clip(left, 0, lengths)
        # The constant ends are words, too: in front of and behind those of each text.
        before, after = len(self._before), len(self._after)
        shift = np.arange(len(words)) * (before + after) + before
        targets = np.arange(len(places)) + np.repeat(shift, words)
        all_begins = np.empty(len(places) + len(words) * (before + after), np.int32)
        all_lengths = np.ones(len(all_begins), np.int32)
        all_begins[targets] = known.begins[places]
        all_lengths[targets] = lengths
        first = cut.firsts[:-1] + shift - before
        for place in range(before):
            all_begins[first + place] = place
        for place in range(after):
            all_begins[first + words + before + place] = before + place
        starts = np.cumsum(all_lengths, dtype=np.int32) - all_lengths
        sources = np.repeat(all_begins - starts, all_lengths)
        sources += np.arange(len(sources), dtype=np.int32)
        counts = np.zeros(cut.rows, np.int64)
        counts[cut.kept] = np.minimum(whole, self._room) + before + after
        return known.ids[sources], counts


def is_local(backend: Any) -> bool:
    """Whether the ids of a text are those of its words, whatever stands beside them.

    Args:
        backend: a tokenizer of the library `tokenizers`.
    """
    kinds = (
        type(backend.model).__name__,
        type(backend.pre_tokenizer).__name__,
        type(backend.normalizer).__name__,
    )
    right = backend.truncation is None or backend.truncation["direction"] == "right"
    return kinds == ("WordPiece", "BertPreTokenizer", "BertNormalizer") and right


def can_be_remembered(backend: Any) -> bool:
    """Whether `WordCache` gives the ids of this tokenizer: its added tokens can be seen in a text as it stands."""
    if not is_local(backend):
        return False
    plain = not any(token.normalized for token in backend.get_added_tokens_decoder().values())
    # Without special tokens an empty text has no ids, and a model needs one to look at: left to the tokenizer.
    return plain and any(_ends(backend) or ())


def _ends(backend: Any) -> tuple[list[int], list[int]] | None:
    """The ids before and behind those of every text; None where special tokens stand elsewhere."""
    around = backend.encode("", add_special_tokens=True).ids
    word = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    for place in range(len(around) + 1):
        if whole == [*around[:place], *word, *around[place:]]:
            return around[:place], around[place:]
    return None


def _buffers(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all texts, (bytes,) uint8, and where each begins, (texts + 1,) int64."""
    _, places, content = texts.buffers()
    offsets = np.frombuffer(places, np.int64, len(texts) + 1, texts.offset * 8)
    data = np.frombuffer(content or b"", np.uint8)[offsets[0] : offsets[-1]]
    return data, offsets - offsets[0]


def _words(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words begin, each with the white space behind it.

    Returns:
        starts: (words + 1,) int64, in bytes; the last is the end of the last word.
        firsts: (texts + 1,) int64, number of each text's first word.
    """
    space, mark = _SPACES[data], _MARKS[data]
    begins = ~space
    begins[1:] &= space[:-1] | mark[1:] | mark[:-1]
    begins[offsets[:-1][offsets[:-1] < len(data)]] = True
    starts = np.append(np.flatnonzero(begins), len(data))
    return starts, np.searchsorted(starts[:-1], offsets)


def _rows_of(tokens: list[bytes], data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Numbers of the texts in which one of the tokens is spelled."""
    content, rows = data.tobytes(), []
    for token in tokens:
        place = content.find(token)
        while place >= 0:
            rows.append(int(np.searchsorted(offsets, place, side="right")) - 1)
            place = content.find(token, offsets[rows[-1] + 1])
    return np.array(rows, np.int64)


def _rows_with(is_long: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    words = np.flatnonzero(is_long)
    return np.unique(np.searchsorted(firsts, words, side="right") - 1)
