"""Recipes: the promise of one row out per row in, failing rows found one by one, versions that follow the code."""

import importlib
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.core.features.recipe import Recipe, Step, load_recipe, passthrough, step
from batch_platform.core.spec import ColumnSpec
from batch_platform.errors import RecipeError

OUTPUT = pa.schema([("half", pa.float32())])
RAW = pa.record_batch({"row_key": ["a", "b", "c"], "x": [2, 4, 6], "source_row": [0, 1, 2]})


@step
def halve(batch: pa.RecordBatch, *, column: str = "x", by: int = 2) -> pa.RecordBatch:
    """Divide."""
    return batch.append_column("half", pc.divide(batch[column].cast(pa.float64()), by))


@step
def picky(batch: pa.RecordBatch, *, bad: list[int]) -> pa.RecordBatch:
    found = set(batch["x"].to_pylist()) & set(bad)
    if found:
        raise ValueError(f"cannot use {sorted(found)[0]}")
    return batch


@step
def misbehave(batch: pa.RecordBatch, *, how: str) -> Any:
    results: dict[str, Any] = {
        "rows": batch.slice(1),
        "order": batch.take(pa.array(range(batch.num_rows)[::-1])),
        "table": pa.Table.from_batches([batch]),
        "none": None,
    }
    return results[how]


def test_apply_gives_exactly_the_output() -> None:
    features = Recipe("r", [halve()], OUTPUT).apply(RAW)
    assert features.schema == OUTPUT
    assert features["half"].to_pylist() == [1.0, 2.0, 3.0]


def test_apply_to_no_rows() -> None:
    features, kept, failures = Recipe("r", [halve()], OUTPUT).apply_with_failures(RAW.slice(0, 0))
    assert (features.num_rows, features.schema, len(kept), failures) == (0, OUTPUT, 0, [])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("rows", "made 2 rows of 3"),
        ("order", "changed row_key or the order"),
        ("table", "returned Table; it must return a pyarrow.RecordBatch"),
        ("none", "returned NoneType"),
    ],
)
def test_a_broken_promise_names_the_step(how: str, words: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe r: step misbehave {words}"):
        Recipe("r", [misbehave(how=how)], OUTPUT).apply_with_failures(RAW)


def test_a_missing_column_names_step_and_columns() -> None:
    with pytest.raises(RecipeError, match=r"step halve failed with KeyError.*zz.*row_key, x"):
        Recipe("r", [halve(column="zz")], OUTPUT).apply_with_failures(RAW)


def test_an_output_column_that_nobody_makes() -> None:
    with pytest.raises(RecipeError, match="no step makes the output column 'half'"):
        Recipe("r", [], OUTPUT).apply(RAW)


def test_an_output_type_that_cannot_be() -> None:
    with pytest.raises(RecipeError, match=r"output column x is int64 and cannot become list"):
        Recipe("r", [], pa.schema([("x", pa.list_(pa.string()))])).apply(RAW)


@given(st.lists(st.integers(0, 9), max_size=20), st.sets(st.integers(0, 9)))
def test_failing_rows_are_found_and_all_others_kept(values: list[int], bad: set[int]) -> None:
    raw = pa.record_batch({"x": pa.array(values, pa.int64())})
    recipe = Recipe("r", [picky(bad=sorted(bad)), halve()], OUTPUT)
    features, kept, failures = recipe.apply_with_failures(raw)
    assert kept.to_pylist() == [place for place, value in enumerate(values) if value not in bad]
    assert [failure.row for failure in failures] == [p for p, value in enumerate(values) if value in bad]
    assert features["half"].to_pylist() == [value / 2 for value in values if value not in bad]


def test_a_failure_names_step_and_cause_or_only_its_kind() -> None:
    recipe = Recipe("r", [picky(bad=[4]), halve()], OUTPUT)
    [failure] = recipe.apply_with_failures(RAW)[2]
    assert (failure.row, failure.error_type) == (1, "feature_error")
    assert failure.message == "step picky: cannot use 4"
    [masked] = recipe.apply_with_failures(RAW, mask_values=True)[2]
    assert masked.message == "step picky failed with ValueError"
    with pytest.raises(RecipeError, match="recipe r, step picky: cannot use 4"):
        recipe.apply(RAW)


def test_values_that_do_not_fit_the_output_fail_their_rows() -> None:
    raw = pa.record_batch({"x": [1, 2**40, None]})
    output = pa.schema([pa.field("x", pa.int32(), nullable=False)])
    features, kept, failures = Recipe("r", [], output).apply_with_failures(raw)
    assert (features["x"].to_pylist(), kept.to_pylist()) == ([1], [0])
    assert [(failure.row, failure.error_type) for failure in failures] == [
        (1, "feature_type"),
        (2, "feature_type"),
    ]
    assert "column x is null" in failures[1].message


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no columns"),
        (["score"], "'score' has the name of a platform column"),
        (["a", "a"], "'a' is there twice"),
    ],
)
def test_outputs_that_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe("r", [], pa.schema([(name, pa.int64()) for name in names]))


def test_wrong_parameters_are_refused_when_the_step_is_made() -> None:
    with pytest.raises(RecipeError, match="step halve: got an unexpected keyword argument 'columm'"):
        halve(columm="x")  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match="step halve: its parameters must be JSON values"):
        halve(by=object())  # type: ignore[arg-type]


def test_steps_show_defaults_in_their_parameters() -> None:
    made = halve(by=3)
    assert isinstance(made, Step)
    assert (made.name, dict(made.params)) == ("halve", {"column": "x", "by": 3})


# -- versions -----------------------------------------------------------------------------------------------

MODULE = """
    import math
    import pyarrow as pa
    from batch_platform.core.features.recipe import Recipe, step

    FACTOR = 2
    OTHER = 5
    if True:
        OFFSET = FACTOR + 1

    class Helper:
        def value(self):
            return OFFSET

    def scaled(values):
        return [math.floor(v * FACTOR) for v in values]

    def unrelated():
        return OTHER

    @step
    def scale(batch, *, column):
        return batch.append_column("y", pa.array(scaled(batch[column].to_pylist()), pa.int64()))

    @step
    def offset(batch, *, column):
        return batch.append_column("z", pa.array([Helper().value()] * batch.num_rows))

    RECIPE = Recipe("r", [scale(column="x"), offset(column="x")], pa.schema([("y", pa.int64()), ("z", pa.int64())]))
    NUMBER = 7
"""


@pytest.fixture
def version_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(tmp_path)
    count = iter(range(100))

    def version(*changes: tuple[str, str]) -> str:
        source = textwrap.dedent(MODULE)
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        name = f"recipe_module_{next(count)}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        recipe = load_recipe(f"{name}:RECIPE")
        assert recipe.apply(RAW)["y"].null_count == 0
        sys.modules.pop(name)
        return recipe.version

    return version


def test_a_version_is_12_hex_digits_and_stable(version_of: Any) -> None:
    first = version_of()
    assert len(first) == 12
    assert set(first) <= set("0123456789abcdef")
    assert first == version_of()


@pytest.mark.parametrize(
    "change",
    [
        ("FACTOR = 2", "FACTOR = 3"),
        ("math.floor", "math.ceil"),
        ("import math", "import numpy as math"),
        ("OFFSET = FACTOR + 1", "OFFSET = FACTOR + 2"),
        ("return OFFSET", "return OFFSET + 1"),
        ('append_column("y"', 'append_column( "y"'),
        ('scale(column="x")', 'scale(column="source_row")'),
        ('("z", pa.int64())', '("z", pa.int32())'),
        ('[scale(column="x"), offset(column="x")]', '[offset(column="x"), scale(column="x")]'),
    ],
)
def test_a_change_that_may_matter_changes_the_version(version_of: Any, change: tuple[str, str]) -> None:
    assert version_of(change) != version_of()


@pytest.mark.parametrize(
    "change", [("OTHER = 5", "OTHER = 6"), ("NUMBER = 7", "NUMBER = 8"), ("import math", "import math, os")]
)
def test_a_change_that_cannot_matter_does_not(version_of: Any, change: tuple[str, str]) -> None:
    assert version_of(change) == version_of()


def test_code_without_a_source_has_no_version() -> None:
    namespace: dict[str, Any] = {}
    exec("def nowhere(batch):\n    return batch\n", namespace)
    with pytest.raises(RecipeError, match=r"step nowhere: its source code cannot be read.*define it"):
        _ = Recipe("r", [Step("nowhere", namespace["nowhere"])], OUTPUT).version


# -- loading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "path", "words"),
    [
        (None, "no_such_module:RECIPE", "module no_such_module is not there"),
        ("import no_such_library\n", "made:RECIPE", "module no_such_library is not there"),
        ("x = 1\n", "made:RECIPE", "module made has no 'RECIPE'"),
        ("RECIPE = 1\n", "made:RECIPE", "made:RECIPE is of type int, not a Recipe"),
        ("RECIPE = (\n", "made:RECIPE", "made cannot be imported: SyntaxError"),
        ("1 / 0\n", "made:RECIPE", "made cannot be imported: ZeroDivisionError"),
    ],
)
def test_recipes_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, path: str, words: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "made", raising=False)
    if content is not None:
        (tmp_path / "made.py").write_text(content)
    importlib.invalidate_caches()
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)
    sys.modules.pop("made", None)


def test_passthrough_hands_on_the_contracts_columns() -> None:
    columns = {
        "row_key": ColumnSpec(type="int64"),
        "x": ColumnSpec(type="int64"),
        "t": ColumnSpec(type="string"),
    }
    recipe = passthrough(columns)
    assert recipe.output == pa.schema([("x", pa.int64()), ("t", pa.string())])
    raw = RAW.append_column("t", pa.array(["a", None, ""]))
    assert recipe.apply(raw).to_pylist()[1] == {"x": 4, "t": None}
    assert len(recipe.version) == 12
    assert passthrough(columns).version == recipe.version
