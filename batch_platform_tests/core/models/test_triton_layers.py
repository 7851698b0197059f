"""The kernels in triton, by its interpreter on the processor: the same source, another compiler."""

import pytest
import torch

from batch_platform_tests.core.models.acted_cuda import attention_of_each
from batch_platform_tests.requirements import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from batch_platform.core.models.triton_layers import added_norm, attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (5, 33), (3, 384), (2, 1)])
def test_a_sum_normalised(dtype: torch.dtype, rows: int, width: int) -> None:
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(width, eps=1e-4)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    left, right = (torch.randn(rows, width).to(dtype) for _ in range(2))
    wanted = norm.to(dtype).float()(left.float() + right.float())
    found = added_norm(norm.to(dtype), left, right)
    assert found.dtype == dtype
    # The sum is not rounded: only what is read and what is written are.
    torch.testing.assert_close(found, wanted.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


LENGTHS = {
    "one token": [1],
    "one text": [40],
    "all that fit one tile": [*range(1, 17)],
    "shorter and longer than a tile": [100, 1, 64, 65, 63, 2],
    "the longest": [256, 3, 129],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize(("heads", "width"), [(1, 16), (3, 32)])
def test_attention_within_each_text(lengths: list[int], heads: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    three = (2 * torch.randn(sum(lengths), 3, heads, width)).to(dtype)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    found = attention(three, bounds, max(lengths))
    wanted = attention_of_each(*three.float().unbind(1), bounds.tolist())
    assert (found.shape, found.dtype) == (wanted.shape, dtype)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=5e-5 if dtype == torch.float32 else 4e-3)
