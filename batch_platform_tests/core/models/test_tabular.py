import json

import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core.models.predictor import SignatureRequest, describe, load_predictor
from batch_platform.core.models.tabular import MISSING, UNSEEN, TabularConfig, encode, fit
from batch_platform.errors import InferenceError, ModelError, SignatureError
from batch_platform_tests import tiny_models

CONFIG = tiny_models.TABULAR_CONFIG


def _row(**values):
    row = {"amount": 1.0, "age": 2, "plan": "pro"} | values
    return pa.RecordBatch.from_pylist([row], pa.schema([("amount", "f8"), ("age", "i8"), ("plan", "string")]))


def test_nulls_and_unseen_values_have_codes_of_their_own():
    table = pa.table({"amount": [1.5, None], "age": [1, 2], "plan": ["gold", None]})
    encoded = encode(table, CONFIG)
    assert encoded.numeric.dtype == np.float32
    assert np.isnan(encoded.numeric[1, 0])
    assert encoded.categories[:, 0].tolist() == [UNSEEN, MISSING]
    assert encode(_row(plan="pro"), CONFIG).categories[0, 0] == MISSING + 2


def test_a_missing_or_unreadable_column_is_named():
    with pytest.raises(SignatureError, match="'age' is missing"):
        encode(pa.table({"amount": [1.0], "plan": ["x"]}), CONFIG)
    with pytest.raises(SignatureError, match="'age' is string"):
        encode(pa.table({"amount": [1.0], "age": ["x"], "plan": ["x"]}), CONFIG)


def test_fit_learns_in_batches_what_numpy_says_of_the_whole():
    rng = np.random.default_rng(0)
    values = rng.normal(1e6, 3, 1000)
    table = pa.table({"x": values, "c": rng.choice(["a", "b", "rare"], 1000, p=[0.5, 0.495, 0.005])})
    table = table.set_column(0, "x", pa.array(values, mask=np.arange(1000) % 10 == 0))
    config, standard = fit(
        table.to_batches(max_chunksize=77), numeric=["x"], categorical=["c"], task="regression"
    )
    kept = values[np.arange(1000) % 10 != 0]
    assert standard.mean[0] == pytest.approx(kept.mean(), rel=1e-6)
    assert standard.std[0] == pytest.approx(kept.std(), rel=1e-6)
    assert config.categorical == {"c": ("a", "b")}


def test_a_constant_or_empty_column_is_not_divided_by_zero():
    table = pa.table({"x": [5.0] * 4, "y": pa.array([None] * 4, pa.float64())})
    _, standard = fit(table.to_batches(), numeric=["x", "y"], categorical=[], task="regression")
    assert standard.mean.tolist() == [5, 0]
    assert standard.std.tolist() == [1, 1]


def test_a_saved_model_scores_as_the_one_that_was_trained(tmp_path):
    import torch

    from batch_platform.core.models.tabular_mlp import TabularMLP, tensors

    torch.manual_seed(3)
    model = TabularMLP(CONFIG).eval()
    model.save(tmp_path / "m")
    batch = tiny_models.tabular_rows(50).combine_chunks().to_batches()[0]
    encoded = encode(batch, CONFIG)
    with torch.inference_mode():
        wanted = model(*tensors(encoded.numeric, encoded.categories)).numpy()
    predictor = load_predictor(tmp_path / "m", "torch", CONFIG.signature())
    got = predictor.forward(predictor.prepare(batch), np.arange(50))
    assert np.array_equal(got, wanted)
    assert np.isfinite(got).all()


def test_regression_is_given_in_the_target_s_own_units(tmp_path):
    from batch_platform.core.models.tabular_mlp import TabularMLP

    config = TabularConfig(("x",), {}, "regression", hidden=(4,))
    model = TabularMLP(config)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.set_target_scale(100.0, 5.0)
    model.save(tmp_path)
    predictor = load_predictor(tmp_path, "torch", config.signature())
    prepared = predictor.prepare(pa.record_batch({"x": [1.0, 2.0]}))
    assert predictor.finish(predictor.forward(prepared, np.arange(2))).to_pydict() == {
        "prediction": [100, 100]
    }


def test_an_infinite_number_is_refused_by_row_and_column(tmp_path):
    predictor = load_predictor(tiny_models.tabular_model(tmp_path), "torch", CONFIG.signature())
    for value in (float("inf"), 1e300):
        (refusal,) = predictor.prepare(_row(amount=value)).refused
        assert refusal.row == 0
        assert "'amount' is infinite" in refusal.message
    assert predictor.prepare(_row(amount=float("nan"))).refused == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_name": "os.system"}, "is not allowed"),
        ({"hidden": [10**12]}, "cannot be loaded"),
        ({"hidden": [-1]}, "hidden has a wrong value"),
        ({"numeric": "abc"}, "numeric has a wrong value"),
        ({"more": 1}, "expected an object with the fields"),
        ({"categorical": {"plan": ["a", "a"]}}, "has a value twice"),
        ({"numeric": ["amount", "plan"]}, "both numeric and categorical"),
        ({"labels": ["churned", "stays"]}, "they must be equal, in this order"),
    ],
)
def test_a_config_that_lies_is_refused(tmp_path, change, message):
    tiny_models.tabular_model(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load_predictor(tmp_path, "torch", CONFIG.signature())


def test_only_float32(tmp_path):
    with pytest.raises(InferenceError, match="float32"):
        load_predictor(tiny_models.tabular_model(tmp_path), "torch", CONFIG.signature(), "cpu", "bfloat16")


def test_a_folder_describes_itself(tmp_path):
    folder = tiny_models.tabular_model(tmp_path)
    request = SignatureRequest(task="classification", positive_class="churned")
    assert describe(folder, "torch", request) == CONFIG.signature("churned")
    with pytest.raises(SignatureError, match="says task classification"):
        describe(folder, "torch", SignatureRequest(task="regression"))
    with pytest.raises(SignatureError, match="text_column has no meaning"):
        describe(folder, "torch", SignatureRequest(text_column="t"))
