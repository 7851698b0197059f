"""Every check can turn red, and when a blocking one does, nothing of that stage or below it is committed.

Each mutation breaks either the data or one function of the core, the way a bug would.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core import featurizing, scoring
from batch_platform.core.data.contract import Contract, SourceBatch
from batch_platform.core.data.ledger import ShardLedger
from batch_platform.core.features.recipe import Recipe, step
from batch_platform.core.inference.engine import Engine
from batch_platform_tests.mini import DAYS, Mini, good_row

DAY = DAYS[0]
CHAIN = ["raw", "features", "predictions"]
Mutation = Callable[[Mini, pytest.MonkeyPatch], Any]


def rows(**changes: Any) -> list[dict]:
    """Twenty good rows, the first of them changed."""
    return [good_row(DAY, 0) | changes, *(good_row(DAY, number) for number in range(1, 20))]


def no_source(mini: Mini, _patch: pytest.MonkeyPatch) -> None:
    (mini.folder / "data" / f"{DAY}.csv").unlink()


def repeated_key(mini: Mini, _patch: pytest.MonkeyPatch) -> None:
    mini.write(DAY, rows(id=good_row(DAY, 1)["id"]))


def many_bad_rows(mini: Mini, _patch: pytest.MonkeyPatch) -> None:
    mini.write(DAY, [good_row(DAY, number) | ({"age": -1} if number < 3 else {}) for number in range(20)])


def contract_not_enforced(mini: Mini, patch: pytest.MonkeyPatch) -> None:
    mini.write(DAY, rows(age=-1))

    def trusting(self: Contract, batch: SourceBatch) -> tuple[pa.RecordBatch, list]:
        source = batch.batch
        columns = {name: source.column(name) for name in self.columns} | {
            "row_key": source.column(self.row_key),
            "source_file": pa.repeat(batch.source_file, source.num_rows),
            "source_row": pa.array(batch.source_rows),
        }
        return pa.record_batch([columns[name] for name in self.schema.names], schema=self.schema), []

    patch.setattr(Contract, "enforce", trusting)


def wrong_feature_columns(_mini: Mini, patch: pytest.MonkeyPatch) -> None:
    real = featurizing.stage

    def losing(batches: Any, schema: pa.Schema, *place: Any) -> Any:
        return real(batches, schema.remove(len(schema) - 1), *place)

    patch.setattr(featurizing, "stage", losing)


@step
def _infinite(batch: pa.RecordBatch) -> pa.RecordBatch:
    values = batch["amount"].to_numpy(zero_copy_only=False).copy()
    values[0] = np.inf
    return batch.set_column(batch.schema.names.index("amount"), "amount", pa.array(values))


@step
def _fails_on_gold(batch: pa.RecordBatch) -> pa.RecordBatch:
    if "gold" in batch["plan"].to_pylist():
        raise ValueError("no feature for gold")
    return batch


OUTPUT = [("amount", pa.float64()), ("age", pa.int64()), ("plan", pa.string())]


def use_recipe(patch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    patch.setattr(featurizing, "recipe_of", lambda spec: recipe)


def null_where_none_may_be(mini: Mini, patch: pytest.MonkeyPatch) -> None:
    mini.write(DAY, rows(amount=""))
    strict = pa.schema([pa.field("amount", pa.float64(), nullable=False), *OUTPUT[1:]])
    use_recipe(patch, Recipe("strict", (), strict))
    # The recipe itself refuses such rows; what if it did not?
    patch.setattr(Recipe, "_cast", lambda self, values, column: values)
    loose = pa.schema([("row_key", pa.string()), *OUTPUT])
    real = featurizing.stage
    patch.setattr(featurizing, "stage", lambda batches, schema, *place: real(batches, loose, *place))
    plain = featurizing._features

    def as_loose(*arguments: Any) -> Any:
        return (pa.record_batch(batch.columns, schema=loose) for batch in plain(*arguments))

    patch.setattr(featurizing, "_features", as_loose)


def infinite_feature(_mini: Mini, patch: pytest.MonkeyPatch) -> None:
    use_recipe(patch, Recipe("infinite", [_infinite()], pa.schema(OUTPUT)))
    patch.setattr(featurizing, "_finite_rows", lambda batch: pa.repeat(True, batch.num_rows))


def recipe_fails_on_rows(_mini: Mini, patch: pytest.MonkeyPatch) -> None:
    use_recipe(patch, Recipe("picky", [_fails_on_gold()], pa.schema(OUTPUT)))


def lost_prediction(_mini: Mini, patch: pytest.MonkeyPatch) -> None:
    real = ShardLedger.record
    patch.setattr(
        ShardLedger, "record", lambda self, index, table, notes: real(self, index, table.slice(1), notes)
    )


def change_outputs(patch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """Let a bug after the engine's own checks change an output column."""
    real = scoring._decorate

    def wrong(*arguments: Any) -> pa.Table:
        table = real(*arguments)
        place = table.schema.names.index(name)
        return table.set_column(
            place, table.schema.field(place), pa.array([value] * table.num_rows, table[name].type)
        )

    patch.setattr(scoring, "_decorate", wrong)


def nan_score(_mini: Mini, patch: pytest.MonkeyPatch) -> None:
    change_outputs(patch, "score", float("nan"))


def score_above_one(_mini: Mini, patch: pytest.MonkeyPatch) -> None:
    change_outputs(patch, "score", 1.5)


def model_gives_nan(_mini: Mini, patch: pytest.MonkeyPatch) -> None:
    real = scoring.load_engine

    def spoiled(*arguments: Any) -> Engine:
        engine = real(*arguments)
        forward = engine.predictor.forward
        patch.setattr(engine.predictor, "forward", lambda *batch: np.full_like(forward(*batch), np.nan))
        return engine

    patch.setattr(scoring, "load_engine", spoiled)


MUTATIONS: list[tuple[str, str, Mutation]] = [
    ("raw", "contract", contract_not_enforced),
    ("raw", "volume", no_source),
    ("raw", "duplicates", repeated_key),
    ("raw", "quarantined_share", many_bad_rows),
    ("features", "schema", wrong_feature_columns),
    ("features", "nulls", null_where_none_may_be),
    ("features", "finite", infinite_feature),
    ("features", "quarantined_share", recipe_fails_on_rows),
    ("predictions", "reconciliation", lost_prediction),
    ("predictions", "finite", nan_score),
    ("predictions", "range", score_above_one),
    ("predictions", "quarantined_share", model_gives_nan),
]


@pytest.mark.parametrize(("stage", "check", "mutation"), MUTATIONS)
def test_red_check_publishes_nothing(
    mini: Mini, monkeypatch: pytest.MonkeyPatch, stage: str, check: str, mutation: Mutation
) -> None:
    mini.write(DAY)
    mutation(mini, monkeypatch)
    mini.run(DAY, stages=CHAIN, fail=True)
    assert mini.check(stage, check, DAY) is False
    assert mini.check(stage, "complete", DAY) is False
    position = CHAIN.index(stage)
    for above in CHAIN[:position]:
        assert mini.rows(above, DAY) == 20
        assert mini.check(above, "complete", DAY) is True
    for below in CHAIN[position:]:
        assert mini.rows(below, DAY) == 0
        assert mini.check(below, "complete", DAY) is False
    assert mini.rows("quarantine", DAY) == 0


def test_the_same_data_without_mutation_is_published(mini: Mini) -> None:
    mini.write(DAY)
    mini.run(DAY, stages=CHAIN)
    assert mini.rows("predictions", DAY) == 20


def test_a_red_check_leaves_the_earlier_result_in_place(mini: Mini) -> None:
    mini.write(DAY)
    mini.run(DAY, stages=CHAIN)
    before = mini.table("predictions")
    many_bad_rows(mini, pytest.MonkeyPatch())
    mini.run(DAY, stages=CHAIN, fail=True)
    assert mini.table("predictions").equals(before)
