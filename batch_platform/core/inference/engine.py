"""Shards of features through a model: one output or one named failure for each row.

It decides the order of computing and what happens when computing fails: a batch that does not fit the
memory is halved, a batch that fails is halved down to the rows that fail. It does not know where rows come
from, where results go, or what kind of model it runs.
"""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batch_platform.core.inference.batching import BatchPlan, cut
from batch_platform.core.inference.device import peak_memory_bytes
from batch_platform.core.inference.stats import RunStats
from batch_platform.core.models.outputs import bad_rows
from batch_platform.core.models.predictor import Predictor, Prepared, load_predictor
from batch_platform.core.models.signature import ModelSignature
from batch_platform.errors import BatchPlatformError, InferenceError

if TYPE_CHECKING:
    from batch_platform.core.models.registry import RegisteredVersion
    from batch_platform.core.spec import InferenceSpec

KEY = "row_key"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowFailure:
    """A row without an output, and why."""

    row_key: str
    error_type: str
    message: str


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard.

    Attributes:
        outputs: `row_key` and the model's columns, in the order of the input, for the rows that succeeded.
        failures: the other rows, in the order of the input.
        stats: what it took.
    """

    outputs: pa.Table
    failures: list[RowFailure]
    stats: RunStats


@dataclass
class _Shard:
    """A shard on its way: what is prepared, computed and known to fail so far."""

    keys: pa.Array
    prepared: Prepared
    prepared_rows: np.ndarray  # (prepared,) int64, number in the shard of each prepared row
    failures: dict[int, tuple[str, str]]  # by number in the shard: error type, message
    seconds: float
    done: np.ndarray  # (prepared,) bool
    raw: np.ndarray | None = None  # (prepared, width) float32, made when the width is known
    tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    back_offs: int = 0
    bisections: int = 0


class Engine:
    """A loaded model and the way its batches are cut."""

    def __init__(self, predictor: Predictor, plan: BatchPlan) -> None:
        if (predictor.device, predictor.dtype) != (plan.device, plan.dtype):
            raise InferenceError(
                f"the model is loaded on {predictor.device} as {predictor.dtype}, the plan says "
                f"{plan.device} and {plan.dtype}: load it with the plan's device and dtype"
            )
        self.predictor = predictor
        self.plan = plan

    @classmethod
    def load(cls, model: "RegisteredVersion", signature: ModelSignature, spec: "InferenceSpec") -> "Engine":
        """Load a registered version as a pipeline file asks for, its files compared with their digests.

        Args:
            model: the version.
            signature: the version's own, or with another positive class.
            spec: the pipeline's `inference` section.

        Raises:
            ModelError: the files were altered, or cannot be loaded.
            SignatureError: files and signature say different things.
            InferenceError: the device asked for is not there.
        """
        plan = BatchPlan.from_spec(spec, signature)
        model.check_files()
        return cls(load_predictor(model.path, model.flavor, signature, plan.device, plan.dtype), plan)

    def score(self, shard: pa.Table) -> ShardResult:
        """Score one shard.

        Args:
            shard: `row_key` (string, not null) and the model's input columns; others are ignored.

        Raises:
            InferenceError: the shard cannot be read, or the model breaks its promise of a row for a row.
            SignatureError: the features do not fit the model.
        """
        started = time.perf_counter()
        return self._compute(self._prepare(shard), started)

    def score_stream(self, shards: Iterator[pa.Table]) -> Iterator[ShardResult]:
        """Score shards in order; while one computes, the next is read and prepared in a thread.

        At most two shards are held at a time. `shards` is advanced in that thread, one step at a time.

        Raises:
            As `score`, and whatever `shards` raises.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="prepare") as thread:
            started = time.perf_counter()
            ahead = thread.submit(self._prepare_next, shards)
            while (ready := ahead.result()) is not None:
                ahead = thread.submit(self._prepare_next, shards)
                yield self._compute(ready, started)
                started = time.perf_counter()

    # -- preparing ----------------------------------------------------------------------------------------

    def _prepare_next(self, shards: Iterator[pa.Table]) -> _Shard | None:
        shard = next(shards, None)
        return None if shard is None else self._prepare(shard)

    def _prepare(self, table: pa.Table) -> _Shard:
        started = time.perf_counter()
        keys = _keys(table)
        self.predictor.signature.check_features(table.schema)
        columns = [column.name for column in self.predictor.signature.inputs]
        features = _one_batch(table.select(columns))
        failures: dict[int, tuple[str, str]] = {}
        rows = np.arange(table.num_rows)
        try:
            prepared = self.predictor.prepare(features)
        except BatchPlatformError:
            raise
        except Exception as error:  # noqa: BLE001 -- every row gets its own answer below
            _log.warning("preparing a shard failed (%s); looking for the rows at fault", _describe(error))
            failures = self._unpreparable(features, 0)
            rows = np.setdiff1d(rows, np.fromiter(failures, np.int64, len(failures)))
            prepared = self.predictor.prepare(features.take(pa.array(rows)))
        for refusal in prepared.refused:
            failures[int(rows[refusal.row])] = (refusal.error_type, refusal.message)
        seconds = time.perf_counter() - started
        return _Shard(keys, prepared, rows, failures, seconds, done=np.zeros(len(rows), bool))

    def _unpreparable(self, features: pa.RecordBatch, first: int) -> dict[int, tuple[str, str]]:
        try:
            self.predictor.prepare(features)
        except Exception as error:  # noqa: BLE001 -- recorded for the row, or narrowed down
            if features.num_rows == 1:
                return {first: (type(error).__name__, _describe(error))}
        else:
            return {}
        half = features.num_rows // 2
        left = self._unpreparable(features.slice(0, half), first)
        return left | self._unpreparable(features.slice(half), first + half)

    # -- computing ----------------------------------------------------------------------------------------

    def _compute(self, shard: _Shard, started: float) -> ShardResult:
        begun = time.perf_counter()
        refused = {refusal.row for refusal in shard.prepared.refused}
        rows = np.array([row for row in range(len(shard.prepared_rows)) if row not in refused], np.int64)
        plan = self.plan
        waiting = cut(shard.prepared.costs, rows, plan)[::-1]
        while waiting:
            batch = waiting.pop()
            error = self._try(shard, batch)
            if error is None:
                continue
            if len(batch) == 1:
                row = int(shard.prepared_rows[batch[0]])
                shard.failures[row] = (
                    "OutOfMemory" if _is_memory(error) else type(error).__name__,
                    _describe(error),
                )
                continue
            if not _is_memory(error):
                shard.bisections += 1
                half = len(batch) // 2
                waiting += [batch[half:], batch[:half]]
                continue
            # Batches as large as this one will not fit either: all that wait are cut anew.
            shard.back_offs += 1
            plan = _halved(plan, shard.prepared.costs, batch)
            _log.warning("out of memory with %d rows in a batch; going on with %s", len(batch), plan)
            waiting = cut(shard.prepared.costs, np.concatenate([batch, *waiting[::-1]]), plan)[::-1]
        forward_seconds = time.perf_counter() - begun
        return self._finish(shard, forward_seconds, started)

    def _try(self, shard: _Shard, batch: np.ndarray) -> Exception | None:
        """Compute a batch, or say why not. The error's frames are dropped: they hold the tensors."""
        try:
            raw = self.predictor.forward(shard.prepared, batch)
        except BatchPlatformError:
            raise
        except Exception as error:  # becomes a failure of the rows at fault
            if _is_broken_device(error):
                raise InferenceError(
                    f"the device failed and must be restarted: {_describe(error)}"
                ) from error
            failed: Exception = error.with_traceback(None)
            failed.__context__ = None
        else:
            _keep(shard, batch, raw)
            return None
        if _is_memory(failed):
            self.predictor.release()
        return failed

    # -- results ------------------------------------------------------------------------------------------

    def _finish(self, shard: _Shard, forward_seconds: float, started: float) -> ShardResult:
        begun = time.perf_counter()
        named, rows = self._named(shard)
        _reconcile(rows, shard.failures, len(shard.keys))
        outputs = pa.Table.from_batches([named]).add_column(0, KEY, shard.keys.take(pa.array(rows)))
        failures = [
            RowFailure(shard.keys[row].as_py(), *shard.failures[row]) for row in sorted(shard.failures)
        ]
        stats = RunStats(
            rows=len(shard.keys),
            failed_rows=len(failures),
            tokens=shard.tokens,
            padded_tokens=shard.padded_tokens,
            batches=shard.batches,
            back_offs=shard.back_offs,
            bisections=shard.bisections,
            prepare_seconds=shard.seconds,
            forward_seconds=forward_seconds,
            finish_seconds=time.perf_counter() - begun,
            wall_seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_memory_bytes(self.predictor.device),
        )
        return ShardResult(outputs, failures, stats)

    def _named(self, shard: _Shard) -> tuple[pa.RecordBatch, np.ndarray]:
        """The output columns of the good rows, and their numbers in the shard; the others become failures."""
        signature = self.predictor.signature
        rows = shard.prepared_rows[shard.done]
        if shard.raw is None:
            return pa.RecordBatch.from_pylist([], schema=signature.output_schema()), rows
        raw = shard.raw[shard.done]
        named = self.predictor.finish(raw)
        if named.schema != signature.output_schema() or named.num_rows != len(rows):
            raise InferenceError(
                f"the model gave {named.num_rows} rows of {named.schema} for {len(rows)} rows"
            )
        bad = bad_rows(raw, named, signature)
        for place, message in bad.items():
            shard.failures[int(rows[place])] = ("InvalidOutput", message)
        good = np.setdiff1d(np.arange(len(rows)), np.fromiter(bad, np.int64, len(bad)))
        return named.take(pa.array(good)), rows[good]


def _keep(shard: _Shard, batch: np.ndarray, raw: np.ndarray) -> None:
    if shard.raw is None and raw.ndim == 2:
        shard.raw = np.empty((len(shard.done), raw.shape[1]), np.float32)
    if shard.raw is None or raw.shape != (len(batch), shard.raw.shape[1]):
        raise InferenceError(f"the model gave an output of shape {raw.shape} for {len(batch)} rows")
    shard.raw[batch] = raw
    shard.done[batch] = True
    costs = shard.prepared.costs[batch]
    shard.tokens += int(costs.sum())
    shard.padded_tokens += int(costs.max()) * len(batch)
    shard.batches += 1


def _keys(table: pa.Table) -> pa.Array:
    if table.schema.names.count(KEY) != 1 or table.schema.field(KEY).type != pa.string():
        raise InferenceError(f"a shard needs one column {KEY!r} of strings; it has {table.schema.names}")
    keys = table.column(KEY).combine_chunks()
    if keys.null_count:
        raise InferenceError(
            f"{keys.null_count} rows of the shard have no {KEY}: quarantine them before scoring"
        )
    return keys


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:  # text beyond 2 GiB does not fit one array
        raise InferenceError("a shard holds more than 2 GiB of text: set inference.shard_rows lower")
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _reconcile(rows: np.ndarray, failures: dict[int, tuple[str, str]], total: int) -> None:
    """One output or one failure for each row, none twice, none left out."""
    answered = np.sort(np.concatenate([rows, np.fromiter(failures, np.int64, len(failures))]))
    if not np.array_equal(answered, np.arange(total)):
        raise InferenceError(f"{total} rows went in and {len(answered)} came out: the result is not used")


def _halved(plan: BatchPlan, costs: np.ndarray, batch: np.ndarray) -> BatchPlan:
    if plan.batch_tokens is None:
        return replace(plan, batch_rows=len(batch) // 2)
    return replace(plan, batch_tokens=int(costs[batch].max()) * len(batch) // 2)


def _is_memory(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, known by name: it is not imported here
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def _is_broken_device(error: Exception) -> bool:
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def _describe(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:500]
