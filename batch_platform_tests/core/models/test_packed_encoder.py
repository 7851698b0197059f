"""Texts end to end give what transformers gives for each text alone; on CUDA too, where there is one."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from batch_platform.core.models.packed_predictor import PackedPredictor
from batch_platform.core.models.predictor import SignatureRequest, describe, load_predictor
from batch_platform_tests import tiny_models

# The third spells the padding token, which the RoBERTa family does not count as a position.
TEXTS = [*tiny_models.texts(12), "", "money [PAD] now [PAD] money", "money " * 500]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "initializer_range": 0.3,
}


@pytest.fixture(autouse=True)
def no_onednn(monkeypatch):
    """As on a processor where torch's own products are as fast."""
    monkeypatch.setattr("batch_platform.core.models.packed_encoder.onednn_is_faster", lambda: False)


def _roberta(folder, kind, **more):
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(tiny_models._vocabulary()), pad_token_id=0, **SMALL, **more)
    return _saved(kind(config), folder)


def _saved(model, folder):
    tiny_models._save(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder


def _one_by_one(folder, kind, read):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), kind.from_pretrained(folder).eval()
    with torch.inference_mode():
        inputs = [tokenizer(text, truncation=True, return_tensors="pt") for text in TEXTS]
        parts = [
            read(model(input_ids=item["input_ids"], attention_mask=item["attention_mask"])) for item in inputs
        ]
        return torch.cat(parts).numpy()


def _pooled(pooling):
    def read(output):
        hidden = output.last_hidden_state
        return hidden.mean(1) if pooling == "mean" else hidden[:, 0]

    return read


def _score(predictor):
    prepared = predictor.prepare(pa.record_batch({"text": pa.array(TEXTS, pa.string())}))
    order = np.argsort(-prepared.costs, kind="stable")
    raw = np.empty((len(TEXTS), 0), np.float32)
    for batch in (order, order[::-1], np.arange(len(TEXTS))):  # whatever the order
        found = predictor.forward(prepared, batch)
        again = np.empty_like(found)
        again[batch] = found
        assert raw.shape[1] == 0 or np.allclose(raw, again, atol=1e-5)
        raw = again
    return raw


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_body_of_bert(tmp_path, pooling):
    folder = tiny_models.text_embedder(tmp_path / "m")
    signature = describe(folder, "transformers", SignatureRequest(task="embedding", pooling=pooling))
    predictor = load_predictor(folder, "transformers", signature)
    assert isinstance(predictor, PackedPredictor)
    np.testing.assert_allclose(_score(predictor), _one_by_one(folder, AutoModel, _pooled(pooling)), atol=1e-5)


def test_a_classifier_of_bert(tmp_path):
    folder = tiny_models.text_classifier(tmp_path / "m")
    predictor = load_predictor(folder, "transformers", describe(folder, "transformers", SignatureRequest()))
    assert isinstance(predictor, PackedPredictor)
    wanted = _one_by_one(folder, AutoModelForSequenceClassification, lambda output: output.logits)
    np.testing.assert_allclose(_score(predictor), wanted, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_body_of_the_roberta_family(tmp_path, pooling):
    folder = _roberta(tmp_path / "m", RobertaModel)
    signature = describe(folder, "transformers", SignatureRequest(task="embedding", pooling=pooling))
    predictor = load_predictor(folder, "transformers", signature)
    assert isinstance(predictor, PackedPredictor)
    np.testing.assert_allclose(_score(predictor), _one_by_one(folder, AutoModel, _pooled(pooling)), atol=1e-5)


def test_a_classifier_of_the_roberta_family(tmp_path):
    folder = _roberta(tmp_path / "m", RobertaForSequenceClassification, num_labels=3)
    signature = describe(folder, "transformers", SignatureRequest())
    predictor = load_predictor(folder, "transformers", signature)
    assert isinstance(predictor, PackedPredictor)
    wanted = _one_by_one(folder, AutoModelForSequenceClassification, lambda output: output.logits)
    np.testing.assert_allclose(_score(predictor), wanted, atol=1e-5)
    assert len(set(wanted.argmax(axis=1))) > 1


def test_another_family_is_padded(tmp_path):
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(tiny_models._vocabulary()),
        dim=32,
        n_layers=2,
        n_heads=2,
        hidden_dim=64,
        max_position_embeddings=64,
    )
    folder = _saved(DistilBertModel(config), tmp_path / "m")
    predictor = load_predictor(
        folder, "transformers", describe(folder, "transformers", SignatureRequest(task="embedding"))
    )
    assert not isinstance(predictor, PackedPredictor)
    wanted = _one_by_one(folder, AutoModel, lambda output: output.last_hidden_state.mean(1))
    np.testing.assert_allclose(_score(predictor), wanted, atol=1e-5)
