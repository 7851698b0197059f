from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn, to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.models import onnx_graph
from batch_platform.core.models.predictor import SignatureRequest, describe, load_predictor
from batch_platform.core.models.registry import Registry
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.errors import InferenceError, ModelError, SignatureError
from batch_platform_tests import tiny_models
from batch_platform_tests.core.models import tree_bench

KINDS = ("binary", "multiclass", "regression")


def _fitted(kind):
    values, names, target = tree_bench.data(kind)
    values = np.nan_to_num(values).astype(np.float32)
    if kind == "regression":
        return GradientBoostingRegressor(n_estimators=10).fit(values, target), values, names
    words = np.array(tree_bench.LABELS[kind])[target]
    return RandomForestClassifier(10, max_depth=4, random_state=0).fit(values, words), values, names


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """For each kind, with and without ZipMap: folder, onnxruntime's own session, values, names, signature."""
    made = {}
    for kind in KINDS:
        model, values, names = _fitted(kind)
        for is_zipped in (True, False):
            folder = tmp_path_factory.mktemp(kind)
            options = {} if kind == "regression" else {"options": {"zipmap": is_zipped}}
            exported = to_onnx(model, values[:1], **options)
            (folder / "model.onnx").write_bytes(exported.SerializeToString())
            session = onnxruntime.InferenceSession(folder / "model.onnx")
            signature = tree_bench.signature(kind, names)
            if kind != "regression":
                signature = replace(signature, labels=tuple(model.classes_))
            made[kind, is_zipped] = folder, session, values, names, signature
    return made


def _wanted(session, values, labels):
    """Numbers, (rows, labels or 1), and labels, as onnxruntime gives them."""
    answers = session.run(None, {session.get_inputs()[0].name: values})
    if len(answers) == 1:
        return answers[0], None
    if isinstance(answers[1], list):
        return np.array([[row[label] for label in labels] for row in answers[1]]), answers[0].tolist()
    return answers[1], answers[0].tolist()


@pytest.mark.parametrize("is_zipped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_gives_what_onnxruntime_gives(models, kind, is_zipped):
    folder, session, values, names, signature = models[kind, is_zipped]
    wanted, labels = _wanted(session, values, signature.labels)
    shard = tree_bench.table(values, names)
    for rows in ("auto", 33):
        result = tree_bench.engine(folder, "onnx", signature, rows).score(shard)
        assert result.failures == []
        assert result.outputs["row_key"].to_pylist() == shard["row_key"].to_pylist()
        got = tree_bench.numbers(result.outputs, signature)
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-6)
        if kind != "regression":
            assert result.outputs["label"].to_pylist() == labels


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_registered_with_golden_rows_and_scored_from_the_registry(models, kind, tmp_path):
    folder, session, values, names, signature = models[kind, True]
    wanted, _ = _wanted(session, values, signature.labels)
    expected = "prediction" if kind == "regression" else "scores"
    answers = wanted[:, 0].tolist() if kind == "regression" else wanted.tolist()
    registry = Registry(tmp_path / "root")

    def register(answers):
        rows = tree_bench.table(values, names).slice(0, 40).append_column(expected, pa.array(answers))
        return registry.register(
            kind, folder, "onnx", signature, card=tiny_models.CARD, golden=rows, by="a", why="b"
        )

    version = register(answers[:40])
    code, errors, outputs = tree_bench.by_command(
        version.path.parent, "onnx", tree_bench.table(values, names), tmp_path, signature.task
    )
    assert (code, errors) == (0, "")
    assert tree_bench.numbers(outputs, signature) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    with pytest.raises(ModelError, match="golden values differ"):
        register(answers[:40][::-1])


@pytest.fixture(scope="module")
def by_column(tmp_path_factory):
    """A pipeline of sklearn with one input for each column, strings among them."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"amount": draw.normal(size=300), "age": draw.integers(18, 90, 300).astype(float)})
    frame["plan"] = np.array(["basic", "pro", "gold"])[draw.integers(0, 3, 300)]
    target = np.where(frame["amount"] + (frame["plan"] == "gold") > 0.5, "churned", "stays")
    frame.loc[::7, "amount"] = np.nan
    change = ColumnTransformer(
        [("n", SimpleImputer(), ["amount", "age"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["plan"])]
    )
    model = make_pipeline(change, LogisticRegression(max_iter=1000)).fit(frame, target)
    kinds = {"amount": FloatTensorType, "age": FloatTensorType, "plan": StringTensorType}
    exported = convert_sklearn(model, initial_types=[(name, kind([None, 1])) for name, kind in kinds.items()])
    folder = tmp_path_factory.mktemp("columns")
    (folder / "model.onnx").write_bytes(exported.SerializeToString())
    return folder, model, frame


def test_inputs_by_column_describe_themselves_and_take_strings(by_column):
    folder, model, frame = by_column
    signature = describe(folder, "onnx", SignatureRequest(positive_class="churned"))
    types = (("amount", "float64"), ("age", "float64"), ("plan", "string"))
    inputs = tuple(InputColumn(*item) for item in types)
    assert signature == ModelSignature(inputs, "classification", ("churned", "stays"), "churned")
    shard = pa.table(
        {
            "row_key": [str(row) for row in range(300)],
            "plan": pa.array(frame["plan"].tolist()).dictionary_encode(),
            "age": pa.array(frame["age"].astype(int)),
            "amount": pa.array(frame["amount"], from_pandas=True),
        }
    )
    result = tree_bench.engine(folder, "onnx", signature).score(shard)
    assert result.outputs["score"].to_numpy() == pytest.approx(
        model.predict_proba(frame)[:, 0], rel=1e-4, abs=1e-6
    )
    assert result.outputs["label"].to_pylist() == model.predict(frame).tolist()


def test_a_null_that_cannot_be_nan_and_an_infinite_number_fail_their_rows_alone(by_column):
    folder, _, _ = by_column
    signature = describe(folder, "onnx", SignatureRequest())
    shard = pa.table({"row_key": list("abcd"), "plan": ["pro", None, "gold", "unseen"],
                      "age": [1.0, 2.0, np.inf, None], "amount": [1.0] * 4})  # fmt: skip
    result = tree_bench.engine(folder, "onnx", signature).score(shard)
    assert [(failure.row_key, failure.error_type) for failure in result.failures] == [
        ("b", "NullFeature"), ("c", "InfiniteFeature")
    ]  # fmt: skip
    assert result.outputs["row_key"].to_pylist() == ["a", "d"]


# -- graphs made by hand ----------------------------------------------------------------------------------

WEIGHTS = np.array([[1.0, -1.0], [2.0, 0.5], [0.0, 3.0]], np.float32)


def _graph(output="logits", weights=WEIGHTS, rows=None, nodes=None, inputs=None, **more):
    constant = numpy_helper.from_array(weights, "w")
    given = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, weights.shape[0]])]
    answer = helper.make_tensor_value_info(output, TensorProto.FLOAT, [rows, weights.shape[1]])
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], [output])]
    graph = helper.make_graph(nodes, "g", given, [answer], [constant])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)


def _write(folder, model):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


INPUTS = tuple(InputColumn(name, "float64") for name in "abc")
SIGNATURE = ModelSignature(INPUTS, "classification", ("no", "yes"), "yes")
ROWS = pa.table({"row_key": ["1", "2"], "a": [1.0, -1.0], "b": [0.5, 2.0], "c": [0.0, 1.0]})
LOGITS = np.column_stack([ROWS[name].to_numpy() for name in "abc"]) @ WEIGHTS


def test_logits_become_probabilities_and_probabilities_stay(tmp_path):
    result = tree_bench.engine(_write(tmp_path / "l", _graph()), "onnx", SIGNATURE).score(ROWS)
    exponents = np.exp(LOGITS)
    wanted = exponents[:, 1] / exponents.sum(axis=1)
    assert result.outputs["score"].to_numpy() == pytest.approx(wanted, rel=1e-6)
    other = _write(tmp_path / "p", _graph("probabilities"))
    result = tree_bench.engine(other, "onnx", SIGNATURE).score(ROWS)
    assert {failure.message for failure in result.failures} == {"score is not within 0 and 1"}


def test_one_probability_is_that_of_the_second_label(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Sigmoid", ["m"], ["p"])]
    folder = _write(tmp_path, _graph("p", WEIGHTS[:, 1:], nodes=nodes))
    result = tree_bench.engine(folder, "onnx", SIGNATURE).score(ROWS)
    assert result.outputs["score"].to_numpy() == pytest.approx(1 / (1 + np.exp(-LOGITS[:, 1])), rel=1e-6)
    with pytest.raises(SignatureError, match="gives 1 numbers a row"):
        load_predictor(folder, "onnx", replace(SIGNATURE, labels=("a", "b", "c"), positive_class=None))


def test_a_probability_that_rounding_left_outside_is_put_back(tmp_path):
    weights = np.array([[1.0 + 2**-20, -(2.0**-20)], [0, 0], [0, 0]], np.float32)
    folder = _write(tmp_path, _graph("probabilities", weights))
    result = tree_bench.engine(folder, "onnx", SIGNATURE).score(ROWS.slice(0, 1))
    assert result.outputs["scores"].to_pylist() == [[1.0, 0.0]]


def test_an_answer_that_is_no_number_fails_its_row(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Log", ["m"], ["logits"])]
    result = tree_bench.engine(_write(tmp_path, _graph(nodes=nodes)), "onnx", SIGNATURE).score(ROWS)
    assert [(failure.row_key, failure.message) for failure in result.failures] == [
        ("1", "the model's output is NaN or infinite")
    ]


def _external(location, folder, **changes):
    model = _graph()
    tensor = model.graph.initializer[0]
    (folder / "model.data").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": location, "offset": 0, "length": WEIGHTS.nbytes} | changes).items():
        tensor.external_data.add(key=key, value=str(value))
    return _write(folder, model)


def test_external_data_in_the_folder_is_read_wherever_the_process_is(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    folder = _external("model.data", tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    registry = Registry(tmp_path / "root")
    version = registry.register("m", folder, "onnx", SIGNATURE, card=None, by="a", why="b")
    assert set(version.files) == {"model.onnx", "model.data"}
    result = tree_bench.engine(version.path, "onnx", SIGNATURE).score(ROWS)
    assert result.outputs["label"].to_pylist() == ["no", "yes"]


@pytest.mark.parametrize(
    ("location", "changes", "message"),
    [
        ("/etc/passwd", {}, "no file of the model's folder"),
        ("../outside.data", {}, "no file of the model's folder"),
        ("a/../../outside.data", {}, "no file of the model's folder"),
        ("", {}, "no file of the model's folder"),
        ("absent.data", {}, "no plain file"),
        ("link.data", {}, "no plain file"),
        ("model.data", {"length": 10**6}, "shorter than it should be"),
        ("model.data", {"offset": -8}, "shorter than it should be"),
        ("model.data", {"offset": "x"}, "shorter than it should be"),
    ],
)
def test_external_data_elsewhere_is_refused(tmp_path, location, changes, message):
    (tmp_path / "outside.data").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "link.data").symlink_to(tmp_path / "outside.data")
    with pytest.raises(ModelError, match=message):
        load_predictor(_external(location, tmp_path / "m", **changes), "onnx", SIGNATURE)


def test_external_data_inside_a_branch_is_found_too(tmp_path):
    model = _graph()
    inner = helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0])
    inner.ClearField("float_data")
    inner.data_location = TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="/etc/passwd")
    out = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=inner)], "b", [], [out])
    choose = helper.make_node("If", ["y"], ["z"], then_branch=branch, else_branch=branch)
    model.graph.node.append(choose)
    with pytest.raises(ModelError, match="no file of the model's folder"):
        load_predictor(_write(tmp_path, model), "onnx", SIGNATURE)


def _tree(feature, true_node=1):
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["logits"], domain="ai.onnx.ml", n_targets=2,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[feature, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[0.0, 0.0, 0.0],
        nodes_truenodeids=[true_node, 0, 0], nodes_falsenodeids=[2, 0, 0], nodes_hitrates=[1.0] * 3,
        nodes_missing_value_tracks_true=[0] * 3, target_treeids=[0, 0], target_nodeids=[1, 2],
        target_ids=[0, 1], target_weights=[1.0, 1.0],
    )  # fmt: skip
    return _graph(nodes=[node])


def _column(name, width=1, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, [None, width])


def _sum(*inputs):
    return _graph(nodes=[helper.make_node("Sum", ["x", "x"], ["logits"])], inputs=list(inputs))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_graph(nodes=[helper.make_node("Run", ["x"], ["logits"], domain="evil.ops")]), r"evil\.ops\.Run is not of"),
        (_graph(nodes=[helper.make_node("Poetry", ["x"], ["logits"])]), "cannot be loaded"),
        (_graph(rows=1), "is of exactly 1 rows"),
        (_graph(weights=WEIGHTS[:2]), "reads 2 columns, the signature has 3 inputs"),
        (_graph(weights=np.ones((3, 5), np.float32)), "gives 5 numbers a row"),
        (_graph(weights=WEIGHTS[:, :1]), "cannot be loaded|gives 1"),
        (_tree(3), "a tree reads column 3, and there are 3"),
        (_tree(-1), "a tree reads column"),
        (_tree(0, true_node=9), "cannot be loaded"),
        (_tree(0, true_node=0), "cannot be loaded"),
        (_sum(_column("x"), _column("b"), _column("d")), "reads 'd', 'x', which .* 'a', 'c' are no columns"),
        (_sum(_column("a"), _column("b", 2), _column("c")), "'b' has 2 columns beside other inputs"),
        (_sum(_column("a"), _column("b", kind=TensorProto.INT64), _column("c")), "'b' is int64, the signature says"),
        (_sum(_column("a"), _column("b", kind=TensorProto.COMPLEX64), _column("c")), "no tensor of numbers"),
        (onnx.ModelProto(), "is no ONNX model"),
    ],
)  # fmt: skip
def test_graphs_that_do_not_fit_or_cannot_be_trusted_are_refused(tmp_path, model, message):
    if message.startswith("cannot be loaded|"):
        signature = replace(SIGNATURE, labels=("a", "b", "c"), positive_class=None)
    else:
        signature = SIGNATURE
    with pytest.raises(ModelError, match=message):
        load_predictor(_write(tmp_path, model), "onnx", signature)


def test_files_cut_short_absent_or_oversized_are_refused(models, tmp_path, monkeypatch):
    folder, _, _, _, signature = models["binary", True]
    content = (folder / "model.onnx").read_bytes()
    with pytest.raises(ModelError, match=r"model\.onnx: is missing"):
        describe(tmp_path, "onnx", SignatureRequest())
    for part in (content[: len(content) * 2 // 3], b"tree\nversion=v4\n", b'{"learner": {}}', b""):
        (tmp_path / "model.onnx").write_bytes(part)
        with pytest.raises(ModelError, match="no ONNX model"):
            load_predictor(tmp_path, "onnx", signature)
        with pytest.raises(ModelError, match="no ONNX model"):
            Registry(tmp_path / "r").register("m", tmp_path, "onnx", signature, card=None, by="a", why="b")
    monkeypatch.setattr(onnx_graph, "MAX_BYTES", 10)
    with pytest.raises(ModelError, match="is larger than 10 bytes"):
        describe(folder, "onnx", SignatureRequest())


def test_labels_of_the_file_and_of_the_signature_must_agree(models, tmp_path):
    folder, _, values, names, signature = models["multiclass", True]
    with pytest.raises(SignatureError, match="they must be equal, in this order"):
        load_predictor(folder, "onnx", replace(signature, labels=signature.labels[::-1]))
    with pytest.raises(SignatureError, match="gives 3 numbers a row"):
        load_predictor(folder, "onnx", replace(signature, labels=("a", "b")))
    with pytest.raises(SignatureError, match="says classification, the signature says regression"):
        load_predictor(folder, "onnx", tree_bench.signature("regression", names))
    with pytest.raises(ModelError, match=r"does not name its columns: write signature\.json"):
        describe(folder, "onnx", SignatureRequest())
    numbers = RandomForestClassifier(2, max_depth=2).fit(values, np.arange(len(values)) % 3)
    _write(tmp_path, to_onnx(numbers, values[:1]))
    assert load_predictor(tmp_path, "onnx", signature).signature.labels == signature.labels


def test_several_float_outputs_are_not_guessed_among(tmp_path):
    model = _graph("one")
    model.graph.output.append(helper.make_tensor_value_info("two", TensorProto.FLOAT, [None, 2]))
    with pytest.raises(ModelError, match=r"which of its outputs is the answer is not clear \(one, two\)"):
        load_predictor(_write(tmp_path, model), "onnx", SIGNATURE)


def test_devices_and_types(tmp_path):
    folder = _write(tmp_path, _graph())
    with pytest.raises(InferenceError, match="computes in the types that it was exported with"):
        load_predictor(folder, "onnx", SIGNATURE, dtype="float16")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime can use CUDA here")
    assert BatchPlan.of(SIGNATURE, flavor="onnx").device == "cpu"
    with pytest.raises(InferenceError, match="install onnxruntime-gpu"):
        BatchPlan.of(SIGNATURE, "cuda", flavor="onnx")
    with pytest.raises(InferenceError, match="install onnxruntime-gpu"):
        load_predictor(folder, "onnx", SIGNATURE, "cuda")
