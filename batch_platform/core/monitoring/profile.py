"""What one partition's table looked like, in a few kilobytes: exactly mergeable, for any number of rows.

Decides what is counted of a column. Counts are on fixed bins and buckets, so that the profile of two batches is
the sum of their profiles, bit for bit. What is normal, and what is a change, is not decided here.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.errors import MonitoringError

Kind = Literal["number", "string", "boolean", "time", "vector"]

FORMAT = 1
# Bins of numbers: zero, and on both sides of it steps of 2 %.
_STEP = np.log(1.02)
_SMALLEST = 1e-9
_LARGEST = 1e290
# Strings are counted in buckets of their hash, so that any number of distinct values merges exactly.
BUCKETS = 1024
_NAME_CHARACTERS = 60


@dataclass(frozen=True)
class ColumnProfile:
    """Counts of one column.

    Attributes:
        kind: what the column holds; timestamps are only counted, as their values always move.
        rows: all rows.
        nulls: rows without a value.
        bad: infinite or NaN numbers.
        bins: number bin -> rows; for strings the bins of their lengths in characters.
        buckets: strings and booleans: bucket of the value -> rows.
        names: bucket -> the first value in it by order, to name it.
        sums: vectors: sum of each component over rows, (dimension,); empty where lengths differ.
        mixed: vectors of different lengths, or empty ones, were seen.
    """

    kind: Kind
    rows: int = 0
    nulls: int = 0
    bad: int = 0
    bins: Mapping[int, int] = field(default_factory=dict)
    buckets: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    sums: tuple[float, ...] = ()
    mixed: bool = False

    def merge(self, other: "ColumnProfile") -> "ColumnProfile":
        """The profile of both columns' rows together.

        Raises:
            MonitoringError: they hold different kinds of values.
        """
        if self.kind != other.kind:
            raise MonitoringError(f"a column of {self.kind} values cannot be merged with one of {other.kind}")
        names = {**other.names, **self.names}
        names |= {
            place: min(self.names[place], other.names[place]) for place in self.names.keys() & other.names
        }
        mixed = self.mixed or other.mixed or len({len(sums) for sums in (self.sums, other.sums) if sums}) > 1
        return ColumnProfile(
            self.kind,
            self.rows + other.rows,
            self.nulls + other.nulls,
            self.bad + other.bad,
            _added(self.bins, other.bins),
            _added(self.buckets, other.buckets),
            names,
            () if mixed else _summed(self.sums, other.sums),
            mixed,
        )


@dataclass(frozen=True)
class Profile:
    """Profiles of a table's columns, by name."""

    columns: Mapping[str, ColumnProfile] = field(default_factory=dict)
    rows: int = 0

    def merge(self, other: "Profile") -> "Profile":
        """The profile of both tables' rows together; a column that one of them lacks is kept."""
        shared = self.columns.keys() & other.columns.keys()
        columns = {**self.columns, **other.columns}
        columns |= {name: self.columns[name].merge(other.columns[name]) for name in shared}
        return Profile(columns, self.rows + other.rows)

    def to_bytes(self) -> bytes:
        """A versioned, compressed form; `from_bytes` reads it back."""
        columns = {name: vars(column) for name, column in self.columns.items()}
        body = {"format": FORMAT, "rows": self.rows, "columns": columns}
        return zlib.compress(json.dumps(body, separators=(",", ":"), sort_keys=True).encode())

    @classmethod
    def from_bytes(cls, content: bytes) -> "Profile":
        """Read a profile.

        Raises:
            MonitoringError: the bytes are no profile, or of a format that is not known.
        """
        try:
            body = json.loads(zlib.decompress(content))
            if body["format"] != FORMAT:
                raise MonitoringError(f"profile of format {body['format']}; this version reads {FORMAT}")
            columns = {name: _column(values) for name, values in body["columns"].items()}
            return cls(columns, body["rows"])
        except (zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MonitoringError(f"not a profile: {error}; remove the file and judge again") from None


def profile_table(table: pa.Table | pa.RecordBatch) -> Profile:
    """The profile of all rows of a table.

    Args:
        table: (rows, columns); numbers, strings, booleans, dates, timestamps and lists of numbers. Columns of
            other types are left out.
    """
    if isinstance(table, pa.Table):
        batches = [profile_table(batch) for batch in table.to_batches()] or [
            profile_table(_empty(table.schema))
        ]
        return reduce(Profile.merge, batches)
    columns = {}
    for column in table.schema:
        kind = _kind(column.type)
        if kind is not None:
            columns[column.name] = _profile(table.column(column.name), kind)
    return Profile(columns, table.num_rows)


def bin_of(values: np.ndarray) -> np.ndarray:
    """Bins of finite numbers, (rows,) int64, in the order of the numbers."""
    size = np.abs(values)
    # Beyond the largest the quotient would overflow, and the order be lost.
    steps = np.floor(np.log(np.clip(size, _SMALLEST, _LARGEST) / _SMALLEST) / _STEP).astype(np.int64) + 1
    return np.where(size < _SMALLEST, 0, np.sign(values).astype(np.int64) * steps)


def bin_middle(place: int) -> float:
    """A number inside the bin."""
    return 0.0 if place == 0 else float(np.sign(place) * _SMALLEST * np.exp((abs(place) - 0.5) * _STEP))


# -- counting ---------------------------------------------------------------------------------------------


def _profile(column: pa.Array, kind: Kind) -> ColumnProfile:
    rows, nulls = len(column), column.null_count
    values = column.drop_null()
    if kind == "number":
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        return ColumnProfile(kind, rows, nulls, len(numbers) - len(finite), _counted(bin_of(finite)))
    if kind in ("string", "boolean"):
        texts = values.cast(pa.string())
        lengths = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.float64)
        buckets, names = _bucketed(texts)
        return ColumnProfile(kind, rows, nulls, 0, _counted(bin_of(lengths)), buckets, names)
    if kind == "vector":
        return _vector(values, rows, nulls)
    return ColumnProfile(kind, rows, nulls)


def _bucketed(texts: pa.Array) -> tuple[dict[int, int], dict[int, str]]:
    buckets: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in pc.value_counts(texts).to_pylist():
        place = zlib.crc32(entry["values"].encode()) % BUCKETS
        buckets[place] = buckets.get(place, 0) + entry["counts"]
        name = entry["values"][:_NAME_CHARACTERS]
        names[place] = min(names.get(place, name), name)
    return buckets, names


def _vector(values: pa.Array, rows: int, nulls: int) -> ColumnProfile:
    numbers = values.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    # By row, so that vectors of different lengths are counted alike whatever batch they come in.
    row = np.repeat(np.arange(len(lengths)), lengths)
    norms = np.sqrt(np.bincount(row, numbers**2, len(lengths)))
    finite = np.isfinite(norms)
    mixed = len(lengths) > 0 and bool((lengths != lengths[0]).any() or lengths[0] == 0)
    sums: tuple[float, ...] = ()
    if len(lengths) and not mixed:
        matrix = numbers.reshape(len(lengths), -1)[finite]
        # Rounded to a multiple of 2**-20: sums of such numbers are exact, in any order.
        sums = tuple((np.round(matrix * 2**20).sum(axis=0) / 2**20).tolist())
    bad = int((~finite).sum())
    return ColumnProfile("vector", rows, nulls, bad, _counted(bin_of(norms[finite])), sums=sums, mixed=mixed)


def _summed(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True)) if one and other else one or other


def _counted(places: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(places, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _added(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, int]:
    return {place: one.get(place, 0) + other.get(place, 0) for place in one.keys() | other.keys()}


def _kind(type_: pa.DataType) -> Kind | None:
    if pa.types.is_boolean(type_):
        return "boolean"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return "number"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "string"
    if pa.types.is_temporal(type_):
        return "time"
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return "vector" if is_list and pa.types.is_floating(type_.value_type) else None


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=schema)


def _column(values: Mapping[str, Any]) -> ColumnProfile:
    counts = {
        name: {int(place): count for place, count in values[name].items()}
        for name in ("bins", "buckets", "names")
    }
    return ColumnProfile(**{**values, **counts, "sums": tuple(values["sums"])})
