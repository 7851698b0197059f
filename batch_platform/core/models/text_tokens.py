"""Texts to token ids, and what loading any text model from a Hugging Face folder has in common.

It decides truncation, and that a null text is refused. No network, no code of the folder. It does not know what a
model does with the tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.models.predictor import Prepared, Refusal
from batch_platform.core.models.signature import ModelSignature
from batch_platform.errors import ModelError, SignatureError

# A text is cut to this many characters for each token that can be kept, where that is exact.
CHARACTERS_PER_TOKEN = 64


@dataclass(frozen=True)
class PreparedTexts(Prepared):
    """Texts as token ids: one int64 array for each row, empty for refused rows."""

    tokens: list[np.ndarray]


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
        self._cuts_early = _is_local(self._backend)

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, 1 to `max_tokens` of them."""
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

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=True)
        # A tokenizer without special tokens gives none for an empty text; a model needs one to look at.
        return [np.asarray(encoding.ids or [self.pad_id], np.int64) for encoding in encodings]


def _is_local(backend: Any) -> bool:
    kinds = (
        type(backend.model).__name__,
        type(backend.pre_tokenizer).__name__,
        type(backend.normalizer).__name__,
    )
    right = backend.truncation is None or backend.truncation["direction"] == "right"
    return kinds == ("WordPiece", "BertPreTokenizer", "BertNormalizer") and right


def prepare_texts(
    batch: pa.RecordBatch, signature: ModelSignature, tokenizer: TextTokenizer
) -> PreparedTexts:
    """Token ids of a batch of feature rows; null texts are refused."""
    assert signature.text_column is not None  # checked at loading
    texts = pc.cast(batch.column(signature.text_column), pa.large_string()).to_pylist()
    there = [row for row, text in enumerate(texts) if text is not None]
    tokens: list[np.ndarray] = [np.empty(0, np.int64)] * len(texts)
    for row, ids in zip(there, tokenizer([texts[row] for row in there]), strict=True):
        tokens[row] = ids
    message = f"column {signature.text_column!r} is null: a text model cannot score it"
    refused = tuple(Refusal(row, "NullText", message) for row, text in enumerate(texts) if text is None)
    costs = np.fromiter((len(ids) for ids in tokens), np.int64, len(tokens))
    return PreparedTexts(costs, refused, tokens)


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
