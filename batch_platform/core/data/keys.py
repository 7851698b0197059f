"""Rows with the same key, found while the rows stream by.

Decides which rows repeat an earlier key, by a 128-bit keyed hash, so that a chance or contrived collision is
out of reach (10 million keys: below 10^-24). Held are 16 bytes a row; measured at 10 million rows: 22 at the
peak, 36 for `last`. It knows no files and no contract beyond the key's text. `last` needs to have seen all
keys first: `LastOccurrences` is that first pass.
"""

import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batch_platform.core.data.cells import BoolArray

Hashes = npt.NDArray[np.uint64]

# Runs are merged up to this size: a merge's working memory stays small, and lookups meet few runs.
MAX_RUN = 1 << 20


class KeyHasher:
    """Hashes keys to 128 bits, with keys of its own drawn at random."""

    def __init__(self) -> None:
        self._seeds = (secrets.token_hex(8), secrets.token_hex(8))

    def __call__(self, keys: pa.StringArray) -> tuple[Hashes, Hashes]:
        """The two halves, each (rows,) uint64; no key may be null."""
        from pandas.util import hash_array

        texts = keys.to_numpy(zero_copy_only=False)
        low, high = (hash_array(texts, hash_key=seed, categorize=False) for seed in self._seeds)
        return low, high


@dataclass(frozen=True)
class _Run:
    """Hashes in the order of their low halves."""

    low: Hashes
    high: Hashes

    def contains(self, low: Hashes, high: Hashes) -> BoolArray:
        """Which of the hashes (sorted by `low`) are in the run."""
        place = np.minimum(np.searchsorted(self.low, low), len(self.low) - 1)
        hit = self.low[place] == low
        found = hit & (self.high[place] == high)
        for index in np.flatnonzero(hit & ~found):  # equal low halves of different keys: all but never
            equal = slice(place[index], np.searchsorted(self.low, low[index], side="right"))
            found[index] = bool((self.high[equal] == high[index]).any())
        return found

    def merged(self, other: "_Run") -> "_Run":
        low = np.concatenate([self.low, other.low])
        order = np.argsort(low, kind="stable")
        return _Run(low[order], np.concatenate([self.high, other.high])[order])


class SeenKeys:
    """The keys met so far."""

    def __init__(self) -> None:
        self._hash = KeyHasher()
        self._runs: list[_Run] = []

    def add(self, keys: pa.StringArray) -> BoolArray:
        """Take in keys, none of them null.

        Returns:
            (rows,) bool: which of them were there before, in an earlier call or earlier in this one.
        """
        low, high = self._hash(keys)
        order = np.lexsort((high, low))
        low, high = low[order], high[order]
        repeated = _same_as_previous(low) & _same_as_previous(high)
        for run in self._runs:
            repeated |= run.contains(low, high)
        self._keep(_Run(low[~repeated], high[~repeated]))
        result = np.empty(len(repeated), np.bool_)
        result[order] = repeated
        return result

    def _keep(self, run: _Run) -> None:
        if not len(run.low):
            return
        # Merging equals with equals keeps the number of runs logarithmic.
        while self._runs and len(self._runs[-1].low) <= len(run.low):
            if len(self._runs[-1].low) + len(run.low) > MAX_RUN:
                break
            run = self._runs.pop().merged(run)
        self._runs.append(run)


class LastOccurrences:
    """First pass of `on_duplicate: last`: which rows are followed by another with their key."""

    def __init__(self) -> None:
        self._hash = KeyHasher()
        self._low: list[Hashes] = []
        self._high: list[Hashes] = []

    def add(self, keys: pa.StringArray) -> None:
        low, high = self._hash(keys)
        self._low.append(low)
        self._high.append(high)

    def superseded(self) -> BoolArray:
        """(all rows added,) bool, in the order of adding; the collected hashes are let go."""
        low, high = _drained(self._low), _drained(self._high)
        order = np.lexsort((high, low))  # stable: equal keys stay in the order of their rows
        same = _same_as_previous(low[order]) & _same_as_previous(high[order])
        result = np.zeros(len(order), np.bool_)
        result[order[:-1][same[1:]]] = True
        return result


def _drained(chunks: list[Hashes]) -> Hashes:
    whole = np.concatenate([np.zeros(0, np.uint64), *chunks])
    chunks.clear()
    return whole


def _same_as_previous(hashes: Hashes) -> BoolArray:
    same = np.zeros(len(hashes), np.bool_)
    same[1:] = hashes[1:] == hashes[:-1]
    return same
