"""Texts end to end as on CUDA, from the tokenizer to the outputs: equal to transformers in float32, one text at a time.

The device is played (`acted_cuda.py`): kernels, packing, batches in flight and the shortage of memory are the real code.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.inference.engine import Engine, ShardResult
from batch_platform.core.models.packed_predictor import PackedPredictor
from batch_platform.core.models.predictor import Predictor, SignatureRequest, describe, load_predictor
from batch_platform.core.models.text_tokens import PreparedTexts
from batch_platform.errors import InferenceError
from batch_platform_tests import tiny_models
from batch_platform_tests.core.models.acted_cuda import ActedCuda, acted_cuda
from batch_platform_tests.requirements import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

DTYPE = "float16"
LONGEST = 80
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": LONGEST + 1,
    "initializer_range": 0.3,
}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[ActedCuda]:
    with acted_cuda(monkeypatch) as mode:
        yield mode


# -- models -----------------------------------------------------------------------------------------------


def _roberta(folder: Path, kind: Any, **more: Any) -> Path:
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(tiny_models._vocabulary()), pad_token_id=0, **SMALL, **more)
    return tiny_models._save(kind(config), folder)


def _distilbert(folder: Path) -> Path:
    torch.manual_seed(0)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": LONGEST}
    return tiny_models._save(
        DistilBertModel(DistilBertConfig(vocab_size=len(tiny_models._vocabulary()), **shape)), folder
    )


def _logits(output: Any) -> torch.Tensor:
    return output.logits


def _mean(output: Any) -> torch.Tensor:
    return output.last_hidden_state.mean(1)


def _first(output: Any) -> torch.Tensor:
    return output.last_hidden_state[:, 0]


HEAD, BODY = AutoModelForSequenceClassification, AutoModel
# How a folder is made, what is asked of it, and what transformers makes of it.
MODELS: dict[str, tuple[Any, dict[str, Any], Any, Any]] = {
    "BERT, its head": (lambda at: tiny_models.text_classifier(at, **SMALL), {}, HEAD, _logits),
    "BERT, mean": (lambda at: tiny_models.text_classifier(at, **SMALL), {"pooling": "mean"}, BODY, _mean),
    "BERT, first": (lambda at: tiny_models.text_classifier(at, **SMALL), {"pooling": "cls"}, BODY, _first),
    "RoBERTa, its head": (
        lambda at: _roberta(at, RobertaForSequenceClassification, num_labels=3), {}, HEAD, _logits
    ),
    "RoBERTa, mean": (lambda at: _roberta(at, RobertaModel), {"pooling": "mean"}, BODY, _mean),
    "RoBERTa, first": (lambda at: _roberta(at, RobertaModel), {"pooling": "cls"}, BODY, _first),
}  # fmt: skip


def _load(folder: Path, pooling: Any = None, device: str = "cuda", dtype: str = DTYPE) -> Predictor:
    request = SignatureRequest(task=None if pooling is None else "embedding", pooling=pooling)
    return load_predictor(folder, "transformers", describe(folder, "transformers", request), device, dtype)


def _alone(folder: Path, kind: Any, read: Any, texts: list[np.ndarray]) -> np.ndarray:
    model = kind.from_pretrained(folder).eval()
    with torch.inference_mode():
        ids = [torch.from_numpy(text.astype(np.int64))[None] for text in texts]
        return torch.cat(
            [read(model(input_ids=one, attention_mask=torch.ones_like(one))) for one in ids]
        ).numpy()


def _prepared(texts: list[np.ndarray]) -> PreparedTexts:
    costs = np.array([len(text) for text in texts], np.int64)
    starts = np.concatenate([[0], np.cumsum(costs)])
    return PreparedTexts(costs, (), np.concatenate(texts).astype(np.int32), starts)


def _random_texts(lengths: list[int]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    # Beside the special tokens; the id of padding, which the RoBERTa family does not count, is among them.
    words = np.array([0, *range(5, len(tiny_models._vocabulary()))])
    return [random.choice(words, length) for length in lengths]


def _check(found: np.ndarray, wanted: np.ndarray) -> None:
    assert (found.shape, found.dtype) == (wanted.shape, np.float32)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (found * wanted).sum(axis=1) / norms
    assert cosines.min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(wanted, axis=1), rtol=0.02)


# -- outputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_texts_of_every_length_are_as_transformers_has_them(
    name: str, cuda: ActedCuda, tmp_path: Path
) -> None:
    make, asked, kind, read = MODELS[name]
    folder = make(tmp_path)
    predictor = _load(folder, **asked)
    assert isinstance(predictor, PackedPredictor)
    assert (predictor.backend, predictor.in_flight) == ("packed-cublas-triton", 3)
    texts = _random_texts([1, 2, 3, 15, 16, 17, 63, 64, 65, LONGEST])
    wanted = _alone(folder, kind, read, texts)
    order = np.random.default_rng(0).permutation(len(texts))
    _check(predictor.forward(_prepared(texts), order), wanted[order])
    for row in (0, 5):  # a batch of one
        _check(predictor.forward(_prepared(texts), np.array([row])), wanted[[row]])


def test_texts_beyond_the_tiles_are_for_flash_attention(cuda: ActedCuda, tmp_path: Path) -> None:
    folder = tiny_models.text_classifier(tmp_path, **SMALL | {"max_position_embeddings": 300})
    predictor = _load(folder)
    texts = _random_texts([257, 1, 300])
    cuda.flash = 0
    _check(predictor.forward(_prepared(texts), np.arange(3)), _alone(folder, HEAD, _logits, texts))
    assert cuda.flash == 2  # layers
    _check(predictor.forward(_prepared(texts[1:2]), np.arange(1)), _alone(folder, HEAD, _logits, texts[1:2]))
    assert cuda.flash == 2


def test_a_machine_whose_triton_does_not_compile_says_so(
    cuda: ActedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr("batch_platform.core.models.triton_layers.added_norm", broken)
    folder = tiny_models.text_classifier(tmp_path, **SMALL)
    predictor = _load(folder)
    assert predictor.backend == "packed-cublas-torch"
    assert "Failed to find C compiler" in caplog.text
    texts = _random_texts([1, 9, LONGEST])
    _check(predictor.forward(_prepared(texts), np.arange(3)), _alone(folder, HEAD, _logits, texts))


def test_a_head_of_its_own_and_another_family(cuda: ActedCuda, tmp_path: Path) -> None:
    pooled = tiny_models.pooled_classifier(tmp_path / "pooled")
    padded = _distilbert(tmp_path / "padded")
    for folder, pooling in ((pooled, None), (padded, "mean")):
        on_host = _load(folder, pooling, "cpu", "float32")
        on_device = _load(folder, pooling)
        assert isinstance(on_device, PackedPredictor) == (folder == pooled)
        texts = _random_texts([1, 20, 60])
        rows = np.arange(3)
        _check(on_device.forward(_prepared(texts), rows), on_host.forward(_prepared(texts), rows))


# -- the engine -------------------------------------------------------------------------------------------

ODD = ["", "🙂🙂🙃", "\x00\x01", "money [PAD] now", "a", "money " * 200_000, None]  # the rows 150 to 156
TEXTS = [*tiny_models.texts(150), *ODD, *tiny_models.texts(43, 1)]
PLAN = BatchPlan("cuda", DTYPE, batch_tokens=256, batch_rows=64)


@pytest.fixture
def shards() -> list[pa.Table]:
    whole = pa.table({"row_key": [f"k{n}" for n in range(len(TEXTS))], "text": pa.array(TEXTS, pa.string())})
    return [whole.slice(first, 50) for first in range(0, len(TEXTS), 50)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier; its layers by torch's own kernels: triton's interpreter takes a millisecond for a token."""
    monkeypatch.setattr(
        "batch_platform.core.models.packed_kernels._why_no_triton", lambda: "not in this test"
    )
    return tiny_models.text_classifier(tmp_path, **SMALL)


def _streamed(folder: Path, shards: list[pa.Table]) -> list[ShardResult]:
    results = list(Engine(_load(folder), PLAN).score_stream(iter(shards)))
    assert len(results) == len(shards)
    for result, shard in zip(results, shards, strict=True):
        failed = {failure.row_key for failure in result.failures}
        keys = shard["row_key"].to_pylist()
        assert result.outputs["row_key"].to_pylist() == [key for key in keys if key not in failed]
    return results


def _table(results: list[ShardResult]) -> pa.Table:
    return pa.concat_tables([result.outputs for result in results])


def _failures(results: list[ShardResult]) -> list[tuple[str, str]]:
    return [(failure.row_key, failure.error_type) for result in results for failure in result.failures]


NULL = ("k156", "NullText")


def test_batches_in_flight_give_each_row_its_own_output(
    cuda: ActedCuda, folder: Path, shards: list[pa.Table]
) -> None:
    results = _streamed(folder, shards)
    assert cuda.most == 3
    assert _failures(results) == [NULL]
    table = _table(results)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        np.array(tokenizer(text, truncation=True, max_length=LONGEST + 1)["input_ids"])
        for text in TEXTS
        if text is not None
    ]
    wanted = torch.from_numpy(_alone(folder, HEAD, _logits, texts)).softmax(1).numpy()
    np.testing.assert_allclose(np.stack(table["scores"].to_numpy()), wanted, atol=0.01)
    assert _table(_streamed(folder, shards)) == table  # to the last bit


@pytest.mark.parametrize("memory", [600, 300, 100])
def test_memory_that_runs_out_makes_batches_smaller_and_loses_no_row(
    cuda: ActedCuda, folder: Path, shards: list[pa.Table], memory: int
) -> None:
    """600: two batches in flight are too many; 300: even two; 100: one is, and only its halves fit."""
    whole = _table(_streamed(folder, shards))
    cuda.memory = memory
    results = _streamed(folder, shards)
    assert _failures(results) == [NULL]
    stats = [result.stats for result in results]
    assert (sum(each.back_offs for each in stats) > 0) == (memory < 256)
    table = _table(results)
    assert table["row_key"] == whole["row_key"]
    np.testing.assert_allclose(table["score"], whole["score"], atol=0.01)


def test_a_text_that_never_fits_is_named_and_the_others_are_scored(
    cuda: ActedCuda, folder: Path, shards: list[pa.Table]
) -> None:
    cuda.memory = 60
    results = _streamed(folder, shards)
    assert _failures(results) == [("k155", "OutOfMemory"), NULL]


def test_a_device_that_breaks_in_flight_is_told_after_the_shards_before(
    cuda: ActedCuda, folder: Path, shards: list[pa.Table]
) -> None:
    engine, whole = Engine(_load(folder), PLAN), []

    def hurt(launch: int) -> None:
        if whole:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cuda.hurt = hurt
    with pytest.raises(InferenceError, match="device failed and must be restarted"):
        for result in engine.score_stream(iter(shards)):
            whole.append(result)
    assert 1 <= len(whole) < len(shards)
