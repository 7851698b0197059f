"""A model without torch whose answers, failures, memory and delays are set by the test."""

import threading
import time
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.inference.computing import Patience
from batch_platform.core.models.predictor import Predictor, Prepared, Refusal
from batch_platform.core.models.signature import InputColumn, ModelSignature

PLAN = BatchPlan("cpu", "float32", batch_tokens=64, batch_rows=8)
SIGNATURE = ModelSignature((InputColumn("text", "string"),), "regression", text_column="text")


class FakePredictor(Predictor):
    """Predicts the length of each text; a token is a character.

    Attributes:
        memory: tokens of a padded batch beyond which memory runs out.
        answers: prediction by text, instead of the length.
        fails: texts for which computing raises; a mapping says what.
        unpreparable: texts for which preparing raises.
        hangs: texts with which a batch does not end until it is stopped.
        most_rows: rows of a batch beyond which it does not end either.
        outages: errors of the next calls, whatever their rows.
        hanging: set while a batch hangs.
        tried: rows of every call; `batches`: texts of those that succeeded.
    """

    def __init__(
        self,
        memory=10**9,
        answers=None,
        fails=(),
        unpreparable=(),
        error=ValueError,
        hangs=(),
        most_rows=10**9,
        outages=(),
        in_flight=None,
    ):
        self.signature, self.device, self.dtype = SIGNATURE, "cpu", "float32"
        if in_flight is not None:
            self.in_flight = in_flight
        self.memory, self.answers = memory, answers or {}
        self.fails = fails if isinstance(fails, Mapping) else dict.fromkeys(fails, error)
        self.unpreparable, self.hangs, self.most_rows = set(unpreparable), set(hangs), most_rows
        self.outages, self.hanging = list(outages), threading.Event()
        self.batches, self.tried, self.releases, self.prepared = [], [], 0, 0

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
        self.tried.append(len(texts))
        if self.outages:
            raise self.outages.pop(0)
        if max(map(len, texts)) * len(texts) > self.memory:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        for text in texts:
            if text in self.fails:
                raise self.fails[text]("bad text")
        if self.hangs & set(texts) or len(texts) > self.most_rows:
            self.hang()
        self.batches.append(texts)
        return np.array([[self.answers.get(text, len(text))] for text in texts], np.float32)

    def hang(self):
        self.hanging.set()
        try:
            while True:
                time.sleep(0.001)
        finally:
            self.hanging.clear()

    def release(self):
        self.releases += 1

    def patience(self, **others):
        """A time-out that passes when a batch hangs, and never by the machine being slow."""

        def wait(done, seconds):
            while not done.wait(0.001):
                if self.hanging.is_set():
                    return False
            return True

        return Patience(wait=wait, **others)


def shard(texts, first=0):
    keys = pa.array([f"k{first + place}" for place in range(len(texts))], pa.string())
    return pa.table({"row_key": keys, "text": pa.array(texts, pa.string())})


def threads():
    """Names of the engine's threads that are alive."""
    ours = [thread for thread in threading.enumerate() if thread.name in ("prepare", "compute", "forward")]
    return [thread.name for thread in ours if thread.is_alive()]
