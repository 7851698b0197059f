"""Text models on a CPU: computed in torch's own way, or by oneDNN where that is faster.

Nine tenths of a text model's work on a CPU are products with weights. torch gives those in float32 to MKL, which uses
the widest instructions on its maker's processors alone; oneDNN, which torch carries too, uses them on all. Measured on an
AMD EPYC with AVX-512: 102 and 230 GFLOP/s of 266. Both sum in float32; the outputs differ in the last bits, so that the
choice is part of what an output was made by (`Predictor.backend`). It is made by the kind of processor and never by
a measurement: on a busy machine a measurement says now this and now that, and equal work would be scored again.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

# About a batch of tokens; oneDNN lays the weights out for it.
_ROWS = 1024


def use_fastest(network: "nn.Module") -> str:
    """Have a float32 network on the CPU compute in the fastest way.

    Args:
        network: its layers are replaced in place.

    Returns:
        `onednn` or `torch`.
    """
    if not _onednn_is_faster():
        return "torch"
    from batch_platform.core.models.bert_layers import fuse_layers

    fuse_layers(network)
    _replace(network)
    return "onednn"


@cache
def _onednn_is_faster() -> bool:
    import torch

    # The operator is what torch.compile makes linear layers of; a build without oneDNN lacks it.
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and _maker() != "GenuineIntel"


def _maker() -> str:
    """The processor's maker, as Linux tells it; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def _replace(module: "nn.Module") -> None:
    from torch import nn

    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, _packed(child))
        else:
            _replace(child)


def _packed(layer: "nn.Linear") -> "nn.Module":
    import torch

    weight, bias = packed_weight(layer.weight), None if layer.bias is None else layer.bias.detach()

    class PackedLinear(torch.nn.Module):
        """A linear layer whose weight lies as oneDNN wants it."""

        def forward(self, rows: "Tensor") -> "Tensor":
            product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
            return product

    return PackedLinear()


def packed_weight(weight: "Tensor") -> "Tensor":
    """The weight of a linear layer, (out, in), laid out as oneDNN wants it."""
    import torch

    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return packed
