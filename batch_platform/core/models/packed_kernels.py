"""Attention and normalised sums for texts end to end: torch's own, or triton's where it compiles.

It decides which, once in a process, and says so in the log: triton comes with torch's builds for CUDA on Linux, and
needs a C compiler on the machine.
"""

import logging
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

# Longer texts fill the tiles of flash attention well.
_LONGEST = 256
# Columns of a head that a tile can have.
_WIDTHS = (16, 32, 64, 128)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """What computes the parts of a layer that are no products with weights.

    Attributes:
        name: `torch` or `triton`.
        added_norm: of a norm and two tensors, (rows, width), the sum normalised.
        attention: within each text, of (tokens, 3, heads, width) queries, keys and values, the bounds of the texts,
            (texts + 1,) int32 on the device, and their lengths, (texts,) int64 on the host; gives (tokens, heads,
            width). Products of queries and keys are divided by the root of the width.
    """

    name: str
    added_norm: Callable[["nn.LayerNorm", "Tensor", "Tensor"], "Tensor"]
    attention: Callable[["Tensor", "Tensor", np.ndarray], "Tensor"]


def kernels_for(device: str, dtype: str) -> Kernels:
    """The fastest there are here.

    Args:
        device: cpu or cuda.
        dtype: name of the type of the tensors.
    """
    if device == "cpu":
        return Kernels("torch", _added_norm, _attention_by_length)
    if dtype in ("bfloat16", "float16"):
        hindrance = _why_no_triton()
        if hindrance is None:
            from batch_platform.core.models.triton_layers import added_norm

            return Kernels("triton", added_norm, _attention_by_tiles)
        _log.warning("texts are scored by torch's own kernels, which is slower: %s", hindrance)
    return Kernels("torch", _added_norm, _flash_attention)


def _added_norm(norm: "nn.LayerNorm", left: "Tensor", right: "Tensor") -> "Tensor":
    total: Tensor = norm(left + right)
    return total


def _attention_by_tiles(three: "Tensor", bounds: "Tensor", lengths: np.ndarray) -> "Tensor":
    from batch_platform.core.models.triton_layers import attention

    longest = int(lengths.max())
    if longest > _LONGEST or three.shape[-1] not in _WIDTHS:
        return _flash_attention(three, bounds, lengths)
    return attention(three, bounds, longest)


def _flash_attention(three: "Tensor", bounds: "Tensor", lengths: np.ndarray) -> "Tensor":
    from torch.nn.attention.varlen import varlen_attn

    longest = int(lengths.max())
    query, key, value = three.unbind(1)
    found = varlen_attn(query, key, value, bounds, bounds, longest, longest)
    assert not isinstance(found, tuple)  # no statistics were asked for
    return found


def _attention_by_length(three: "Tensor", _bounds: "Tensor", lengths: np.ndarray) -> "Tensor":
    """Texts of one length that lie side by side are attended to together: batches are sorted by length."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    _, _, heads, width = three.shape
    mixed = torch.empty(len(three), heads, width, dtype=three.dtype)
    begin = 0
    for run in np.split(lengths, np.flatnonzero(np.diff(lengths)) + 1):
        end, shape = begin + int(run.sum()), (len(run), int(run[0]))
        # (texts, length, 3, heads, width) -> three of (texts, heads, length, width)
        query, key, value = three[begin:end].view(*shape, 3, heads, width).permute(2, 0, 3, 1, 4)
        found = scaled_dot_product_attention(query, key, value)
        mixed[begin:end].view(*shape, heads, width).copy_(found.transpose(1, 2))
        begin = end
    return mixed


@cache
def _why_no_triton() -> str | None:
    import torch

    try:
        from triton.compiler.errors import CompilationError

        from batch_platform.core.models.triton_layers import added_norm, attention
    except ImportError:
        return "triton is not installed"
    rows = torch.ones(2, 16, device="cuda", dtype=torch.bfloat16)
    norm = torch.nn.LayerNorm(16, device="cuda", dtype=torch.bfloat16)
    try:
        added_norm(norm, rows, rows)
        bounds = torch.tensor([0, 2], device="cuda", dtype=torch.int32)
        attention(rows.view(2, 1, 1, 16).expand(2, 3, 1, 16).contiguous(), bounds, 2)
    except (CompilationError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"triton cannot compile here ({type(error).__name__}: {error}); it needs a C compiler"
    return None
