"""Linear layers of text models: in torch's own way; on a CPU by oneDNN where that is faster; on CUDA with the GELU in them.

Nine tenths of a text model's work on a CPU are products with weights. torch gives those in float32 to MKL, which uses
the widest instructions on its maker's processors alone; oneDNN, which torch carries too, uses them on all. Measured on an
AMD EPYC with AVX-512: 102 and 230 GFLOP/s of 266. Both sum in float32; the outputs differ in the last bits, so that the
choice is part of what an output was made by (`Predictor.backend`). It is made by the kind of processor and never by
a measurement: on a busy machine a measurement says now this and now that, and equal work would be scored again.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

# A linear layer and the activation behind it, if any -> what computes both.
Product = Callable[["nn.Linear", str | None], Callable[["Tensor"], "Tensor"]]
# About a batch of tokens; oneDNN lays the weights out for it.
_ROWS = 1024


def use_fastest(network: "nn.Module") -> str:
    """Have a float32 network on the CPU compute in the fastest way.

    Args:
        network: its layers are replaced in place.

    Returns:
        `onednn` or `torch`.
    """
    if not onednn_is_faster():
        return "torch"
    from batch_platform.core.models.bert_layers import fuse_layers

    fuse_layers(network)
    _replace(network)
    return "onednn"


def product_for(device: str, dtype: str) -> tuple[Product, str]:
    """How the linear layers of texts end to end are computed here, and the name of it.

    Args:
        device: cpu or cuda.
        dtype: name of the type of the weights.

    Returns:
        The way, and `torch` or `cublas`.
    """
    if device == "cuda" and dtype in ("bfloat16", "float16"):
        return _with_epilogue, "cublas"
    return _then, "torch"


def _then(layer: "nn.Module", activation: str | None) -> Callable[["Tensor"], "Tensor"]:
    if activation is None:
        return layer
    from transformers.activations import ACT2FN

    function = ACT2FN[activation]
    return lambda rows: function(layer(rows))


def _with_epilogue(layer: "nn.Linear", activation: str | None) -> Callable[["Tensor"], "Tensor"]:
    """The product adds the bias and computes the GELU before it leaves the chip (cuBLASLt).

    It approximates the error function by a tanh (Hendrycks and Gimpel 2016). The GELU is then at most 0.0005 off, at 2.7: a
    quarter of the last place of a float16 there, a thirtieth of a bfloat16's.
    """
    import torch

    if activation not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        return _then(layer, activation)
    weight, bias = layer.weight.detach().t(), layer.bias.detach()
    return lambda rows: torch._addmm_activation(bias, rows, weight, use_gelu=True)


@cache
def onednn_is_faster() -> bool:
    """Whether float32 products on this kind of processor are oneDNN's work."""
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
