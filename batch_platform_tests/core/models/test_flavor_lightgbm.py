import re
import subprocess
import sys
from dataclasses import replace

import lightgbm
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.models import lightgbm_text
from batch_platform.core.models.predictor import SignatureRequest, describe, load_predictor
from batch_platform.core.models.registry import Registry
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.errors import InferenceError, ModelError, SignatureError
from batch_platform_tests import tiny_models
from batch_platform_tests.core.models import tree_bench

KINDS = ("binary", "multiclass", "regression")
OBJECTIVES = {
    "binary": {"objective": "binary"},
    "multiclass": {"objective": "multiclass", "num_class": 3},
    "regression": {"objective": "regression"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """For each kind: folder, booster as LightGBM loads it, values, names."""
    made = {}
    for kind in KINDS:
        values, names, target = tree_bench.data(kind)
        settings = OBJECTIVES[kind] | {"verbosity": -1, "num_leaves": 7, "num_threads": 1}
        folder = tmp_path_factory.mktemp(kind)
        data = lightgbm.Dataset(values, target, feature_name=names)
        lightgbm.train(settings, data, 8).save_model(folder / "model.txt")
        made[kind] = folder, lightgbm.Booster(model_file=folder / "model.txt"), values, names
    return made


def _wanted(kind, booster, values):
    answer = booster.predict(values)
    return np.stack([1 - answer, answer], 1) if kind == "binary" else answer.reshape(len(values), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_gives_what_lightgbm_gives(models, kind):
    folder, booster, values, names = models[kind]
    signature = tree_bench.signature(kind, names)
    wanted = _wanted(kind, booster, values)
    shard = tree_bench.table(values, names)
    for rows in ("auto", 33):
        result = tree_bench.engine(folder, "lightgbm", signature, rows).score(shard)
        assert result.failures == []
        assert result.outputs["row_key"].to_pylist() == shard["row_key"].to_pylist()
        got = tree_bench.numbers(result.outputs, signature)
        if kind == "regression":
            assert np.array_equal(got, wanted)
        else:
            assert np.array_equal(got, wanted.astype(np.float32))
            assert np.array_equal(result.outputs["score"].to_numpy(), wanted.max(axis=1))
            best = [signature.labels[place] for place in wanted.argmax(axis=1)]
            assert result.outputs["label"].to_pylist() == best


def test_the_score_is_exactly_the_probability_of_the_positive_class(models):
    folder, booster, values, names = models["binary"]
    signature = tree_bench.signature("binary", names).with_positive_class("benign")
    result = tree_bench.engine(folder, "lightgbm", signature).score(tree_bench.table(values, names))
    assert np.array_equal(result.outputs["score"].to_numpy(), booster.predict(values))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_registered_with_golden_rows_and_scored_from_the_registry(models, kind, tmp_path):
    folder, booster, values, names = models[kind]
    wanted = _wanted(kind, booster, values)
    golden = tree_bench.table(values, names).slice(0, 40)
    request = SignatureRequest(labels=tree_bench.LABELS[kind] or None)
    signature = describe(folder, "lightgbm", request)
    assert signature == tree_bench.signature(kind, names)
    if kind == "regression":
        golden = golden.append_column("prediction", pa.array(wanted[:40, 0]))
    else:
        best = wanted[:40].argmax(axis=1)
        golden = golden.append_column("label", pa.array([signature.labels[place] for place in best]))
        golden = golden.append_column("scores", pa.array(wanted[:40].tolist()))
    registry = Registry(tmp_path / "root")

    def register(rows):
        return registry.register(
            kind, folder, "lightgbm", signature, card=tiny_models.CARD, golden=rows, by="a", why="b"
        )

    version = register(golden)
    code, errors, outputs = tree_bench.by_command(
        version.path.parent, "lightgbm", tree_bench.table(values, names), tmp_path, signature.task
    )
    assert (code, errors) == (0, "")
    assert np.array_equal(tree_bench.numbers(outputs, signature).astype("f4"), wanted.astype("f4"))
    expected = "prediction" if kind == "regression" else "scores"
    place = golden.column_names.index(expected)
    other = golden.set_column(place, expected, golden[expected].take(pa.array(range(39, -1, -1))))
    with pytest.raises(ModelError, match="golden values differ"):
        register(other)


def test_categories_of_pandas_are_coded_as_in_training(tmp_path):
    draw = np.random.default_rng(1)
    frame = pd.DataFrame({"my amount": draw.normal(size=400), "is_new": draw.random(400) < 0.5})
    frame["plan"] = pd.Categorical(draw.choice(["basic", "pro", "gold"], 400))
    target = frame["my amount"] + (frame["plan"] == "gold") * 3 + frame["is_new"]
    data = lightgbm.Dataset(frame, target)
    settings = {"verbosity": -1, "min_data_in_leaf": 5, "min_data_per_group": 5, "num_leaves": 7}
    lightgbm.train(settings, data, 5).save_model(tmp_path / "model.txt")
    booster = lightgbm.Booster(model_file=tmp_path / "model.txt")
    assert [column.type for column in describe(tmp_path, "lightgbm", SignatureRequest()).inputs] == [
        "float64", "float64", "string"
    ]  # fmt: skip
    inputs = (("plan", "string"), ("is_new", "boolean"), ("my amount", "float64"))
    signature = ModelSignature(tuple(InputColumn(*item) for item in inputs), "regression")
    words = ["gold", "basic", None, "unseen", "pro"] * 4
    rows = pa.table({
        "row_key": [str(row) for row in range(20)], "my amount": draw.normal(size=20),
        "is_new": [True, False] * 10, "plan": words,
    })  # fmt: skip
    result = tree_bench.engine(tmp_path, "lightgbm", signature).score(rows)
    frame = rows.to_pandas()[["my amount", "is_new", "plan"]]
    frame["plan"] = pd.Categorical(frame["plan"].replace("unseen", None), ["basic", "gold", "pro"])
    assert np.array_equal(result.outputs["prediction"].to_numpy(), booster.predict(frame))
    assert len(set(result.outputs["prediction"].to_pylist()[:5])) > 2
    with pytest.raises(SignatureError, match="the signature has 0 inputs of type string"):
        load_predictor(
            tmp_path, "lightgbm",
            ModelSignature(tuple(InputColumn(name, "float64") for name, _ in inputs), "regression"),
        )  # fmt: skip


def test_columns_are_found_by_name_and_a_mismatch_names_them(models, tmp_path):
    folder, booster, values, names = models["regression"]
    inputs = tuple(InputColumn(name, "float64") for name in reversed(names))
    signature = ModelSignature(inputs, "regression")
    shard = tree_bench.table(values, names)
    result = tree_bench.engine(folder, "lightgbm", signature).score(shard)
    assert np.array_equal(result.outputs["prediction"].to_numpy(), booster.predict(values))
    other = ModelSignature((*inputs[1:], InputColumn("weight", "float64")), "regression")
    with pytest.raises(SignatureError, match=r"reads 's6', which .* inputs lack; .* inputs 'weight' are no"):
        load_predictor(folder, "lightgbm", other)
    text = ModelSignature((*inputs[1:], InputColumn(inputs[0].name, "string")), "regression")
    with pytest.raises(SignatureError, match=r"reads numbers and booleans, .* 's6' \(string\)"):
        load_predictor(folder, "lightgbm", text)


def test_columns_without_names_are_taken_in_the_order_of_the_signature(tmp_path):
    values, names, target = tree_bench.data("regression")
    booster = lightgbm.train({"verbosity": -1}, lightgbm.Dataset(values, target), 3)
    booster.save_model(tmp_path / "model.txt")
    signature = tree_bench.signature("regression", names)
    with pytest.raises(ModelError, match=r"without names of columns: write signature\.json"):
        describe(tmp_path, "lightgbm", SignatureRequest())
    result = tree_bench.engine(tmp_path, "lightgbm", signature).score(tree_bench.table(values, names))
    assert np.array_equal(result.outputs["prediction"].to_numpy(), booster.predict(values))
    with pytest.raises(SignatureError, match="reads 10 columns, the signature has 9 inputs"):
        load_predictor(tmp_path, "lightgbm", replace(signature, inputs=signature.inputs[1:]))


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("binary", None, "tells 2 classes apart and does not name them: give --labels"),
        ("multiclass", ("a", "b"), "tells 3 classes apart, 2 labels are given"),
        ("regression", ("a", "b"), "labels have no meaning"),
    ],
)
def test_labels_are_asked_for_and_counted(models, kind, labels, message):
    with pytest.raises(ModelError, match=message):
        describe(models[kind][0], "lightgbm", SignatureRequest(labels=labels))


def test_a_signature_of_another_task_or_more_labels_is_refused(models):
    folder, _, _, names = models["multiclass"]
    with pytest.raises(SignatureError, match="says classification, the signature says regression"):
        load_predictor(folder, "lightgbm", tree_bench.signature("regression", names))
    with pytest.raises(SignatureError, match="3 classes apart, the signature has 2 labels"):
        load_predictor(folder, "lightgbm", tree_bench.signature("binary", names))


def _cut(text):
    return text[: len(text) * 2 // 3]


def _in_first_tree(name, change):
    def altered(text):
        head, tree, rest = text.partition("\nTree=0\n")
        line = re.search(rf"^{name}=(.*)$", rest, re.MULTILINE)
        new = change(line[1].split())
        rest = rest[: line.start(1)] + new + rest[line.end(1) :]
        grown = len(new) - len(line[1])
        sizes = re.sub(r"tree_sizes=(\d+)", lambda found: f"tree_sizes={int(found[1]) + grown}", head)
        return sizes + tree + rest

    return altered


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, "is cut short"),
        (lambda text: "", "is not in LightGBM's text format"),
        (lambda text: '{"learner": {}}', "is not in LightGBM's text format"),
        (lambda text: text.replace("tree_sizes=", "tree_sizes=9"), "not of the sizes that it says"),
        (lambda text: text.replace("\n", "\r\n"), "is not in LightGBM's text format"),
        (lambda text: text.replace("num_class=1\n", "num_class=2\n"), "num_tree_per_iteration differ"),
        (lambda text: text.replace("objective=regression", "objective=binary"), "says classification"),
        (lambda text: text.replace("max_feature_idx=9", "max_feature_idx=3"), "number of feature names"),
        (_in_first_tree("left_child", lambda words: " ".join(["70000", *words[1:]])), "has a child that is not"),
        (_in_first_tree("left_child", lambda words: " ".join(["-70000", *words[1:]])), "has a child that is not"),
        (_in_first_tree("left_child", lambda words: " ".join(["0", *words[1:]])), "has a child that is not"),
        (_in_first_tree("right_child", lambda words: " ".join([words[1], *words[1:]])), "node with two parents"),
        (_in_first_tree("split_feature", lambda words: " ".join(["10", *words[1:]])), "reads column 10"),
        (_in_first_tree("leaf_value", lambda words: " ".join(words[1:])), "leaf_value has 6 values instead of 7"),
        (_in_first_tree("threshold", lambda words: " ".join(["x", *words[1:]])), "was altered"),
        (_in_first_tree("num_leaves", lambda words: "8"), "values instead of"),
        (_in_first_tree("decision_type", lambda words: " ".join(["3", *words[1:]])), "was altered"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_trusted_are_refused(models, tmp_path, spoil, message):
    folder, _, _, names = models["regression"]
    (tmp_path / "m").mkdir()
    text = (folder / "model.txt").read_text()
    (tmp_path / "m" / "model.txt").write_bytes(spoil(text).encode())
    signature = tree_bench.signature("regression", names)
    with pytest.raises(ModelError, match=message):
        load_predictor(tmp_path / "m", "lightgbm", signature)
    with pytest.raises(ModelError, match=message):
        Registry(tmp_path).register("m", tmp_path / "m", "lightgbm", signature, card=None, by="a", why="b")


def test_an_absent_or_oversized_file_is_refused(models, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"model\.txt: is missing"):
        describe(tmp_path, "lightgbm", SignatureRequest())
    monkeypatch.setattr(lightgbm_text, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match="is larger than 1000 bytes"):
        describe(models["binary"][0], "lightgbm", SignatureRequest())


def test_a_leaf_that_is_no_number_fails_its_rows_alone(models, tmp_path):
    folder, _, values, names = models["regression"]
    text = _in_first_tree("leaf_value", lambda words: " ".join(["nan", *words[1:]]))(
        (folder / "model.txt").read_text()
    )
    (tmp_path / "model.txt").write_text(text)
    shard = tree_bench.table(values, names)
    result = tree_bench.engine(tmp_path, "lightgbm", tree_bench.signature("regression", names)).score(shard)
    assert {failure.message for failure in result.failures} == {"the model's output is NaN or infinite"}
    assert 0 < len(result.failures) < len(values)
    assert result.outputs.num_rows + len(result.failures) == len(values)


def test_it_computes_on_the_cpu_in_its_own_precision(models):
    folder, _, _, names = models["binary"]
    signature = tree_bench.signature("binary", names)
    assert BatchPlan.of(signature, flavor="lightgbm").device == "cpu"
    with pytest.raises(InferenceError, match="computes on the CPU"):
        BatchPlan.of(signature, "cuda", flavor="lightgbm")
    with pytest.raises(InferenceError, match="computes on the CPU, not on cuda"):
        load_predictor(folder, "lightgbm", signature, "cuda")
    with pytest.raises(InferenceError, match="does not compute in bfloat16"):
        load_predictor(folder, "lightgbm", signature, dtype="bfloat16")


def test_describing_a_model_loads_no_library(models):
    program = (
        "import sys; from pathlib import Path; from batch_platform.core.models.predictor import *\n"
        f"describe(Path({str(models['regression'][0])!r}), 'lightgbm', SignatureRequest())\n"
        "print([name for name in ('lightgbm', 'torch', 'pandas', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
