"""One column's cells, from what a file holds to the type of the contract.

Decides which texts, JSON values and Arrow types stand for a value of a contract type, and marks each
cell that does not. It never guesses: what does not fit is marked bad and comes back as null, for the
caller to reject. It knows neither files nor rules such as `required` or `min`.

Texts (CSV, and strings in JSON): an empty cell is null. Integers may be written `5.0`. Dates are ISO 8601;
timestamps too, UTC where they name no zone, digits beyond microseconds cut. Binary is base64; a list is a
JSON array. JSON numbers stand only for numbers, strings never do.
"""

import base64
import json
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.spec import ColumnType

# `text` is not for contracts: any scalar as its text, for keys and labels whose type nobody declared.
CellType = ColumnType | Literal["text"]
BoolArray = npt.NDArray[np.bool_]
Parsed = tuple[pa.Array, BoolArray]

_ARROW: dict[str, pa.DataType] = {
    "string": pa.string(),
    "text": pa.string(),
    "boolean": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "list<float32>": pa.list_(pa.float32()),
    "binary": pa.binary(),
}
_INTEGER = r"^[+-]?\d+(\.0*)?$"
_FLOAT = r"(?i)^[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity|nan)$"
_DATE = r"^\d{4}-\d{2}-\d{2}$"
_NAIVE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?$"
_ZONED = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}(:?\d{2})?)$"
# Years 1 to 9999, which every reader of the tables can show; in microseconds since 1970.
_FIRST_MICROSECOND = -62_135_596_800_000_000
_END_MICROSECOND = 253_402_300_800_000_000
_JSON_TYPES: dict[str, set[type]] = {
    "string": {str},
    "text": {str},
    "boolean": {bool},
    "int32": {int},
    "int64": {int},
    "float32": {float},
    "float64": {float},
}


def arrow_type(kind: CellType) -> pa.DataType:
    """The Arrow type that a contract type has in every table of the lake."""
    return _ARROW[kind]


def parse_text(cells: pa.StringArray, kind: CellType) -> Parsed:
    """Values of text cells.

    Args:
        cells: one string per row, "" or null where there is no value.
        kind: the type wanted.

    Returns:
        The values in `arrow_type(kind)`, null where a cell is empty or bad; and which cells are bad.
    """
    if kind in ("string", "text"):
        return pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells), _none_bad(cells)
    trimmed = pc.utf8_trim_whitespace(cells)
    trimmed = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    values = _TEXT_PARSERS[kind](trimmed)
    return values, _newly_null(trimmed, values)


def parse_json(values: Sequence[object], kind: CellType) -> Parsed:
    """Values of decoded JSON, one per row; the strings hold no lone surrogates.

    Returns:
        As `parse_text`. A missing value is None.
    """
    if kind in ("date", "timestamp"):
        parsed, bad = parse_text(pa.array([v if type(v) is str else None for v in values], pa.string()), kind)
        other = (value is not None and type(value) is not str for value in values)
        return parsed, bad | np.fromiter(other, np.bool_, len(values))
    if set(map(type, values)) <= _JSON_TYPES.get(kind, set()) | {NoneType}:
        try:
            return pa.array(values, _ARROW[kind]), np.zeros(len(values), np.bool_)
        except (pa.ArrowInvalid, OverflowError):
            pass  # some integer is too large: find out which
    converted = pa.array([_json_cell(value, kind) for value in values], _ARROW[kind])
    given = np.fromiter((value is not None for value in values), np.bool_, len(values))
    return converted, given & _nulls(converted)


def convertible(source: pa.DataType, kind: CellType) -> bool:
    """Whether a column of an Arrow type can hold values of a contract type at all."""
    if pa.types.is_dictionary(source):
        return convertible(source.value_type, kind)
    if pa.types.is_null(source) or source == _ARROW[kind]:
        return True
    if kind == "text":
        return not pa.types.is_nested(source)
    return _SOURCES[kind](source)


def cast_column(column: pa.Array, kind: CellType) -> Parsed:
    """Values of a typed column, whose type is `convertible`.

    Returns:
        As `parse_text`. Bad are numbers that do not fit (out of range, a fraction in an integer), times of
        day in a date, and bytes that are no UTF-8 in a string. Nanoseconds are cut to microseconds.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), _ARROW[kind]), _none_bad(column)
    values = _cast(column, kind)
    return values, _newly_null(column, values)


def text_of(column: pa.Array) -> pa.StringArray:
    """The texts of scalars as row keys: `7`, `1.5`, `true`, `2026-01-31`, `2026-01-31 10:00:00.000000Z`."""
    if not pa.types.is_timestamp(column.type):
        return column.cast(pa.string())
    # Without its zone, because Arrow would need the system's time zone database to print it.
    naive = column.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.timestamp("us"))
    return pc.binary_join_element_wise(naive.cast(pa.string()), "Z", "")


def _cast(column: pa.Array, kind: CellType) -> pa.Array:
    target, source = _ARROW[kind], column.type
    if kind in ("string", "text"):
        return _utf8(column) if _is_text(source) or _is_bytes(source) else text_of(column)
    if kind == "date" and pa.types.is_timestamp(source):
        moments = _moments(column)
        days = moments.cast(target)
        whole = pc.equal(days.cast(moments.type), moments)
        return pc.if_else(whole, days, pa.scalar(None, target))
    if kind == "timestamp":
        return _moments(column)
    if kind in ("float32", "float64", "list<float32>"):
        return column.cast(target, safe=False)
    return cast_or_null(column, target)


def cast_or_null(column: pa.Array, target: pa.DataType) -> pa.Array:
    """Cast safely; cells that cannot be cast become null (found by halving: a good column costs one cast)."""
    try:
        return column.cast(target)
    except pa.ArrowInvalid:
        if len(column) == 1:
            return pa.nulls(1, target)
    middle = len(column) // 2
    halves = (column.slice(0, middle), column.slice(middle))
    return pa.concat_arrays([cast_or_null(half, target) for half in halves])


def _moments(column: pa.Array) -> pa.Array:
    """Dates and timestamps as the contract's timestamps; null outside the years 1 to 9999."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", tz=column.type.tz), safe=False)
    values = cast_or_null(column, _ARROW["timestamp"])
    counts = values.cast(pa.int64())
    known = pc.and_(pc.greater_equal(counts, _FIRST_MICROSECOND), pc.less(counts, _END_MICROSECOND))
    return pc.if_else(known, values, pa.scalar(None, values.type))


def _utf8(column: pa.Array) -> pa.StringArray:
    raw = column.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([_decoded(value) for value in raw.to_pylist()], pa.string())


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _integers(cells: pa.StringArray, target: pa.DataType) -> pa.Array:
    plain = pc.replace_substring_regex(_matching(cells, _INTEGER), r"^\+|\.0*$", "")
    return cast_or_null(plain, target)


def _floats(cells: pa.StringArray, target: pa.DataType) -> pa.Array:
    plain = pc.replace_substring_regex(_matching(cells, _FLOAT), r"^\+", "")
    return cast_or_null(plain, pa.float64()).cast(target, safe=False)


def _timestamps(cells: pa.StringArray) -> pa.Array:
    cells = pc.replace_substring_regex(cells, r"(\.\d{6})\d+", r"\1")
    naive = cast_or_null(_matching(cells, _NAIVE), pa.timestamp("us")).cast(_ARROW["timestamp"])
    return pc.coalesce(naive, cast_or_null(_matching(cells, _ZONED), _ARROW["timestamp"]))


def _lists(cells: pa.StringArray) -> pa.Array:
    return pa.array([_list_cell(cell) for cell in cells.to_pylist()], _ARROW["list<float32>"])


def _list_cell(cell: str | None) -> list[float | None] | None:
    try:
        return None if cell is None else _json_floats(json.loads(cell))
    except (ValueError, RecursionError):
        return None


def _binaries(cells: pa.StringArray) -> pa.Array:
    return pa.array([_json_cell(cell, "binary") for cell in cells.to_pylist()], pa.binary())


_TEXT_PARSERS: dict[str, Callable[[pa.StringArray], pa.Array]] = {
    "boolean": lambda cells: cast_or_null(cells, pa.bool_()),
    "int32": lambda cells: _integers(cells, pa.int32()),
    "int64": lambda cells: _integers(cells, pa.int64()),
    "float32": lambda cells: _floats(cells, pa.float32()),
    "float64": lambda cells: _floats(cells, pa.float64()),
    "date": lambda cells: cast_or_null(_matching(cells, _DATE), pa.date32()),
    "timestamp": _timestamps,
    "list<float32>": _lists,
    "binary": _binaries,
}


def _json_cell(value: object, kind: CellType) -> object:
    """The value where it fits the type, else None."""
    return _JSON_PARSERS[kind](value)


def _json_integer(value: object, bits: int) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    fits = type(value) is int and -(1 << bits) <= value < 1 << bits
    return value if fits else None  # type: ignore[return-value]


def _json_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _json_bytes(value: object) -> bytes | None:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except ValueError:
        return None


def _json_floats(value: object) -> list[float | None] | None:
    """A list of numbers; nulls in it stay, for the contract to judge."""
    if not isinstance(value, list):
        return None
    numbers = [_json_float(item) for item in value]
    fits = all(number is not None or item is None for number, item in zip(numbers, value, strict=True))
    return numbers if fits else None


def _json_string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _json_text(value: object) -> str | None:
    return json.dumps(value) if isinstance(value, bool | int | float) else _json_string(value)


_JSON_PARSERS: dict[str, Callable[[object], object]] = {
    "string": _json_string,
    "text": _json_text,
    "boolean": lambda value: value if isinstance(value, bool) else None,
    "int32": lambda value: _json_integer(value, 31),
    "int64": lambda value: _json_integer(value, 63),
    "float32": _json_float,
    "float64": _json_float,
    "list<float32>": _json_floats,
    "binary": _json_bytes,
}


def _matching(cells: pa.StringArray, pattern: str) -> pa.StringArray:
    return pc.if_else(pc.match_substring_regex(cells, pattern), cells, pa.scalar(None, pa.string()))


def _none_bad(column: pa.Array) -> BoolArray:
    return np.zeros(len(column), np.bool_)


def _newly_null(before: pa.Array, after: pa.Array) -> BoolArray:
    if after.null_count == before.null_count:
        return _none_bad(after)
    return _nulls(after) & ~_nulls(before)


def _nulls(column: pa.Array) -> BoolArray:
    return column.is_null().to_numpy(zero_copy_only=False)


def _is_text(source: pa.DataType) -> bool:
    return pa.types.is_string(source) or pa.types.is_large_string(source) or pa.types.is_string_view(source)


def _is_bytes(source: pa.DataType) -> bool:
    return pa.types.is_binary(source) or pa.types.is_large_binary(source) or pa.types.is_binary_view(source)


def _is_number(source: pa.DataType) -> bool:
    return pa.types.is_integer(source) or pa.types.is_floating(source) or pa.types.is_decimal(source)


def _is_moment(source: pa.DataType) -> bool:
    return pa.types.is_timestamp(source) or pa.types.is_date(source)


def _is_number_list(source: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(of_kind(source) for of_kind in lists) and _is_number(source.value_type)


_SOURCES: dict[str, Callable[[pa.DataType], bool]] = {
    "string": lambda source: _is_text(source) or _is_bytes(source),
    "boolean": pa.types.is_boolean,
    "int32": _is_number,
    "int64": _is_number,
    "float32": _is_number,
    "float64": _is_number,
    "date": _is_moment,
    "timestamp": _is_moment,
    "list<float32>": _is_number_list,
    "binary": lambda source: _is_bytes(source) or pa.types.is_fixed_size_binary(source),
}
