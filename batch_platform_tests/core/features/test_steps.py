"""Recipes of steps that a pipeline file writes itself: mistakes are found when it loads, versions tell them apart."""

import json
from typing import Any

import pyarrow as pa
import pytest

from batch_platform.core.features.recipe import step
from batch_platform.core.features.steps import recipe_of_steps
from batch_platform.core.featurizing import recipe_of
from batch_platform.core.spec import parse_spec
from batch_platform.errors import PipelineFileError, RecipeError

RAW = pa.schema(
    [
        ("row_key", pa.string()), ("id", pa.string()), ("body", pa.string()), ("plan", pa.string()), ("age", pa.int64()),
        ("at", pa.timestamp("us", "UTC")), ("source_file", pa.string()), ("source_row", pa.int64()),
    ]
)  # fmt: skip
ENCODERS = {
    "plan": {"kind": "ordinal", "values": ["basic", "pro"]},
    "age": {"kind": "standard", "mean": 40.0, "scale": 10.0},
    "id": {"kind": "mapping", "values": {"a": 0.25}, "otherwise": 0.5},
}


@step
def double(batch: pa.RecordBatch, *, column: str) -> pa.RecordBatch:
    return batch.append_column(
        "doubled", pa.array([None if v is None else 2 * v for v in batch[column].to_pylist()], pa.int64())
    )


NO_STEP = 7
CLEAN = {"clean_text": {"column": "body"}}
CHUNK = {"chunk": {"column": "body"}}


def rows(**columns: list[Any]) -> pa.RecordBatch:
    count = len(next(iter(columns.values())))
    return pa.RecordBatch.from_pydict(
        {field.name: columns.get(field.name, [None] * count) for field in RAW}, RAW
    )


def test_steps_one_after_the_other_and_a_function_of_the_user() -> None:
    recipe = recipe_of_steps(
        [
            {"clean_text": {"column": "body"}},
            {"compose_text": {"template": "{plan}: {body}"}},
            {"date_parts": {"column": "at", "parts": ["weekday"]}},
            {f"{__name__}:double": {"column": "age"}},
            {"select": {"columns": {"text": "text", "weekday": "at_weekday", "twice": "doubled"}}},
        ],
        RAW,
    )
    assert recipe.output == pa.schema([("text", pa.string()), ("weekday", pa.int32()), ("twice", pa.int64())])
    from datetime import UTC, datetime

    made = recipe.apply(
        rows(body=["  so\n so "], plan=["pro"], age=[21], at=[datetime(2026, 1, 10, tzinfo=UTC)])
    )
    assert made.to_pylist() == [{"text": "pro: so so", "weekday": 5, "twice": 42}]


def test_without_select_all_columns_but_those_of_the_landing_are_features() -> None:
    assert recipe_of_steps([{"clean_text": {"column": "body"}}], RAW).output.names == [
        "id",
        "body",
        "plan",
        "age",
        "at",
    ]


def test_encoders_are_those_of_the_model() -> None:
    recipe = recipe_of_steps(
        [{"encode": {"columns": ["plan", "age", "id"]}}, {"encode": {"columns": ["body"], "suffix": "_n"}}],
        RAW,
    )
    assert recipe.reads == {"encoders.json"}
    content = json.dumps({**ENCODERS, "body": {"kind": "mapping", "values": {}}}).encode()
    bound = recipe.with_files({"encoders.json": content}.__getitem__)
    made = bound.apply(
        rows(plan=["pro", "gold", None], age=[50, None, 35], id=["a", "b", None], body=["x", "y", None])
    )
    assert made.select(["plan", "age", "id", "body", "body_n"]).to_pydict() == {
        "plan": [1.0, None, None], "age": [1.0, None, -0.5], "id": [0.25, 0.5, None], "body": ["x", "y", None],
        "body_n": [None, None, None],
    }  # fmt: skip
    other = recipe.with_files({"encoders.json": content.replace(b"40.0", b"41.0")}.__getitem__)
    assert len({recipe.version, bound.version, other.version}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "encoders.json of the model is wrong"),
        (b'{"plan": {"kind": "pickle"}}', "encoders.json of the model is wrong"),
        (b'{"plan": {"kind": "standard", "mean": 1, "scale": 0}}', "encoders.json of the model is wrong"),
        (b'{"age": {"kind": "standard", "mean": NaN, "scale": 1}}', "encoders.json of the model is wrong"),
        (b"{}", "has no encoder for 'plan'"),
    ],
)
def test_wrong_encoders(content: bytes, message: str) -> None:
    recipe = recipe_of_steps([{"encode": {"columns": ["plan"]}}], RAW).with_files(
        {"encoders.json": content}.__getitem__
    )
    with pytest.raises(RecipeError, match=message):
        recipe.apply(rows(plan=["pro"]))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"clean": {}}], r"features\.steps\.0: there is no step 'clean'; there are: clean_text, compose_text"),
        ([CLEAN, {"clean_text": {"column": "boody"}}], r"features\.steps\.1: step clean_text: no column 'boody'"),
        ([{"clean_text": {"colum": "body"}}], r"features\.steps\.0: step clean_text: .*colum"),
        ([{"clean_text": ["body"]}], "its parameters are a mapping"),
        ([{"chunk": {"column": "body", "max_tokens": 4, "overlap": 9}}], r"features\.steps\.0: step chunk: overlap is 9"),
        ([CHUNK, CHUNK], r"features\.steps\.1: step chunk: there is a column 'parent_key'"),
        ([{"encode": {"columns": ["nothing"]}}], "no column 'nothing'"),
        ([{"no.such.module:f": {}}], r"no\.such\.module cannot be imported"),
        ([{f"{__name__}:nothing": {}}], "has no function 'nothing'"),
        ([{f"{__name__}:NO_STEP": {}}], "has no function 'NO_STEP'"),
        ([{f"{__name__}:rows": {"plan": ["x"]}}], "is no step"),
        ([{"select": {"columns": {"label": "plan"}}}], "'label' has the name of a platform column"),
    ],
)  # fmt: skip
def test_mistakes_name_their_place(steps: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of_steps(steps, RAW)


def test_the_pipeline_file_takes_steps_or_a_recipe_and_sees_the_lookups() -> None:
    attributes: dict[str, Any] = {
        "partitions": {"start": "2026-01-01"},
        "source": {"uri": "in/{partition}.csv", "format": "csv", "row_key": "id", "columns": {"id": {"type": "string"}}},
        "model": {"name": "m"},
        "lookups": [{"uri": "u.parquet", "on": "id", "event_time": "ts", "columns": {"minutes": {"type": "float64"}}}],
        "features": {"steps": [{"select": {"columns": {"used": "minutes"}}}]},
    }  # fmt: skip
    recipe = recipe_of(parse_spec(attributes, "p"))
    assert recipe.output == pa.schema([("used", pa.float64())])
    for features, message in (
        ({"recipe": "a:B", "steps": [{"a": {}}]}, "features: give either a recipe or steps"),
        ({}, "features: give either a recipe or steps"),
        ({"steps": []}, "features.steps"),
        ({"steps": [{"a": {}, "b": {}}]}, "write one name with its parameters, not 2"),
    ):
        with pytest.raises(PipelineFileError, match=message):
            parse_spec({**attributes, "features": features}, "p")
    open_lookup = {"uri": "u.parquet", "on": "id", "event_time": "ts"}
    with pytest.raises(
        PipelineFileError, match=r"lookups\.0\.columns: with features\.steps, name the columns to take"
    ):
        parse_spec({**attributes, "lookups": [open_lookup]}, "p")
