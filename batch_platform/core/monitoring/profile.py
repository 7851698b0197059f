"""What one partition's table looked like, in a few kilobytes: mergeable, for any number of rows.

Decides what is counted of a column. Every count is a sum of integers, on bins that follow from the values alone, so
that the profiles of two batches, merged, are the profile of both, bit for bit. Of columns with very many values the
names of the frequent ones follow from the order of merging, within a stated error (`heavy.py`); no count does. What
is normal, and what is a change, is not decided here.
"""

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.monitoring.heavy import HEAVY_VALUES, HeavyValue, heaviest
from batch_platform.core.monitoring.histogram import Histogram, places_of
from batch_platform.core.monitoring.texts import CHARACTER_BINS, text_measures
from batch_platform.core.monitoring.vector_sample import VectorSample
from batch_platform.errors import MonitoringError

Kind = Literal["number", "string", "boolean", "time", "vector", "empty"]

FORMAT = 3
# Format 2 knew neither ends, infinities, heavy values, what texts are made of nor samples of vectors: these are empty
# in what is read.
_READ = (2, FORMAT)
_HEADER = re.compile(rb"batch_platform profile ([0-9]{1,9}) rows ([0-9]{1,18})\n")
HEADER_BYTES = 64  # a header is never longer

# With 512 bins a bell curve has bins of about a hundredth of its rows; 2 % of the numbers or finer.
NUMBER_BINS = 512
# Strings are counted by their hash. Up to so many distinct ones each has a bin, and its name is kept.
VALUE_BINS = 1024
_NAME_CHARACTERS = 60
# Few, large pieces: merging costs as much as counting some thousand rows.
_ROWS_AT_ONCE = 100_000
_LARGEST_PIECE = 2**30  # bytes

# Vectors are summed in multiples of 2**-20; components beyond 2**20 would not be exact.
_UNIT = 2**20
# Norms are counted by 10 bits of their mantissa: of unit vectors only the rounding would be left otherwise.
_NORM_BITS = 42
DIFFERING = -1
_VECTORS_AT_ONCE = 8192  # of 384 components: 25 MB in each array of float64


@dataclass(frozen=True)
class ColumnProfile:
    """Counts of one column.

    Attributes:
        kind: what the column holds. Of timestamps nulls are counted and the ends kept, as their values always move;
            `empty` is a column without a type, all null.
        rows: all rows.
        nulls: rows without a value.
        bad: NaN or infinite numbers; vectors that are empty, or hold such or huge components.
        numbers: numbers by value, strings by their length in characters, vectors by their norm.
        values: strings and booleans by the hash of their value.
        names: the value in each bin of `values`; empty where there are more values than bins.
        heavy: then the most frequent values, with how often each was met, at the least; see `heavy.py`.
        infinite: of `bad`, the infinite numbers.
        low: the smallest finite number, or the oldest moment in microseconds since 1970; None where there is none.
        high: the largest, or the newest.
        token_lengths: strings by the mean length of their tokens, in quarters of a character.
        symbols: strings by the share of their characters that are neither letters nor spaces, in 64ths.
        dimension: of vectors; 0 before the first, `DIFFERING` where it is not the same for all.
        sums: vectors: sum of each component, (dimension,), in units of 2**-20.
        squares: vectors: sum of the squared norms, in units of 2**-20.
        sample: vectors: some of them.
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
    heavy: tuple[HeavyValue, ...] = ()
    infinite: int = 0
    low: float | None = None
    high: float | None = None
    token_lengths: Histogram = field(default_factory=lambda: Histogram(CHARACTER_BINS))
    symbols: Histogram = field(default_factory=lambda: Histogram(CHARACTER_BINS))
    sample: VectorSample = field(default_factory=VectorSample)

    @property
    def empty(self) -> int:
        """Strings without a character."""
        lengths = self.numbers if self.kind == "string" else Histogram(NUMBER_BINS)
        return dict(zip(lengths.places, lengths.counts, strict=True)).get(0, 0)

    @property
    def is_constant(self) -> bool:
        """Whether all rows that have a value have the same one."""
        if self.kind in ("string", "boolean"):
            return self.values.level == 0 and len(self.values.places) == 1
        return self.kind in ("number", "time") and self.low is not None and self.low == self.high

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
            heaviest(part.frequent() for part in parts) if values.level else (),
            sum(part.infinite for part in parts),
            min((part.low for part in parts if part.low is not None), default=None),
            max((part.high for part in parts if part.high is not None), default=None),
            Histogram.merged((part.token_lengths for part in parts), CHARACTER_BINS),
            Histogram.merged((part.symbols for part in parts), CHARACTER_BINS),
            VectorSample.merged(part.sample for part in vectors),
        )

    def frequent(self) -> tuple[HeavyValue, ...]:
        """The values that are known by name: all of them, or the heavy ones."""
        if self.heavy or self.values.level:
            return self.heavy
        named = zip(self.values.places, self.names, self.values.counts, strict=True)
        return tuple(HeavyValue(*each) for each in named)

    def to_values(self) -> dict[str, Any]:
        """Plain values for JSON: of what most columns have not, only what this one has."""
        histograms = {name: getattr(self, name) for name in _HISTOGRAMS}
        plain = {name: value for name, value in vars(self).items() if name not in (*_HISTOGRAMS, "sample")}
        told = {name: value for name, value in plain.items() if name in _ALWAYS or value not in (None, 0, ())}
        told |= {name: value for name, value in plain.items() if name in _ENDS and value is not None}
        told |= {"sample": self.sample.to_values()} if self.sample.hashes else {}
        return told | {name: each.to_values() for name, each in histograms.items() if each.places}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "ColumnProfile":
        """Read plain values."""
        read = {name: Histogram.from_values(values[name]) for name in _HISTOGRAMS if name in values}
        tuples = {name: tuple(values.get(name, ())) for name in ("names", "sums")}
        heavy = tuple(HeavyValue(*each) for each in values.get("heavy", ()))
        sample = VectorSample.from_values(values["sample"]) if "sample" in values else VectorSample()
        return cls(**{**values, **read, **tuples, "heavy": heavy, "sample": sample})


_HISTOGRAMS = ("numbers", "values", "token_lengths", "symbols")
_ALWAYS = ("kind", "rows")
_ENDS = ("low", "high")


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
    if int(header[1]) not in _READ:
        known = " and ".join(map(str, _READ))
        raise MonitoringError(f"a profile of format {int(header[1])}; this version reads {known}")
    return int(header[2])


def profile_table(table: pa.Table | pa.RecordBatch) -> Profile:
    """The profile of all rows of a table.

    Args:
        table: (rows, columns); numbers, strings, booleans, dates, timestamps and lists of numbers. Columns of
            other types are left out.
    """
    whole = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
    columns: dict[str, ColumnProfile] = {}
    for place, name in enumerate(whole.column_names):
        # A column at a time is put together, so that not the whole table is there twice.
        parts = [_plain(part) for part in _parts(whole.column(place))]
        kind = _kind(parts[0].type)
        if kind is not None:
            columns[name] = ColumnProfile.merged([_profile(part, kind) for part in parts])
    return Profile(columns, whole.num_rows)


def _parts(column: pa.ChunkedArray) -> list[pa.Array]:
    """The column in few large pieces; one that is too large for a single array in the pieces that it has."""
    if column.nbytes > _LARGEST_PIECE:
        return list(column.chunks)
    return [column.combine_chunks()]


class Profiler:
    """Profiles rows as they come, in memory that does not grow with them."""

    def __init__(self) -> None:
        self._profile: Profile | None = None
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Count these rows too."""
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        self._waiting.append(table)
        self._rows += table.num_rows  # a table without columns loses its rows when it is put together
        if sum(each.num_rows for each in self._waiting) >= _ROWS_AT_ONCE:
            self._count()

    def profile(self) -> Profile:
        """The profile of all rows so far."""
        self._count()
        return Profile(self._profile.columns if self._profile else {}, self._rows)

    def _count(self) -> None:
        if not self._waiting:
            return
        together = pa.concat_tables(self._waiting, promote_options="default")
        found, self._waiting = profile_table(together), []
        self._profile = found if self._profile is None else self._profile.merge(found)


# -- counting ---------------------------------------------------------------------------------------------


def _profile(column: pa.Array, kind: Kind) -> ColumnProfile:
    rows, nulls = len(column), column.null_count
    values = column.drop_null()
    if kind == "number":
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        bins = Histogram.of(places_of(finite), NUMBER_BINS)
        low, high = _ends(finite)
        bad, infinite = len(numbers) - len(finite), int(np.isinf(numbers).sum())
        return ColumnProfile(kind, rows, nulls, bad, bins, infinite=infinite, low=low, high=high)
    if kind in ("string", "boolean"):
        return _texts(kind, values.cast(pa.string()), rows, nulls)
    if kind == "vector":
        parts = [
            _vectors(values.slice(first, _VECTORS_AT_ONCE))
            for first in range(0, len(values), _VECTORS_AT_ONCE)
        ]
        return ColumnProfile.merged([ColumnProfile(kind, nulls, nulls), *parts])
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        moments = values.cast(pa.timestamp("us", getattr(values.type, "tz", None)), safe=False)
        low, high = _ends(moments.cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.float64))
        return ColumnProfile(kind, rows, nulls, low=low, high=high)
    return ColumnProfile(kind, rows, nulls)


def _ends(numbers: npt.NDArray[np.float64]) -> tuple[float | None, float | None]:
    # + 0.0: the negative zero is a zero
    return (float(numbers.min() + 0.0), float(numbers.max() + 0.0)) if len(numbers) else (None, None)


def _texts(kind: Kind, texts: pa.Array, rows: int, nulls: int) -> ColumnProfile:
    # One entry a distinct value: hashing in Python costs nothing for categories.
    encoded = texts.dictionary_encode()
    counts = np.bincount(encoded.indices.to_numpy(zero_copy_only=False), minlength=len(encoded.dictionary))
    distinct = encoded.dictionary.to_pylist()
    hashes = np.array([zlib.crc32(value.encode()) for value in distinct], np.int64)
    lengths = pc.utf8_length(encoded.dictionary).to_numpy(zero_copy_only=False).astype(np.float64)
    values = Histogram.counted(hashes, counts, VALUE_BINS)
    short = [value[:_NAME_CHARACTERS] for value in distinct]
    found = ColumnProfile(
        kind,
        rows,
        nulls,
        0,
        Histogram.counted(places_of(lengths), counts, NUMBER_BINS),
        values,
        _names(values, zip(hashes.tolist(), short, strict=True)),
    )
    if kind == "boolean":
        return found
    measures = text_measures(encoded.dictionary)
    most = np.argsort(-counts, kind="stable")[: HEAVY_VALUES + 1].tolist() if values.level else []
    return replace(
        found,
        heavy=heaviest([[HeavyValue(int(hashes[at]), short[at], int(counts[at])) for at in most]]),
        token_lengths=Histogram.counted(measures.token_lengths, counts, CHARACTER_BINS),
        symbols=Histogram.counted(measures.symbols, counts, CHARACTER_BINS),
    )


def _names(values: Histogram, named: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    """The name of each bin: of two values with one hash the first by order; none where values share bins."""
    if values.level:
        return ()
    names: dict[int, str] = {}
    for place, name in named:
        names[place] = min(names.get(place, name), name)
    return tuple(names[place] for place in values.places)


def _vectors(column: pa.Array) -> ColumnProfile:
    rows = len(column)
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
        return ColumnProfile("vector", rows, 0, bad, norms, dimension=dimension)
    units = units.reshape(-1, dimension)
    return ColumnProfile(
        "vector",
        rows,
        0,
        bad,
        norms,
        dimension=dimension,
        sums=tuple(units.sum(axis=0).astype(np.int64).tolist()),
        squares=sum(map(int, np.round(squares * _UNIT).tolist())),
        sample=VectorSample.of(units, _UNIT * np.sqrt(squares)),
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
