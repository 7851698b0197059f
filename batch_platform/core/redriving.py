"""Scoring again only what is in quarantine: which rows that is, and how the result is put together.

The rows that stand keep their values, run and time; the order stays that of the features. Everything that acts on a
row must be as it was: the work's fingerprint says so before anything here is called.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def only(batches: Iterable[pa.RecordBatch], keys: pa.Array) -> Iterator[pa.RecordBatch]:
    """The rows with these keys, in their order."""
    for batch in batches:
        yield batch.filter(pc.is_in(batch["row_key"], value_set=keys))


def interleaved(
    feature_keys: Iterable[pa.Array],
    standing: Iterable[pa.RecordBatch],
    redriven: pa.Array,
    fresh: pa.Table,
) -> Iterator[pa.RecordBatch]:
    """The standing rows and the fresh ones in the order of the features.

    Args:
        feature_keys: row keys of all features, in order.
        standing: the rows that stand: one for each feature row that was not redriven, in order.
        redriven: keys of the rows that were tried again, whether they succeeded or not.
        fresh: those that succeeded, in order; held in memory, as quarantined rows are.
    """
    kept, new = _Cursor(standing), _Cursor(fresh.to_batches())
    succeeded = fresh["row_key"].combine_chunks()
    for keys in feature_keys:
        is_kept = ~_is_in(keys, redriven)
        is_new = _is_in(keys, succeeded)
        old_rows, new_rows = int(is_kept.sum()), int(is_new.sum())
        parts = [*kept.take(old_rows), *new.take(new_rows)]
        if not parts:
            continue
        order = np.full(len(keys), -1)
        order[is_kept] = np.arange(old_rows)
        order[is_new] = old_rows + np.arange(new_rows)
        together = pa.Table.from_batches([part.cast(fresh.schema) for part in parts])
        yield from together.take(pa.array(order[order >= 0])).to_batches()


def _is_in(keys: pa.Array, wanted: pa.Array) -> np.ndarray:
    return pc.is_in(keys, value_set=wanted).to_numpy(zero_copy_only=False)


class _Cursor:
    """Rows taken from a stream of batches, some at a time."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._held: pa.RecordBatch | None = None

    def take(self, rows: int) -> list[pa.RecordBatch]:
        """The next rows; fewer where the stream ends, which the gate's reconciliation finds."""
        parts: list[pa.RecordBatch] = []
        while rows > 0:
            if self._held is None or self._held.num_rows == 0:
                self._held = next(self._batches, None)
                if self._held is None:
                    break
                continue
            part = self._held.slice(0, rows)
            self._held = self._held.slice(part.num_rows)
            rows -= part.num_rows
            parts.append(part)
        return parts
