import random
import threading

import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.inference.engine import Engine
from batch_platform.core.models.predictor import load_predictor
from batch_platform.core.models.registry import Registry
from batch_platform.core.spec import InferenceSpec
from batch_platform.errors import InferenceError, ModelError, SignatureError
from batch_platform_tests import tiny_models
from batch_platform_tests.core.inference.fakes import PLAN, FakePredictor, shard, threads

TEXTS = ["x" * random.Random(7).randrange(1, 40) for _ in range(1)] + ["x" * (n % 37 + 1) for n in range(100)]


@pytest.fixture(autouse=True, params=[1, 3])
def in_flight(request, monkeypatch):
    """Batches one after the other, and some of them launched before the first is collected."""
    monkeypatch.setattr(FakePredictor, "in_flight", request.param)
    return request.param


def _outputs(result):
    return dict(
        zip(result.outputs["row_key"].to_pylist(), result.outputs["prediction"].to_pylist(), strict=True)
    )


def test_outputs_stand_in_the_order_of_the_input():
    predictor = FakePredictor()
    result = Engine(predictor, PLAN).score(shard(TEXTS))
    assert result.outputs.column_names == ["row_key", "prediction"]
    assert result.outputs["row_key"].to_pylist() == shard(TEXTS)["row_key"].to_pylist()
    assert result.outputs["prediction"].to_pylist() == [len(text) for text in TEXTS]
    assert result.failures == []
    assert len(predictor.batches) > 10
    assert result.stats.tokens == sum(map(len, TEXTS))
    assert result.stats.padding_waste < 0.2


def test_out_of_memory_makes_batches_smaller_and_loses_nothing():
    predictor = FakePredictor(memory=40)
    result = Engine(predictor, PLAN).score(shard(TEXTS))
    assert _outputs(result) == {f"k{place}": len(text) for place, text in enumerate(TEXTS)}
    assert result.stats.back_offs == predictor.releases > 0
    assert result.stats.bisections == 0
    assert max(map(len, predictor.batches)) > 1


def test_a_row_too_large_for_the_memory_fails_alone():
    result = Engine(FakePredictor(memory=36), PLAN).score(shard(TEXTS))
    failed = {f"k{place}" for place, text in enumerate(TEXTS) if len(text) > 36}
    assert failed
    assert {failure.row_key for failure in result.failures} == failed
    assert {failure.error_type for failure in result.failures} == {"OutOfMemory"}
    assert len(_outputs(result)) == len(TEXTS) - len(failed)


def test_python_s_own_memory_error_counts_as_out_of_memory():
    result = Engine(FakePredictor(fails=["bad"], error=MemoryError), PLAN).score(shard([*TEXTS[:9], "bad"]))
    assert [(f.row_key, f.error_type) for f in result.failures] == [("k9", "OutOfMemory")]


def test_a_failing_batch_is_narrowed_down_to_the_rows_that_fail():
    texts = [*TEXTS, "bad", "worse"]
    predictor = FakePredictor(fails=["bad", "worse"])
    result = Engine(predictor, PLAN).score(shard(texts))
    assert [(f.row_key, f.error_type, f.message) for f in result.failures] == [
        ("k101", "ValueError", "bad text"), ("k102", "ValueError", "bad text"),
    ]  # fmt: skip
    assert _outputs(result) == {f"k{place}": len(text) for place, text in enumerate(TEXTS)}
    assert result.stats.bisections > 0
    assert (result.stats.rows, result.stats.failed_rows) == (103, 2)


def test_a_row_that_cannot_be_prepared_fails_alone():
    texts = ["a", "evil", None, "bcd"]
    result = Engine(FakePredictor(unpreparable=["evil"]), PLAN).score(shard(texts))
    assert [(f.row_key, f.error_type) for f in result.failures] == [("k1", "ValueError"), ("k2", "NullText")]
    assert _outputs(result) == {"k0": 1, "k3": 3}


def test_values_that_are_no_answer_are_failures_of_their_rows():
    answers = {"aa": float("nan"), "bbb": float("inf")}
    result = Engine(FakePredictor(answers=answers), PLAN).score(shard(["a", "aa", "bbb", "cccc"]))
    assert [(f.row_key, f.error_type) for f in result.failures] == [
        ("k1", "InvalidOutput"),
        ("k2", "InvalidOutput"),
    ]
    assert _outputs(result) == {"k0": 1, "k3": 4}


def test_no_rows_and_only_bad_rows():
    engine = Engine(FakePredictor(), PLAN)
    assert engine.score(shard([])).outputs.num_rows == 0
    result = engine.score(shard([None, None]))
    assert result.outputs.num_rows == 0
    assert result.outputs.schema == pa.schema([("row_key", pa.string()), ("prediction", pa.float64())])
    assert len(result.failures) == 2


def test_a_model_that_drops_a_row_is_not_believed():
    predictor = FakePredictor()
    predictor.forward = lambda prepared, rows: np.zeros((len(rows) - 1, 1), np.float32)
    with pytest.raises(InferenceError, match="shape"):
        Engine(predictor, PLAN).score(shard(["a", "b"]))
    predictor = FakePredictor()
    predictor.finish = lambda raw: pa.record_batch({"prediction": [1.0]})
    with pytest.raises(InferenceError, match=r"gave 1 rows .* for 2 rows"):
        Engine(predictor, PLAN).score(shard(["a", "b"]))


def test_a_broken_device_is_not_blamed_on_the_rows():
    def broken(prepared, rows):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    predictor = FakePredictor()
    predictor.forward = broken
    with pytest.raises(InferenceError, match="device failed"):
        Engine(predictor, PLAN).score(shard(["a", "b"]))


def test_a_shard_that_does_not_fit_is_refused():
    engine = Engine(FakePredictor(), PLAN)
    with pytest.raises(SignatureError, match=r"'text' .* is missing"):
        engine.score(shard(["a"]).drop_columns(["text"]))
    with pytest.raises(InferenceError, match="needs one column 'row_key' of strings"):
        engine.score(shard(["a"]).drop_columns(["row_key"]))
    nulls = pa.table({"row_key": pa.array([None], pa.string()), "text": ["a"]})
    with pytest.raises(InferenceError, match="1 rows of the shard have no row_key"):
        engine.score(nulls)


def test_a_plan_for_another_device_than_the_model_s_is_refused():
    with pytest.raises(InferenceError, match="loaded on cpu as float32, the plan says cuda"):
        Engine(FakePredictor(), BatchPlan("cuda", "float32", 1, 1))


# -- streams ----------------------------------------------------------------------------------------------


def test_a_stream_gives_what_single_shards_give_few_ahead_at_most(in_flight):
    parts = [shard(TEXTS[start : start + 20], start) for start in range(0, 100, 20)]
    engine = Engine(FakePredictor(), PLAN)
    given, names = [], []

    def feed():
        for part in parts:
            given.append(part)
            names.append(threading.current_thread().name)
            yield part

    for place, result in enumerate(engine.score_stream(feed())):
        assert result.outputs == engine.score(parts[place]).outputs
        assert len(given) <= place + (2 if in_flight == 1 else 3)
    assert len(given) == 5
    assert all(name.startswith("prepare") for name in names)


def test_an_error_of_the_source_comes_out_after_the_shards_before_it():
    def feed():
        yield shard(["a"])
        raise ModelError("the source is gone")

    results = Engine(FakePredictor(), PLAN).score_stream(feed())
    assert _outputs(next(results)) == {"k0": 1}
    with pytest.raises(ModelError, match="the source is gone"):
        next(results)


def test_a_stream_that_is_left_early_ends_its_thread():
    results = Engine(FakePredictor(), PLAN).score_stream(iter([shard(["a"])] * 9))
    next(results)
    results.close()
    assert threads() == []


# -- real models ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return tiny_models.text_classifier(tmp_path_factory.mktemp("classifier"))


def _text_engine(folder, tokens=256):
    predictor = load_predictor(folder, "transformers", tiny_models.TEXT_SIGNATURE)
    return Engine(predictor, BatchPlan("cpu", "float32", tokens, 4096))


def test_the_same_shard_gives_the_same_bits_and_other_batches_the_same_labels(classifier):
    rows = tiny_models.text_rows(300)
    engine = _text_engine(classifier)
    first = engine.score(rows).outputs
    assert first == engine.score(rows).outputs == _text_engine(classifier).score(rows).outputs
    other = _text_engine(classifier, tokens=31).score(rows).outputs
    assert other["label"] == first["label"]
    np.testing.assert_allclose(other["score"].to_numpy(), first["score"].to_numpy(), atol=1e-5)
    assert len(first["label"].unique()) == 2


def test_texts_of_a_megabyte_null_and_empty(classifier):
    table = pa.table({"row_key": ["a", "b", "c", "d"], "text": ["money " * 180_000, None, "", "x" * 2**20]})
    result = _text_engine(classifier).score(table)
    assert result.outputs["row_key"].to_pylist() == ["a", "c", "d"]
    assert [(failure.row_key, failure.error_type) for failure in result.failures] == [("b", "NullText")]
    assert result.stats.tokens == 32 + 2 + 3


def test_an_engine_is_loaded_from_the_registry_with_checked_files(tmp_path):
    source = tiny_models.tabular_model(tmp_path / "source")
    signature = tiny_models.TABULAR_CONFIG.signature()
    registry = Registry(tmp_path / "root")
    version = registry.register("m", source, "torch", signature, card=None, by="me", why="test")
    chosen = signature.with_positive_class("churned")
    engine = Engine.load(version, chosen, InferenceSpec(device="cpu", batch_timeout=9))
    assert engine.patience.batch_timeout == 9
    rows = engine.score(tiny_models.tabular_rows(20)).outputs.to_pylist()
    assert all(row["score"] == pytest.approx(row["scores"][1], abs=1e-6) for row in rows)
    (version.path / "more.json").write_text("{}")
    with pytest.raises(ModelError, match=r"more\.json was added"):
        Engine.load(version, chosen, InferenceSpec(device="cpu"))
