"""Generated texts: those of transformers one row at a time, whatever the batch, and nothing else of the folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.inference.engine import Engine
from batch_platform.core.models.outputs import NOT_FINITE
from batch_platform.core.models.predictor import Predictor, SignatureRequest, describe, load_predictor
from batch_platform.core.models.registry import Registry
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.spec import InferenceSpec
from batch_platform.errors import ModelError, SignatureError
from batch_platform_tests import tiny_models

NEW_TOKENS = 12
TEXTS = [*tiny_models.texts(24), "", "   ", "zebra unknown", "money " * 500]
KINDS = ["answers", "continues"]
REQUEST = SignatureRequest(max_new_tokens=NEW_TOKENS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("generation")
    return {
        "answers": tiny_models.text_answerer(folder / "t5"),
        "continues": tiny_models.text_continuer(folder / "gpt2"),
    }


def _load(folder: Path) -> Predictor:
    return load_predictor(folder, "transformers", describe(folder, "transformers", REQUEST))


def _texts(predictor: Predictor, texts: list[str], rows: list[int] | None = None) -> list[str]:
    prepared = predictor.prepare(pa.record_batch({"text": pa.array(texts, pa.string())}))
    chosen = np.arange(len(texts)) if rows is None else np.array(rows)
    found: list[str] = predictor.finish(predictor.forward(prepared, chosen))["generated_text"].to_pylist()
    return found


def _by_transformers(folder: Path, text: str) -> str:
    """One text through the library's own `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"]
    if folder.name == "t5":
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
        ids = ids if len(ids) <= 48 else [*ids[:47], 1]
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
        ids = ids[: 64 - NEW_TOKENS] or [1]
    inputs = torch.tensor([ids])
    made = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )[0]
    return tokenizer.decode(made[1 if folder.name == "t5" else len(ids) :], skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_those_of_transformers_one_at_a_time(folders: dict[str, Path], kind: str) -> None:
    found = _texts(_load(folders[kind]), TEXTS)
    assert found == [_by_transformers(folders[kind], text) for text in TEXTS]
    assert len(set(found)) > 5
    # Some end early, some take all the tokens that they may.
    lengths = {len(text.split()) for text in found}
    assert min(lengths) < NEW_TOKENS - 2
    assert max(lengths) == NEW_TOKENS


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(folders: dict[str, Path], kind: str) -> None:
    predictor = _load(folders[kind])
    together = _texts(predictor, TEXTS)
    assert [_texts(predictor, TEXTS, [row])[0] for row in range(len(TEXTS))] == together
    assert _texts(predictor, TEXTS, [5, 26, 2]) == [together[5], together[26], together[2]]
    # The token ids too: what the library writes behind the end of a row depends on the other rows.
    prepared = predictor.prepare(pa.record_batch({"text": TEXTS}))
    raw = predictor.forward(prepared, np.arange(len(TEXTS)))
    alone = np.concatenate([predictor.forward(prepared, np.array([row])) for row in range(len(TEXTS))])
    np.testing.assert_array_equal(raw, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_registry_engine_and_golden_rows(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    folder = folders[kind]
    signature = describe(folder, "transformers", REQUEST)
    assert (signature.task, signature.max_new_tokens) == ("generation", NEW_TOKENS)
    golden = pa.table({"text": TEXTS[:5], "generated_text": _texts(_load(folder), TEXTS[:5])})
    registry = Registry(tmp_path / "root")
    given: dict[str, Any] = {"card": None, "by": "me", "why": "a test"}
    version = registry.register("g", folder, "transformers", signature, golden=golden, alias="a", **given)
    wrong = golden.set_column(1, "generated_text", [["no"] * 5])
    with pytest.raises(ModelError, match="golden values differ"):
        registry.register("h", folder, "transformers", signature, golden=wrong, **given)

    engine = Engine.load(registry.resolve("g", "a"), version.signature, InferenceSpec(device="cpu"))
    shard = pa.table({"row_key": [f"k{row}" for row in range(len(TEXTS) + 1)], "text": [*TEXTS, None]})
    result = engine.score(shard)
    assert result.outputs["row_key"].to_pylist() == [f"k{row}" for row in range(len(TEXTS))]
    assert result.outputs["generated_text"].to_pylist() == _texts(engine.predictor, TEXTS)
    assert [(failure.row_key, failure.error_type) for failure in result.failures] == [("k28", "NullText")]
    assert result.stats.batches > 1
    assert registry.verify() == ()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_no_numbers_are_failures(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    folder = tmp_path / folders[kind].name
    folder.mkdir()
    for path in folders[kind].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    name = "shared.weight" if kind == "answers" else "transformer.wte.weight"
    word = tiny_models.WORDS.index("money") + 3
    weights[name][word] = float("nan")  # tied to the head: every row's scores are spoiled
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    predictor = _load(folder)
    prepared = predictor.prepare(pa.record_batch({"text": ["lunch", "money"]}))
    raw = predictor.forward(prepared, np.arange(2))
    assert (raw == NOT_FINITE).all()
    result = Engine(predictor, BatchPlan.of(predictor.signature, "cpu")).score(
        pa.table({"row_key": ["a", "b"], "text": ["lunch", "money"]})
    )
    assert result.outputs.num_rows == 0
    assert {failure.message for failure in result.failures} == {"the model's output is NaN or infinite"}


def test_a_row_that_is_bad_spoils_no_other(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    predictor: Any = _load(folders["continues"])
    wanted = _texts(predictor, TEXTS[:3])
    real = predictor._model.lm_head.forward

    def spoiled(hidden: Any) -> Any:
        scores = real(hidden)
        if len(scores) == 3:
            scores[1] = float("nan")
        return scores

    monkeypatch.setattr(predictor._model.lm_head, "forward", spoiled)
    prepared = predictor.prepare(pa.record_batch({"text": TEXTS[:3]}))
    raw = predictor.forward(prepared, np.arange(3))
    assert [bool((row == NOT_FINITE).all()) for row in raw] == [False, True, False]
    named = predictor.finish(raw)["generated_text"].to_pylist()
    assert (named[0], named[2]) == (wanted[0], wanted[2])


def test_sampling_and_other_settings_of_the_folder_do_not_count(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "gpt2"
    folder.mkdir()
    for path in folders["continues"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings = {
        "do_sample": True, "temperature": 5.0, "num_beams": 4, "num_return_sequences": 2, "max_time": 0.000001,
        "repetition_penalty": 3.0, "max_new_tokens": 7, "eos_token_id": 1, "bos_token_id": 1,
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert _texts(_load(folder), TEXTS) == _texts(_load(folders["continues"]), TEXTS)
    # Only the number of tokens, where nobody else says it.
    assert describe(folder, "transformers", SignatureRequest()).max_new_tokens == 7
    assert describe(folders["continues"], "transformers", SignatureRequest()).max_new_tokens == 64


def test_what_cannot_generate_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="leaves no room in the 64 positions"):
        load_predictor(
            folders["continues"],
            "transformers",
            describe(folders["continues"], "transformers", SignatureRequest(max_new_tokens=64)),
        )
    bert = tiny_models.text_embedder(tmp_path / "bert")
    signature = describe(folders["answers"], "transformers", REQUEST)
    with pytest.raises(SignatureError, match="does not generate text"):
        load_predictor(bert, "transformers", signature)
    with pytest.raises(SignatureError, match="max_new_tokens has no meaning"):
        describe(bert, "transformers", REQUEST)
    with pytest.raises(SignatureError, match="pooling has no meaning"):
        describe(folders["answers"], "transformers", SignatureRequest(pooling="mean"))
    incomplete = tiny_models.text_answerer(tmp_path / "t5")
    weights = load_file(incomplete / "model.safetensors")
    del weights["decoder.final_layer_norm.weight"]
    save_file(weights, incomplete / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks decoder\.final_layer_norm"):
        _load(incomplete)


def test_a_signature_of_a_generation() -> None:
    inputs = (InputColumn("text", "string"),)
    signature = ModelSignature(inputs, "generation", text_column="text", max_new_tokens=5)
    assert signature.output_schema() == pa.schema([("generated_text", pa.string())])
    assert ModelSignature.from_dict(signature.to_dict()) == signature
    for wrong in ({"max_new_tokens": 0}, {"max_new_tokens": None}, {"text_column": None}):
        values: Any = {"text_column": "text", "max_new_tokens": 5} | wrong
        with pytest.raises(SignatureError, match="needs a text_column, and max_new_tokens"):
            ModelSignature(inputs, "generation", **values)
    with pytest.raises(SignatureError, match="has no meaning for the task embedding"):
        ModelSignature(inputs, "embedding", text_column="text", max_new_tokens=5)
    # Digests of versions that were registered before hold: the field is not there where it says nothing.
    assert "max_new_tokens" not in tiny_models.TEXT_SIGNATURE.to_dict()
