import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.core.inference.batching import BatchPlan, cut, shard_rows
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.spec import InferenceSpec
from batch_platform_tests.tiny_models import TABULAR_CONFIG, TEXT_SIGNATURE


@given(st.lists(st.integers(1, 600), max_size=200), st.integers(1, 2000), st.integers(1, 50), st.randoms())
def test_every_row_is_in_one_batch_within_the_budget(costs, tokens, rows, draw):
    costs = np.array(costs, np.int64)
    some = np.array(sorted(draw.sample(range(len(costs)), len(costs) // 2)), np.int64)
    batches = cut(costs, some, BatchPlan("cpu", "float32", tokens, rows))
    assert sorted(np.concatenate([*batches, []]).tolist()) == some.tolist()
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or costs[batch].max() * len(batch) <= tokens


def test_rows_of_one_length_are_together_the_longest_first():
    costs = np.array([5, 500, 5, 490], np.int64)
    batches = cut(costs, np.arange(4), BatchPlan("cpu", "float32", 1000, 100))
    assert [batch.tolist() for batch in batches] == [[1, 3], [0, 2]]


def test_tabular_rows_are_cut_by_rows_in_their_order():
    batches = cut(np.ones(10, np.int64), np.arange(10), BatchPlan("cpu", "float32", None, 4))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_plan_is_that_of_the_pipeline_file():
    spec = InferenceSpec(device="cpu", batch_tokens=77, batch_rows=5)
    assert BatchPlan.from_spec(spec, TEXT_SIGNATURE) == BatchPlan("cpu", "float32", 77, 5)
    tabular = BatchPlan.from_spec(InferenceSpec(device="cpu"), TABULAR_CONFIG.signature())
    assert tabular.batch_tokens is None
    assert tabular.batch_rows > 1000


def test_auto_is_chosen_for_the_device():
    plan = BatchPlan.from_spec(InferenceSpec(), TEXT_SIGNATURE, "cpu")
    assert plan.to_dict() == {
        "device": "cpu", "dtype": "float32", "batch_tokens": 1024, "batch_rows": 4096
    }  # fmt: skip


def test_shards_hold_about_as_many_numbers_whatever_the_columns():
    def of(columns):
        inputs = tuple(InputColumn(f"c{place}", "float64") for place in range(columns))
        return shard_rows("auto", ModelSignature(inputs, "regression"))

    assert shard_rows("auto", TEXT_SIGNATURE) == of(5000) == 8192
    assert of(1) == of(30) == 262_144
    assert of(100) == 2**23 // 100
    assert shard_rows(7, TEXT_SIGNATURE) == 7


def test_a_batch_of_trees_is_a_shard():
    signature = TABULAR_CONFIG.signature()
    for flavor in ("lightgbm", "xgboost"):
        plan = BatchPlan.of(signature, flavor=flavor)
        assert plan == BatchPlan("cpu", "float32", None, shard_rows("auto", signature))


def test_a_device_that_is_absent_is_refused():
    import torch

    from batch_platform.errors import InferenceError

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InferenceError, match="sees no CUDA device"):
        BatchPlan.of(TEXT_SIGNATURE, "cuda")
    assert BatchPlan.of(TEXT_SIGNATURE, "auto").device == "cpu"
    with pytest.raises(InferenceError, match="'tpu' is not known"):
        BatchPlan.of(TEXT_SIGNATURE, "tpu")
    with pytest.raises(InferenceError, match="'int8' is not known"):
        BatchPlan.of(TEXT_SIGNATURE, "cpu", "int8")
