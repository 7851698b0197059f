"""Records of fixed width, more than memory should hold: written by a hash of theirs, read again one bucket at a time.

What hashes to one number is in one bucket, so rows that have to meet are found in it; each bucket is a share of the
whole. Small contents stay in memory. It does not know what the records mean.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batch_platform.core.data.files import writing

Records = npt.NDArray[np.void]

BUCKETS = 64
HELD_BYTES = 1 << 17  # of each bucket, in memory


class RecordFile:
    """Records in the order in which they were appended.

    Raises:
        StorageError: by its methods, where the file cannot be written.
    """

    def __init__(self, path: Path, dtype: np.dtype[np.void]) -> None:
        self._path = path
        self._dtype = dtype
        self._held: list[Records] = []
        self._held_rows = self._written_rows = 0

    def __len__(self) -> int:
        return self._written_rows + self._held_rows

    def append(self, records: Records) -> None:
        self._held.append(records)
        self._held_rows += len(records)
        if self._held_rows * self._dtype.itemsize > HELD_BYTES:
            self._flush()

    def read(self, first: int = 0, count: int | None = None) -> Records:
        """`count` records from number `first` on, or fewer where there are not so many; all for None."""
        last = len(self) if count is None else min(first + count, len(self))
        written = max(0, min(last, self._written_rows) - first)
        parts = [*self._held]
        if written:
            offset = first * self._dtype.itemsize
            parts.insert(0, np.fromfile(self._path, self._dtype, written, offset=offset))
        passed = max(0, first - self._written_rows)
        whole = np.concatenate(parts) if parts else np.zeros(0, self._dtype)
        return whole[passed : passed + last - first]

    def _flush(self) -> None:
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as stream:
                for records in self._held:
                    records.tofile(stream)
        self._written_rows, self._held, self._held_rows = len(self), [], 0


class Buckets:
    """Records by a hash of theirs; within a bucket in the order in which they were added."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[np.void]) -> None:
        self._files = [RecordFile(folder / f"{name}-{number}", dtype) for number in range(BUCKETS)]

    def add(self, hashes: npt.NDArray[np.uint64], records: Records) -> None:
        """Args: hashes: (records,); equal ones share a bucket."""
        numbers = (hashes % np.uint64(BUCKETS)).astype(np.int64)
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], np.arange(BUCKETS + 1))
        for file, first, last in zip(self._files, ends[:-1], ends[1:], strict=True):
            if last > first:
                file.append(records[order[first:last]])

    def __len__(self) -> int:
        return sum(len(file) for file in self._files)

    def __iter__(self) -> Iterator[Records]:
        return (file.read() for file in self._files)
