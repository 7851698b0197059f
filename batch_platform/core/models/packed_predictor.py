"""Text models of the BERT family without padding: texts end to end through the body, then one vector for each text.

It decides how a batch reaches the device (one copy from pinned memory, beside the computing of the batch before) and how the
hidden states of a text become its output. It does not know how the body computes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batch_platform.core.models.packed_encoder import PackedEncoder, PackedTexts
from batch_platform.core.models.predictor import Predictor, Prepared
from batch_platform.core.models.signature import ModelSignature, Pooling
from batch_platform.core.models.text_tokens import PreparedTexts, TextTokenizer, prepare_texts

if TYPE_CHECKING:
    from torch import Tensor

# (tokens, hidden) of a batch and its texts -> (texts, width)
Head = Callable[["Tensor", PackedTexts], "Tensor"]
# One batch computes, one is queued behind it, one is being made ready.
_IN_FLIGHT = 3


class PackedPredictor(Predictor):
    """A loaded text model whose batches hold no padding."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        encoder: PackedEncoder,
        head: Head,
        signature: ModelSignature,
        device: str,
        dtype: str,
    ) -> None:
        self.tokenizer = tokenizer
        self.signature = signature
        self.device = device
        self.dtype = dtype
        self.backend = f"packed-{encoder.backend}"
        self.in_flight = _IN_FLIGHT if device == "cuda" else 1
        self._encoder = encoder
        self._head = head

    def prepare(self, batch: pa.RecordBatch) -> PreparedTexts:
        return prepare_texts(batch, self.signature, self.tokenizer)

    def forward(self, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        return self.collect(self.launch(prepared, rows))

    def launch(self, prepared: Prepared, rows: np.ndarray) -> "tuple[Tensor, Any]":
        """Queue a batch; returns where its outputs will be, and the event of their being there."""
        import torch

        assert isinstance(prepared, PreparedTexts)
        with torch.inference_mode():
            texts = self._on_device(prepared, rows)
            raw = self._head(self._encoder(texts), texts).float()  # (rows, width)
            if self.device == "cpu":
                return raw, None
            there = torch.empty(raw.shape, dtype=raw.dtype, pin_memory=True)
            there.copy_(raw, non_blocking=True)
            event = torch.cuda.Event(blocking=True)
            event.record()
            return there, event

    def collect(self, launched: "tuple[Tensor, Any]") -> np.ndarray:
        raw, event = launched
        if event is not None:
            event.synchronize()
        return raw.numpy()

    def _on_device(self, prepared: PreparedTexts, rows: np.ndarray) -> PackedTexts:
        import torch

        ids, lengths, places = prepared.of(rows)
        parts = [ids, self._positions(ids, lengths, places), np.concatenate([[0], np.cumsum(lengths)])]
        sizes = [len(part) for part in parts]
        on_host = torch.empty(sum(sizes), dtype=torch.int32, pin_memory=self.device == "cuda")
        np.concatenate(parts, out=on_host.numpy(), casting="same_kind")
        on_device = on_host.to(self.device, non_blocking=True)
        tokens, positions, bounds = on_device.split(sizes)
        return PackedTexts(tokens, positions, bounds, lengths)

    def _positions(self, ids: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Row of the table of positions for each token, (tokens,) int64."""
        padding = self._encoder.padding_id
        if padding is None or not (ids == padding).any():
            return places + self._encoder.first_position
        # The RoBERTa family does not count the id of padding, also where a text spells it.
        counts = ids != padding
        before = np.cumsum(counts)
        begins = np.cumsum(lengths) - lengths
        in_text = before - np.repeat((before - counts)[begins], lengths)
        positions: np.ndarray = in_text * counts + padding
        return positions


def packed_head(model: Any) -> Head | None:
    """The head of a transformers classifier that looks at the first token; None where it is another."""
    name = type(model).__name__
    if name == "BertForSequenceClassification":
        return lambda hidden, texts: model.classifier(model.bert.pooler(_firsts(hidden, texts)))
    if name in (f"{family}ForSequenceClassification" for family in ("Roberta", "XLMRoberta", "Camembert")):
        return lambda hidden, texts: model.classifier(_firsts(hidden, texts))
    return None


def packed_pooling(pooling: Pooling | None, top: Any) -> Head:
    """Mean over a text's tokens, or its first, in float32; then `top`."""
    if pooling == "cls":
        return lambda hidden, texts: top(_firsts(hidden, texts)[:, 0].float())
    return lambda hidden, texts: top(_means(hidden, texts))


def _firsts(hidden: "Tensor", texts: PackedTexts) -> "Tensor":
    """(texts, 1, hidden), as heads of transformers take it."""
    return hidden[texts.bounds[:-1]].unsqueeze(1)


def _means(hidden: "Tensor", texts: PackedTexts) -> "Tensor":
    import torch

    # `unsafe` leaves out a check that would wait for the device.
    return torch.segment_reduce(hidden.float(), "mean", offsets=texts.bounds.long(), unsafe=True)
