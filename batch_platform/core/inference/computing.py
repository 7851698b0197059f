"""The batches of prepared shards through the model, and what happens to those that fail.

It decides: a batch that does not fit the memory is halved, and so are all that wait; a batch that fails or
takes too long is halved down to the rows that fail alone; what may pass by itself is tried again first; and
when to give up. It does not know where shards come from, or what the numbers mean.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core.inference import causes
from batch_platform.core.inference.batching import BatchPlan, cut
from batch_platform.core.inference.deadline import ENDING, DeadlineError, Event, StuckError, Wait, Worker
from batch_platform.core.inference.device import current_index, use_index
from batch_platform.core.models.predictor import Predictor, Prepared
from batch_platform.errors import BatchPlatformError, InferenceError

BATCH_TIMEOUT = 600.0
# A call that waits for a device ends by itself when the device does: it gets the time-out again, and at
# least so many seconds, before the device counts as hanging.
_LEAST_GRACE = 30.0
# So many rows are named, however few are tolerated: they show what is wrong.
NAMED = 100
# So many rows alone beyond the time-out, with nothing computed in between: it is not the rows.
_TIMEOUTS_IN_A_ROW = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long the engine waits, and for what. None of it changes the bits of an output.

    Attributes:
        batch_timeout: seconds that one batch may take.
        grace: seconds that a late batch then has to stop; None: the time-out again, at least 30.
        back_off: seconds before each further try of a batch, after an error that may pass.
        ending: seconds that a thread has to end, by itself and by force, when the engine is left.
        wait: for an event, so many seconds; returns whether it has come.
        sleep: for so many seconds.
    """

    batch_timeout: float = BATCH_TIMEOUT
    grace: float | None = None
    back_off: tuple[float, ...] = (0.5, 2.0, 8.0)
    ending: tuple[float, float] = ENDING
    wait: Wait = Event.wait
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Shard:
    """A shard on its way: what is prepared, computed and known to fail so far."""

    keys: pa.Array
    prepared: Prepared
    prepared_rows: np.ndarray  # (prepared,) int64, number in the shard of each prepared row
    failures: dict[int, tuple[str, str]]  # by number in the shard: error type, message
    seconds: float
    done: np.ndarray  # (prepared,) bool
    raw: np.ndarray | None = None  # (prepared, width), made when width and type are known
    tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    back_offs: int = 0
    bisections: int = 0
    retries: int = 0
    timeouts: int = 0
    forward_seconds: float = 0.0
    loop: "BatchLoop | None" = None  # that is to compute it

    def keep(self, batch: np.ndarray, raw: np.ndarray) -> None:
        """Take the outputs of a batch.

        Raises:
            InferenceError: they are not one row of numbers, all of one width, for each row.
        """
        if self.raw is None and raw.ndim == 2:
            self.raw = np.empty((len(self.done), raw.shape[1]), raw.dtype)
        if self.raw is None or raw.shape != (len(batch), self.raw.shape[1]):
            raise InferenceError(f"the model gave an output of shape {raw.shape} for {len(batch)} rows")
        self.raw[batch] = raw
        self.done[batch] = True
        costs = self.prepared.costs[batch]
        self.tokens += int(costs.sum())
        self.padded_tokens += int(costs.max()) * len(batch)
        self.batches += 1


class BatchLoop:
    """Computes the shards of one stream, one after the other, on a thread that it ends when it is left.

    Attributes:
        failed: rows of the shards before that have no output; the caller counts.
    """

    def __init__(
        self, predictor: Predictor, plan: BatchPlan, patience: Patience, tolerated: int | None
    ) -> None:
        self.failed = 0
        self._predictor = predictor
        self._plan = plan
        self._patience = patience
        self._tolerated = tolerated
        self._worker = Worker("forward", patience.wait, patience.ending)
        self._device_index = current_index(predictor.device)
        self._tries = 0  # further ones, since a batch succeeded
        self._late_rows = 0  # alone beyond the time-out, since a batch succeeded

    def __enter__(self) -> "BatchLoop":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._worker.close()

    def compute(self, shard: Shard) -> None:
        """Compute every row that can be; the others become failures of the shard.

        Raises:
            InferenceError: the device is broken, or more rows fail than could be of use.
            StuckError: a batch neither ends nor can be stopped.
        """
        costs = shard.prepared.costs
        refused = [refusal.row for refusal in shard.prepared.refused]
        plan, row_did_not_fit = self._plan, False
        waiting = cut(costs, np.delete(np.arange(len(costs)), refused), plan)[::-1]
        while waiting:
            if self._predictor.in_flight > 1 and not row_did_not_fit:
                self._stream(shard, waiting)
                if not waiting:
                    break
            batch = waiting.pop()
            error = self._try(shard, batch)
            if error is None and not row_did_not_fit:
                continue
            if error is None:
                # The shortage was that row's: small batches are no longer needed.
                plan, row_did_not_fit = self._plan, False
                waiting = _cut_anew(costs, waiting, plan)
            elif len(batch) == 1:
                row_did_not_fit |= causes.is_memory(error)
                self._fail(shard, int(batch[0]), error)
            elif causes.is_memory(error):
                # Batches as large as this one will not fit either: all that wait are cut anew.
                shard.back_offs += 1
                plan = _halved(plan, costs, batch)
                waiting = _cut_anew(costs, [*waiting, batch], plan)
                _log.warning("out of memory with %d rows in a batch; going on with %s", len(batch), plan)
            else:
                shard.bisections += 1
                half = len(batch) // 2
                waiting += [batch[half:], batch[:half]]

    # -- batches in flight --------------------------------------------------------------------------------

    def _stream(self, shard: Shard, waiting: list[np.ndarray]) -> None:
        """Compute batches while all goes well, the next ones launched before one is collected.

        At the first error the batches without an output are put back, the one at fault last, so that it is tried by
        itself, with nothing beside it on the device: there its error counts.
        """
        launched: deque[tuple[np.ndarray, Any]] = deque()
        while waiting or launched:
            is_launch = bool(waiting) and len(launched) < self._predictor.in_flight
            batch, before = (waiting.pop(), None) if is_launch else launched.popleft()
            step = self._predictor.launch if is_launch else self._predictor.collect
            arguments = (shard.prepared, batch) if is_launch else (before,)
            try:
                after = self._on_thread(partial(step, *arguments))
            except (BatchPlatformError, StuckError):
                raise
            except Exception as error:  # noqa: BLE001 -- the batch is computed again, and the error judged, by `_try`
                _log.info("a batch of %d rows failed in flight (%s)", len(batch), type(error).__name__)
                waiting += [other for other, _ in reversed(launched)]
                waiting.append(batch)
                return
            if is_launch:
                launched.append((batch, after))
            else:
                shard.keep(batch, after)
                self._tries = self._late_rows = 0

    def _on_thread(self, step: Callable[[], Any]) -> Any:
        """Make a step of a batch on the thread that computes, within the time that a batch may take."""

        def call() -> Any:
            use_index(self._device_index)
            return step()

        timeout, grace = self._patience.batch_timeout, self._patience.grace
        return self._worker.call(call, timeout, max(_LEAST_GRACE, timeout) if grace is None else grace)

    # -- one batch ----------------------------------------------------------------------------------------

    def _try(self, shard: Shard, batch: np.ndarray) -> Exception | None:
        """Compute a batch, again where its error may pass, or say why it fails."""
        while True:
            error = self._forward(shard, batch)
            if error is None:
                self._tries = self._late_rows = 0
                return None
            # Counted since a success: the halves of a batch do not wait all over again in an outage.
            if not causes.is_transient(error) or self._tries == len(self._patience.back_off):
                return error
            seconds = self._patience.back_off[self._tries]
            self._tries += 1
            shard.retries += 1
            _log.warning(
                "a batch of %d rows failed (%s: %s), which may pass; trying again in %g s",
                len(batch), type(error).__name__, causes.describe(error), seconds,
            )  # fmt: skip
            self._patience.sleep(seconds)

    def _forward(self, shard: Shard, batch: np.ndarray) -> Exception | None:
        """Compute a batch, or say why not. The error's frames are dropped: they hold the tensors."""
        try:
            raw = self._on_thread(partial(self._predictor.forward, shard.prepared, batch))
        except (BatchPlatformError, StuckError):
            raise
        except Exception as error:  # becomes a failure of the rows at fault
            if causes.is_broken_device(error):
                raise InferenceError(
                    f"the device failed and must be restarted: {causes.describe(error)}"
                ) from error
            failed: Exception = error.with_traceback(None)
            failed.__context__ = failed.__cause__ = None
        else:
            shard.keep(batch, raw)
            return None
        if isinstance(failed, DeadlineError):
            shard.timeouts += 1
            seconds = self._patience.batch_timeout
            _log.warning("a batch of %d rows took longer than %g s and was stopped", len(batch), seconds)
        if causes.is_memory(failed):
            self._predictor.release()
        return failed

    # -- one row ------------------------------------------------------------------------------------------

    def _fail(self, shard: Shard, prepared_row: int, error: Exception) -> None:
        row = int(shard.prepared_rows[prepared_row])
        shard.failures[row] = causes.cause(error, self._patience.batch_timeout)
        if isinstance(error, DeadlineError):
            self._late_rows += 1
            self._check_late_rows()
        failed = self.failed + len(shard.failures)
        if self._tolerated is not None and failed > max(self._tolerated, NAMED):
            raise InferenceError(
                f"{failed} rows have failed, and {self._tolerated} may (inference.max_error_share): the rest is "
                f"not computed. In the shard in hand: {_told(shard.failures)}. Remove the cause and run the "
                "partition again; finished shards are kept"
            )

    def _check_late_rows(self) -> None:
        if self._late_rows == _TIMEOUTS_IN_A_ROW:
            raise InferenceError(
                f"{self._late_rows} rows, each computed alone, took longer than inference.batch_timeout "
                f"({self._patience.batch_timeout:g} s), and nothing was computed in between: raise it, or look "
                "at the device; then run the partition again, finished shards are kept"
            )


def _told(failures: dict[int, tuple[str, str]]) -> str:
    """The commonest causes, each with its first message."""
    counts = Counter(error_type for error_type, _ in failures.values())
    first: dict[str, str] = {}
    for error_type, message in failures.values():
        first.setdefault(error_type, message)
    return "; ".join(f"{count} {name} ({first[name]})" for name, count in counts.most_common(3))


def _cut_anew(costs: np.ndarray, waiting: list[np.ndarray], plan: BatchPlan) -> list[np.ndarray]:
    rows = np.concatenate(waiting[::-1]) if waiting else np.empty(0, np.int64)
    return cut(costs, rows, plan)[::-1]


def _halved(plan: BatchPlan, costs: np.ndarray, batch: np.ndarray) -> BatchPlan:
    if plan.batch_tokens is None:
        return replace(plan, batch_rows=len(batch) // 2)
    return replace(plan, batch_tokens=int(costs[batch].max()) * len(batch) // 2)
