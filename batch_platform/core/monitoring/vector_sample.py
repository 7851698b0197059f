"""A sample of a table's vectors: the directions of at most 500 of them, 64 bytes each, exactly mergeable.

Decides which vectors are kept (those whose content has the smallest hashes: bottom-k, Cohen and Kaplan, PODC 2007) and
how (random projection onto 64 directions: Johnson and Lindenstrauss 1984, with the signs of Achlioptas 2003). Both
follow from the vectors alone, so the samples of two batches, merged, are the sample of both, bit for bit. What a
direction means is not known here.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt

from batch_platform.errors import MonitoringError

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

# The share of a topic, a tenth, is known to 1.3 points by so many rows.
SAMPLE_ROWS = 500
DIRECTIONS = 64
# A unit vector's component along a random direction has variance 1: up to 4 of them fit into a byte.
_STEPS = 32.0
_HASH_BITS = 48


@dataclass(frozen=True)
class VectorSample:
    """Distinct vectors of a table.

    Attributes:
        hashes: of their content, ascending.
        counts: rows that have each.
        directions: (vectors, 64) int8, row by row: the vector over its length, along 64 directions, times 32.
    """

    hashes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    directions: bytes = b""

    @classmethod
    def of(cls, units: Floats, lengths: Floats) -> Self:
        """Sample vectors.

        Args:
            units: (rows, dimension) whole numbers up to 2**40, so that their sums are exact in any order.
            lengths: (rows,) of the vectors in the same unit.
        """
        hashes, first, counts = np.unique(_hashes(units), return_index=True, return_counts=True)
        kept = first[:SAMPLE_ROWS]
        along = units[kept] @ _signs(units.shape[1])  # (kept, 64)
        along = along / np.where(lengths[kept] > 0, lengths[kept], 1.0)[:, None]
        directions = np.clip(np.round(_STEPS * along), -127, 127).astype(np.int8)
        return cls(
            tuple(hashes[:SAMPLE_ROWS].tolist()), tuple(counts[:SAMPLE_ROWS].tolist()), directions.tobytes()
        )

    @classmethod
    def merged(cls, parts: Iterable["VectorSample"]) -> Self:
        """The sample of all parts' rows together."""
        parts = [part for part in parts if part.hashes]
        if not parts:
            return cls()
        hashes = np.concatenate([np.array(part.hashes, np.int64) for part in parts])
        counts = np.concatenate([np.array(part.counts, np.int64) for part in parts])
        found, first, place = np.unique(hashes, return_index=True, return_inverse=True)
        together = np.zeros(len(found), np.int64)
        np.add.at(together, place, counts)
        rows = np.concatenate([part._bytes() for part in parts])[first[:SAMPLE_ROWS]]
        return cls(
            tuple(found[:SAMPLE_ROWS].tolist()), tuple(together[:SAMPLE_ROWS].tolist()), rows.tobytes()
        )

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def vectors(self) -> Floats:
        """(vectors, 64) components along the directions; of vectors of length 1 their variance is 1."""
        return self._bytes().astype(np.float64) / _STEPS

    def _bytes(self) -> npt.NDArray[np.int8]:
        return np.frombuffer(self.directions, np.int8).reshape(-1, DIRECTIONS)

    def to_values(self) -> list:
        """Plain values for JSON; `from_values` reads them back."""
        return [list(self.hashes), list(self.counts), base64.b64encode(self.directions).decode()]

    @classmethod
    def from_values(cls, values: Sequence) -> Self:
        """Read plain values.

        Raises:
            MonitoringError: they are no sample.
        """
        hashes, counts, directions = values
        content = base64.b64decode(directions)
        if not (len(hashes) == len(counts) == len(content) / DIRECTIONS and len(hashes) <= SAMPLE_ROWS):
            raise MonitoringError("its vectors are not those of a sample")
        return cls(tuple(hashes), tuple(counts), content)


def _hashes(units: Floats) -> npt.NDArray[np.int64]:
    """(rows,) 48 bits of each row's content."""
    factors = _scrambled(np.arange(1, units.shape[1] + 1, dtype=np.uint64)) | np.uint64(1)
    total = (units.astype(np.int64).view(np.uint64) * factors).sum(axis=1, dtype=np.uint64)
    return (_scrambled(total) >> np.uint64(64 - _HASH_BITS)).astype(np.int64)


@lru_cache(maxsize=8)
def _signs(dimension: int) -> Floats:
    """(dimension, 64) of 1 and -1, always the same."""
    words = _scrambled(np.arange(dimension, dtype=np.uint64) + np.uint64(2**32))
    bits = words[:, None] >> np.arange(DIRECTIONS, dtype=np.uint64) & np.uint64(1)
    return np.where(bits > 0, 1.0, -1.0)


def _scrambled(words: Words) -> Words:
    """Bits that look random of each word: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = words * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)
