"""Which device computes, and in which floating-point type.

It decides what `auto` means on this machine and refuses a device that is not there: nothing falls back
to another one in silence.
"""

import os
import platform
import resource
from functools import cache
from pathlib import Path
from typing import Any

from batch_platform.errors import InferenceError

_CPU_ONLY = ("lightgbm", "xgboost")


def resolve_device(asked: str, flavor: str = "torch") -> str:
    """The device for `auto`, `cpu` or `cuda`.

    Args:
        asked: what the pipeline says.
        flavor: of the model; each has libraries of its own, and trees compute on the CPU.

    Raises:
        InferenceError: CUDA is asked for and the flavor's library sees none.
    """
    if asked not in ("auto", "cpu", "cuda"):
        raise InferenceError(f"device {asked!r} is not known: use auto, cpu or cuda")
    if asked == "cpu":
        return asked
    hindrance = _why_no_cuda(flavor)
    if asked == "cuda" and hindrance is not None:
        raise InferenceError(f"device: cuda is asked for and {hindrance}, or set device: auto or cpu")
    return "cpu" if hindrance is not None else "cuda"


def computes_on_cpu_alone(flavor: str) -> bool:
    """Whether models of a flavor never compute on a GPU."""
    return flavor in _CPU_ONLY


def _why_no_cuda(flavor: str) -> str | None:
    if computes_on_cpu_alone(flavor):
        return f"a {flavor} model computes on the CPU: choose another flavor"
    if flavor == "onnx":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "onnxruntime is the build for CPUs: install onnxruntime-gpu in its place"
        return None
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device here; run where there is one"


def device_count(asked: int | str, device: str) -> int:
    """How many devices compute at once.

    Args:
        asked: what the pipeline says: a number, or `all`: every CUDA device that there is; processors are one device.
        device: resolved, cpu or cuda.

    Raises:
        InferenceError: there are not so many CUDA devices.
    """
    if device == "cpu":
        return 1 if isinstance(asked, str) else asked
    import torch

    there = torch.cuda.device_count()
    if isinstance(asked, str):
        return there
    if asked > there:
        raise InferenceError(
            f"inference.devices asks for {asked} CUDA devices and there are {there}: ask for fewer, or for all"
        )
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


def hardware_of(device: str) -> dict[str, Any]:
    """What this machine is (machine, processor, cores, gpu, python), with its GPU where that computes."""
    gpu = None
    if device == "cuda":
        import torch

        gpu = torch.cuda.get_device_name()
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
    }


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_memory_bytes(device: str) -> int:
    """Most memory held so far: by torch on a CUDA device, else by this process (resident)."""
    if device == "cuda" and _torch_has_cuda():
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def current_index(device: str) -> int | None:
    """Number of the CUDA device that this thread uses; None for the CPU."""
    if device != "cuda" or not _torch_has_cuda():
        return None
    import torch

    return torch.cuda.current_device()


def use_index(index: int | None) -> None:
    """Have this thread use what `current_index` gave in another: each thread has its own current device."""
    if index is not None:
        import torch

        torch.cuda.set_device(index)


def _torch_has_cuda() -> bool:
    # onnxruntime computes on CUDA also beside a torch that cannot.
    import torch

    return torch.cuda.is_available()
