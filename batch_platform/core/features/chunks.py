"""Cutting texts into pieces that a model reads whole, and the keys of the pieces.

Decides where a text is cut: at most `max_tokens` of the model's own tokenizer, its special tokens among them, between
words where a word is not longer than that; the last tokens of a piece are the first of the next. Every word is in
some piece. It does not know what becomes of the pieces.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.features.columns import column_of, with_column
from batch_platform.core.features.recipe import step_with_file
from batch_platform.errors import RecipeError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TOKENIZER = "tokenizer.json"
PARENT_KEY = "parent_key"
# So many raw rows are cut at a time: what a tokenizer says of a text takes a hundred times its room.
ROWS_AT_ONCE = 128

_Span = tuple[int, int]


@step_with_file(TOKENIZER, expands=True)
def chunk(
    batch: pa.RecordBatch, tokenizer: bytes, *, column: str, max_tokens: int = 256, overlap: int = 32
) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
    """Several rows of one: pieces of its text, each with the other columns of the row, and `parent_key`.

    The rows have the keys `<row_key>#0`, `#1`, ...; `parent_key` is the row's own key. A row without text is quarantined.

    Args:
        batch: rows.
        tokenizer: the model's `tokenizer.json`.
        column: a string column, in whose place the pieces are.
        max_tokens: most tokens of a piece, with the special tokens that the model gets.
        overlap: tokens at the end of a piece with which the next begins again, to the next word.
    """
    if not 0 <= overlap < max_tokens:
        raise RecipeError(f"step chunk: overlap is {overlap}; it must be at least 0 and less than max_tokens")
    if PARENT_KEY in batch.schema.names:
        raise RecipeError(f"step chunk: there is a column {PARENT_KEY!r} already; rename it")
    texts = column_of(batch, "chunk", column, pa.string()).to_pylist()
    pieces = _pieces(texts, tokenizer, max_tokens, overlap) if texts else []
    origin = np.repeat(np.arange(len(pieces)), [len(each) for each in pieces])
    rows = batch.take(pa.array(origin, pa.int64()))
    cut = pa.array([piece for each in pieces for piece in each], pa.string())
    parents = column_of(batch, "chunk", "row_key", pa.string()).take(pa.array(origin, pa.int64()))
    return with_column(with_column(rows, column, cut), PARENT_KEY, parents), origin


def chunk_keys(parents: pa.Array, origin: pa.Int64Array) -> pa.Array:
    """Keys of rows that were made of others.

    Args:
        parents: (rows before,) their keys.
        origin: (rows after,) the place of the row that each was made of, ascending.
    """
    places = origin.to_numpy()
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    numbers = np.arange(len(places)) - np.repeat(starts, np.diff(starts, append=len(places)))
    return pc.binary_join_element_wise(parents.take(origin), pa.array(numbers).cast(pa.string()), "#")


def parent_key(key: str) -> str:
    """The key of the row that a piece was made of."""
    return key.rpartition("#")[0]


def piece_number(key: str) -> int:
    """Which piece of its row it is, from 0."""
    return int(key.rpartition("#")[2])


def parent_keys(keys: pa.Array) -> pa.Array:
    """`parent_key` of each."""
    return pc.replace_substring_regex(keys, r"#[0-9]+$", "")


def _pieces(texts: list[str | None], content: bytes, max_tokens: int, overlap: int) -> list[list[str]]:
    tokenizer = _tokenizer(content)
    room = max_tokens - tokenizer.num_special_tokens_to_add(False)
    if room <= overlap:
        raise RecipeError(
            f"step chunk: max_tokens {max_tokens} leaves {room} tokens beside the special ones, and overlap is {overlap}"
        )
    there = [text for text in texts if text]
    encoded = tokenizer.encode_batch(there, add_special_tokens=False)
    if len(there) < len(texts) or any(not encoding.ids for encoding in encoded):
        raise ValueError("there is no text to cut into pieces")
    return [_cut(tokenizer, text, of, room, overlap) for text, of in zip(there, encoded, strict=True)]


def _cut(tokenizer: "Tokenizer", text: str, encoding: "Encoding", room: int, overlap: int) -> list[str]:
    if len(encoding.ids) <= room:
        return [text]
    budget = room
    while True:
        offsets = encoding.offsets
        found = [text[offsets[a][0] : offsets[b - 1][1]] for a, b in _spans(encoding, budget, overlap)]
        counts = [len(each.ids) for each in tokenizer.encode_batch(found, add_special_tokens=False)]
        if max(counts) <= room:
            return found
        # Some tokenizers read the begin or the end of a piece differently than in the midst of a text.
        budget -= max(counts) - room
        if budget <= overlap:
            raise ValueError(f"the text cannot be cut into pieces of {room} tokens")


def _spans(encoding: "Encoding", room: int, overlap: int) -> Iterator[_Span]:
    """First and last token (exclusive) of each piece."""
    words, count = encoding.word_ids, len(encoding.ids)

    def splits_word(place: int) -> bool:
        return 0 < place < count and words[place] is not None and words[place] == words[place - 1]

    start = done = 0
    while True:
        end = limit = min(start + room, count)
        while end > done and splits_word(end):
            end -= 1
        if end == done:  # a word longer than a piece is cut inside
            end = limit
        yield start, end
        if end == count:
            return
        done = end
        start = max(end - overlap, start + 1)
        while start < end and splits_word(start):
            start += 1


@lru_cache(maxsize=2)
def _tokenizer(content: bytes) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exceptions
        raise RecipeError(f"step chunk: {TOKENIZER} of the model cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
