"""A model without torch whose answers, failures and memory are set by the test."""

import numpy as np
import pyarrow as pa

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.models.predictor import Predictor, Prepared, Refusal
from batch_platform.core.models.signature import InputColumn, ModelSignature

PLAN = BatchPlan("cpu", "float32", batch_tokens=64, batch_rows=8)
SIGNATURE = ModelSignature((InputColumn("text", "string"),), "regression", text_column="text")


class FakePredictor(Predictor):
    """Predicts the length of each text; a token is a character.

    Attributes:
        memory: tokens of a padded batch beyond which memory runs out.
        answers: prediction by text, instead of the length.
        fails: texts for which computing raises.
        unpreparable: texts for which preparing raises.
    """

    def __init__(self, memory=10**9, answers=None, fails=(), unpreparable=(), error=ValueError):
        self.signature, self.device, self.dtype = SIGNATURE, "cpu", "float32"
        self.memory, self.answers, self.fails = memory, answers or {}, set(fails)
        self.unpreparable, self.error = set(unpreparable), error
        self.batches, self.releases, self.prepared = [], 0, 0

    def prepare(self, batch):
        texts = batch.column("text").to_pylist()
        if self.unpreparable & set(texts):
            raise ValueError("cannot be tokenized")
        self.prepared += 1
        refused = tuple(Refusal(row, "NullText", "null") for row, text in enumerate(texts) if text is None)
        prepared = Prepared(np.array([len(text or "") for text in texts], np.int64), refused)
        object.__setattr__(prepared, "texts", texts)
        return prepared

    def forward(self, prepared, rows):
        texts = [prepared.texts[row] for row in rows]
        if max(map(len, texts)) * len(texts) > self.memory:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        if self.fails & set(texts):
            raise self.error("bad text")
        self.batches.append(texts)
        return np.array([[self.answers.get(text, len(text))] for text in texts], np.float32)

    def release(self):
        self.releases += 1


def shard(texts, first=0):
    keys = pa.array([f"k{first + place}" for place in range(len(texts))], pa.string())
    return pa.table({"row_key": keys, "text": pa.array(texts, pa.string())})
