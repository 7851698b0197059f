"""Shards of features through a model: one output or one named failure for each row.

It decides what is prepared ahead, which rows cannot be prepared, and that no row is lost between input and
result; batches and their failures are the batch loop's. It does not know where rows come from, where
results go, or what kind of model it runs.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from batch_platform.core.inference import causes
from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.inference.computing import BatchLoop, Patience, Shard
from batch_platform.core.inference.deadline import StuckError, Worker
from batch_platform.core.inference.device import hardware_of, peak_memory_bytes
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


class Scorer(Protocol):
    """What shards are given to: one engine, or several that look like one."""

    @property
    def plan(self) -> BatchPlan:
        """How batches are cut."""

    @property
    def backend(self) -> str:
        """What computes, where there is a choice that acts on the last bits; else empty."""

    @property
    def hardware(self) -> Mapping[str, Any]:
        """The machine that computes, as `device.hardware_of` has it."""

    @property
    def where(self) -> str:
        """Where it computes, for people, such as `in 2 processes`; empty where that is this process."""

    def score_stream(self, shards: Iterator[pa.Table], tolerated: int | None = None) -> Iterator[ShardResult]:
        """Score shards in order, as `Engine.score_stream`."""

    def close(self) -> None:
        """Let go of what was started."""


class Engine:
    """A loaded model and the way its batches are cut."""

    def __init__(self, predictor: Predictor, plan: BatchPlan, patience: Patience | None = None) -> None:
        if (predictor.device, predictor.dtype) != (plan.device, plan.dtype):
            raise InferenceError(
                f"the model is loaded on {predictor.device} as {predictor.dtype}, the plan says "
                f"{plan.device} and {plan.dtype}: load it with the plan's device and dtype"
            )
        self.predictor = predictor
        self.plan = plan
        self.patience = patience or Patience()
        self._stuck: str | None = None

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
        plan = BatchPlan.from_spec(spec, signature, flavor=model.flavor)
        predictor = load_predictor(model.checked_folder(), model.flavor, signature, plan.device, plan.dtype)
        return cls(predictor, plan, Patience(batch_timeout=spec.batch_timeout))

    @property
    def backend(self) -> str:
        return self.predictor.backend

    @property
    def hardware(self) -> dict[str, Any]:
        return hardware_of(self.plan.device)

    @property
    def where(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing runs between two streams."""

    def score(self, shard: pa.Table) -> ShardResult:
        """Score one shard.

        Args:
            shard: `row_key` (string, not null) and the model's input columns; others are ignored.

        Raises:
            InferenceError: the shard cannot be read, or the model breaks its promise of a row for a row.
            SignatureError: the features do not fit the model.
        """
        started = time.perf_counter()
        prepared = self._prepare(shard)
        with self._loop(tolerated=None) as prepared.loop:
            self._compute(prepared)
            return self._finish(prepared, started)

    def score_stream(self, shards: Iterator[pa.Table], tolerated: int | None = None) -> Iterator[ShardResult]:
        """Score shards in order; while one computes, the next is read and prepared in a thread.

        At most two shards are held at a time, and on a device that works beside this machine three: there a shard is
        finished and taken while the next computes. `shards` is advanced in that thread, one step at a time. All
        threads end when the stream ends or is left, for whatever reason.

        Args:
            shards: each as `score` takes it.
            tolerated: rows of all shards together that may fail; beyond it, and beyond a hundred, no more
                failing rows are looked for. None: any number.

        Raises:
            As `score`, and whatever `shards` raises.
            InferenceError: more rows fail than are tolerated.
        """
        patience = self.patience
        with (
            self._loop(tolerated) as loop,
            Worker("prepare", patience.wait, patience.ending) as preparing,
        ):
            ask = partial(self._prepare_next, shards, loop)
            if self.predictor.in_flight > 1:
                with Worker("compute", patience.wait, patience.ending) as computing:
                    yield from self._finished_beside(ask, preparing, computing)
                return
            started = time.perf_counter()
            ahead = preparing.submit(ask)
            while (ready := ahead.result()) is not None:
                ahead = preparing.submit(ask)
                self._compute(ready)
                yield self._finish(ready, started)
                started = time.perf_counter()

    def _finished_beside(
        self, ask: Callable[[], Shard | None], preparing: Worker, computing: Worker
    ) -> Iterator[ShardResult]:
        """While one shard is finished and taken, the next computes, if it is prepared: the device waits for no disk."""
        begun = time.perf_counter()
        before: tuple[Shard, float, float] | None = None  # computed, and not yet finished
        ahead = preparing.submit(ask)
        try:
            while True:
                if before is not None and not ahead.done.is_set():
                    taken, before = before, None
                    yield self._finish(*taken)
                ready = ahead.result()
                if ready is None:
                    break
                ahead = preparing.submit(ask)
                computed = computing.submit(partial(self._compute, ready))
                if before is not None:
                    taken, before = before, None
                    yield self._finish(*taken)
                computed.result()
                # Of seconds in which two shards were in hand, each counts once.
                before = ready, begun, time.perf_counter()
                begun = before[2]
        except Exception:
            if before is not None:  # only what comes after it failed
                yield self._finish(*before)
            raise
        if before is not None:
            yield self._finish(*before)

    # -- preparing ----------------------------------------------------------------------------------------

    def _prepare_next(self, shards: Iterator[pa.Table], loop: BatchLoop) -> Shard | None:
        table = next(shards, None)
        if table is None:
            return None
        shard = self._prepare(table)
        shard.loop = loop
        return shard

    def _prepare(self, table: pa.Table) -> Shard:
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
            told = causes.describe(error)
            _log.warning("preparing a shard failed (%s); looking for the rows at fault", told)
            failures = self._unpreparable(features, 0)
            rows = np.setdiff1d(rows, list(failures))
            prepared = self._prepare_rest(features.take(pa.array(rows)))
        if len(prepared.costs) != len(rows):
            raise InferenceError(f"the model prepared {len(prepared.costs)} rows of {len(rows)}")
        for refusal in prepared.refused:
            failures[int(rows[refusal.row])] = (refusal.error_type, refusal.message)
        seconds = time.perf_counter() - started
        return Shard(keys, prepared, rows, failures, seconds, done=np.zeros(len(rows), bool))

    def _unpreparable(self, features: pa.RecordBatch, first: int) -> dict[int, tuple[str, str]]:
        """The rows that cannot be prepared alone, by number from `first` on, and why."""
        try:
            self.predictor.prepare(features)
        except BatchPlatformError:
            raise
        except Exception as error:  # noqa: BLE001 -- recorded for the row, or narrowed down
            if features.num_rows == 1:
                return {first: (type(error).__name__, causes.describe(error))}
        else:
            return {}
        half = features.num_rows // 2
        left = self._unpreparable(features.slice(0, half), first)
        return left | self._unpreparable(features.slice(half), first + half)

    def _prepare_rest(self, features: pa.RecordBatch) -> Prepared:
        try:
            return self.predictor.prepare(features)
        except BatchPlatformError:
            raise
        except Exception as error:
            raise InferenceError(
                f"{features.num_rows} rows can be prepared in parts and not together "
                f"({type(error).__name__}: {causes.describe(error)}): set inference.shard_rows lower"
            ) from error

    # -- computing ----------------------------------------------------------------------------------------

    def _loop(self, tolerated: int | None) -> BatchLoop:
        if self._stuck is not None:
            raise InferenceError(self._stuck)
        return BatchLoop(self.predictor, self.plan, self.patience, tolerated)

    def _compute(self, shard: Shard) -> None:
        assert shard.loop is not None  # set by `score` and `score_stream`
        begun = time.perf_counter()
        try:
            shard.loop.compute(shard)
        except StuckError:
            self._stuck = (
                f"the device does not answer: a batch computes for longer than inference.batch_timeout "
                f"({self.patience.batch_timeout:g} s) and cannot be stopped. Check the device, end this process, "
                "and run the partition again; finished shards are kept"
            )
            _log.error("%s. Its thread is left behind", self._stuck)
            raise InferenceError(self._stuck) from None
        shard.forward_seconds = time.perf_counter() - begun

    # -- results ------------------------------------------------------------------------------------------

    def _finish(self, shard: Shard, started: float, ended: float | None = None) -> ShardResult:
        assert shard.loop is not None
        begun = time.perf_counter()
        named, rows = self._named(shard)
        shard.loop.failed += len(shard.failures)
        _reconcile(rows, shard.failures, len(shard.keys))
        keys = shard.keys if len(rows) == len(shard.keys) else shard.keys.take(pa.array(rows))
        outputs = pa.Table.from_batches([named]).add_column(0, KEY, keys)
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
            retries=shard.retries,
            timeouts=shard.timeouts,
            prepare_seconds=shard.seconds,
            forward_seconds=shard.forward_seconds,
            finish_seconds=time.perf_counter() - begun,
            wall_seconds=(time.perf_counter() if ended is None else ended) - started,
            peak_memory_bytes=peak_memory_bytes(self.predictor.device),
        )
        return ShardResult(outputs, failures, stats)

    def _named(self, shard: Shard) -> tuple[pa.RecordBatch, np.ndarray]:
        """The output columns of the good rows, and their numbers in the shard; the others become failures."""
        signature = self.predictor.signature
        rows = shard.prepared_rows[shard.done]
        if shard.raw is None:
            return pa.RecordBatch.from_pylist([], schema=signature.output_schema()), rows
        raw = shard.raw if len(rows) == len(shard.done) else shard.raw[shard.done]
        named = self.predictor.finish(raw)
        if named.schema != signature.output_schema() or named.num_rows != len(rows):
            raise InferenceError(
                f"the model gave {named.num_rows} rows of {named.schema} for {len(rows)} rows"
            )
        bad = bad_rows(raw, named, signature)
        if not bad:
            return named, rows
        for place, message in bad.items():
            shard.failures[int(rows[place])] = ("InvalidOutput", message)
        good = np.setdiff1d(np.arange(len(rows)), np.fromiter(bad, np.int64, len(bad)))
        return named.take(pa.array(good)), rows[good]


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
