"""Which device computes, and in which floating-point type.

It decides what `auto` means on this machine and refuses a device that is not there: nothing falls back
to another one in silence.
"""

import resource

from batch_platform.errors import InferenceError


def resolve_device(asked: str) -> str:
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        InferenceError: CUDA is asked for and torch sees none.
    """
    import torch

    available = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if available else "cpu"
    if asked == "cuda" and not available:
        raise InferenceError(
            "device: cuda is asked for and torch sees no CUDA device here; "
            "run where there is one, or set device: auto or cpu"
        )
    if asked not in ("cpu", "cuda"):
        raise InferenceError(f"device {asked!r} is not known: use auto, cpu or cuda")
    return asked


def resolve_dtype(asked: str, device: str, is_text: bool) -> str:
    """The type for `auto`, `float32`, `bfloat16` or `float16`.

    Args:
        asked: what the pipeline says.
        device: resolved, cpu or cuda.
        is_text: tabular models are small and compute in float32 everywhere.

    Raises:
        InferenceError: the type is not known.
    """
    if asked in ("float32", "bfloat16", "float16"):
        return asked
    if asked != "auto":
        raise InferenceError(f"dtype {asked!r} is not known: use auto, float32, bfloat16 or float16")
    if device == "cpu" or not is_text:
        # bfloat16 on a CPU without units for it is four times slower than float32.
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"


def peak_memory_bytes(device: str) -> int:
    """Most memory held so far: by torch on a CUDA device, else by this process (resident)."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def current_index(device: str) -> int | None:
    """Number of the CUDA device that this thread uses; None for the CPU."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.current_device()


def use_index(index: int | None) -> None:
    """Have this thread use what `current_index` gave in another: each thread has its own current device."""
    if index is not None:
        import torch

        torch.cuda.set_device(index)
