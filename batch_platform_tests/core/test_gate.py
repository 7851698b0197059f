"""Each verdict of the gate turns red on the rows that it is there for, and says which."""

import pyarrow as pa
import pytest

from batch_platform.core import gate
from batch_platform.core.data.contract import Rejected
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.spec import SourceSpec
from batch_platform.errors import GateError

SOURCE = SourceSpec.model_validate(
    {
        "uri": "x/{partition}",
        "row_key": "id",
        "columns": {
            "id": {"type": "string", "required": True},
            "n": {"type": "float64", "min": 0, "max": 9},
            "plan": {"type": "string", "allowed": ["a", "b"]},
        },
    }
)
RAW = pa.schema([("row_key", pa.string()), ("id", pa.string()), ("n", pa.float64()), ("plan", pa.string())])
SIGNATURE = ModelSignature(
    inputs=(InputColumn("n", "float64"),), task="classification", labels=("no", "yes"), positive_class="yes"
)


def raw(*rows: tuple) -> list[pa.RecordBatch]:
    columns = list(zip(*rows, strict=True)) if rows else [[], [], [], []]
    return [pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, RAW, strict=True)], schema=RAW)]


def verdicts(checks: tuple[gate.CheckResult, ...]) -> dict[str, bool]:
    return {check.name: check.passed for check in checks}


GOOD = ("k", "k", 1.0, "a")


def test_good_rows_pass() -> None:
    assert all(verdicts(gate.judge_raw(raw(GOOD, ("l", "l", None, None)), RAW, SOURCE)).values())


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (("l", None, 1.0, "a"), "id is null"),
        (("l", "l", -1.0, "a"), "n below 0"),
        (("l", "l", 10.0, "a"), "n above 9"),
        (("l", "l", float("nan"), "a"), "n is not finite"),
        (("l", "l", 1.0, "c"), "plan not allowed"),
        ((None, "l", 1.0, "a"), "row_key is null"),
    ],
)
def test_contract_is_red_on(row: tuple, cause: str) -> None:
    contract = gate.judge_raw(raw(GOOD, row), RAW, SOURCE)[0]
    assert not contract.passed
    assert contract.values[cause] == 1


def test_contract_is_red_on_another_schema() -> None:
    batch = pa.record_batch({"row_key": ["k"]})
    assert not verdicts(gate.judge_raw([batch], RAW, SOURCE))["contract"]


def test_volume_and_duplicates() -> None:
    assert verdicts(gate.judge_raw([], RAW, SOURCE)) == {
        "contract": True,
        "volume": False,
        "duplicates": True,
    }
    permitted = SOURCE.model_copy(update={"allow_empty": True})
    assert verdicts(gate.judge_raw([], RAW, permitted))["volume"]
    # Across batches, not only within one.
    assert not verdicts(gate.judge_raw(raw(GOOD) + raw(GOOD), RAW, SOURCE))["duplicates"]


def test_quarantined_share_counts_rows_and_names_causes_and_a_place() -> None:
    row = Rejected(None, "null_key", "id is empty", "data/a.csv", 7, None)
    assert gate.quarantined_share([row], 100, 0.01).passed
    check = gate.quarantined_share([row, row], 100, 0.01)
    assert not check.passed
    assert "2 null_key; the first is data/a.csv row 7: id is empty" in check.description
    assert gate.quarantined_share([], 0, 0.0).passed


FEATURES = pa.schema(
    [
        pa.field("row_key", pa.string(), nullable=False),
        pa.field("n", pa.float64()),
        ("e", pa.list_(pa.float32())),
    ]
)


def features(n: list, e: list | None = None) -> list[pa.RecordBatch]:
    e = e or [[1.0]] * len(n)
    arrays = [
        pa.array([str(i) for i in range(len(n))]),
        pa.array(n, pa.float64()),
        pa.array(e, pa.list_(pa.float32())),
    ]
    return [pa.RecordBatch.from_arrays(arrays, schema=FEATURES)]


def test_features() -> None:
    assert verdicts(gate.judge_features(features([1.0, None]), FEATURES)) == {
        "schema": True,
        "nulls": True,
        "finite": True,
    }
    assert not verdicts(gate.judge_features(features([1.0, float("inf")]), FEATURES))["finite"]
    assert not verdicts(gate.judge_features(features([1.0], [[float("nan")]]), FEATURES))["finite"]
    renamed = [batch.rename_columns(["row_key", "m", "e"]) for batch in features([1.0])]
    assert not verdicts(gate.judge_features(renamed, FEATURES))["schema"]


def test_nulls_forbidden_is_an_error_and_an_empty_column_a_warning() -> None:
    empty = gate.judge_features(features([None, None]), FEATURES)[1]
    assert (empty.passed, empty.severity) == (False, "warn")
    strict = FEATURES.set(1, pa.field("n", pa.float64(), nullable=False))
    forbidden = gate.judge_features(features([1.0, None]), strict)[1]
    assert (forbidden.passed, forbidden.severity) == (False, "error")


def predictions(keys: list[str], **changes: list) -> list[pa.RecordBatch]:
    n = len(keys)
    values = {"label": ["yes"] * n, "score": [0.75] * n, "scores": [[0.25, 0.75]] * n} | changes
    schema = pa.schema([("row_key", pa.string()), *SIGNATURE.output_schema()])
    return [pa.record_batch({"row_key": keys, **values}, schema=schema)]


def judge(
    expected: list[str], staged: list[pa.RecordBatch], quarantined: frozenset[str] = frozenset()
) -> dict[str, bool]:
    return verdicts(gate.judge_predictions([pa.array(expected)], staged, quarantined, SIGNATURE))


def test_predictions_that_are_right_pass() -> None:
    assert judge(["a", "b", "c"], predictions(["a", "c"]), frozenset({"b"})) == {
        "reconciliation": True,
        "finite": True,
        "range": True,
    }


@pytest.mark.parametrize(
    ("keys", "quarantined"),
    [
        (["a"], set()),
        (["a", "b", "b"], set()),
        (["a", "c"], set()),
        (["b", "a"], set()),
        (["a", "b"], {"b"}),
        (["a", "b"], {"c"}),
        ([], set()),
    ],
)
def test_reconciliation_is_red_on(keys: list[str], quarantined: set[str]) -> None:
    assert not judge(["a", "b"], predictions(keys), frozenset(quarantined))["reconciliation"]


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("finite", {"score": [float("nan")]}),
        ("finite", {"label": [None]}),
        ("finite", {"scores": [[float("inf"), 0.0]]}),
        ("range", {"score": [1.5]}),
        ("range", {"score": [-0.5]}),
        ("range", {"label": ["maybe"]}),
        ("range", {"scores": [[0.25, 0.25]]}),
        ("range", {"scores": [[1.0]]}),
        ("range", {"scores": [[-0.5, 1.5]]}),
    ],
)
def test_outputs_are_red_on(check: str, change: dict[str, list]) -> None:
    assert not judge(["a"], predictions(["a"], **change))[check]


def test_embeddings_must_have_their_length() -> None:
    signature = ModelSignature(inputs=(InputColumn("n", "float64"),), task="embedding", output_size=2)
    schema = pa.schema([("row_key", pa.string()), *signature.output_schema()])
    batch = pa.record_batch({"row_key": ["a"], "embedding": [[1.0]]}, schema=schema)
    assert not verdicts(gate.judge_predictions([pa.array(["a"])], [batch], frozenset(), signature))["range"]


def test_lists_must_be_rankings() -> None:
    signature = ModelSignature(inputs=(InputColumn("n", "string"),), task="ranking", top_k=2)
    schema = pa.schema([("row_key", pa.string()), *signature.output_schema()])

    def range_of(items: list[str]) -> bool:
        row = {"row_key": "a", "label": items[0], "score": 0.5, "items": items, "item_scores": [0.5, 0.1]}
        batch = pa.RecordBatch.from_pylist([row], schema)
        return verdicts(gate.judge_predictions([pa.array(["a"])], [batch], frozenset(), signature))["range"]

    assert range_of(["x", "y"])
    assert not range_of(["x", "x"])


def test_enforce_names_every_error_and_lets_warnings_pass() -> None:
    warning = gate.CheckResult("nulls", False, "empty", severity="warn")
    gate.enforce((warning,), "pipeline p")
    with pytest.raises(GateError, match="pipeline p: volume: no rows; finite: NaN") as caught:
        gate.enforce(
            (gate.CheckResult("volume", False, "no rows"), warning, gate.CheckResult("finite", False, "NaN")),
            "pipeline p",
        )
    assert len(caught.value.checks) == 3
