"""Linear layers of text models on a CPU: computed by torch's own choice, or by oneDNN where that is faster here.

Nine tenths of a text model's work on a CPU are products with weights. torch gives those in float32 to MKL, which does not
use the widest instructions of every maker's processors; oneDNN, which torch carries too, does. Measured on an AMD EPYC with
AVX-512: 102 and 230 GFLOP/s of 266. Both sum in float32; the outputs differ in the last bits, so that the choice
is part of what an output was made by (`Predictor.backend`).
"""

import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

# Below this gain torch's own way is kept: the choice must not depend on the noise of a measurement.
_LEAST_GAIN = 1.2
# About a batch of tokens, and the layers of a small text model.
_ROWS, _WIDTH_IN, _WIDTH_OUT = 1024, 384, 1536
_ROUNDS = 5


def use_fastest(network: "nn.Module") -> str:
    """Have a float32 network on the CPU compute its linear layers in the fastest way.

    Args:
        network: its layers are replaced in place.

    Returns:
        `onednn` or `torch`.
    """
    if not _onednn_is_faster():
        return "torch"
    _replace(network)
    return "onednn"


@cache
def _onednn_is_faster() -> bool:
    import torch

    # The operator is what torch.compile makes linear layers of; a build without oneDNN lacks it.
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    with torch.inference_mode():
        plain = torch.nn.Linear(_WIDTH_IN, _WIDTH_OUT)
        packed = _packed(plain)
        rows = torch.zeros(_ROWS, _WIDTH_IN)
        return _seconds(lambda: plain(rows)) > _LEAST_GAIN * _seconds(lambda: packed(rows))


def _seconds(call: Callable[[], "Tensor"]) -> float:
    """The fastest of some rounds: what disturbs a measurement only makes it longer."""
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _replace(module: "nn.Module") -> None:
    from torch import nn

    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, _packed(child))
        else:
            _replace(child)


def _packed(layer: "nn.Linear") -> "nn.Module":
    import torch

    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
    bias = None if layer.bias is None else layer.bias.detach()

    class PackedLinear(torch.nn.Module):
        """A linear layer whose weight lies as oneDNN wants it."""

        def forward(self, rows: "Tensor") -> "Tensor":
            product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
            return product

    return PackedLinear()
