"""Flavor `transformers`: text classification and embeddings from a Hugging Face folder.

It decides pooling and which weights must be there; random stand-ins for missing weights are refused. Generation of
text has a file of its own. No network, no pickle, no code of the folder. It does not know how batches are cut.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core.models import text_folder
from batch_platform.core.models.linear_layers import use_fastest
from batch_platform.core.models.outputs import check_width
from batch_platform.core.models.packed_encoder import PackedEncoder, can_be_packed
from batch_platform.core.models.packed_predictor import PackedPredictor, packed_head, packed_pooling
from batch_platform.core.models.predictor import Predictor, Prepared
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.models.text_tokens import (
    PreparedTexts,
    TextTokenizer,
    load_tokenizer,
    prepare_texts,
    quiet_transformers,
    token_limit,
)
from batch_platform.errors import ModelError

describe = text_folder.describe
check_folder = text_folder.check_folder


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
        return prepare_texts(batch, self.signature, self.tokenizer)

    def forward(self, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        import torch

        assert isinstance(prepared, PreparedTexts)
        tokens, lengths, _ = prepared.of(rows)
        mask = np.arange(lengths.max()) < lengths[:, None]  # (rows, longest)
        ids = np.full(mask.shape, self.tokenizer.pad_id, np.int64)
        ids[mask] = tokens
        with torch.inference_mode():
            raw = self.network(
                torch.from_numpy(ids).to(self.device), torch.from_numpy(mask.astype(np.int64)).to(self.device)
            )
            return raw.float().cpu().numpy()  # (rows, width)


def load(folder: Path, signature: ModelSignature, device: str, dtype: str) -> Predictor:
    """Load a text model.

    Raises:
        ModelError: the folder is no such model, or weights are missing.
        SignatureError: files and signature say different things.
    """
    check_folder(folder, signature)
    if signature.task == "generation":
        from batch_platform.core.models import text_generation

        return text_generation.load(folder, signature, device, dtype)
    with quiet_transformers():
        tokenizer = load_tokenizer(folder)
        has_head = signature.task == "classification" and not (folder / text_folder.HEAD_FILE).is_file()
        model = _load_model(folder, has_head, dtype).to(device)
    signature = _completed(signature, folder, model.config, has_head)
    to_tokens = TextTokenizer(tokenizer, token_limit(tokenizer, model.config, signature))
    top = None if has_head else _top(folder, signature, model.config.hidden_size, device)
    body = model.base_model if has_head else model
    head = packed_head(model) if has_head else packed_pooling(signature.pooling, top)
    if head is not None and can_be_packed(body, device, dtype):
        encoder = PackedEncoder(body, device, dtype)
        return PackedPredictor(to_tokens, encoder, head, signature, device, dtype)
    backend = use_fastest(model) if (device, dtype) == ("cpu", "float32") else "torch"
    network = _own_head(model) if has_head else _pooled(model, top, signature)
    return TextPredictor(to_tokens, network, signature, device, dtype, backend)


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


def _pooled(model: Any, top: Any, signature: ModelSignature) -> Any:
    """Body and pooling, and what comes after it."""

    def vectors(ids: Any, mask: Any) -> Any:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (rows, tokens, hidden)
        if signature.pooling == "cls":
            return top(hidden[:, 0])
        weights = mask.unsqueeze(-1).float()
        return top((hidden * weights).sum(1) / weights.sum(1))

    return vectors


def _top(folder: Path, signature: ModelSignature, width: int, device: str) -> Any:
    """What becomes of a pooled vector, (rows, hidden) float32: the linear head of `head.safetensors`, or a norm of 1."""
    import torch

    if signature.labels:
        weight, bias = _load_head(folder, signature, width, device)
        return lambda pooled: torch.nn.functional.linear(pooled, weight, bias)
    if signature.normalize:
        return lambda pooled: torch.nn.functional.normalize(pooled, dim=1)
    return lambda pooled: pooled


def _load_head(folder: Path, signature: ModelSignature, width: int, device: str) -> tuple[Any, Any]:
    from safetensors.torch import load_file

    head = load_file(folder / text_folder.HEAD_FILE)
    shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
    asked = {"weight": (len(signature.labels), width), "bias": (len(signature.labels),)}
    if shapes != asked:
        raise ModelError(
            f"{folder / text_folder.HEAD_FILE}: has {shapes}, the body and the labels need {asked}"
        )
    return head["weight"].float().to(device), head["bias"].float().to(device)
