"""The rows of one partition on their way in: read, held against the contract, freed of duplicates.

Decides what becomes of every row of the source: kept, rejected with a reason, or dropped as a duplicate; the
counts add up, and are in `Counts`. Decides when a partition without rows is an error. It writes nothing.

Duplicates are looked for among the rows that keep the contract. With a `partition_column`, rows that belong to
no partition are in no partition's counts but `unplaced`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batch_platform.core.data.contract import SHOWN_VALUE, Contract, Rejected, SourceBatch, cut
from batch_platform.core.data.files import Location
from batch_platform.core.data.keys import LastOccurrences, SeenKeys
from batch_platform.core.data.partitions import Partition
from batch_platform.core.data.sources import read_source
from batch_platform.core.spec import SourceSpec
from batch_platform.errors import DuplicateKeysError, SourceError, SourceMissingError

Landed = tuple[pa.RecordBatch, list[Rejected]]

_EXAMPLES = 5


@dataclass
class Counts:
    """What became of a partition's rows: `rows_in == rows_kept + rows_rejected + duplicates_dropped`.

    Attributes:
        rows_in: rows of the source that belong to the partition, readable or not.
        rows_kept: rows handed on.
        rejected: rows for quarantine, by error type.
        duplicates_dropped: rows left out by `on_duplicate: first` or `last`.
        unplaced: rows met on the way that belong to no partition, because their partition column is null or
            unreadable; they are in no other count.
        ignored_columns: columns of the source that the contract does not name.
        absent_columns: columns of the contract that no row of a JSON source had.
        files: rows by source file.
    """

    rows_in: int = 0
    rows_kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates_dropped: int = 0
    unplaced: int = 0
    ignored_columns: list[str] = field(default_factory=list)
    absent_columns: list[str] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)

    @property
    def rows_rejected(self) -> int:
        return self.rejected.total()

    def describe(self) -> dict[str, Any]:
        """All counts as JSON values, for metadata and receipts."""
        return {name: _plain(value) for name, value in vars(self).items()}


class PartitionReader:
    """The rows of one partition; iterate over it once, `counts` are complete afterwards.

    Iterating yields pairs: a batch of good rows in `contract.schema`, and the rejected rows that stood among
    them, in the order of the source. Either may be empty.

    Raises (while iterating):
        SourceMissingError: there is no file or no row, and the source does not say `allow_empty`.
        SourceError: a file cannot be read, or changed between two readings.
        ContractError: a file does not fit the contract, or keys repeat under `on_duplicate: fail`.
    """

    def __init__(
        self, source: SourceSpec, partition: Partition, base: Path, root: Location | None = None
    ) -> None:
        self._source, self._partition, self._base, self._root = source, partition, base, root
        self.contract = Contract(source.columns, source.row_key)
        self.counts = Counts()

    def __iter__(self) -> Iterator[Landed]:
        self.counts = Counts()
        seen: set[str] = set()
        for good, rejected in self._without_duplicates(self._judged(seen)):
            self.counts.rows_kept += good.num_rows
            self.counts.rejected.update(row.error_type for row in rejected)
            if good.num_rows or rejected:
                yield good, rejected
        self.counts.ignored_columns = sorted(seen - set(self._source.columns))
        self.counts.absent_columns = [name for name in self._source.columns if seen and name not in seen]
        if not self.counts.rows_in and not self._source.allow_empty:
            raise self._empty()

    def _batches(self) -> Iterator[SourceBatch]:
        try:
            yield from read_source(self._source, self._partition, self._base, self._root)
        except SourceMissingError:
            if not self._source.allow_empty:
                raise

    def _judged(self, seen: set[str]) -> Iterator[Landed]:
        """Good and rejected rows of each batch, counted."""
        for batch in self._batches():
            rows = batch.batch.num_rows + len(batch.unparsable)
            seen |= batch.columns_seen
            self.counts.rows_in += rows
            if rows:
                self.counts.files[batch.source_file] += rows
            self.counts.unplaced += batch.unplaced
            yield self.contract.enforce(batch)

    def _without_duplicates(self, judged: Iterator[Landed]) -> Iterator[Landed]:
        policy = self._source.on_duplicate
        if policy == "last":
            return self._keep_last(judged)
        if policy == "first":
            return self._keep_first(judged)
        return self._quarantine_later(judged) if policy == "quarantine" else self._refuse(judged)

    def _keep_first(self, judged: Iterator[Landed]) -> Iterator[Landed]:
        keys = SeenKeys()
        for good, rejected in judged:
            repeated = keys.add(good.column("row_key"))
            self.counts.duplicates_dropped += int(repeated.sum())
            yield good.filter(pa.array(~repeated)), rejected

    def _quarantine_later(self, judged: Iterator[Landed]) -> Iterator[Landed]:
        keys = SeenKeys()
        for good, rejected in judged:
            repeated = keys.add(good.column("row_key"))
            later = self.contract.reject(
                good.filter(pa.array(repeated)), "duplicate_key", "repeats the key of an earlier row"
            )
            yield good.filter(pa.array(~repeated)), _in_order(rejected, later)

    def _refuse(self, judged: Iterator[Landed]) -> Iterator[Landed]:
        keys = SeenKeys()
        count, examples = 0, list[str]()
        for good, rejected in judged:
            repeated = np.flatnonzero(keys.add(good.column("row_key")))
            count += len(repeated)
            examples += [self._place(good, row) for row in repeated[: _EXAMPLES - len(examples)].tolist()]
            yield good, rejected
        if count:
            raise DuplicateKeysError(
                f"{self._named()}: {count} rows repeat the key of an earlier row in column "
                f"{self._source.row_key} ({', '.join(examples)}{', …' if count > len(examples) else ''}). "
                "Remove them, or say which to keep with source.on_duplicate: first, last or quarantine"
            )

    def _keep_last(self, judged: Iterator[Landed]) -> Iterator[Landed]:
        superseded = self._superseded()
        first = 0
        for good, rejected in judged:
            dropped = superseded[first : first + good.num_rows]
            first += good.num_rows
            if len(dropped) != good.num_rows:
                raise self._changed()
            self.counts.duplicates_dropped += int(dropped.sum())
            yield good.filter(pa.array(~dropped)), rejected
        if first != len(superseded):
            raise self._changed()

    def _superseded(self) -> npt.NDArray[np.bool_]:
        """Which good rows, in their order, are followed by another with their key; reads the source once."""
        keys = LastOccurrences()
        for batch in self._batches():
            keys.add(self.contract.enforce(batch)[0].column("row_key"))
        return keys.superseded()

    def _place(self, good: pa.RecordBatch, row: int) -> str:
        place = f"{good.column('source_file')[row]} row {good.column('source_row')[row]}"
        if self.contract.columns[self.contract.row_key].sensitive:
            return place
        return f"{cut(repr(good.column('row_key')[row].as_py()), SHOWN_VALUE)} in {place}"

    def _named(self) -> str:
        return f"{self._source.place}, partition {self._partition.key}"

    def _empty(self) -> SourceMissingError:
        unplaced = self.counts.unplaced
        hint = f" ({unplaced} rows have no readable {self._source.partition_column})" if unplaced else ""
        return SourceMissingError(
            f"{self._named()}: no rows{hint}. Check whether the data has arrived; "
            "where a partition may be empty, set source.allow_empty: true"
        )

    def _changed(self) -> SourceError:
        return SourceError(f"{self._named()}: the source changed while it was read; run the partition again")


def read_partition(source: SourceSpec, partition: Partition, base: Path) -> PartitionReader:
    """The rows of a partition, judged by the source's contract.

    Args:
        source: the source of a pipeline file.
        partition: the partition.
        base: the project's folder, from which relative uris start.

    Raises:
        ContractError: the contract contradicts itself. Reading raises as `PartitionReader` says.
    """
    return PartitionReader(source, partition, base)


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Counter) else value


def _in_order(rejected: list[Rejected], later: list[Rejected]) -> list[Rejected]:
    return sorted([*rejected, *later], key=lambda row: row.source_row) if later else rejected
