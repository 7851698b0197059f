"""The contract: every rule on good and bad rows, masking, and what is kept of a rejected row."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core.data.cells import arrow_type, parse_json
from batch_platform.core.data.contract import BadCell, Contract, Rejected, SourceBatch
from batch_platform.core.spec import ColumnSpec
from batch_platform.errors import ContractError


def contract(key: str = "id", **columns: dict[str, Any]) -> Contract:
    specs = {"id": {"type": "string", "required": True}} if key == "id" and "id" not in columns else {}
    return Contract({name: ColumnSpec(**spec) for name, spec in {**specs, **columns}.items()}, key)


def source(of: Contract, **values: list[Any]) -> SourceBatch:
    rows = len(next(iter(values.values())))
    values.setdefault("id", [f"k{row}" for row in range(rows)])
    arrays, bad = [], []
    for name, spec in of.columns.items():
        array, marks = parse_json(values[name], spec.type)
        arrays.append(array)
        bad += [
            BadCell(int(row), name, "wrong_type", str(values[name][row])) for row in np.flatnonzero(marks)
        ]
    batch = pa.RecordBatch.from_arrays(arrays, names=list(of.columns))
    return SourceBatch(batch, "in.csv", np.arange(100, 100 + rows), bad)


def judge(of: Contract, **values: list[Any]) -> tuple[list[str], list[Rejected]]:
    good, rejected = of.enforce(source(of, **values))
    assert good.schema == of.schema
    return good["row_key"].to_pylist(), rejected


def test_schema_of_the_raw_table() -> None:
    made = contract(amount={"type": "float32"}, at={"type": "timestamp"}, v={"type": "list<float32>"})
    assert made.schema == pa.schema(
        [
            ("row_key", pa.string()),
            ("id", pa.string()),
            ("amount", pa.float32()),
            ("at", pa.timestamp("us", tz="UTC")),
            ("v", pa.list_(pa.float32())),
            ("source_file", pa.string()),
            ("source_row", pa.int64()),
        ]
    )


def test_a_key_column_named_row_key_is_there_once_and_as_text() -> None:
    made = contract(key="row_key", row_key={"type": "int64"}, x={"type": "int64"})
    good, _ = made.enforce(source(made, row_key=[7, 8], x=[1, 2], id=[]))
    assert good.schema.names == ["row_key", "x", "source_file", "source_row"]
    assert good["row_key"].to_pylist() == ["7", "8"]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("int64", 7, "7"),
        ("boolean", True, "true"),
        ("date", "2026-01-31", "2026-01-31"),
        ("timestamp", "2026-01-31T10:00:00+02:00", "2026-01-31 08:00:00.000000Z"),
        ("float64", 1.5, "1.5"),
    ],
)
def test_any_scalar_can_be_the_key(kind: str, value: object, text: str) -> None:
    made = contract(id={"type": kind})
    assert judge(made, id=[value]) == ([text], [])


def test_good_rows_keep_their_order_and_place() -> None:
    made = contract(x={"type": "int64", "min": 0})
    good, rejected = made.enforce(source(made, x=[1, -1, 3]))
    assert good["source_row"].to_pylist() == [100, 102]
    assert set(good["source_file"].to_pylist()) == {"in.csv"}
    assert [row.source_row for row in rejected] == [101]


@pytest.mark.parametrize(
    ("rule", "good", "bad", "error_type"),
    [
        ({"type": "int64", "required": True}, 1, None, "missing_value"),
        ({"type": "string", "required": True}, "", None, "missing_value"),
        ({"type": "int64"}, None, "x", "wrong_type"),
        ({"type": "int64", "required": True}, 1, "x", "wrong_type"),
        ({"type": "int64", "min": 0}, 0, -1, "out_of_range"),
        ({"type": "int32", "min": 0.5}, 1, 0, "out_of_range"),
        ({"type": "int64", "max": 10}, 10, 11, "out_of_range"),
        ({"type": "int64", "max": 1e300}, 2**62, "x", "wrong_type"),
        ({"type": "int64", "min": float("-inf"), "max": 2**53}, -(2**63), 2**53 + 1, "out_of_range"),
        ({"type": "float32", "max": 0.1}, 0.1, 0.1001, "out_of_range"),
        ({"type": "float64", "min": 0}, None, -1e-9, "out_of_range"),
        ({"type": "float64"}, 1e308, float("nan"), "not_finite"),
        ({"type": "float64", "min": 0}, 1.0, float("inf"), "not_finite"),
        ({"type": "float32"}, 1.0, 1e300, "not_finite"),
        ({"type": "list<float32>"}, [], [1.0, float("nan")], "not_finite"),
        ({"type": "list<float32>"}, [1.0], [None], "not_finite"),
        ({"type": "string", "allowed": ["a", "b"]}, "a", "c", "not_allowed"),
        ({"type": "string", "allowed": ["a", "b"]}, None, "", "not_allowed"),
        ({"type": "int64", "allowed": [1, 2]}, 2, 3, "not_allowed"),
        ({"type": "boolean", "allowed": [True]}, True, False, "not_allowed"),
        ({"type": "float32", "allowed": [0.1]}, 0.1, 0.2, "not_allowed"),
    ],
)
def test_each_rule(rule: dict[str, Any], good: object, bad: object, error_type: str) -> None:
    kept, rejected = judge(contract(x=rule), x=[good, bad, good])
    assert kept == ["k0", "k2"]
    assert [(row.row_key, row.error_type, row.source_row) for row in rejected] == [("k1", error_type, 101)]
    assert "column x" in rejected[0].message


@pytest.mark.parametrize("key", [None, ""])
def test_a_row_without_a_key(key: str | None) -> None:
    kept, rejected = judge(contract(), id=["a", key])
    assert kept == ["a"]
    assert rejected[0].error_type == "null_key"


def test_a_key_of_the_wrong_type_is_not_called_null() -> None:
    _, rejected = judge(contract(id={"type": "int64"}), id=[1, "abc"])
    assert [(row.error_type, row.row_key) for row in rejected] == [("wrong_type", None)]
    assert "abc" in rejected[0].message


def test_an_all_null_column_is_fine_where_it_is_not_required() -> None:
    assert judge(contract(x={"type": "float64", "min": 0}), x=[None, None])[0] == ["k0", "k1"]


def test_an_all_null_required_column_rejects_every_row() -> None:
    kept, rejected = judge(contract(x={"type": "float64", "required": True}), x=[None, None])
    assert (kept, len(rejected)) == ([], 2)


def test_the_message_names_everything_that_is_wrong() -> None:
    made = contract(x={"type": "int64", "min": 0}, y={"type": "string", "allowed": ["a"]})
    _, [rejected] = judge(made, x=[-5], y=["b"])
    assert rejected.error_type == "out_of_range"
    assert rejected.message == "column x is below the minimum 0: -5; column y is not one of ['a']: 'b'"
    assert json.loads(rejected.payload or "") == {"id": "k0", "x": -5, "y": "b"}


def test_sensitive_values_are_shown_nowhere() -> None:
    made = contract(
        id={"type": "string", "required": True, "sensitive": True},
        x={"type": "string", "allowed": ["a"], "sensitive": True},
        y={"type": "int64", "sensitive": True},
        z={"type": "string"},
    )
    kept, [rejected] = judge(made, id=["secret-1"], x=["secret-2"], y=["secret-3"], z=["open"])
    assert kept == []
    assert rejected.row_key == "secret-1"
    assert "secret" not in rejected.message + (rejected.payload or "")
    assert json.loads(rejected.payload or "") == {"id": "***", "x": "***", "y": "***", "z": "open"}


def test_long_values_are_cut_and_kept_rows_are_not() -> None:
    long = "x" * 1_500_000
    made = contract(x={"type": "string", "allowed": ["a", long]})
    good, [rejected] = made.enforce(source(made, x=[long, long + "y"]))
    assert len(good["x"][0].as_py()) == 1_500_000
    assert len(rejected.message) < 300
    assert len(rejected.payload or "") < 2_010


def test_payload_shows_what_json_cannot_hold() -> None:
    made = contract(x={"type": "float64"}, t={"type": "timestamp"}, b={"type": "binary"})
    _, [rejected] = judge(made, x=[float("nan")], t=["2026-01-01"], b=["aGk="])
    assert json.loads(rejected.payload or "") == {
        "id": "k0",
        "x": "nan",
        "t": "2026-01-01T00:00:00+00:00",
        "b": "2 bytes",
    }


def test_unparsable_rows_stand_among_the_rejected_in_order() -> None:
    made = contract(x={"type": "int64", "min": 0})
    given = source(made, x=[1, -1])
    line = Rejected(None, "unparsable", "no JSON", "in.csv", 50, "{")
    both = SourceBatch(given.batch, given.source_file, given.source_rows, given.bad_cells, [line])
    _, rejected = made.enforce(both)
    assert [row.source_row for row in rejected] == [50, 101]


def test_a_good_batch_keeps_its_unparsable_rows() -> None:
    made = contract(x={"type": "int64"})
    given = source(made, x=[1])
    line = Rejected(None, "unparsable", "no JSON", "in.csv", 50, "{")
    _, rejected = made.enforce(
        SourceBatch(given.batch, given.source_file, given.source_rows, unparsable=[line])
    )
    assert rejected == [line]


def test_a_batch_without_rows() -> None:
    made = contract(x={"type": "float64", "min": 0, "allowed": [1.0]}, v={"type": "list<float32>"})
    empty = pa.RecordBatch.from_arrays(
        [pa.array([], arrow_type(spec.type)) for spec in made.columns.values()], names=list(made.columns)
    )
    good, rejected = made.enforce(SourceBatch(empty, "in.csv", np.zeros(0, np.int64)))
    assert (good.num_rows, good.schema, rejected) == (0, made.schema, [])


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [("int64", ["a"]), ("string", [1]), ("int64", [1.5]), ("boolean", [1]), ("int64", [True])],
)
def test_allowed_values_must_fit_the_type(kind: str, allowed: list[Any]) -> None:
    with pytest.raises(ContractError, match=r"source\.columns\.x\.allowed.*write values of that type"):
        contract(x={"type": kind, "allowed": allowed})


def test_reject_names_key_and_reason() -> None:
    made = contract(x={"type": "int64"})
    good, _ = made.enforce(source(made, x=[1]))
    [rejected] = made.reject(good, "duplicate_key", "repeats the key of an earlier row")
    assert rejected.error_type == "duplicate_key"
    assert rejected.message == "column id repeats the key of an earlier row: 'k0'"
    assert rejected.source_row == 100
