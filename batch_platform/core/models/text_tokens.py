"""Texts to token ids, and what loading any text model from a Hugging Face folder has in common.

It decides truncation, and that a null text is refused. No network, no code of the folder. It does not know what a
model does with the tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.models.predictor import Prepared, Refusal
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.models.word_cache import WordCache, can_be_remembered, is_local
from batch_platform.errors import ModelError, SignatureError

# A text is cut to this many characters for each token that can be kept, where that is exact.
CHARACTERS_PER_TOKEN = 64


@dataclass(frozen=True)
class PreparedTexts(Prepared):
    """Texts as token ids.

    Attributes:
        ids: (tokens,) int32, those of all rows, one row after the other; none of refused rows.
        starts: (rows + 1,) int64, where in `ids` each row begins; the last is their end.
    """

    ids: np.ndarray
    starts: np.ndarray

    def row(self, number: int) -> np.ndarray:
        """Token ids of one row, (tokens,) int32."""
        ids: np.ndarray = self.ids[self.starts[number] : self.starts[number + 1]]
        return ids

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of some rows, one row after the other.

        Returns:
            ids: (tokens,) int32.
            lengths: (n,) int64, tokens of each row.
            places: (tokens,) int64, number of each token in its row.
        """
        begins = self.starts[rows]
        lengths = self.starts[rows + 1] - begins
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        return self.ids[places + np.repeat(begins, lengths)], lengths, places


class TextTokenizer:
    """Texts to token ids, truncated and not padded; fast and exact also for texts of megabytes."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        special = tokenizer.num_special_tokens_to_add()
        if max_tokens <= special:
            raise SignatureError(f"max_tokens {max_tokens} leaves no room beside {special} special tokens")
        self.max_tokens = max_tokens
        self.pad_id = int(tokenizer.pad_token_id)
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()  # files of tokenizers often ask for a fixed length
        self._backend.enable_truncation(max_tokens)
        self._cuts_early = is_local(self._backend)
        self._words = WordCache(self._backend, max_tokens) if can_be_remembered(self._backend) else None

    def __call__(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of texts without nulls.

        Returns:
            ids: (tokens,) int32, those of all texts, one text after the other.
            counts: (texts,) int64, ids of each text, 1 to `max_tokens`.
        """
        if self._words is None:
            return _flat(self._whole(texts.to_pylist()))
        ids, counts, others = self._words(texts)
        if len(others):
            more, found = _flat(self._whole(texts.take(pa.array(others)).to_pylist()))
            counts[others] = found
            is_other = np.zeros(len(counts), bool)
            is_other[others] = True
            is_other_id = np.repeat(is_other, counts)
            together = np.empty(len(is_other_id), np.int32)
            together[is_other_id], together[~is_other_id] = more, ids
            ids = together
        return ids, counts

    def _whole(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, by the tokenizer itself."""
        heads = [self._head(text) for text in texts]
        tokens = self._encode(heads)
        # A head that did not fill the budget says nothing about the rest: those texts are read whole.
        short = [
            place
            for place, (text, head) in enumerate(zip(texts, heads, strict=True))
            if len(head) < len(text) and len(tokens[place]) < self.max_tokens
        ]
        for place, whole in zip(short, self._encode([texts[place] for place in short]), strict=True):
            tokens[place] = whole
        return tokens

    def _head(self, text: str) -> str:
        limit = self.max_tokens * CHARACTERS_PER_TOKEN
        if not self._cuts_early or len(text) <= limit:
            return text
        # WordPiece looks at one word at a time: cut before a space, the tokens in front stay the same.
        space = text.rfind(" ", 0, limit)
        return text[:space] if space > 0 else text

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=True)
        # A tokenizer without special tokens gives none for an empty text; a model needs one to look at.
        return [encoding.ids or [self.pad_id] for encoding in encodings]


def _flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.int32, int(counts.sum())), counts


def prepare_texts(
    batch: pa.RecordBatch, signature: ModelSignature, tokenizer: TextTokenizer
) -> PreparedTexts:
    """Token ids of a batch of feature rows; null texts are refused."""
    assert signature.text_column is not None  # checked at loading
    texts = pc.cast(batch.column(signature.text_column), pa.large_string())
    ids, counts = tokenizer(texts.drop_null() if texts.null_count else texts)
    costs = np.zeros(len(texts), np.int64)
    costs[texts.is_valid().to_numpy(zero_copy_only=False)] = counts
    message = f"column {signature.text_column!r} is null: a text model cannot score it"
    nulls = np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False))
    refused = tuple(Refusal(int(row), "NullText", message) for row in nulls)
    return PreparedTexts(costs, refused, ids, np.concatenate([[0], np.cumsum(costs)]))


def load_tokenizer(folder: Path, pads_with_end: bool = False) -> Any:
    """The fast tokenizer of a folder.

    Args:
        folder: the model's files.
        pads_with_end: where it has no padding token, pad with the end of the text: whoever asks masks padding.

    Raises:
        ModelError: it has no fast tokenizer or no padding token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_fast=True
    )
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: has no fast tokenizer: save it with a tokenizer.json")
    if tokenizer.pad_token_id is None and pads_with_end:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no padding token: set one and save it again")
    return tokenizer


def token_limit(tokenizer: Any, config: Any, signature: ModelSignature) -> int:
    """Most tokens of a text: what signature, tokenizer and positions all allow."""
    limits = [tokenizer.model_max_length]
    if signature.max_tokens is not None:
        limits.append(signature.max_tokens)
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        # Models of the RoBERTa family count positions from the padding id on.
        skipped = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        limits.append(positions - skipped)
    return int(min(limits))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports on standard error; what they say is checked and raised."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
