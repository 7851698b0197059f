"""Flavor `transformers`: text classification and embeddings from a Hugging Face folder.

It decides truncation, pooling and which weights must be there; random stand-ins for missing weights are
refused. No network, no pickle, no code of the folder. It does not know how batches are cut.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.models import text_folder
from batch_platform.core.models.linear_layers import use_fastest
from batch_platform.core.models.outputs import check_width
from batch_platform.core.models.predictor import Predictor, Prepared, Refusal
from batch_platform.core.models.signature import ModelSignature
from batch_platform.errors import ModelError, SignatureError

describe = text_folder.describe
check_folder = text_folder.check_folder

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


class TextPredictor(Predictor):
    """A loaded text model: `network` maps (ids, mask) to (rows, width) float32 on the device."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        network: Any,
        signature: ModelSignature,
        device: str,
        dtype: str,
        backend: str,
    ) -> None:
        self.tokenizer = tokenizer
        self.network = network
        self.signature = signature
        self.device = device
        self.dtype = dtype
        self.backend = backend

    def prepare(self, batch: pa.RecordBatch) -> PreparedTexts:
        assert self.signature.text_column is not None  # checked at loading
        texts = pc.cast(batch.column(self.signature.text_column), pa.large_string()).to_pylist()
        there = [row for row, text in enumerate(texts) if text is not None]
        tokens: list[np.ndarray] = [np.empty(0, np.int64)] * len(texts)
        for row, ids in zip(there, self.tokenizer([texts[row] for row in there]), strict=True):
            tokens[row] = ids
        message = f"column {self.signature.text_column!r} is null: a text model cannot score it"
        refused = tuple(Refusal(row, "NullText", message) for row, text in enumerate(texts) if text is None)
        costs = np.fromiter((len(ids) for ids in tokens), np.int64, len(tokens))
        return PreparedTexts(costs, refused, tokens)

    def forward(self, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        import torch

        assert isinstance(prepared, PreparedTexts)
        longest = int(prepared.costs[rows].max())
        ids = np.full((len(rows), longest), self.tokenizer.pad_id, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for place, row in enumerate(rows):
            tokens = prepared.tokens[row]
            ids[place, : len(tokens)] = tokens
            mask[place, : len(tokens)] = 1
        with torch.inference_mode():
            raw = self.network(torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device))
            return raw.float().cpu().numpy()  # (rows, width)


def load(folder: Path, signature: ModelSignature, device: str, dtype: str) -> TextPredictor:
    """Load a text model.

    Raises:
        ModelError: the folder is no such model, or weights are missing.
        SignatureError: files and signature say different things.
    """
    check_folder(folder, signature)
    with _quiet_transformers():
        tokenizer = _load_tokenizer(folder)
        has_head = signature.task == "classification" and not (folder / text_folder.HEAD_FILE).is_file()
        model = _load_model(folder, has_head, dtype).to(device)
    signature = _completed(signature, folder, model.config, has_head)
    backend = use_fastest(model) if (device, dtype) == ("cpu", "float32") else "torch"
    network = _own_head(model) if has_head else _pooled(model, folder, signature, device)
    limit = _token_limit(tokenizer, model.config, signature)
    return TextPredictor(TextTokenizer(tokenizer, limit), network, signature, device, dtype, backend)


def _completed(signature: ModelSignature, folder: Path, config: Any, has_head: bool) -> ModelSignature:
    if has_head:
        check_width(config.num_labels, signature)
        return signature
    pooling = signature.pooling or text_folder.folder_pooling(folder) or "mean"
    if signature.task == "classification":
        return replace(signature, pooling=pooling)
    normalize = signature.normalize
    if normalize is None:
        normalize = text_folder.folder_normalizes(folder)
    check_width(config.hidden_size, signature)
    return replace(signature, pooling=pooling, normalize=normalize, output_size=config.hidden_size)


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_fast=True
    )
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: has no fast tokenizer: save it with a tokenizer.json")
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no padding token: set one and save it again")
    return tokenizer


def _load_model(folder: Path, has_head: bool, dtype: str) -> Any:
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if has_head else AutoModel
    model, report = kind.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    # transformers fills what is missing with random numbers. The pooler is not used where we pool.
    missing = [name for name in report["missing_keys"] if has_head or not name.startswith("pooler.")]
    if missing:
        raise ModelError(
            f"{folder}: the weights file lacks {sorted(missing)[0]} ({len(missing)} in all), "
            "which would be random: "
            + ("it is no trained classifier" if has_head else "the file is incomplete")
        )
    return model.eval()


def _own_head(model: Any) -> Any:
    def logits(ids: Any, mask: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask).logits

    return logits


def _pooled(model: Any, folder: Path, signature: ModelSignature, device: str) -> Any:
    """Body, pooling, and for a classification the linear head of `head.safetensors`."""
    import torch

    head = _load_head(folder, signature, model.config.hidden_size, device) if signature.labels else None

    def vectors(ids: Any, mask: Any) -> Any:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (rows, tokens, hidden)
        if signature.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask.unsqueeze(-1).float()
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        if head is not None:
            return torch.nn.functional.linear(pooled, *head)
        return torch.nn.functional.normalize(pooled, dim=1) if signature.normalize else pooled

    return vectors


def _load_head(folder: Path, signature: ModelSignature, width: int, device: str) -> tuple[Any, Any]:
    from safetensors.torch import load_file

    head = load_file(folder / text_folder.HEAD_FILE, device=device)
    shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
    asked = {"weight": (len(signature.labels), width), "bias": (len(signature.labels),)}
    if shapes != asked:
        raise ModelError(
            f"{folder / text_folder.HEAD_FILE}: has {shapes}, the body and the labels need {asked}"
        )
    return head["weight"].float(), head["bias"].float()


def _token_limit(tokenizer: Any, config: Any, signature: ModelSignature) -> int:
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
def _quiet_transformers() -> Iterator[None]:
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
