import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from batch_platform.core.models.predictor import SignatureRequest, describe, load_predictor
from batch_platform.core.models.text_tokens import CHARACTERS_PER_TOKEN, TextTokenizer
from batch_platform.errors import ModelError, SignatureError
from batch_platform_tests import tiny_models

TEXTS = [*tiny_models.texts(20), "", "   ", "é中文 \x00 🙂", "money " * 500]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return tiny_models.text_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return tiny_models.text_embedder(tmp_path_factory.mktemp("embedder"))


def _score(predictor, texts):
    prepared = predictor.prepare(pa.record_batch({"text": pa.array(texts, pa.string())}))
    return predictor.forward(prepared, np.arange(len(texts)))


def _one_by_one(folder, kind, texts, read):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), kind.from_pretrained(folder).eval()
    with torch.inference_mode():
        inputs = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
        return torch.cat([read(model(**item)) for item in inputs]).numpy()


def test_logits_are_those_of_transformers_one_text_at_a_time(classifier):
    signature = describe(classifier, "transformers", SignatureRequest())
    got = _score(load_predictor(classifier, "transformers", signature), TEXTS)
    wanted = _one_by_one(classifier, AutoModelForSequenceClassification, TEXTS, lambda output: output.logits)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert len(set(got.argmax(axis=1))) == 2


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_pooled_over_a_text_s_own_tokens(embedder, pooling):
    signature = describe(embedder, "transformers", SignatureRequest(pooling=pooling))
    predictor = load_predictor(embedder, "transformers", signature)

    def read(output):
        hidden = output.last_hidden_state
        return hidden.mean(1) if pooling == "mean" else hidden[:, 0]

    np.testing.assert_allclose(
        _score(predictor, TEXTS), _one_by_one(embedder, AutoModel, TEXTS, read), atol=1e-5
    )
    assert predictor.signature.output_size == 32


def test_a_head_of_our_own_is_put_on_the_mean(tmp_path):
    from safetensors.numpy import load_file

    folder = tiny_models.pooled_classifier(tmp_path)
    signature = describe(folder, "transformers", SignatureRequest())
    head = load_file(folder / "head.safetensors")
    means = _one_by_one(folder, AutoModel, TEXTS, lambda output: output.last_hidden_state.mean(1))
    wanted = means @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(
        _score(load_predictor(folder, "transformers", signature), TEXTS), wanted, atol=1e-4
    )
    assert signature.labels == tiny_models.LABELS


def test_pooling_and_normalisation_are_read_from_the_folder(tmp_path):
    folder = tiny_models.text_embedder(tmp_path)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    modules = [
        {"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    signature = describe(folder, "transformers", SignatureRequest())
    assert (signature.pooling, signature.normalize) == ("cls", True)
    bare = replace(signature, pooling=None, normalize=None, output_size=None)
    predictor = load_predictor(folder, "transformers", bare)
    assert predictor.signature == signature
    np.testing.assert_allclose(np.linalg.norm(_score(predictor, TEXTS), axis=1), 1, atol=1e-5)
    assert describe(folder, "transformers", SignatureRequest(pooling="mean")).pooling == "mean"


def test_what_would_be_pooled_wrongly_is_refused(tmp_path):
    folder = tiny_models.text_embedder(tmp_path)
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ModelError, match="module Dense is not supported"):
        describe(folder, "transformers", SignatureRequest())
    (folder / "modules.json").unlink()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ModelError, match="only mean and cls"):
        describe(folder, "transformers", SignatureRequest())


def test_a_body_without_a_head_is_no_classifier(embedder):
    signature = describe(embedder, "transformers", SignatureRequest(task="classification", labels=("a", "b")))
    with pytest.raises(ModelError, match=r"lacks classifier\.bias .* which would be random"):
        load_predictor(embedder, "transformers", signature)


def test_labels_in_another_order_than_the_model_s_are_refused(classifier):
    request = SignatureRequest(labels=("spam", "ham"))
    with pytest.raises(SignatureError, match="in the order of the logits"):
        load_predictor(classifier, "transformers", describe(classifier, "transformers", request))


def test_a_broken_weights_file_is_a_clear_error(tmp_path):
    folder = tiny_models.text_classifier(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be loaded as a transformers model"):
        load_predictor(folder, "transformers", tiny_models.TEXT_SIGNATURE)


def test_other_flavors_are_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match="'catboost' is not supported: use one of transformers, torch"):
        load_predictor(tmp_path, "catboost", tiny_models.TEXT_SIGNATURE)


def test_a_null_text_is_refused_and_an_empty_one_is_not(classifier):
    predictor = load_predictor(classifier, "transformers", tiny_models.TEXT_SIGNATURE)
    prepared = predictor.prepare(pa.record_batch({"text": ["", None, "money"]}))
    assert [(refusal.row, refusal.error_type) for refusal in prepared.refused] == [(1, "NullText")]
    assert prepared.costs.tolist() == [2, 0, 3]


@pytest.mark.parametrize(("asked", "tokens"), [(None, 64), (10, 10), (1000, 64)])
def test_texts_are_cut_to_the_smaller_of_signature_and_tokenizer(classifier, asked, tokens):
    signature = replace(tiny_models.TEXT_SIGNATURE, max_tokens=asked)
    predictor = load_predictor(classifier, "transformers", signature)
    assert predictor.prepare(pa.record_batch({"text": ["money " * 99]})).costs.tolist() == [tokens]


def test_no_room_beside_special_tokens_is_refused(classifier):
    with pytest.raises(SignatureError, match="leaves no room"):
        load_predictor(classifier, "transformers", replace(tiny_models.TEXT_SIGNATURE, max_tokens=2))


@pytest.fixture(scope="module")
def tokenizer(classifier):
    return AutoTokenizer.from_pretrained(classifier)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([*tiny_models.WORDS, "\x01", "\u0301", "xyz!", "\n", "中", "İ", "a" * 130]),
        max_size=300,
    )
)
def test_cutting_a_long_text_early_changes_no_token(tokenizer, words):
    text = " ".join(words)
    wanted = tokenizer(text, truncation=True, max_length=8)["input_ids"]
    assert TextTokenizer(tokenizer, 8)(pa.array([text], pa.large_string()))[0].tolist() == wanted


def test_a_megabyte_that_says_little_is_read_to_its_end(tokenizer):
    text = ("\x01" * 9 + " ") * 100_000 + "money"
    assert len(text) > 8 * CHARACTERS_PER_TOKEN
    assert (
        TextTokenizer(tokenizer, 8)(pa.array([text], pa.large_string()))[0].tolist()
        == tokenizer("money")["input_ids"]
    )
