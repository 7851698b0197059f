"""Simulated embeddings for `drift_simulation.py`: mixtures of topics in 384 dimensions, as sentence encoders give them.

All vectors share a mean (the cone in which encoders put everything), a few directions carry most of the variance, and
topics overlap. The shares of the topics differ between days. The change: a tenth of the rows is of one topic
instead of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
from drift_streams import REFERENCE_DAYS, START

from batch_platform.core.monitoring.profile import Profile, profile_table

DIMENSION, TOPICS = 384, 12
MOVED = 0.1


@dataclass(frozen=True)
class Topics:
    """How days differ.

    Attributes:
        wander: standard deviation of the logits of the topics' shares between days.
        memory: of these logits.
        weekday: the same between weekdays.
        thin: share of days with a twentieth of the rows.
        cone: of a vector's squared length the part that all have in common; `apart`: what topics differ by.
    """

    wander: float = 0.15
    memory: float = 0.0
    weekday: float = 0.1
    thin: float = 0.0
    cone: float = 0.3
    apart: float = 0.2

    def days(
        self, seed: list[int], rows: int, count: int, change: str | None
    ) -> Iterator[tuple[date, np.ndarray]]:
        """Vectors of length 1 by day, (rows, 384) float32; the change acts after the reference.

        Args:
            change: `known` topic, `new` topic, or None.
        """
        random = np.random.default_rng(seed)
        spectrum = np.arange(1, DIMENSION + 1) ** -0.4
        spectrum /= np.sqrt((spectrum**2).sum())  # a vector drawn with it has length 1 on average
        turn = np.linalg.qr(random.normal(size=(DIMENSION, DIMENSION)))[0]

        def drawn(how_many: int) -> np.ndarray:
            return (random.normal(size=(how_many, DIMENSION)) * spectrum) @ turn

        common = np.sqrt(self.cone) * random.normal(size=DIMENSION) / np.sqrt(DIMENSION)
        centres = common + np.sqrt(self.apart) * drawn(
            TOPICS + 1
        )  # the last one is not there before the change
        base, weekdays = random.normal(0, 0.5, TOPICS), random.normal(0, self.weekday, (7, TOPICS))
        effect, moved_to = np.zeros(TOPICS), TOPICS if change == "new" else int(random.integers(TOPICS))
        for day in range(-50, count):
            effect = self.memory * effect + np.sqrt(1 - self.memory**2) * random.normal(
                0, self.wander, TOPICS
            )
            if day < 0:
                continue
            size = max(1, rows // 20) if random.random() < self.thin else rows
            shares = np.exp(base + weekdays[day % 7] + effect)
            topics = random.choice(TOPICS, size, p=shares / shares.sum())
            if change and day >= REFERENCE_DAYS:
                topics[random.random(size) < MOVED] = moved_to
            vectors = centres[topics] + np.sqrt(1 - self.cone - self.apart) * drawn(size)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            yield START + timedelta(days=day), vectors.astype(np.float32)


QUIET_TOPICS = {
    "topics differ between days": Topics(),
    "shares with AR 0.9": Topics(memory=0.9),
    "thin days: 1 in 12": Topics(thin=1 / 12),
    "larger effects of days, narrow cone": Topics(wander=0.3, cone=0.6, apart=0.15),
}


def profiled(vectors: np.ndarray) -> Profile:
    column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIMENSION)
    return profile_table(pa.table({"embedding": column}))
