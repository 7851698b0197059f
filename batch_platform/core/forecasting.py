"""How long scoring will take, by what this pipeline's own partitions took.

A partition takes a fixed time and a time for each row; both are medians over the partitions that stand in `run_stats`, and
their 10th and 90th percentiles give the range, as if all partitions were equally fast or slow (they share a
machine). Partitions of the same model on the same device count; without enough of them, all. Decides nothing: it says on
what it is based, and says nothing where there is too little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batch_platform.core.data.lake import Lake
from batch_platform.core.data.staging import read_files

ENOUGH = 3  # partitions; fewer give no range
_NEWEST = 60  # partitions looked at
_QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Forecast:
    """Seconds of the stage `predictions`: the likely value and its range.

    Attributes:
        based_on: partitions whose times were used.
        same_model: whether all of them were scored by this model on this device.
    """

    seconds: float
    low: float
    high: float
    based_on: int
    same_model: bool


@dataclass(frozen=True)
class Accuracy:
    """Forecasts held against what happened, over the partitions that had one.

    Attributes:
        within_range: partitions whose time lay in the range.
        predicted_seconds, actual_seconds: sums.
    """

    partitions: int
    within_range: int
    predicted_seconds: float
    actual_seconds: float


def timed(forecast: Forecast | None, seconds: float) -> dict[str, float]:
    """What `run_stats` keeps of a partition's time; without a forecast it has none of its columns."""
    taken = {"stage_seconds": round(seconds, 4)}
    if forecast is None:
        return taken
    return {
        **taken,
        "predicted_seconds": forecast.seconds,
        "predicted_low": forecast.low,
        "predicted_high": forecast.high,
    }


class Forecaster:
    """The times of a pipeline's newest partitions.

    Args:
        samples: rows of `run_stats`.
        model_digest, device: what is to be forecast.
    """

    def __init__(self, samples: Sequence[dict[str, Any]], model_digest: str, device: str) -> None:
        timed = [sample for sample in samples if sample["rows"] and sample.get("stage_seconds") is not None]
        same = [s for s in timed if (s.get("model_digest"), s.get("device")) == (model_digest, device)]
        self._same = len(same) >= ENOUGH
        self._samples = same if self._same else timed
        self._predicted = [sample for sample in samples if sample.get("predicted_seconds") is not None]

    @classmethod
    def of(cls, lake: Lake, model_digest: str, device: str) -> "Forecaster":
        """Read the statistics that stand, of the newest partitions."""
        keys = sorted(lake.partition_rows("run_stats"))[-_NEWEST:]
        places = [place for key in keys for place in lake.paths("run_stats", key)]
        samples = [row for batch in read_files(places) for row in batch.to_pylist()]
        return cls(samples, model_digest, device)

    def forecast(self, rows: Sequence[int]) -> Forecast | None:
        """The time for partitions with so many rows to score each; None where too little is known."""
        if len(self._samples) < ENOUGH:
            return None
        per_row = np.array([sample["wall_seconds"] / sample["rows"] for sample in self._samples])
        fixed = np.array([max(0.0, s["stage_seconds"] - s["wall_seconds"]) for s in self._samples])
        low, likely, high = (
            len(rows) * float(np.quantile(fixed, q)) + sum(rows) * float(np.quantile(per_row, q))
            for q in _QUANTILES
        )
        return Forecast(round(likely, 2), round(low, 2), round(high, 2), len(self._samples), self._same)

    @property
    def accuracy(self) -> Accuracy | None:
        """How good the forecasts of the newest partitions were; None where there were none."""
        if not self._predicted:
            return None
        within = [
            s for s in self._predicted if s["predicted_low"] <= s["stage_seconds"] <= s["predicted_high"]
        ]
        return Accuracy(
            len(self._predicted),
            len(within),
            round(sum(sample["predicted_seconds"] for sample in self._predicted), 2),
            round(sum(sample["stage_seconds"] for sample in self._predicted), 2),
        )
