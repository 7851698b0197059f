"""Stage `features`, without Dagster: pass-through, rows that a recipe cannot use, and what is adopted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from batch_platform.core import featurizing
from batch_platform.core.features.recipe import Recipe, step
from batch_platform.core.featurizing import features_schema, featurize_partition, recipe_of
from batch_platform.core.landing import land_partition
from batch_platform.core.slice import Run, Slice, StageResult
from batch_platform.core.spec import PipelineSpec, parse_spec
from batch_platform.errors import GateError, RecipeError, UpstreamMissingError
from batch_platform.settings import Settings
from batch_platform_tests.mini import ATTRIBUTES, DAYS, good_row

DAY = DAYS[0]
ROWS = 20
OUTPUT = [("ratio", pa.float64()), ("plan", pa.string())]


@step
def _ratio(batch: pa.RecordBatch, over: float = 20.0) -> pa.RecordBatch:
    """Infinite for the row of age 23, whose divisor is zero."""
    age = batch["age"].to_numpy(zero_copy_only=False)
    with np.errstate(divide="ignore"):
        ratio = over / (age - 23.0)
    return batch.append_column("ratio", pa.array(ratio))


@step
def _picky(batch: pa.RecordBatch) -> pa.RecordBatch:
    if pc.any(pc.equal(batch["plan"], "gold")).as_py():
        raise ValueError(f"no feature for {batch['plan'][0]}")
    return batch


class Kitchen:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, monkeypatch
        self.spec: PipelineSpec = parse_spec(ATTRIBUTES, "mini")
        self.land()

    def change(self, **sections: Any) -> None:
        self.spec = parse_spec({**ATTRIBUTES, **sections}, "mini")

    def slice(self, run: str = "r1") -> Slice:
        partition = self.spec.partitions.calendar().partition(DAY)
        return Slice(self.spec, partition, Settings(self.folder / "root"), self.folder, Run(run))

    def land(self, plans: str = "basic") -> None:
        rows = [{**good_row(DAY, place), "plan": plans} for place in range(ROWS)]
        lines = [",".join(str(value) for value in row.values()) for row in rows]
        path = self.folder / "data" / f"{DAY}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["id,amount,age,plan", *lines]))
        land_partition(self.slice())

    def use(self, *steps: Any) -> None:
        recipe = Recipe("ratios", list(steps), pa.schema(OUTPUT))
        self._patch.setattr(featurizing, "recipe_of", lambda spec: recipe)

    def featurize(self, run: str = "r1") -> StageResult:
        return featurize_partition(self.slice(run))

    def table(self, name: str = "features") -> pl.DataFrame:
        folder = self.slice().layout.table(name)
        return pl.read_delta(str(folder)) if folder.is_dir() else pl.DataFrame()


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    return Kitchen(tmp_path, monkeypatch)


def test_without_a_recipe_the_columns_pass_through(kitchen: Kitchen) -> None:
    result = kitchen.featurize()
    assert (result.rows, result.reused) == (ROWS, False)
    features, raw = kitchen.table().sort("row_key"), kitchen.table("raw").sort("row_key")
    assert features.columns == ["row_key", "id", "amount", "age", "plan", "partition_key"]
    for name in ("row_key", "amount", "age", "plan"):
        assert features[name].equals(raw[name])
    assert result.metadata["rows_in"] == ROWS
    assert features_schema(recipe_of(kitchen.spec)).names == ["row_key", "id", "amount", "age", "plan"]


def test_a_row_that_becomes_infinite_is_quarantined_with_its_place(kitchen: Kitchen) -> None:
    kitchen.use(_ratio())
    result = kitchen.featurize()
    assert result.rows == ROWS - 1
    assert kitchen.table()["ratio"].is_finite().all()
    (bad,) = kitchen.table("quarantine").to_dicts()
    assert (bad["stage"], bad["row_key"], bad["error_type"]) == ("features", f"{DAY}-3", "not_finite")
    assert (bad["source_file"], bad["source_row"]) == (f"data/{DAY}.csv", 3)
    assert "'ratio'" in bad["message"]
    assert json.loads(bad["payload"])["age"] == 23


def test_rows_at_which_the_recipe_fails(kitchen: Kitchen) -> None:
    kitchen.land(plans="gold")
    kitchen.use(_picky(), _ratio())
    with pytest.raises(GateError) as caught:
        kitchen.featurize()
    message = str(caught.value)
    assert "20 of 20 rows quarantined" in message
    assert f"the first is data/{DAY}.csv row 0" in message
    assert "no feature for gold" in message
    assert kitchen.table().is_empty()
    kitchen.land(plans="pro")
    assert kitchen.featurize().rows == ROWS - 1


def test_messages_and_payload_of_sensitive_pipelines_are_masked(kitchen: Kitchen) -> None:
    columns = {**ATTRIBUTES["source"]["columns"], "plan": {"type": "string", "sensitive": True}}
    kitchen.change(source={**ATTRIBUTES["source"], "columns": columns}, inference={"max_error_share": 1.0})
    kitchen.land(plans="gold")
    kitchen.use(_picky(), _ratio())
    kitchen.featurize()
    frame = kitchen.table("quarantine")
    assert frame.height == ROWS
    assert "gold" not in frame.write_csv()
    assert frame["payload"].null_count() == ROWS


def test_the_same_work_is_adopted_and_other_work_is_not(kitchen: Kitchen) -> None:
    kitchen.use(_ratio())
    first = kitchen.featurize("r1")
    again = kitchen.featurize("r2")
    assert (again.reused, again.rows, again.data_version) == (True, ROWS - 1, first.data_version)
    assert all(check.passed for check in again.checks)
    kitchen.use(_ratio(over=40.0))
    other = kitchen.featurize("r3")
    assert not other.reused
    assert other.metadata["recipe_version"] != first.metadata["recipe_version"]
    kitchen.land(plans="pro")
    assert not kitchen.featurize("r4").reused
    assert set(kitchen.table()["plan"]) == {"pro"}


def test_what_stands_is_judged_again(kitchen: Kitchen) -> None:
    """Stricter rules hold for what was committed under milder ones."""
    kitchen.use(_ratio())
    kitchen.featurize()
    kitchen.change(inference={"max_error_share": 0.0})
    with pytest.raises(GateError, match="1 of 20 rows quarantined"):
        kitchen.featurize()


def test_missing_upstream_and_missing_recipe(kitchen: Kitchen) -> None:
    kitchen.change(features={"recipe": "nowhere.features:RECIPE"})
    with pytest.raises(RecipeError, match="nowhere"):
        kitchen.featurize()
    kitchen.change(name="other")
    with pytest.raises(UpstreamMissingError, match="materialize other/raw for it first"):
        kitchen.featurize()
