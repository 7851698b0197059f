"""Realised performance: numbers of how well predictions met the labels, with 95 % intervals.

Decides the metrics and their intervals; which rows are labelled, and when a result is bad enough to fail, is
not decided here. numpy only; one partition's scores and labels are held.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from batch_platform.core.monitoring.calibration import Counts, Group, calibration_error, groups

_Z = 1.959964  # 97.5 % point of the normal distribution
_SMALLEST_PROBABILITY = 1e-7
# DeLong's variance is a variance over the rows of each class: of a few rows it says too little.
_ENOUGH_OF_A_CLASS = 10

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Performance:
    """What the labels say of a partition.

    Attributes:
        rows: labelled rows that were measured.
        metrics: by name; None where a metric has no meaning (AUC with labels of one class only).
        notes: why metrics are missing, in words.
        calibration: of a classifier: rows of like probability (of the positive class of two, else of the label).
        counts: of two classes: the same in bins that add up over days.
    """

    rows: int
    metrics: Mapping[str, float | None]
    notes: tuple[str, ...] = field(default=())
    calibration: tuple[Group, ...] = field(default=())
    counts: Counts | None = None


def classification(
    probabilities: Floats, truth: Sequence[str], labels: Sequence[str], positive: str | None
) -> Performance:
    """Measure a classifier.

    Args:
        probabilities: (rows, labels), in the order of `labels`.
        truth: (rows,) true labels, each one of `labels`.
        labels: the signature's labels.
        positive: the positive class of two; None: the second label.

    Returns:
        accuracy with its Wilson interval, log_loss, brier (mean over rows of the summed squared error; of the
        positive class for two labels), calibration_error; for two labels precision, recall, f1 (at the argmax), auc
        with DeLong's interval, average_precision, top_tenth_lift (share of positives in the tenth with the highest
        scores, over their share in all rows), positive_rate and predicted_positive_rate; for more labels
        reciprocal_rank (mean of 1 / rank of the true label) and top_3_accuracy. `_low` and `_high` are 95 % bounds.
    """
    rows = len(truth)
    if not rows:
        return Performance(0, {}, ("no labelled rows",))
    place = {label: index for index, label in enumerate(labels)}
    known = np.array([place[label] for label in truth])
    guess = probabilities.argmax(axis=1)
    right = int((guess == known).sum())
    low, high = wilson_interval(right, rows)
    chosen = np.clip(probabilities[np.arange(rows), known], _SMALLEST_PROBABILITY, 1.0)
    metrics: dict[str, float | None] = {
        "accuracy": right / rows,
        "accuracy_low": low,
        "accuracy_high": high,
        "majority_share": float(np.bincount(known).max() / rows),
        **_mean("log_loss", -np.log(chosen)),
    }
    if len(labels) != 2:
        onehot = np.eye(len(labels))[known]
        metrics |= _mean("brier", ((probabilities - onehot) ** 2).sum(axis=1))
        metrics |= _ranking_of_labels(probabilities, known)
        found = groups(probabilities.max(axis=1), guess == known)
        return Performance(
            rows, metrics | {"calibration_error": calibration_error(found)}, calibration=tuple(found)
        )
    column = place[positive] if positive is not None else 1
    score, is_positive, said = probabilities[:, column], known == column, guess == column
    metrics |= _mean("brier", (score - is_positive) ** 2)
    metrics |= _retrieval(is_positive, said)
    auc = auc_interval(score, is_positive)
    metrics |= dict(zip(("auc", "auc_low", "auc_high"), auc or (None, None, None), strict=True))
    metrics |= _ranking_of_rows(score, is_positive)
    found = groups(score, is_positive)
    metrics["calibration_error"] = calibration_error(found)
    return Performance(rows, metrics, _auc_notes(auc), tuple(found), Counts.of(score, is_positive))


def regression(predicted: Floats, truth: Floats) -> Performance:
    """Measure a regression: mae, rmse, bias (predicted minus true), r2, spearman, with 95 % intervals.

    The interval of r2 takes the spread of the labels as given: it is that of the mean difference between the squared
    errors of the model and of the labels' mean.

    Args:
        predicted: (rows,).
        truth: (rows,).
    """
    rows = len(truth)
    if not rows:
        return Performance(0, {}, ("no labelled rows",))
    error = predicted - truth
    by_mean = (truth - truth.mean()) ** 2
    spread = float(by_mean.mean())
    r2 = 1 - float((error**2).mean()) / spread if spread else None
    half = _Z * float(np.sqrt(_variance(error**2 - by_mean) / rows)) / spread if spread else 0.0
    squared = _mean("rmse", error**2)
    metrics: dict[str, float | None] = {
        **_mean("mae", np.abs(error)),
        **{
            name: None if value is None else float(np.sqrt(max(value, 0.0)))
            for name, value in squared.items()
        },
        **_mean("bias", error),
        "r2": r2,
        "r2_low": None if r2 is None else r2 - half,
        "r2_high": None if r2 is None else r2 + half,
        "spearman": _correlation(_midranks(predicted), _midranks(truth)),
    }
    return Performance(rows, metrics, () if r2 is not None else ("R2 needs labels that differ",))


def ranking(items: Sequence[Sequence[str]], truth: Sequence[Collection[str]]) -> Performance:
    """Measure ranked lists against the items that turned out right, every right item counting the same.

    Args:
        items: (rows, k) the best first.
        truth: (rows,) the right items of each row, one or more; those that a list cannot hold are missed.

    Returns:
        top_k; as means over rows recall (share of the right items that are in the list), ndcg (Järvelin and Kekäläinen,
        ACM Trans. Inf. Syst. 20, 2002: discount log2(1 + rank), against the best order of as many items) and
        reciprocal_rank (of the first right item; 0 for none); hit_rate (rows with a right item in the list) with
        Wilson's interval; popular_recall and popular_ndcg of one list for all rows, the k items that are right for most of
        these very rows, which nobody could have known; items_shown: different items in all lists.
    """
    rows = len(truth)
    if not rows:
        return Performance(0, {}, ("no labelled rows",))
    k = len(items[0])
    counts = Counter(item for right in truth for item in right)
    popular = [item for item, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:k]]
    popular += [""] * (k - len(popular))
    hits, sizes = _hits(items, truth), np.array([len(right) for right in truth])
    found, ndcg = hits.sum(axis=1), _ndcg(hits, sizes)
    of_popular = _hits([popular] * rows, truth)
    with_hit = int((found > 0).sum())
    return Performance(
        rows,
        {
            "top_k": float(k),
            **_mean("recall", found / sizes),
            **_mean("ndcg", ndcg),
            "hit_rate": with_hit / rows,
            **_bounds("hit_rate", wilson_interval(with_hit, rows)),
            **_mean("reciprocal_rank", (hits / np.arange(1, k + 1)).max(axis=1)),
            "popular_recall": float((of_popular.sum(axis=1) / sizes).mean()),
            "popular_ndcg": float(_ndcg(of_popular, sizes).mean()),
            "items_shown": float(len({item for shown in items for item in shown})),
        },
        ("popular_: one list for all, of the items that turned out most frequent",),
    )


def _hits(items: Sequence[Sequence[str]], truth: Sequence[Collection[str]]) -> Floats:
    """(rows, k) float64: 1 where the item is right."""
    return np.array(
        [[float(item in right) for item in shown] for shown, right in zip(items, truth, strict=True)]
    )


def _ndcg(hits: Floats, sizes: npt.NDArray[np.int64]) -> Floats:
    """(rows,) the discounted gain of each list over that of the best one."""
    discount = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
    best = np.cumsum(discount)[np.minimum(sizes, hits.shape[1]) - 1]
    return (hits @ discount) / best


def wilson_interval(right: int, rows: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    share = right / rows
    middle = share + _Z**2 / (2 * rows)
    half = _Z * np.sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2))
    scale = 1 + _Z**2 / rows
    return float(max(0.0, (middle - half) / scale)), float(min(1.0, (middle + half) / scale))


def auc_interval(
    score: Floats, is_positive: npt.NDArray[np.bool_]
) -> tuple[float, float | None, float | None] | None:
    """AUC and its 95 % interval (DeLong et al., Biometrics 44, 1988, by midranks); None for one class only.

    The bounds are None where a class has too few rows to tell them.
    """
    positives, negatives = score[is_positive], score[~is_positive]
    m, n = len(positives), len(negatives)
    if not m or not n:
        return None
    ranks = _midranks(score)
    auc = (ranks[is_positive].sum() - m * (m + 1) / 2) / (m * n)
    if min(m, n) < _ENOUGH_OF_A_CLASS:
        return float(auc), None, None
    # Share of the other class that each score beats.
    by_positive = (ranks[is_positive] - _midranks(positives)) / n
    by_negative = 1 - (ranks[~is_positive] - _midranks(negatives)) / m
    variance = _variance(by_positive) / m + _variance(by_negative) / n
    half = _Z * float(np.sqrt(variance))
    return float(auc), float(max(0.0, auc - half)), float(min(1.0, auc + half))


def _auc_notes(auc: tuple[float, float | None, float | None] | None) -> tuple[str, ...]:
    if auc is None:
        return ("AUC needs labels of both classes",)
    if auc[1] is None:
        return (f"an interval of AUC needs {_ENOUGH_OF_A_CLASS} labels of each class",)
    return ()


def _retrieval(is_positive: npt.NDArray[np.bool_], said: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    hits = int((is_positive & said).sum())
    precision = hits / int(said.sum()) if said.any() else None
    recall = hits / int(is_positive.sum()) if is_positive.any() else None
    return {
        "precision": precision,
        **_bounds("precision", wilson_interval(hits, int(said.sum())) if said.any() else None),
        "recall": recall,
        **_bounds("recall", wilson_interval(hits, int(is_positive.sum())) if is_positive.any() else None),
        **_f1(is_positive, said),
        "positive_rate": float(is_positive.mean()),
        "predicted_positive_rate": float(said.mean()),
    }


def _f1(is_positive: npt.NDArray[np.bool_], said: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """F1 as a ratio of two sums over rows, with the interval of a ratio (delta method)."""
    above, below = 2.0 * (is_positive & said), is_positive.astype(float) + said
    if not below.any():
        return {"f1": None, **_bounds("f1", None)}
    ratio = float(above.sum() / below.sum())
    half = _Z * float(np.sqrt(_variance(above - ratio * below) / len(below))) / float(below.mean())
    return {"f1": ratio, **_bounds("f1", (max(0.0, ratio - half), min(1.0, ratio + half)))}


def _mean(name: str, values: Floats) -> dict[str, float | None]:
    """A mean over rows with the interval of a mean; none for a single row."""
    mean = float(values.mean())
    half = _Z * float(np.sqrt(_variance(values) / len(values)))
    return {name: mean, **_bounds(name, (mean - half, mean + half) if len(values) > 1 else None)}


def _bounds(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _ranking_of_rows(score: Floats, is_positive: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    if not is_positive.any():
        return {"average_precision": None, "top_tenth_lift": None}
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], is_positive[order]
    # Rows of equal score are ranked together: precision is read where the score changes.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    found = np.cumsum(hits)[ends]
    precision = found / (ends + 1)
    average = float((np.diff(found, prepend=0) * precision).sum() / hits.sum())
    tenth = max(1, len(hits) // 10)
    return {"average_precision": average, "top_tenth_lift": float(hits[:tenth].mean() / hits.mean())}


def _ranking_of_labels(probabilities: Floats, known: npt.NDArray[np.int64]) -> dict[str, float | None]:
    rows = len(known)
    own = probabilities[np.arange(rows), known][:, None]
    # Equal probabilities share the middle of their ranks.
    rank = 1 + (probabilities > own).sum(axis=1) + ((probabilities == own).sum(axis=1) - 1) / 2
    top = int((rank <= 3).sum())
    return {
        **_mean("reciprocal_rank", 1 / rank),
        "top_3_accuracy": top / rows,
        **_bounds("top_3_accuracy", wilson_interval(top, rows)),
    }


def _correlation(first: Floats, second: Floats) -> float | None:
    spread = float(first.std() * second.std())
    return float(((first - first.mean()) * (second - second.mean())).mean()) / spread if spread else None


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _midranks(values: Floats) -> Floats:
    """Ranks from 1, equal values sharing the middle of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
