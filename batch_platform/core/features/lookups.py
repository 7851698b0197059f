"""Point-in-time joins: what a lookup knew of each raw row's key by a moment, and nothing from after it.

Decides which row of a lookup counts for a raw row, and what is made of those in its lookback. The moment is the
last microsecond of the partition, or one of the row's own that comes before it. A lookup's timestamp is known from
itself on; a date when its day ends, in the pipeline's zone. The lookup is read like a source, as far as the
partition's lookback reaches. The result has one row for every raw row, in their order; how it is joined is in
`as_of_join`. It does not know the recipe.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data.cells import arrow_type
from batch_platform.core.data.contract import SHOWN_VALUE, Contract, Rejected, cut
from batch_platform.core.data.partitions import Partition
from batch_platform.core.data.row_stream import RowStream
from batch_platform.core.data.sources import read_table
from batch_platform.core.data.staging import StagedFile, stage
from batch_platform.core.data.staging import read_files as read_staged
from batch_platform.core.data.window import Window
from batch_platform.core.features.as_of_join import ROWS, Ambiguous, AsOfJoin, Function, known_schema
from batch_platform.core.features.lookup_columns import added_columns, lookup_columns
from batch_platform.core.spec import LookupSpec, PipelineSpec
from batch_platform.errors import ContractError, SourceError, SourceMissingError

_MICROSECOND = timedelta(microseconds=1)
_EARLIEST = datetime(1, 1, 3, tzinfo=UTC)
# Years that Python can name, in either direction of a day.
_LATEST = datetime(9999, 12, 29, tzinfo=UTC)

RawColumns = Callable[[list[str]], Iterable[pa.RecordBatch]]


@dataclass(frozen=True)
class Joined:
    """What a lookup adds to the raw rows.

    Attributes:
        schema: the columns added.
        files: Parquet files of these columns, a row for every raw row, in order.
        required: columns among them that every row needs a value of.
        uri: of the lookup.
        counts: rows_read of the lookup in its window, and matched: raw rows that found one.
    """

    schema: pa.Schema
    files: Sequence[StagedFile]
    required: frozenset[str]
    uri: str
    counts: Mapping[str, int]

    def describe(self) -> dict[str, Any]:
        """What was joined, for receipts and metadata."""
        return {"uri": self.uri, "columns": self.schema.names, **self.counts, "sha256": self.digests}

    @property
    def digests(self) -> list[str]:
        """Digests of the files: equal for equal content."""
        return [file.sha256 for file in self.files]


def join_lookups(
    spec: PipelineSpec, partition: Partition, raw: RawColumns, base: Path, folder: Path
) -> list[Joined]:
    """Join every lookup of a pipeline to the raw rows of a partition.

    Args:
        raw: gives the named columns of all raw rows, in order, whenever it is called.
        base: folder that relative uris start from.
        folder: for files in the making, which stay there.

    Raises:
        SourceMissingError: a lookup has no files.
        SourceError: a lookup cannot be read, or a row of it has not the types declared.
        ContractError: its columns or keys contradict the pipeline file.
        StorageError: the disk is full.
    """
    joined: list[Joined] = []
    for place, lookup in enumerate(spec.lookups):
        work = folder / f"lookup-{place}"
        try:
            found = _Lookup(lookup, spec, partition, base, work).join(raw)
        except SourceError as error:
            raise type(error)(f"lookups.{place}: {error}") from None
        taken = [name for each in joined for name in each.schema.names]
        if twice := sorted(set(found.schema.names) & {*taken, *spec.source.columns}):
            raise ContractError(
                f"lookups.{place}: {lookup.place} has a column {twice[0]!r}, which is there already: "
                "set a prefix, or name the columns to take"
            )
        joined.append(found)
    return joined


def beside(batches: Iterable[pa.RecordBatch], joined: Sequence[Joined]) -> Iterator[pa.RecordBatch]:
    """Raw batches with the columns of the lookups beside their own."""
    streams = [RowStream(read_staged(file.path for file in each.files), each.schema) for each in joined]
    for batch in batches:
        arrays, fields = list(batch.columns), list(batch.schema)
        for stream in streams:
            added = stream.take(batch.num_rows)
            arrays += added.columns
            fields += added.schema
        yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


class _Lookup:
    """One lookup and one partition."""

    def __init__(
        self, lookup: LookupSpec, spec: PipelineSpec, partition: Partition, base: Path, folder: Path
    ) -> None:
        self._lookup, self._partition, self._base, self._folder = lookup, partition, base, folder
        self._zone = spec.partitions.timezone
        self._uri = lookup.place.replace("{partition}", partition.key)
        self._columns = lookup_columns(lookup, spec.source.columns[lookup.on], self._uri, base)
        self._schema = added_columns(lookup, self._columns)
        self._last = _microseconds(partition.end) - 1

    def join(self, raw: RawColumns) -> Joined:
        rows, earliest = self._stage_rows(raw)
        known = self._stage_known(earliest)
        with AsOfJoin(rows, known, self._staged_schema(), self._folder) as join:
            if self._lookup.aggregates:
                matched = join.aggregate(list(self._calls()))
            else:
                matched = join.newest()
                if self._lookup.on_duplicate == "fail":
                    self._refuse_ambiguous(join.ambiguous())
            files = stage(join.result(self._schema), self._schema, self._folder, "joined")
        for file in (*rows, *known):
            assert isinstance(file.path, Path)
            file.path.unlink()
        counts = {"rows_read": sum(file.rows for file in known), "matched": matched}
        return Joined(self._schema, files, self._lookup.required, self._lookup.place, counts)

    @property
    def _values(self) -> list[str]:
        """The lookup's columns that are staged as v0, v1, ..."""
        if self._lookup.aggregates:
            return sorted(
                {each.column for each in self._lookup.aggregates.values() if each.column is not None}
            )
        prefix = len(self._lookup.prefix)
        return [name[prefix:] for name in self._schema.names]

    def _calls(self) -> Iterator[tuple[Function, int | None]]:
        """The aggregates, each with the place of its column among the values."""
        for aggregate in self._lookup.aggregates.values():
            column = aggregate.column
            yield aggregate.function, None if column is None else self._values.index(column)

    def _refuse_ambiguous(self, found: Ambiguous | None) -> None:
        if found is None:
            return
        named = (
            "a key"
            if self._columns[self._lookup.on].sensitive
            else f"{self._lookup.on} {cut(repr(found.key), SHOWN_VALUE)}"
        )
        raise ContractError(
            f"{found.first} and {found.second} differ for {named} at the same moment "
            f"({_moment(found.moment):%Y-%m-%d %H:%M:%S} UTC). Remove one, or set on_duplicate: last"
        )

    # -- staging ------------------------------------------------------------------------------------------

    def _stage_rows(self, raw: RawColumns) -> tuple[list[StagedFile], int]:
        """The raw rows: number, key, first and last microsecond that counts. Also the earliest of the firsts."""
        lookup = self._lookup
        span = lookup.lookback_days * 86_400_000_000
        names = [lookup.on] + ([lookup.as_of] if lookup.as_of is not None else [])
        earliest = self._last + 1 - span

        def rows() -> Iterator[pa.RecordBatch]:
            nonlocal earliest
            number = 0
            for batch in raw(names):
                numbers = pa.array(range(number, number + batch.num_rows), pa.int64())
                number += batch.num_rows
                last = pa.repeat(pa.scalar(self._last, pa.int64()), batch.num_rows)
                first = pa.repeat(pa.scalar(self._last + 1 - span, pa.int64()), batch.num_rows)
                if lookup.as_of is not None:
                    own = _moments(batch[lookup.as_of], self._zone, end_of_day=False)
                    last = pc.min_element_wise(own, last)
                    first = pc.subtract(last, span)
                    earliest = min(earliest, pc.min(first).as_py() or earliest)
                key = batch[lookup.on]
                yield pa.RecordBatch.from_arrays([numbers, _comparable(key), first, last], schema=ROWS)

        return stage(rows(), ROWS, self._folder, "rows"), earliest

    def _stage_known(self, earliest: int) -> list[StagedFile]:
        """The lookup's rows that can count for some raw row: place among them, key, moment, values, origin."""
        schema, contract = self._staged_schema(), Contract(self._columns, self._lookup.on)
        types = {name: spec.type for name, spec in self._columns.items()}
        reading = self._reading_window(earliest)
        window = Window(self._lookup.event_time, reading)
        asked = replace(self._partition, start=reading.start)

        def known() -> Iterator[pa.RecordBatch]:
            place = 0
            for source in read_table(
                self._lookup, asked, types, self._base, window=window, show_lines=not contract.has_sensitive
            ):
                good, rejected = contract.enforce(source)
                self._refuse(rejected)
                moment = _moments(good[self._lookup.event_time], self._zone, end_of_day=True)
                counts = pc.and_(
                    pc.and_(pc.greater_equal(moment, earliest), pc.less_equal(moment, self._last)),
                    good[self._lookup.on].is_valid(),
                )
                places = pa.array(range(place, place + good.num_rows), pa.int64())
                place += good.num_rows
                self._refuse_spaces(good)
                key = _comparable(good[self._lookup.on])
                values = [good[name] for name in self._values]
                origin = [good["source_file"], good["source_row"]]
                batch = pa.RecordBatch.from_arrays([places, key, moment, *values, *origin], schema=schema)
                yield batch.filter(counts)

        try:
            return stage(known(), schema, self._folder, "known")
        except SourceMissingError:
            raise SourceMissingError(
                f"{self._uri}: there is no such {self._lookup.format} data (relative places start at {self._base}): correct "
                "the uri, or wait for the data"
            ) from None

    def _staged_schema(self) -> pa.Schema:
        return known_schema([arrow_type(self._columns[name].type) for name in self._values])

    def _reading_window(self, earliest: int) -> Partition:
        """Wider by a day, because dates are compared by the ends of their days."""
        zone = ZoneInfo(self._zone)
        start = max(_EARLIEST, _moment(earliest) - timedelta(days=1))
        end = min(_LATEST, self._partition.end.astimezone(UTC) + timedelta(days=1))
        return Partition(start.astimezone(zone), end.astimezone(zone), self._partition.key)

    def _refuse(self, rejected: list[Rejected]) -> None:
        """Refuse a lookup's row that cannot be read. One without a key belongs to no raw row, and is left out."""
        for row in rejected:
            if row.error_type != "null_key":
                raise ContractError(
                    f"{row.source_file} row {row.source_row}: {row.message}. Correct the lookup's row, or its column "
                    "in the pipeline file"
                )

    def _refuse_spaces(self, good: pa.RecordBatch) -> None:
        """Texts that are joined by spaces must have none of their own."""
        for name, aggregate in self._lookup.aggregates.items():
            if aggregate.function != "join" or not pa.types.is_string(good[aggregate.column].type):
                continue
            spaced = pc.index(pc.match_substring(good[aggregate.column], " "), True).as_py()
            if spaced >= 0:
                raise ContractError(
                    f"{good['source_file'][spaced]} row {good['source_row'][spaced]}: column {aggregate.column} has a "
                    f"space, and aggregates.{name} joins its values by spaces. Correct the row, or join a column of ids"
                )


def _comparable(key: pa.Array) -> pa.Array:
    """Keys of one contract type as text, in which equal values are equal."""
    return key if pa.types.is_string(key.type) else key.cast(pa.string())


def _moments(values: pa.Array, zone: str, end_of_day: bool) -> pa.Array:
    """Dates and timestamps in microseconds since 1970, int64; a date as the first or last microsecond of its day."""
    if not pa.types.is_date(values.type):
        return values.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    days = values.cast(pa.int32())
    if end_of_day:
        days = pc.add(days, pa.scalar(1, pa.int32()))
    midnight = days.cast(pa.date32()).cast(pa.timestamp("us"))
    aware = pc.assume_timezone(midnight, zone, ambiguous="earliest", nonexistent="latest")
    moments = aware.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return pc.subtract(moments, 1) if end_of_day else moments


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _MICROSECOND


def _moment(microseconds: int) -> datetime:
    """The moment, or the first that Python can name."""
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + microseconds * _MICROSECOND
    except OverflowError:
        return _EARLIEST + timedelta(days=1)
