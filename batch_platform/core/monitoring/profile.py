"""What one partition's table looked like, in a few kilobytes: exactly mergeable, for any number of rows.

Decides what is counted of a column. Everything counted is a sum of integers, on bins that follow from the values
alone, so that the profiles of two batches, merged, are the profile of both, bit for bit. What is normal, and what
is a change, is not decided here.
"""

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.monitoring.histogram import Histogram, places_of
from batch_platform.errors import MonitoringError

Kind = Literal["number", "string", "boolean", "time", "vector", "empty"]

FORMAT = 2
_HEADER = re.compile(rb"batch_platform profile ([0-9]{1,9}) rows ([0-9]{1,18})\n")
HEADER_BYTES = 64  # a header is never longer

# With 512 bins a bell curve has bins of about a hundredth of its rows; 2 % of the numbers or finer.
NUMBER_BINS = 512
# Strings are counted by their hash. Up to so many distinct ones each has a bin, and its name is kept.
VALUE_BINS = 1024
_NAME_CHARACTERS = 60

# Vectors are summed in multiples of 2**-20; components beyond 2**20 would not be exact.
_UNIT = 2**20
# Norms are counted by 10 bits of their mantissa: of unit vectors only the rounding would be left otherwise.
_NORM_BITS = 42
DIFFERING = -1


@dataclass(frozen=True)
class ColumnProfile:
    """Counts of one column.

    Attributes:
        kind: what the column holds. Of timestamps only nulls are counted, as their values always move; `empty`
            is a column without a type, all null.
        rows: all rows.
        nulls: rows without a value.
        bad: NaN or infinite numbers; vectors that are empty, or hold such or huge components.
        numbers: numbers by value, strings by their length in characters, vectors by their norm.
        values: strings and booleans by the hash of their value.
        names: the value in each bin of `values`; empty where there are more values than bins.
        dimension: of vectors; 0 before the first, `DIFFERING` where it is not the same for all.
        sums: vectors: sum of each component, (dimension,), in units of 2**-20.
        squares: vectors: sum of the squared norms, in units of 2**-20.
    """

    kind: Kind
    rows: int = 0
    nulls: int = 0
    bad: int = 0
    numbers: Histogram = field(default_factory=lambda: Histogram(NUMBER_BINS))
    values: Histogram = field(default_factory=lambda: Histogram(VALUE_BINS))
    names: tuple[str, ...] = ()
    dimension: int = 0
    sums: tuple[int, ...] = ()
    squares: int = 0

    @property
    def missing(self) -> int:
        """Rows without a usable value: nulls, NaN and infinite numbers."""
        return self.nulls + self.bad

    @classmethod
    def merged(cls, parts: Sequence["ColumnProfile"]) -> "ColumnProfile":
        """The profile of all parts' rows together.

        Raises:
            MonitoringError: they hold different kinds of values.
        """
        if len(parts) == 1:
            return parts[0]
        kinds = {part.kind for part in parts} - {"empty"}
        if len(kinds) > 1:
            raise MonitoringError(f"columns of {' and '.join(sorted(kinds))} values cannot be merged")
        values = Histogram.merged((part.values for part in parts), VALUE_BINS)
        dimension = _common({part.dimension for part in parts})
        vectors = [part for part in parts if part.sums and dimension != DIFFERING]
        return cls(
            kinds.pop() if kinds else "empty",
            sum(part.rows for part in parts),
            sum(part.nulls for part in parts),
            sum(part.bad for part in parts),
            Histogram.merged((part.numbers for part in parts), NUMBER_BINS),
            values,
            _names(
                values, (pair for part in parts for pair in zip(part.values.places, part.names, strict=False))
            ),
            dimension,
            tuple(map(sum, zip(*(part.sums for part in vectors), strict=True))),
            sum(part.squares for part in vectors),
        )

    def to_values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "numbers": self.numbers.to_values(), "values": self.values.to_values()}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "ColumnProfile":
        """Read plain values."""
        histograms = {name: Histogram.from_values(values[name]) for name in ("numbers", "values")}
        tuples = {name: tuple(values[name]) for name in ("names", "sums")}
        return cls(**{**values, **histograms, **tuples})


@dataclass(frozen=True)
class Profile:
    """Profiles of a table's columns, by name."""

    columns: Mapping[str, ColumnProfile] = field(default_factory=dict)
    rows: int = 0

    def merge(self, other: "Profile") -> "Profile":
        """The profile of both tables' rows together; a column that one of them lacks is kept.

        Raises:
            MonitoringError: a column holds different kinds of values.
        """
        return Profile.merged([self, other])

    @classmethod
    def merged(cls, profiles: Iterable["Profile"]) -> "Profile":
        """The profile of all tables' rows together, as `merge` one after the other, and faster.

        Raises:
            MonitoringError: a column holds different kinds of values.
        """
        rows, parts = 0, dict[str, list[ColumnProfile]]()
        for profile in profiles:
            rows += profile.rows
            for name, column in profile.columns.items():
                parts.setdefault(name, []).append(column)
        columns = {}
        for name, found in parts.items():
            try:
                columns[name] = ColumnProfile.merged(found)
            except MonitoringError as error:
                raise MonitoringError(f"column {name}: {error}") from None
        return cls(columns, rows)

    def to_bytes(self) -> bytes:
        """A versioned, compressed form; equal profiles give equal bytes. `from_bytes` reads it back."""
        columns = {name: column.to_values() for name, column in self.columns.items()}
        body = json.dumps({"rows": self.rows, "columns": columns}, separators=(",", ":"), sort_keys=True)
        return b"batch_platform profile %d rows %d\n" % (FORMAT, self.rows) + zlib.compress(body.encode())

    @classmethod
    def from_bytes(cls, content: bytes) -> "Profile":
        """Read a profile.

        Raises:
            MonitoringError: the bytes are no profile, or of a format that is not known.
        """
        rows = rows_in(content)
        try:
            body = json.loads(zlib.decompress(content.partition(b"\n")[2]))
            columns = {name: ColumnProfile.from_values(values) for name, values in body["columns"].items()}
            if body["rows"] != rows:
                raise ValueError(f"{body['rows']} rows under a header of {rows}")
        except (zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MonitoringError(f"not a profile ({error}): it was cut or altered") from None
        return cls(columns, rows)


def rows_in(content: bytes) -> int:
    """Rows of a profile, from the first `HEADER_BYTES` of its bytes.

    Raises:
        MonitoringError: the bytes are no profile, or of a format that is not known.
    """
    header = _HEADER.match(content)
    if header is None:
        raise MonitoringError(f"not a profile that this version reads (format {FORMAT})")
    if int(header[1]) != FORMAT:
        raise MonitoringError(f"a profile of format {int(header[1])}; this version reads {FORMAT}")
    return int(header[2])


def profile_table(table: pa.Table | pa.RecordBatch) -> Profile:
    """The profile of all rows of a table.

    Args:
        table: (rows, columns); numbers, strings, booleans, dates, timestamps and lists of numbers. Columns of
            other types are left out.
    """
    if isinstance(table, pa.Table):
        empty = pa.RecordBatch.from_pylist([], schema=table.schema)
        return Profile.merged(profile_table(batch) for batch in table.to_batches() or [empty])
    columns = {}
    for place, column in enumerate(table.schema):
        values = _plain(table.column(place))
        kind = _kind(values.type)
        if kind is not None:
            columns[column.name] = _profile(values, kind)
    return Profile(columns, table.num_rows)


# -- counting ---------------------------------------------------------------------------------------------


def _profile(column: pa.Array, kind: Kind) -> ColumnProfile:
    rows, nulls = len(column), column.null_count
    values = column.drop_null()
    if kind == "number":
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        bins = Histogram.of(places_of(finite), NUMBER_BINS)
        return ColumnProfile(kind, rows, nulls, len(numbers) - len(finite), bins)
    if kind in ("string", "boolean"):
        return _texts(kind, values.cast(pa.string()), rows, nulls)
    if kind == "vector":
        return _vectors(values, rows, nulls)
    return ColumnProfile(kind, rows, nulls)


def _texts(kind: Kind, texts: pa.Array, rows: int, nulls: int) -> ColumnProfile:
    lengths = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.float64)
    # One entry a distinct value: hashing in Python costs nothing for categories.
    encoded = texts.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    hashes = np.array([zlib.crc32(value.encode()) for value in distinct], np.int64)
    values = Histogram.of(hashes[encoded.indices.to_numpy(zero_copy_only=False)], VALUE_BINS)
    short = (value[:_NAME_CHARACTERS] for value in distinct)
    names = _names(values, zip(hashes.tolist(), short, strict=True))
    return ColumnProfile(kind, rows, nulls, 0, Histogram.of(places_of(lengths), NUMBER_BINS), values, names)


def _names(values: Histogram, named: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    """The name of each bin: of two values with one hash the first by order; none where values share bins."""
    if values.level:
        return ()
    names: dict[int, str] = {}
    for place, name in named:
        names[place] = min(names.get(place, name), name)
    return tuple(names[place] for place in values.places)


def _vectors(column: pa.Array, rows: int, nulls: int) -> ColumnProfile:
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    dimension = _common({int(length) for length in np.unique(lengths)})
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    unusable = np.bincount(owners, ~(np.abs(flat) < _UNIT), len(lengths)) > 0
    good = ~unusable & (lengths > 0)
    units = np.round(flat[good[owners]] * _UNIT)
    starts = np.cumsum(lengths[good]) - lengths[good]
    squares = np.add.reduceat((units / _UNIT) ** 2, starts) if good.any() else np.empty(0)
    norms = Histogram.of(places_of(np.sqrt(squares)) >> _NORM_BITS << _NORM_BITS, NUMBER_BINS)
    bad = int((~good).sum())
    if dimension <= 0 or not good.any():
        return ColumnProfile("vector", rows, nulls, bad, norms, dimension=dimension)
    sums = units.astype(np.int64).reshape(-1, dimension).sum(axis=0)
    total = sum(map(int, np.round(squares * _UNIT).tolist()))
    return ColumnProfile(
        "vector", rows, nulls, bad, norms, dimension=dimension, sums=tuple(sums.tolist()), squares=total
    )


def _common(dimensions: set[int]) -> int:
    """The one dimension of all vectors; empty vectors have none."""
    known = dimensions - {0}
    return known.pop() if len(known) == 1 else DIFFERING if known else 0


# -- types ------------------------------------------------------------------------------------------------


def _plain(column: pa.Array) -> pa.Array:
    """The column in the plainest type that holds its values."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.dictionary_decode())
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        return column.cast(pa.list_(kind.value_type))
    return column


def _kind(kind: pa.DataType) -> Kind | None:
    tests: Iterator[tuple[bool, Kind]] = iter(
        [
            (pa.types.is_null(kind), "empty"),
            (pa.types.is_boolean(kind), "boolean"),
            (_is_number(kind), "number"),
            (
                pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind),
                "string",
            ),
            (pa.types.is_temporal(kind), "time"),
            (pa.types.is_list(kind) and _is_number(kind.value_type), "vector"),
        ]
    )
    return next((name for fits, name in tests if fits), None)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
