"""Sums that are normalised, as every layer of a text model ends: by torch, or by one kernel where it can be compiled.

It decides which, once in a process, and says so in the log: triton comes with torch's builds for CUDA on Linux, and
needs a C compiler on the machine.
"""

import logging
import subprocess
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

# The norm, and the two tensors, (rows, width), whose sum it takes.
NormalisedSum = Callable[["nn.LayerNorm", "Tensor", "Tensor"], "Tensor"]
_log = logging.getLogger(__name__)


def sum_for(device: str, dtype: str) -> tuple[NormalisedSum, str]:
    """The fastest way to add and normalise here, and its name.

    Args:
        device: cpu or cuda.
        dtype: name of the type of the tensors.

    Returns:
        The way, and `torch` or `triton`.
    """
    if device == "cuda" and dtype in ("bfloat16", "float16"):
        hindrance = _why_no_triton()
        if hindrance is None:
            from batch_platform.core.models.triton_layers import added_norm

            return added_norm, "triton"
        _log.warning("sums are computed by torch, about a tenth slower in all: %s", hindrance)
    return _plain, "torch"


def _plain(norm: "nn.LayerNorm", left: "Tensor", right: "Tensor") -> "Tensor":
    total: Tensor = norm(left + right)
    return total


@cache
def _why_no_triton() -> str | None:
    import torch

    try:
        from triton.compiler.errors import CompilationError

        from batch_platform.core.models.triton_layers import added_norm
    except ImportError:
        return "triton is not installed"
    rows = torch.ones(2, 8, device="cuda", dtype=torch.bfloat16)
    norm = torch.nn.LayerNorm(8, device="cuda", dtype=torch.bfloat16)
    try:
        added_norm(norm, rows, rows)
    except (CompilationError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"triton cannot compile here ({type(error).__name__}: {error}); it needs a C compiler"
    return None
