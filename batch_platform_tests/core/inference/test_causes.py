import errno

import pytest
import torch

from batch_platform.core.inference import causes
from batch_platform.core.inference.deadline import DeadlineError


def _told(call):
    with pytest.raises(RuntimeError) as caught:
        call()
    return caught.value


MEMORY = [
    MemoryError(),
    _told(lambda: torch.empty(10**16)),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: str(error)[:30])
def test_memory_that_ran_out_is_known_and_is_not_a_broken_device(error):
    assert causes.is_memory(error)
    assert not causes.is_broken_device(error)
    assert not causes.is_transient(error)
    assert causes.cause(error, 1)[0] == "OutOfMemory"


def test_a_row_s_own_words_are_not_a_shortage():
    for error in (ValueError("cannot parse 'out of memory'"), OSError(errno.ENOENT, "out of memory")):
        assert not causes.is_memory(error)
    assert not causes.is_broken_device(ValueError("cannot parse 'CUDA error'"))


def test_a_device_that_needs_a_new_process():
    assert causes.is_broken_device(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert causes.is_broken_device(type("AcceleratorError", (RuntimeError,), {})("CUDA error: unspecified"))


def test_what_may_pass_is_a_short_list():
    for error in (ConnectionResetError(), TimeoutError(), BlockingIOError(), InterruptedError()):
        assert causes.is_transient(error)
    for error in (OSError(errno.ENOSPC, "full"), FileNotFoundError(), ValueError(), DeadlineError()):
        assert not causes.is_transient(error)


def test_causes_have_a_name_and_one_line():
    assert causes.cause(DeadlineError(), 0.5) == (
        "Timeout",
        "computing this row alone takes longer than 0.5 s",
    )
    assert causes.cause(ValueError("first\nsecond"), 1) == ("ValueError", "first")
    assert causes.cause(KeyError(), 1) == ("KeyError", "KeyError")
    assert len(causes.describe(ValueError("x" * 10_000))) == 500
