"""Odd texts and broken models: each row has an answer or a named failure, and the others keep theirs."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.inference.engine import Engine
from batch_platform.core.models.predictor import load_predictor
from batch_platform.errors import ModelError, SignatureError
from batch_platform_tests import tiny_models

_SIGNATURE = tiny_models.TEXT_SIGNATURE
_NOT_UTF8 = b"money \xff\xfe now"


def _engine(folder: Path) -> Engine:
    plan = BatchPlan.of(_SIGNATURE, "cpu")
    return Engine(load_predictor(folder, "transformers", _SIGNATURE), plan)


def _shard(texts: list[bytes | None]) -> pa.Table:
    # Bytes that a careless writer calls a string: Arrow does not look at them.
    return pa.table(
        {
            "row_key": [str(number) for number in range(len(texts))],
            "text": pa.array(texts, pa.binary()).view(pa.string()),
        }
    )


def test_odd_texts(tmp_path: Path) -> None:
    engine = _engine(tiny_models.text_classifier(tmp_path))
    texts = [
        b"money now",
        b"",
        None,
        "🙂🙂🙃".encode(),
        b"word " * 200_000,
        _NOT_UTF8,
        b"\x00\x01",
        b"thanks",
    ]
    result = engine.score(_shard(texts))
    assert [(failure.row_key, failure.error_type) for failure in result.failures] == [
        ("2", "NullText"),
        ("5", "UnicodeDecodeError"),
    ]
    assert result.outputs["row_key"].to_pylist() == ["0", "1", "3", "4", "6", "7"]
    alone = engine.score(_shard([b"money now", b"thanks"])).outputs["score"].to_pylist()
    together = result.outputs["score"].to_pylist()
    assert [together[0], together[-1]] == pytest.approx(alone, abs=1e-6)


def test_weights_that_are_no_numbers_publish_nothing(tmp_path: Path) -> None:
    folder = tiny_models.text_classifier(tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"] = weights["classifier.bias"] * float("nan")
    save_file(weights, path, {"format": "pt"})
    result = _engine(folder).score(_shard([b"money", b"thanks"]))
    assert result.outputs.num_rows == 0
    assert {failure.error_type for failure in result.failures} == {"InvalidOutput"}


def test_a_model_with_more_labels_than_its_signature_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.text_classifier(tmp_path, labels=("a", "b", "c"))
    with pytest.raises(SignatureError, match="must be equal"):
        load_predictor(folder, "transformers", _SIGNATURE)


def test_a_tokenizer_without_a_fast_version_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.text_classifier(tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "a": 2}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    with pytest.raises(ModelError, match="okenizer"):
        load_predictor(folder, "transformers", _SIGNATURE)
