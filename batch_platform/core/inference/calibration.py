"""How many tokens a batch of texts should have, measured for one model on one device.

It decides which sizes are tried and which is taken. Where the answer is kept is decided elsewhere; it knows no pipeline.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from batch_platform.core.inference import causes
from batch_platform.core.inference.batching import BatchPlan, cut
from batch_platform.core.models.predictor import Predictor, Prepared
from batch_platform.errors import InferenceError

TRIED = {
    "cpu": (256, 512, 1024, 2048, 4096, 8192),
    "cuda": (16_384, 32_768, 65_536, 131_072, 262_144),
}
# Of the fastest: a size within this share is as good, and the smallest of them wastes the least in a back-off.
_LEVEL = 0.97
_ROUNDS = 3
_SECONDS = 0.4  # for each size in each round, and at least one batch
# Common ones: most tokenizers have them whole.
_WORDS = tuple(
    "the of and to in is that for it was on are as with be this have from or one had by word but not what all".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Measured:
    """One size of batches.

    Attributes:
        batch_tokens: most tokens of a batch.
        tokens_per_second: useful ones; None where a batch did not fit the memory.
    """

    batch_tokens: int
    tokens_per_second: float | None


def measure(predictor: Predictor, plan: BatchPlan) -> tuple[Measured, ...]:
    """Compute texts of mixed length in batches of each size, in turn, for some seconds.

    Args:
        predictor: a text model, loaded.
        plan: how its batches are cut, but for their size.

    Raises:
        InferenceError: the model does not read texts.
        As the model raises; an error of memory leaves out that size and all larger ones.
    """
    if plan.batch_tokens is None:
        raise InferenceError("only batches of texts are calibrated; for tables set inference.batch_rows")
    sizes = TRIED[plan.device]
    prepared = predictor.prepare(_texts(predictor, 2 * sizes[-1]))
    batches = {size: _cycle(prepared, replace(plan, batch_tokens=size)) for size in sizes}
    tokens, seconds = dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0.0)
    fitting = list(sizes)
    for number in range(1 + _ROUNDS):
        for size in list(fitting):
            if size not in fitting:
                continue
            try:
                made, took = _compute(predictor, prepared, batches[size])
            except Exception as error:
                if not causes.is_memory(error):
                    raise
                predictor.release()
                fitting = [other for other in fitting if other < size]
                continue
            if number:  # the first round warms up
                tokens[size] += made
                seconds[size] += took
    return tuple(Measured(size, tokens[size] / seconds[size] if size in fitting else None) for size in sizes)


def choose(measured: Sequence[Measured]) -> int:
    """The smallest size that is about as fast as the fastest.

    Raises:
        InferenceError: not one fits the memory.
    """
    rates = {each.batch_tokens: each.tokens_per_second for each in measured if each.tokens_per_second}
    if not rates:
        raise InferenceError(f"not even {measured[0].batch_tokens} tokens fit the device's memory")
    return min(size for size, rate in rates.items() if rate >= _LEVEL * max(rates.values()))


def _texts(predictor: Predictor, tokens: int) -> pa.RecordBatch:
    """Texts of about so many tokens together, of the lengths that real ones have; the same ones each time."""
    random = np.random.default_rng(0)
    column = predictor.signature.text_column
    assert column is not None  # a text model
    texts: list[str] = []
    while tokens > 0:
        words = int(np.clip(random.lognormal(4.0, 0.8), 3, 400))
        texts.append(" ".join(random.choice(_WORDS, words)))
        tokens -= words
    return pa.record_batch({column: texts})


def _cycle(prepared: Prepared, plan: BatchPlan) -> Iterator[np.ndarray]:
    """Batches of a size, short and long ones mixed, over and over."""
    batches = cut(prepared.costs, np.arange(len(prepared.costs)), plan)
    order = np.random.default_rng(0).permutation(len(batches))
    while True:
        yield from (batches[number] for number in order)


def _compute(predictor: Predictor, prepared: Prepared, batches: Iterator[np.ndarray]) -> tuple[int, float]:
    """Useful tokens computed, and the seconds that it took."""
    tokens = 0
    begun = time.perf_counter()
    while (took := time.perf_counter() - begun) < _SECONDS or not tokens:
        batch = next(batches)
        predictor.forward(prepared, batch)
        tokens += int(prepared.costs[batch].sum())
    return tokens, took
