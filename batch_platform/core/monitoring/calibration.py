"""How far probabilities can be taken at their word, and what they promise where labels are still missing.

Decides the bins of the calibration, and the estimate of performance without labels: confidence-based performance
estimation, as NannyML has it (Białek et al., Estimating Model Performance Under Covariate Shift Without Labels, 2024).
Such an estimate follows a change of the rows. It cannot see that the same rows now have other labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ESTIMATED = "estimated_"  # begins the names of what is estimated
BLIND_SPOT = (
    "estimated from the scores alone: it assumes that rows with the same score are as often positive as before, so it "
    "follows a change of the rows and cannot see a change of what the labels mean; never an all-clear"
)
_BINS = 20
_GROUPS = 10


@dataclass(frozen=True)
class Counts:
    """Labelled rows by equal bins of their probability, (20,) each; the counts of several days can be added up."""

    rows: tuple[int, ...] = (0,) * _BINS
    positives: tuple[int, ...] = (0,) * _BINS

    @classmethod
    def of(cls, probability: Floats, is_positive: npt.NDArray[np.bool_]) -> "Counts":
        place = _bin(probability)
        rows, positives = (
            np.bincount(place, minlength=_BINS),
            np.bincount(place[is_positive], minlength=_BINS),
        )
        return cls(tuple(rows.tolist()), tuple(positives.tolist()))

    @classmethod
    def together(cls, days: Sequence["Counts"]) -> "Counts":
        both = [[day.rows for day in days], [day.positives for day in days]]
        rows, positives = (tuple(map(sum, zip(*each, strict=True))) or cls().rows for each in both)
        return cls(rows, positives)

    def corrected(self, probability: Floats) -> Floats:
        """(rows,) probabilities as the labelled rows had them; as they are where few rows were labelled.

        Each bin's share of positives, drawn to the row's own probability by the weight of ten rows.
        """
        place, prior = _bin(probability), 10.0
        rows, positives = np.asarray(self.rows, float), np.asarray(self.positives, float)
        return (positives[place] + prior * probability) / (rows[place] + prior)


@dataclass(frozen=True)
class Group:
    """Rows of like probability: how many, their mean probability, the share that is positive."""

    rows: int
    said: float
    happened: float


def groups(probability: Floats, is_true: npt.NDArray[np.bool_]) -> list[Group]:
    """Ten groups of rows of equal size, by rising probability."""
    order = np.argsort(probability, kind="stable")
    return [
        Group(len(part), float(probability[part].mean()), float(is_true[part].mean()))
        for part in np.array_split(order, min(_GROUPS, len(order)))
        if len(part)
    ]


def calibration_error(found: Sequence[Group]) -> float:
    """Mean distance of what was said from what happened (expected calibration error; Naeini et al., AAAI 2015)."""
    rows = sum(group.rows for group in found)
    return sum(group.rows * abs(group.said - group.happened) for group in found) / rows


def estimate_binary(probability: Floats, said: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """What is to be expected of two classes, were the probabilities true.

    Args:
        probability: (rows,) of the positive class.
        said: (rows,) whether the positive class was predicted.
    """
    hits = float(probability[said].sum())
    positives = float(probability.sum())
    flagged = int(said.sum())
    return {
        "estimated_accuracy": float(np.where(said, probability, 1 - probability).mean()),
        "estimated_f1": 2 * hits / (flagged + positives) if flagged + positives else None,
        "estimated_auc": _expected_auc(probability),
        "estimated_positive_rate": float(probability.mean()),
    }


def _expected_auc(probability: Floats) -> float | None:
    """The share of pairs of a positive and a negative row that are in order, expected; equal ones count half."""
    order = np.argsort(probability, kind="stable")
    ranked = probability[order]
    negatives = np.concatenate([[0.0], np.cumsum(1 - ranked)])
    left, right = np.searchsorted(ranked, ranked), np.searchsorted(ranked, ranked, side="right")
    below = (negatives[left] + negatives[right]) / 2 - (1 - ranked) / 2  # a row is no pair with itself
    pairs = float(ranked.sum() * (1 - ranked).sum() - (ranked * (1 - ranked)).sum())
    return float((ranked * below).sum() / pairs) if pairs > 0 else None


def _bin(probability: Floats) -> npt.NDArray[np.int64]:
    return np.clip((probability * _BINS).astype(np.int64), 0, _BINS - 1)
