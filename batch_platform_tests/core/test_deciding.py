"""Rules: what they decide, which mistakes are told when, and that another rule has nothing scored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from batch_platform.core.deciding import check_columns, check_rules, decide, features_needed, rule_version
from batch_platform.core.features.recipe import passthrough
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.provenance.explaining import explain
from batch_platform.core.provenance.replaying import Replayer
from batch_platform.core.spec import DecisionSpec, parse_spec
from batch_platform.core.verifying import verify
from batch_platform.errors import PipelineFileError, SignatureError
from batch_platform_tests.mini import ATTRIBUTES, DAYS, Mini, good_row

DAY = DAYS[0]
RULES = [
    {"when": {"score": {"at_least": 0.8}, "plan": {"is_in": ["pro", "gold"]}}, "decide": "call"},
    {"when": {"score": {"above": 0.5}}, "decide": "mail"},
    {"when": {"amount": {"is_null": True}}, "decide": "ask"},
]
CLASSIFIER = ModelSignature(
    (InputColumn("amount", "float64"),), "classification", ("stays", "churned"), "churned"
)


def rules(*entries: Mapping[str, Any], otherwise: str = "nothing") -> DecisionSpec:
    return DecisionSpec.model_validate({"rules": entries, "otherwise": otherwise})


def decided(decision: DecisionSpec, **columns: Any) -> list[str]:
    arrays = {
        name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()
    }
    return decide(decision, CLASSIFIER, arrays).to_pylist()


def test_the_first_rule_that_applies_decides_and_nulls_meet_no_comparison() -> None:
    columns = {
        "score": [0.9, 0.9, 0.8, 0.5, 0.2, 0.6],
        "plan": ["pro", "basic", "gold", "pro", None, None],
        "amount": pa.array([1.0, 1.0, 1.0, 1.0, None, None], pa.float64()),
    }
    assert decided(rules(*RULES), **columns) == ["call", "mail", "call", "nothing", "ask", "mail"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"at_least": 2}, [False, True, True, False]),
        ({"above": 2}, [False, False, True, False]),
        ({"at_most": 2}, [True, True, False, False]),
        ({"below": 2}, [True, False, False, False]),
        ({"above": 1, "below": 3}, [False, True, False, False]),
        ({"is_in": [1, 3]}, [True, False, True, False]),
        ({"is_null": True}, [False, False, False, True]),
        ({"is_null": False}, [True, True, True, False]),
    ],
)
@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.float32(), pa.float64()])
def test_conditions_on_numbers(kind: pa.DataType, condition: dict[str, Any], expected: list[bool]) -> None:
    found = decided(
        rules({"when": {"x": condition}, "decide": "yes"}, otherwise="no"), x=pa.array([1, 2, 3, None], kind)
    )
    assert found == ["yes" if holds else "no" for holds in expected]


def test_conditions_on_truth_values_and_on_nothing_at_all() -> None:
    rule = rules({"when": {"x": {"is_in": [True]}}, "decide": "yes"}, otherwise="no")
    assert decided(rule, x=[True, False, None]) == ["yes", "no", "no"]
    assert decided(rule, x=pa.array([], pa.bool_())) == []


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ({}, "decision: give a positive_class with its threshold, or rules"),
        ({"rules": RULES}, "decision: rules need otherwise"),
        ({"positive_class": "a", "otherwise": "b"}, "decision: rules need otherwise"),
        ({"rules": RULES, "otherwise": "n", "threshold": 0.3}, "decision: give either a threshold or rules"),
        ({"rules": [], "otherwise": "n"}, "decision.rules"),
        ({"rules": [{"when": {}, "decide": "x"}], "otherwise": "n"}, r"decision\.rules\.0\.when"),
        (
            {"rules": [{"when": {"score": {}}, "decide": "x"}], "otherwise": "n"},
            r"rules\.0\.when\.score: says nothing",
        ),
        (
            {"rules": [{"when": {"score": {"atleast": 1}}, "decide": "x"}], "otherwise": "n"},
            "atleast: unknown field",
        ),
    ],
)
def test_rules_that_are_no_rules(decision: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineFileError, match=message):
        parse_spec({**ATTRIBUTES, "decision": decision}, "mini")


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (
            {"agee": {"above": 1}},
            r"decision\.rules\.0\.when\.agee: no output or feature 'agee'; there are: label, score",
        ),
        ({"plan": {"above": 1}}, r"when\.plan: it is string, and no number"),
        ({"label": {"is_in": [1]}}, r"when\.label: it is string, and never 1"),
        ({"age": {"is_in": ["old"]}}, r"when\.age: it is int64, and never 'old'"),
        ({"score": {"is_in": [True]}}, r"when\.score: it is double, and never True"),
    ],
)
def test_rules_about_columns_that_are_not_there_are_refused_when_the_file_loads(
    when: dict[str, Any], message: str
) -> None:
    decision = {"rules": [{"when": when, "decide": "x"}], "otherwise": "n"}
    spec = parse_spec({**ATTRIBUTES, "decision": decision}, "mini")
    with pytest.raises(PipelineFileError, match=message):
        check_rules(spec, passthrough(spec.source.columns))


def test_outputs_that_the_model_has_not_are_refused_before_anything_is_scored() -> None:
    rule = rules({"when": {"prediction": {"above": 1}}, "decide": "x"})
    with pytest.raises(
        SignatureError, match=r"decision\.rules\.0\.when\.prediction: there is no column 'prediction'"
    ):
        check_columns(rule, CLASSIFIER, pa.schema([("amount", pa.float64())]))
    assert features_needed(rules(*RULES), CLASSIFIER) == ["plan", "amount"]
    assert len({rule_version(rules(*RULES[:n])) for n in (1, 2, 3)}) == 3


def test_another_rule_decides_anew_and_nothing_is_scored(mini: Mini) -> None:
    """Through Dagster: threshold, other threshold, rules over outputs and features, with a row in quarantine."""
    rows = [good_row(DAY, n) for n in range(20)]
    rows[3]["amount"] = rows[11]["amount"] = ""
    mini.write(DAY, rows)

    def run(**decision: Any) -> pl.DataFrame:
        mini.change(decision=decision or None)
        mini.run(DAY, stages=["raw", "features", "predictions"])
        return mini.table("predictions").sort("row_key")

    first = run(positive_class="churned", threshold=0.5)
    assert first["decision"].to_list() == ["churned" if score >= 0.5 else "stays" for score in first["score"]]
    middle = float(first["score"].median())  # type: ignore[arg-type]
    second = run(positive_class="churned", threshold=middle)
    assert second["decision"].to_list() == [
        "churned" if score >= middle else "stays" for score in second["score"]
    ]

    said = [
        {"when": {"score": {"at_least": middle}, "plan": {"is_in": ["pro"]}}, "decide": "call"},
        {"when": {"amount": {"is_null": True}}, "decide": "ask"},
    ]
    third = run(positive_class="churned", rules=said, otherwise="nothing")
    features = mini.table("features").sort("row_key")
    assert third["decision"].to_list() == [
        "call" if score >= middle and plan == "pro" else "ask" if amount is None else "nothing"
        for score, plan, amount in zip(third["score"], features["plan"], features["amount"], strict=True)
    ]
    assert {"call", "ask", "nothing"} == set(third["decision"])
    # Everything else, run and time among them, is bit for bit what the first run made.
    assert first.drop("decision").equals(second.drop("decision")) and first.drop("decision").equals(
        third.drop("decision")
    )
    assert verify(mini.spec, mini.settings, mini.folder).ok
    told = explain(mini.spec, mini.settings, rows[0]["id"])
    assert told.decision is not None
    assert told.decision["rules"][1]["decide"] == "ask"
    assert Replayer(mini.spec, mini.settings).replay(rows[3]["id"]).differences == ()


def test_new_features_are_decided_about_even_where_the_model_does_not_see_them(mini: Mini) -> None:
    columns = {**ATTRIBUTES["source"]["columns"], "vip": {"type": "boolean"}}
    decision = {"rules": [{"when": {"vip": {"is_in": [True]}}, "decide": "call"}], "otherwise": "nothing"}
    mini.change(decision=decision, source={"columns": columns})
    rows = [{**good_row(DAY, n), "vip": n == 1} for n in range(6)]
    mini.write(DAY, rows, columns=[*rows[0]])
    mini.run(DAY, stages=["raw", "features", "predictions"])
    first = mini.table("predictions").sort("row_key")
    mini.write(DAY, [{**row, "vip": place == 4} for place, row in enumerate(rows)], columns=[*rows[0]])
    mini.run(DAY, stages=["raw", "features", "predictions"])
    second = mini.table("predictions").sort("row_key")
    assert [table["decision"].to_list().index("call") for table in (first, second)] == [1, 4]
    assert first["run_id"].equals(second["run_id"])


def test_a_wrong_rule_is_told_when_the_definitions_load(tmp_path: Path) -> None:
    from batch_platform.orchestration.assets import pipeline_assets

    decision = {"rules": [{"when": {"agee": {"above": 1}}, "decide": "x"}], "otherwise": "n"}
    with pytest.raises(PipelineFileError, match="agee"):
        pipeline_assets(parse_spec({**ATTRIBUTES, "decision": decision}, "mini"))
