"""Encoders of the BERT family on texts laid end to end: no padding is computed, and nothing is masked.

The weights are those of the transformers model; what is computed is the same, in another order: one product for
queries, keys and values, the activation inside the product where the library can (on CUDA), attention within each
text by its bounds. It decides which models can be computed so; the others are padded. It does not know where
texts come from.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batch_platform.core.models.linear_layers import onednn_is_faster, product_for
from batch_platform.core.models.packed_kernels import Kernels, kernels_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from batch_platform.core.models.linear_layers import Product

# Bodies whose layers are those of BERT: post-normalised, learned absolute positions.
_BODIES = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")


@dataclass(frozen=True)
class PackedTexts:
    """Texts end to end, on the device.

    Attributes:
        ids: (tokens,) int32.
        positions: (tokens,) int32, rows of the model's table of positions.
        bounds: (texts + 1,) int32, where each text begins; the last is the end of all.
        lengths: (texts,) int64 on the host, tokens of each text.
    """

    ids: "Tensor"
    positions: "Tensor"
    bounds: "Tensor"
    lengths: np.ndarray


def can_be_packed(body: Any, device: str, dtype: str) -> bool:
    """Whether `PackedEncoder` computes this transformers model on this device.

    Args:
        body: the model without a head.
        device: cpu or cuda.
        dtype: name of the type that the weights are in.
    """
    config = body.config
    fits = (
        type(body).__name__ in _BODIES
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
    )
    if device == "cpu":
        # Where oneDNN computes, padded layers with everything fused are level, and measured longer.
        return fits and not (dtype == "float32" and onednn_is_faster())
    head = config.hidden_size // config.num_attention_heads
    # What the kernels of flash attention take.
    return fits and dtype in ("bfloat16", "float16") and head % 8 == 0 and head <= 256


class PackedEncoder:
    """The body of such a model.

    Attributes:
        first_position: row of the table of positions for the first token of a text.
        padding_id: the id that has that table's row of padding wherever it stands; None where none has.
        backend: what computes the products, and what the rest.
    """

    def __init__(self, body: Any, device: str, dtype: str) -> None:
        import torch

        product, products = product_for(device, dtype)
        kernels = kernels_for(device, dtype)
        self.backend = f"{products}-{kernels.name}"
        embeddings = body.embeddings
        self._words = embeddings.word_embeddings.weight.detach()
        kind = embeddings.token_type_embeddings.weight.detach()[0]
        positions = embeddings.position_embeddings.weight.detach()
        self._positions = (positions.float() + kind.float()).to(positions.dtype)
        self._norm = embeddings.LayerNorm
        with torch.inference_mode():
            self._layers = [
                _Layer(layer, product, kernels, body.config.hidden_act) for layer in body.encoder.layer
            ]
        padding = getattr(embeddings, "padding_idx", None)  # the RoBERTa family's
        self.padding_id: int | None = padding
        self.first_position = 0 if padding is None else padding + 1

    def __call__(self, texts: PackedTexts) -> "Tensor":
        """(tokens, hidden), the last layer's output in the type of the weights."""
        from torch.nn.functional import embedding

        hidden = self._norm(embedding(texts.ids, self._words) + embedding(texts.positions, self._positions))
        for layer in self._layers:
            hidden = layer(hidden, texts)
        return hidden


class _Layer:
    """Attention and two products with an activation between them, each added to what came in and normalised."""

    def __init__(self, layer: Any, product: "Product", kernels: Kernels, activation: str) -> None:
        attention = layer.attention.self
        self._kernels = kernels
        self._heads = attention.num_attention_heads
        self._in = product(_joined([attention.query, attention.key, attention.value]), None)
        self._out = product(layer.attention.output.dense, None)
        self._norm = layer.attention.output.LayerNorm
        self._wide = product(layer.intermediate.dense, activation)
        self._narrow = product(layer.output.dense, None)
        self._last_norm = layer.output.LayerNorm

    def __call__(self, hidden: "Tensor", texts: PackedTexts) -> "Tensor":
        three = self._in(hidden).view(len(hidden), 3, self._heads, -1)
        mixed = self._kernels.attention(three, texts.bounds, texts.lengths).view(len(hidden), -1)
        hidden = self._kernels.added_norm(self._norm, self._out(mixed), hidden)
        return self._kernels.added_norm(self._last_norm, self._narrow(self._wide(hidden)), hidden)


def _joined(layers: "list[nn.Linear]") -> "nn.Linear":
    """One linear layer that gives the outputs of all, side by side."""
    import torch

    width = sum(layer.out_features for layer in layers)
    joined = torch.nn.Linear(layers[0].in_features, width, device="meta")
    for name in ("weight", "bias"):
        together = torch.cat([getattr(layer, name).detach() for layer in layers])
        setattr(joined, name, torch.nn.Parameter(together, requires_grad=False))
    return joined
