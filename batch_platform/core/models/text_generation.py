"""Task `generation` of the flavor `transformers`: one text out for one text in, always the likeliest next token.

It decides what of a folder's generation settings counts: the special tokens, and how many tokens to make where the
signature is asked to say it. Sampling, beams, penalties and time limits do not, as they would make a row depend on
chance, on its neighbours or on the clock. Raw outputs are token ids in rows of one width; `finish` makes text of
them. It does not know how batches are cut.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core.models import text_folder
from batch_platform.core.models.outputs import END_OF_TEXT, NOT_FINITE
from batch_platform.core.models.predictor import Predictor, Prepared
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.models.text_tokens import (
    PreparedTexts,
    TextTokenizer,
    load_tokenizer,
    prepare_texts,
    quiet_transformers,
    token_limit,
)
from batch_platform.errors import ModelError, SignatureError

_SPECIAL_TOKENS = (
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
_MOST_TOKENS = 2**20  # a tokenizer without a limit says 10**30


class GenerationPredictor(Predictor):
    """A loaded model that continues a text (causal) or answers one (sequence to sequence)."""

    def __init__(
        self, tokenizer: Any, limit: int, model: Any, signature: ModelSignature, device: str, dtype: str
    ) -> None:
        self.signature = signature
        self.device = device
        self.dtype = dtype
        self._tokenizer = tokenizer
        self._to_tokens = TextTokenizer(tokenizer, limit)
        self._model = model
        self._answers = bool(model.config.is_encoder_decoder)
        self._ends = _ids(model.generation_config.eos_token_id)

    def prepare(self, batch: pa.RecordBatch) -> PreparedTexts:
        prepared = prepare_texts(batch, self.signature, self._to_tokens)
        # What is made is kept on the device beside what was read.
        return replace(prepared, costs=prepared.costs + self._width)

    def forward(self, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        """Generate; (n, max_new_tokens) int32 token ids, then `END_OF_TEXT`; `NOT_FINITE` in rows without an answer."""
        import torch
        from transformers import LogitsProcessorList

        assert isinstance(prepared, PreparedTexts)
        ids, mask = self._padded([prepared.row(row) for row in rows])
        watch = _Watch(len(rows))
        with torch.inference_mode():
            made = self._model.generate(
                input_ids=torch.from_numpy(ids).to(self.device),
                attention_mask=torch.from_numpy(mask).to(self.device),
                logits_processor=LogitsProcessorList([watch]),
            )
        skipped = 1 if self._answers else ids.shape[1]  # the start token, or the text that was read
        return self._raw(made[:, skipped:].cpu().numpy(), watch.first_bad_steps())

    def finish(self, raw: np.ndarray) -> pa.RecordBatch:
        tokens = [[int(token) for token in row if token >= 0] for row in raw]
        texts = self._tokenizer.batch_decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return pa.record_batch([pa.array(texts, pa.string())], schema=self.signature.output_schema())

    @property
    def _width(self) -> int:
        assert self.signature.max_new_tokens is not None  # checked by the signature
        return self.signature.max_new_tokens

    def _padded(self, tokens: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, (rows, longest) int64; padding stands where the text does not go on."""
        longest = max(len(row) for row in tokens)
        ids = np.full((len(tokens), longest), self._to_tokens.pad_id, np.int64)
        mask = np.zeros((len(tokens), longest), np.int64)
        for place, row in enumerate(tokens):
            kept = slice(0, len(row)) if self._answers else slice(longest - len(row), longest)
            ids[place, kept] = row
            mask[place, kept] = 1
        return ids, mask

    def _raw(self, made: np.ndarray, bad_steps: np.ndarray) -> np.ndarray:
        """One width for every batch, and nothing behind the end: what follows it depends on the other rows."""
        raw = np.full((len(made), self._width), END_OF_TEXT, np.int32)
        raw[:, : made.shape[1]] = made
        ended = np.isin(raw, self._ends).cumsum(axis=1) > 0
        raw[ended] = END_OF_TEXT
        # The step that chose the end counts as well.
        steps = np.minimum((~ended).sum(axis=1), made.shape[1] - 1)
        raw[bad_steps <= steps] = NOT_FINITE
        return raw


class _Watch:
    """Sees the scores of each step: NaN would be taken for a token in silence."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._bad: list[Any] = []

    def __call__(self, _ids: Any, scores: Any) -> Any:
        # Minus infinity is how models forbid a token.
        self._bad.append((scores.isnan() | scores.isposinf()).any(dim=-1))
        return scores

    def first_bad_steps(self) -> np.ndarray:
        """(rows,) int64, the step whose scores were no numbers; the number of steps where all were."""
        import torch

        if not self._bad:
            return np.ones(self._rows, np.int64)
        bad = torch.stack(self._bad, dim=1).cpu().numpy()  # (rows, steps)
        return np.where(bad.any(axis=1), bad.argmax(axis=1), bad.shape[1])


def load(folder: Path, signature: ModelSignature, device: str, dtype: str) -> GenerationPredictor:
    """Load a model that generates text.

    Raises:
        ModelError: weights are missing, or the folder does not say how to begin or to pad.
        SignatureError: the model has no room for so many tokens, or nothing limits a text.
    """
    with quiet_transformers():
        tokenizer = load_tokenizer(folder, pads_with_end=True)
        model = _load_model(folder, dtype).to(device)
    assert signature.max_new_tokens is not None  # checked by the signature
    limit = token_limit(tokenizer, model.config, signature)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions:
        room = positions - signature.max_new_tokens
        if room < 1:
            raise SignatureError(
                f"{folder}: max_new_tokens {signature.max_new_tokens} leaves no room in the {positions} positions of the "
                "model: register it with fewer"
            )
        limit = limit if model.config.is_encoder_decoder else min(limit, room)
    if limit > _MOST_TOKENS:
        raise SignatureError(
            f"{folder}: neither tokenizer nor model limits a text: register it with --max-tokens"
        )
    model.generation_config = _settings(folder, model, tokenizer, signature.max_new_tokens)
    return GenerationPredictor(tokenizer, limit, model, signature, device, dtype)


def _load_model(folder: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    answers = text_folder.read_json(folder / "config.json").get("is_encoder_decoder") is True
    kind = AutoModelForSeq2SeqLM if answers else AutoModelForCausalLM
    loaded: Any = kind.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{folder}: the weights file lacks {missing[0]} ({len(missing)} in all), which would be random: "
            "the file is incomplete, or of a model that does not generate"
        )
    return model.eval()


def _settings(folder: Path, model: Any, tokenizer: Any, max_new_tokens: int) -> Any:
    from transformers import GenerationConfig

    said = model.generation_config
    tokens = {name: getattr(said, name, None) for name in _SPECIAL_TOKENS}
    tokens["eos_token_id"] = _ids(tokens["eos_token_id"]) or _ids(tokenizer.eos_token_id) or None
    if model.config.is_encoder_decoder and tokens["decoder_start_token_id"] is None:
        tokens["decoder_start_token_id"] = model.config.decoder_start_token_id
        if tokens["decoder_start_token_id"] is None:
            raise ModelError(f"{folder}: config.json names no decoder_start_token_id: the model cannot begin")
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        **tokens,
    )


def _ids(said: int | list[int] | None) -> list[int]:
    if said is None:
        return []
    return [said] if isinstance(said, int) else list(said)
