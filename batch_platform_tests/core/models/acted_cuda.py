"""A CUDA device that the processor plays, so that what runs on CUDA alone runs everywhere.

Real are: our own code, the kernels in triton (interpreted) and torch's arithmetic. Played are: where tensors lie, pinned
memory, events, and flash attention, by torch's plain one for each text. A copy that need not be waited for is made when its
event is waited for, and not before: whoever reads too early reads nothing but NaN. bfloat16 is not played: triton's
interpreter multiplies its bits as whole numbers.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from batch_platform.core.models import packed_kernels
from batch_platform.core.models.packed_predictor import PackedPredictor

_DEVICE = torch.device("cuda")


class ActedCuda(TorchFunctionMode):
    """What torch is asked to do on CUDA is done in the host's memory.

    Attributes:
        memory: most tokens of all batches that are on the device at one time; the default is any number.
        most: most batches that were there at one time.
        flash: how often flash attention computed.
        hurt: called with the number of a launch, may raise what a device raises.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = 10**9
        self.most = self.flash = self.launches = 0
        self.hurt: Callable[[int], None] = lambda launch: None
        self._copies: list[Callable[[], None]] = []
        self._tokens: list[int] = []  # of the batches on the device, in the order of launching

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "copy_" and kwargs.get("non_blocking"):
            target, source = args
            target.fill_(float("nan"))
            self._copies.append(lambda: target.copy_(source))
            return target
        if name == "to":
            args = tuple(torch.device("cpu") if _is_cuda(argument) else argument for argument in args)
            kwargs["copy"] = True
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return function(*args, **kwargs)

    def begin(self, tokens: int) -> None:
        """A batch comes to the device."""
        self.launches += 1
        self.hurt(self.launches)
        if sum(self._tokens) + tokens > self.memory:
            # As after any error, what is on the device is given up.
            self._tokens.clear()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self._tokens.append(tokens)
        self.most = max(self.most, len(self._tokens))

    def end(self) -> None:
        """The outputs of the first batch are taken."""
        if self._tokens:
            self._tokens.pop(0)

    def recorded(self) -> list[Callable[[], None]]:
        """The copies that were asked for since the last event."""
        copies, self._copies = self._copies, []
        return copies


def _is_cuda(value: Any) -> bool:
    return value == "cuda" or (isinstance(value, torch.device) and value.type == "cuda")


class _Event:
    """What `torch.cuda.Event` is, for the copies before it."""

    mode: ActedCuda

    def __init__(self, blocking: bool = False) -> None:
        self._copies: list[Callable[[], None]] = []

    def record(self) -> None:
        self._copies = self.mode.recorded()

    def synchronize(self) -> None:
        with torch.inference_mode():
            for copy in self._copies:
                copy()


@contextmanager
def acted_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[ActedCuda]:
    """Let this thread, and the engine's where a packed model computes, believe in a CUDA device."""
    mode = ActedCuda()
    launch, collect = PackedPredictor.launch, PackedPredictor.collect

    def launched(self: PackedPredictor, prepared: Any, rows: Any) -> Any:
        with mode:
            mode.begin(int(prepared.costs[rows].sum()))
            return launch(self, prepared, rows)

    def collected(self: PackedPredictor, given: Any) -> Any:
        with mode:
            raw = collect(self, given)
        mode.end()
        return raw

    monkeypatch.setattr(PackedPredictor, "launch", launched)
    monkeypatch.setattr(PackedPredictor, "collect", collected)
    monkeypatch.setattr(torch.cuda, "Event", type("Event", (_Event,), {"mode": mode}))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _varlen(mode))
    asked_once = packed_kernels._why_no_triton
    asked_once.cache_clear()
    with mode:
        yield mode
    asked_once.cache_clear()


def _varlen(mode: ActedCuda) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    signature = inspect.signature(varlen_attn)

    def attention(*args: Any, **kwargs: Any) -> torch.Tensor:
        given = signature.bind(*args, **kwargs).arguments
        assert not given.keys() - {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"}
        bounds = given["cu_seq_q"].tolist()
        assert bounds == given["cu_seq_k"].tolist()
        longest = max(end - begin for begin, end in pairwise(bounds))
        assert given["max_q"] == given["max_k"] == longest
        mode.flash += 1
        return attention_of_each(given["query"], given["key"], given["value"], bounds)

    return attention


def attention_of_each(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: list[int]
) -> torch.Tensor:
    """torch's plain attention, text by text; (tokens, heads, width) each, and the same given."""
    parts = []
    for begin, end in pairwise(bounds):
        heads = [tensor[begin:end].transpose(0, 1) for tensor in (query, key, value)]
        parts.append(scaled_dot_product_attention(*heads).transpose(0, 1))
    return torch.cat(parts)
