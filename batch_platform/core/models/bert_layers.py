"""Layers of BERT on a CPU, with oneDNN: one product for queries, keys and values; activation and sums within products.

Six products and four passes over memory become four products. It decides which layers are fused: encoder layers of
BERT with the exact GELU, as transformers makes them. All other layers keep their own way.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def fuse_layers(network: "nn.Module") -> None:
    """Replace the layers of BERT in a float32 network on the CPU, in place; there may be none."""
    from transformers.models.bert.modeling_bert import BertLayer

    for name, child in network.named_children():
        if type(child) is BertLayer and _is_fusible(child):
            setattr(network, name, _fused(child))
        else:
            fuse_layers(child)


def _is_fusible(layer: Any) -> bool:
    config = layer.attention.self.config
    plain = not (layer.is_decoder or layer.add_cross_attention)
    return plain and config.hidden_act == "gelu" and config._attn_implementation == "sdpa"


def _fused(layer: Any) -> "nn.Module":
    import torch

    from batch_platform.core.models.linear_layers import packed_weight

    linear = torch.ops.mkldnn._linear_pointwise
    own, mixed = layer.attention.self, layer.attention.output
    parts = (own.query, own.key, own.value)
    weight = packed_weight(torch.cat([part.weight for part in parts]))
    bias = torch.cat([part.bias for part in parts]).detach()
    heads, width = own.num_attention_heads, own.attention_head_size

    class FusedBertLayer(torch.nn.Module):
        """What a `BertLayer` computes; other arguments than these have no meaning for an encoder."""

        def __init__(self) -> None:
            super().__init__()
            self.mix, self.mix_norm = packed_weight(mixed.dense.weight), mixed.LayerNorm
            self.rise = packed_weight(layer.intermediate.dense.weight)
            self.fall, self.fall_norm = packed_weight(layer.output.dense.weight), layer.output.LayerNorm

        def forward(
            self, hidden: "Tensor", attention_mask: "Tensor | None" = None, *_: Any, **__: Any
        ) -> "Tensor":
            rows, tokens, size = hidden.shape
            flat = hidden.reshape(rows * tokens, size)
            projected = linear(flat, weight, bias, "none", [], "").view(rows, tokens, 3, heads, width)
            query, key, value = projected.permute(2, 0, 3, 1, 4)  # each (rows, heads, tokens, width)
            context = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=attention_mask
            )
            context = context.transpose(1, 2).reshape(rows * tokens, size)
            added = linear.binary(context, flat, self.mix, mixed.dense.bias, "add")
            flat = self.mix_norm(added)
            risen = linear(flat, self.rise, layer.intermediate.dense.bias, "gelu", [], "none")
            added = linear.binary(risen, flat, self.fall, layer.output.dense.bias, "add")
            out: Tensor = self.fall_norm(added)
            return out.view(rows, tokens, size)

    return FusedBertLayer()
