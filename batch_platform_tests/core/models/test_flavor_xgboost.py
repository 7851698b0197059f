import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.models import xgboost_json
from batch_platform.core.models.predictor import SignatureRequest, describe, load_predictor
from batch_platform.core.models.registry import Registry
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.errors import InferenceError, ModelError, SignatureError
from batch_platform_tests import tiny_models
from batch_platform_tests.core.models import tree_bench

KINDS = ("binary", "multiclass", "regression")
OBJECTIVES = {
    "binary": {"objective": "binary:logistic"},
    "multiclass": {"objective": "multi:softprob", "num_class": 3},
    "regression": {"objective": "reg:squarederror"},
}


def _train(folder, values, names, target, **settings):
    data = xgboost.DMatrix(values, target, feature_names=names)
    booster = xgboost.train({"max_depth": 3, "nthread": 1, **settings}, data, 8)
    booster.save_model(folder / "model.json")
    return booster


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """For each kind: folder, booster, values, names."""
    made = {}
    for kind in KINDS:
        values, names, target = tree_bench.data(kind)
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = folder, _train(folder, values, names, target, **OBJECTIVES[kind]), values, names
    return made


def _wanted(kind, booster, values, names):
    answer = booster.predict(xgboost.DMatrix(values, feature_names=names))
    return np.stack([1 - answer, answer], 1) if kind == "binary" else answer.reshape(len(values), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_gives_what_xgboost_gives(models, kind):
    folder, booster, values, names = models[kind]
    signature = tree_bench.signature(kind, names)
    wanted = _wanted(kind, booster, values, names)
    shard = tree_bench.table(values, names)
    for rows in ("auto", 33):
        result = tree_bench.engine(folder, "xgboost", signature, rows).score(shard)
        assert result.failures == []
        assert result.outputs["row_key"].to_pylist() == shard["row_key"].to_pylist()
        assert np.array_equal(tree_bench.numbers(result.outputs, signature), wanted)
        if kind != "regression":
            best = [signature.labels[place] for place in wanted.argmax(axis=1)]
            assert result.outputs["label"].to_pylist() == best


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_registered_with_golden_rows_and_scored_from_the_registry(models, kind, tmp_path):
    folder, booster, values, names = models[kind]
    wanted = _wanted(kind, booster, values, names)
    golden = tree_bench.table(values, names).slice(0, 40)
    signature = describe(folder, "xgboost", SignatureRequest(labels=tree_bench.LABELS[kind] or None))
    assert signature == tree_bench.signature(kind, names)
    expected = "prediction" if kind == "regression" else "scores"
    answers = wanted[:, 0].tolist() if kind == "regression" else wanted.tolist()
    registry = Registry(tmp_path / "root")

    def register(answers):
        rows = golden.append_column(expected, pa.array(answers))
        return registry.register(
            kind, folder, "xgboost", signature, card=tiny_models.CARD, golden=rows, by="a", why="b"
        )

    version = register(answers[:40])
    code, errors, outputs = tree_bench.by_command(
        version.path.parent, "xgboost", tree_bench.table(values, names), tmp_path, signature.task
    )
    assert (code, errors) == (0, "")
    assert np.array_equal(tree_bench.numbers(outputs, signature), wanted)
    with pytest.raises(ModelError, match="golden values differ"):
        register(answers[:40][::-1])


@pytest.mark.parametrize("objective", ["binary:logitraw", "multi:softmax"])
def test_objectives_without_probabilities_are_asked_for_margins(objective, tmp_path):
    kind = objective.split(":", maxsplit=1)[0].replace("multi", "multiclass")
    values, names, target = tree_bench.data(kind)
    settings = OBJECTIVES[kind] | {"objective": objective}
    booster = _train(tmp_path, values, names, target, **settings)
    margins = booster.predict(xgboost.DMatrix(values, feature_names=names), output_margin=True)
    if kind == "binary":
        margins = np.stack([np.zeros_like(margins), margins], axis=1)
    exponents = np.exp(margins.astype(np.float64))
    wanted = exponents / exponents.sum(axis=1, keepdims=True)
    signature = tree_bench.signature(kind, names)
    result = tree_bench.engine(tmp_path, "xgboost", signature).score(tree_bench.table(values, names))
    assert tree_bench.numbers(result.outputs, signature) == pytest.approx(wanted, rel=1e-6)


def test_dart_and_the_best_round_of_scikit_learn(tmp_path):
    values, names, target = tree_bench.data("binary")
    frame = pd.DataFrame(values, columns=names)
    model = xgboost.XGBClassifier(
        n_estimators=60, max_depth=4, learning_rate=1.0, early_stopping_rounds=3, n_jobs=1, booster="dart"
    )
    model.fit(frame[:300], target[:300], eval_set=[(frame[300:], target[300:])], verbose=False)
    model.save_model(tmp_path / "model.json")
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    signature = tree_bench.signature("binary", names)
    result = tree_bench.engine(tmp_path, "xgboost", signature).score(tree_bench.table(values, names))
    assert np.array_equal(tree_bench.numbers(result.outputs, signature), model.predict_proba(frame))


def test_booleans_and_codes_of_categories(tmp_path):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"amount": draw.normal(size=300), "is_new": draw.random(300) < 0.5})
    target = frame["amount"] + frame["is_new"]
    codes = draw.integers(0, 40, 300)
    values = np.column_stack([frame.to_numpy(np.float64), codes])
    data = xgboost.DMatrix(
        values, target + (codes % 7 == 0), feature_names=["amount", "is_new", "code"],
        feature_types=["float", "i", "c"], enable_categorical=True,
    )  # fmt: skip
    booster = xgboost.train({"max_cat_to_onehot": 2, "nthread": 1}, data, 5)
    booster.save_model(tmp_path / "model.json")
    signature = describe(tmp_path, "xgboost", SignatureRequest(task="regression"))
    assert [column.type for column in signature.inputs] == ["float64", "boolean", "float64"]
    shard = pa.table({"row_key": [str(row) for row in range(300)], "code": codes, "amount": frame["amount"],
                      "is_new": frame["is_new"]})  # fmt: skip
    result = tree_bench.engine(tmp_path, "xgboost", signature).score(shard)
    assert np.array_equal(result.outputs["prediction"].to_numpy(), booster.predict(data))


def test_columns_are_found_by_name_and_a_mismatch_names_them(models):
    folder, booster, values, names = models["regression"]
    inputs = tuple(InputColumn(name, "float64") for name in reversed(names))
    shard = tree_bench.table(values, names)
    result = tree_bench.engine(folder, "xgboost", ModelSignature(inputs, "regression")).score(shard)
    wanted = _wanted("regression", booster, values, names)[:, 0]
    assert np.array_equal(result.outputs["prediction"].to_numpy(), wanted)
    other = ModelSignature((*inputs[1:], InputColumn("weight", "float64")), "regression")
    with pytest.raises(SignatureError, match=r"reads 's6', which .* inputs lack; .* inputs 'weight' are no"):
        load_predictor(folder, "xgboost", other)
    text = ModelSignature((*inputs[1:], InputColumn(inputs[0].name, "string")), "regression")
    with pytest.raises(SignatureError, match=r"reads numbers and booleans, .* 's6' \(string\)"):
        load_predictor(folder, "xgboost", text)


def test_columns_without_names_are_taken_in_the_order_of_the_signature(tmp_path):
    values, names, target = tree_bench.data("regression")
    booster = _train(tmp_path, values, None, target)
    signature = tree_bench.signature("regression", names)
    with pytest.raises(ModelError, match=r"without names of columns: write signature\.json"):
        describe(tmp_path, "xgboost", SignatureRequest())
    result = tree_bench.engine(tmp_path, "xgboost", signature).score(tree_bench.table(values, names))
    assert np.array_equal(result.outputs["prediction"].to_numpy(), booster.predict(xgboost.DMatrix(values)))
    with pytest.raises(SignatureError, match="reads 10 columns, the signature has 9 inputs"):
        load_predictor(tmp_path, "xgboost", replace(signature, inputs=signature.inputs[1:]))


def test_infinite_numbers_fail_their_rows_alone(models):
    folder, _, values, names = models["regression"]
    values = values.copy()
    values[3, 1], values[5, 2] = np.inf, 1e300
    engine = tree_bench.engine(folder, "xgboost", tree_bench.signature("regression", names))
    result = engine.score(tree_bench.table(values, names))
    assert [(failure.row_key, failure.error_type) for failure in result.failures] == [
        ("k3", "InfiniteFeature"), ("k5", "InfiniteFeature")
    ]  # fmt: skip
    assert "column 'bmi' is infinite (or too large for float32)" in result.failures[1].message
    assert result.outputs.num_rows == len(values) - 2


def _set(value, *path):
    def change(model):
        place = model["learner"]
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    return change


TREE = ("gradient_booster", "model", "trees", 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_set("survival:cox", "objective", "name"), "survival:cox is not supported"),
        (_set("binary:logistic", "objective", "name"), "says classification"),
        (_set("gblinear", "gradient_booster", "name"), "booster gblinear is not supported"),
        (_set(["a"], "feature_names"), "1 feature_names for 10 columns"),
        (_set("3", "learner_model_param", "num_class"), "3 classes, and the objective is"),
        (_set("2", "learner_model_param", "num_target"), "predicts several targets"),
        (_set("4", "learner_model_param", "num_feature"), "feature_names for 4 columns"),
        (_set("9", "gradient_booster", "model", "gbtree_model_param", "num_trees"), "num_trees is not"),
        (_set([5] * 8, "gradient_booster", "model", "tree_info"), "belongs to a class that is not there"),
        (_set([0, 99], "gradient_booster", "model", "iteration_indptr"), "rounds are not made of the trees"),
        (_set(70000, *TREE, "left_children", 0), "has a child that is not among"),
        (_set(0, *TREE, "left_children", 0), "has a child that is not among"),
        (_set(2, *TREE, "left_children", 0), "has a node with two parents"),
        (_set(-1, *TREE, "left_children", 0), "has a node with one child"),
        (_set(10, *TREE, "split_indices", 0), "reads column 10, the model has 10"),
        (_set(1, *TREE, "split_type", 0), "categories are not where its splits look"),
        (_set([0.5], *TREE, "split_conditions"), "split_conditions has 1 values instead of"),
        (_set("many", *TREE, "tree_param", "num_nodes"), "was altered"),
        (_set(None, "gradient_booster"), "was altered"),
    ],
)
def test_files_that_cannot_be_trusted_are_refused(models, tmp_path, spoil, message):
    folder, _, _, names = models["regression"]
    model = json.loads((folder / "model.json").read_text())
    spoil(model)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.json").write_text(json.dumps(model))
    signature = tree_bench.signature("regression", names)
    with pytest.raises(ModelError, match=message):
        load_predictor(tmp_path / "m", "xgboost", signature)
    with pytest.raises(ModelError, match=message):
        Registry(tmp_path).register("m", tmp_path / "m", "xgboost", signature, card=None, by="a", why="b")


def test_files_cut_short_absent_or_oversized_are_refused(models, tmp_path, monkeypatch):
    content = (models["binary"][0] / "model.json").read_bytes()
    with pytest.raises(ModelError, match=r"model\.json: is missing"):
        describe(tmp_path, "xgboost", SignatureRequest())
    for part in (content[:500], b"", b"tree\nversion=v4\n", b"[" * 100_000, b"\xff\xfe"):
        (tmp_path / "model.json").write_bytes(part)
        with pytest.raises(ModelError, match="cannot be read as JSON"):
            describe(tmp_path, "xgboost", SignatureRequest())
    monkeypatch.setattr(xgboost_json, "MAX_BYTES", 10)
    with pytest.raises(ModelError, match="is larger than 10 bytes"):
        describe(models["binary"][0], "xgboost", SignatureRequest())


def test_categories_of_its_own_are_refused(tmp_path):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"plan": pd.Categorical(draw.choice(["basic", "pro"], 100))})
    data = xgboost.DMatrix(frame, draw.random(100), enable_categorical=True)
    xgboost.train({"nthread": 1}, data, 2).save_model(tmp_path / "model.json")
    with pytest.raises(ModelError, match="categories of its own, which are not supported"):
        describe(tmp_path, "xgboost", SignatureRequest())


def test_an_unknown_objective_is_refused_by_the_library(models, tmp_path):
    folder, _, _, names = models["regression"]
    model = json.loads((folder / "model.json").read_text())
    _set("reg:poetry", "objective", "name")(model)
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_predictor(tmp_path, "xgboost", tree_bench.signature("regression", names))


def test_tasks_and_labels_must_agree(models):
    folder, _, _, names = models["multiclass"]
    with pytest.raises(SignatureError, match="says classification, the signature says regression"):
        load_predictor(folder, "xgboost", tree_bench.signature("regression", names))
    with pytest.raises(SignatureError, match="3 classes apart, the signature has 2 labels"):
        load_predictor(folder, "xgboost", tree_bench.signature("binary", names))
    with pytest.raises(ModelError, match="does not name them: give --labels"):
        describe(folder, "xgboost", SignatureRequest())
    with pytest.raises(SignatureError, match="pooling has no meaning"):
        describe(folder, "xgboost", SignatureRequest(pooling="mean"))


def test_it_computes_on_the_cpu(models):
    folder, _, _, names = models["binary"]
    signature = tree_bench.signature("binary", names)
    assert BatchPlan.of(signature, flavor="xgboost").device == "cpu"
    with pytest.raises(InferenceError, match="computes on the CPU"):
        BatchPlan.of(signature, "cuda", flavor="xgboost")
    with pytest.raises(InferenceError, match="does not compute in float16"):
        load_predictor(folder, "xgboost", signature, dtype="float16")
