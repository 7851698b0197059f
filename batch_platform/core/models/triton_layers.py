"""One kernel for CUDA: the sum of two tensors, normalised.

torch adds, writes, reads again and normalises; in half precision on an H200 that took 68 us for (32,768, 384) and 99 us for
(32,768, 768), a fifth of the time of a small text model. Here each number is read once and written once. The sum
is kept in float32, where torch rounds it to the type of the tensors. Imported where triton is known to be there.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _added_norm(left, right, weight, bias, out, width, eps, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, block)
    inside = columns < width
    total = tl.load(left + row + columns, inside, other=0.0).to(tl.float32)
    total += tl.load(right + row + columns, inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, total - tl.sum(total) / width, 0.0)
    scaled = centred * tl.rsqrt(tl.sum(centred * centred) / width + eps)
    scaled = scaled * tl.load(weight + columns, inside).to(tl.float32)
    scaled += tl.load(bias + columns, inside).to(tl.float32)
    tl.store(out + row + columns, scaled.to(out.dtype.element_ty), inside)


def added_norm(norm: torch.nn.LayerNorm, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`norm(left + right)`.

    Args:
        norm: over the last dimension, with weight and bias.
        left: (rows, width), contiguous, on a CUDA device.
        right: likewise.
    """
    rows, width = left.shape
    out = torch.empty_like(left)
    block = triton.next_power_of_2(width)
    warps = max(1, min(8, block // 512))
    _added_norm[(rows,)](
        left, right, norm.weight, norm.bias, out, width, norm.eps, block=block, num_warps=warps
    )
    return out
