"""What stands for a value of each type in text, in JSON and in Arrow's types, and what does not."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from batch_platform.core.data.cells import (
    CellType,
    arrow_type,
    cast_column,
    convertible,
    parse_json,
    parse_text,
)

BAD = object()
UTC = dt.UTC


def outcome(parsed: tuple[pa.Array, Any], kind: CellType) -> object:
    values, bad = parsed
    assert values.type == arrow_type(kind)
    assert not (bad[0] and values[0].is_valid)
    return BAD if bad[0] else values[0].as_py()


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        ("string", "", None),
        ("string", " a ", " a "),
        ("int64", "", None),
        ("int64", " ", None),
        ("int64", " +5 ", 5),
        ("int64", "5.00", 5),
        ("int64", "5.5", BAD),
        ("int64", "0x1F", BAD),
        ("int64", "1e3", BAD),
        ("int64", "abc", BAD),
        ("int64", "9223372036854775807", 2**63 - 1),
        ("int64", "9223372036854775808", BAD),
        ("int32", "2147483648", BAD),
        ("float64", "+1.5e3", 1500.0),
        ("float64", "1,5", BAD),
        ("float64", "-Infinity", float("-inf")),
        ("float32", ".5", 0.5),
        ("boolean", "True", True),
        ("boolean", "0", False),
        ("boolean", "yes", BAD),
        ("date", "2026-02-28", dt.date(2026, 2, 28)),
        ("date", "2026-02-30", BAD),
        ("date", "2026-02-28T00:00", BAD),
        ("timestamp", "2026-01-31", dt.datetime(2026, 1, 31, tzinfo=UTC)),
        ("timestamp", "2026-01-31T10:00:00+02:00", dt.datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("timestamp", "2026-01-31 10:00:00.123456789Z", dt.datetime(2026, 1, 31, 10, 0, 0, 123456, UTC)),
        ("timestamp", "2026-01-31T25:00:00", BAD),
        ("timestamp", "31.01.2026", BAD),
        ("list<float32>", "[1, 2.5]", [1.0, 2.5]),
        ("list<float32>", "1 2", BAD),
        ("list<float32>", "[" * 100_000, BAD),
        ("binary", "aGk=", b"hi"),
        ("binary", "h!", BAD),
    ],
)
def test_text(kind: CellType, cell: str, value: object) -> None:
    assert outcome(parse_text(pa.array([cell]), kind), kind) == value


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        ("string", "", ""),
        ("string", 1, BAD),
        ("string", {}, BAD),
        ("text", 1, "1"),
        ("text", True, "true"),
        ("text", [], BAD),
        ("int64", 1, 1),
        ("int64", 2.0, 2),
        ("int64", 2.5, BAD),
        ("int64", float("nan"), BAD),
        ("int64", True, BAD),
        ("int64", "1", BAD),
        ("int32", 2**31, BAD),
        ("int64", 10**30, BAD),
        ("float64", 1, 1.0),
        ("float64", 2**60 + 1, float(2**60)),
        ("float64", 10**400, BAD),
        ("float64", False, BAD),
        ("float64", "1.5", BAD),
        ("boolean", 1, BAD),
        ("boolean", True, True),
        ("date", "2026-01-31", dt.date(2026, 1, 31)),
        ("timestamp", 1700000000, BAD),
        ("timestamp", "x", BAD),
        ("list<float32>", [1, None], [1.0, None]),
        ("list<float32>", ["a"], BAD),
        ("list<float32>", [True], BAD),
        ("binary", "aGk=", b"hi"),
        ("binary", 5, BAD),
        ("int64", None, None),
    ],
)
def test_json(kind: CellType, cell: object, value: object) -> None:
    assert outcome(parse_json([cell], kind), kind) == value


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        (pa.array([1], pa.int32()), "float64", 1.0),
        (pa.array([2**60 + 1]), "float64", float(2**60)),
        (pa.array([2**40]), "int32", BAD),
        (pa.array([2**64 - 1], pa.uint64()), "int64", BAD),
        (pa.array([1.0]), "int64", 1),
        (pa.array([1.5]), "int64", BAD),
        (pa.array([Decimal("1.5")]), "float32", 1.5),
        (pa.array(["a"], pa.large_string()), "string", "a"),
        (pa.array(["a"]).dictionary_encode(), "string", "a"),
        (pa.array([b"a"]), "string", "a"),
        (pa.array([b"\xff"]), "string", BAD),
        (pa.array([b"\xff"]).view(pa.string()), "string", BAD),
        (pa.nulls(1), "list<float32>", None),
        (pa.array([dt.datetime(2026, 1, 31)]), "date", dt.date(2026, 1, 31)),
        (pa.array([dt.datetime(2026, 1, 31, 1)]), "date", BAD),
        (pa.array([dt.date(2026, 1, 31)]), "timestamp", dt.datetime(2026, 1, 31, tzinfo=UTC)),
        (pa.array([1001], pa.timestamp("ns")), "timestamp", dt.datetime(1970, 1, 1, 0, 0, 0, 1, UTC)),
        (pa.array([0], pa.timestamp("s", "Asia/Tokyo")), "timestamp", dt.datetime(1970, 1, 1, tzinfo=UTC)),
        (pa.array([2**62], pa.timestamp("us")), "timestamp", BAD),
        (pa.array([2**62], pa.timestamp("s")), "timestamp", BAD),
        (pa.array([[1, 2]], pa.list_(pa.int64(), 2)), "list<float32>", [1.0, 2.0]),
        (pa.array([7]), "text", "7"),
    ],
)
def test_arrow(column: pa.Array, kind: CellType, value: object) -> None:
    assert convertible(column.type, kind)
    assert outcome(cast_column(column, kind), kind) == value


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (pa.string(), "int64"),
        (pa.int64(), "string"),
        (pa.int64(), "boolean"),
        (pa.int64(), "timestamp"),
        (pa.string(), "timestamp"),
        (pa.float64(), "list<float32>"),
        (pa.list_(pa.string()), "list<float32>"),
        (pa.struct([("a", pa.int64())]), "text"),
        (pa.dictionary(pa.int32(), pa.string()), "float64"),
    ],
)
def test_types_that_cannot_stand_for_another(source: pa.DataType, kind: CellType) -> None:
    assert not convertible(source, kind)


def test_bad_cells_are_marked_one_by_one() -> None:
    cells = ["1", "x", "", "3", "9" * 30, "5"]
    values, bad = parse_text(pa.array(cells), "int64")
    assert values.to_pylist() == [1, None, None, 3, None, 5]
    assert bad.tolist() == [False, True, False, False, True, False]
