"""Realised performance against scikit-learn, and the days on which a number has no meaning."""

import numpy as np
import pytest
from sklearn import metrics as sk

from batch_platform.core.monitoring.calibration import Counts, estimate_binary
from batch_platform.core.monitoring.performance import (
    auc_interval,
    classification,
    ranking,
    regression,
    wilson_interval,
)

LABELS = ["no", "yes"]


def scored(seed: int, rows: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores of `yes`, (rows,), and whether it is true, (rows,)."""
    random = np.random.default_rng(seed)
    truth = random.random(rows) < 0.3
    score = 1 / (1 + np.exp(-random.normal(np.where(truth, 0.8, -0.8), 1.2)))
    return (np.round(score, 1) if ties else score), truth


def both(score: np.ndarray) -> np.ndarray:
    return np.column_stack([1 - score, score])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rows", [50, 3000])
def test_two_classes_against_sklearn(rows: int, ties: bool) -> None:
    score, truth = scored(1, rows, ties)
    probabilities = both(score)
    found = classification(probabilities, [LABELS[int(t)] for t in truth], LABELS, "yes").metrics
    said = probabilities.argmax(axis=1) == 1
    expected = {
        "accuracy": sk.accuracy_score(truth, said),
        "auc": sk.roc_auc_score(truth, score),
        "brier": sk.brier_score_loss(truth, score),
        "precision": sk.precision_score(truth, said),
        "recall": sk.recall_score(truth, said),
        "f1": sk.f1_score(truth, said),
        "positive_rate": truth.mean(),
        "predicted_positive_rate": said.mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    if not ties:
        assert found["log_loss"] == pytest.approx(sk.log_loss(truth, score))


def test_the_positive_class_may_be_the_first_label() -> None:
    score, truth = scored(2, 400)
    found = classification(both(score), [LABELS[int(t)] for t in truth], LABELS, "no").metrics
    assert found["positive_rate"] == pytest.approx(1 - truth.mean())
    assert found["auc"] == pytest.approx(sk.roc_auc_score(~truth, 1 - score))


def test_more_than_two_classes() -> None:
    random = np.random.default_rng(3)
    probabilities = random.dirichlet([1, 1, 1], 300)
    truth = random.integers(0, 3, 300)
    found = classification(probabilities, [f"l{t}" for t in truth], ["l0", "l1", "l2"], None).metrics
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, probabilities.argmax(axis=1)))
    assert found["log_loss"] == pytest.approx(sk.log_loss(truth, probabilities))
    assert "auc" not in found


def test_a_day_of_one_class_has_no_auc_and_says_so() -> None:
    found = classification(both(np.array([0.2, 0.7])), ["no", "no"], LABELS, "yes")
    assert found.metrics["auc"] is None
    assert found.metrics["recall"] is None
    assert found.metrics["accuracy"] == 0.5
    assert found.notes == ("AUC needs labels of both classes",)


def test_without_labelled_rows_nothing_is_measured() -> None:
    for found in (classification(np.empty((0, 2)), [], LABELS, "yes"), regression(np.empty(0), np.empty(0))):
        assert (found.rows, dict(found.metrics), found.notes) == (0, {}, ("no labelled rows",))


def test_a_probability_of_zero_for_the_truth_is_a_finite_loss() -> None:
    found = classification(both(np.array([0.0, 1.0])), ["yes", "yes"], LABELS, "yes").metrics
    assert 5 < found["log_loss"] < 10  # type: ignore[operator]


def test_wilson_against_published_numbers() -> None:
    """Newcombe, Statist. Med. 17, 1998, table I, method 3."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0


def test_the_interval_of_auc_covers_as_often_as_it_says() -> None:
    true_auc = sk.roc_auc_score(*reversed(scored(99, 200_000)))
    covered = 0
    for seed in range(200):
        score, truth = scored(seed, 200)
        found = auc_interval(score, truth)
        assert found is not None
        covered += found[1] <= true_auc <= found[2]
    assert 0.90 <= covered / 200 <= 0.985


def test_regression_against_sklearn() -> None:
    random = np.random.default_rng(4)
    truth = random.normal(10, 3, 200)
    predicted = truth + random.normal(0.5, 1, 200)
    expected = {
        "mae": sk.mean_absolute_error(truth, predicted),
        "rmse": sk.root_mean_squared_error(truth, predicted),
        "bias": (predicted - truth).mean(),
        "r2": sk.r2_score(truth, predicted),
    }
    found = regression(predicted, truth).metrics
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    again = [
        1 - ((predicted[rows] - truth[rows]) ** 2).mean() / ((truth[rows] - truth[rows].mean()) ** 2).mean()
        for rows in random.integers(0, 200, (2000, 200))
    ]
    # Wider than a bootstrap, which varies the spread of the labels along with the errors.
    low, high = np.quantile(again, [0.025, 0.975])
    assert found["r2_low"] < low < found["r2"] < high < found["r2_high"]  # type: ignore[operator]


def test_the_interval_of_auc_agrees_with_a_bootstrap() -> None:
    score, truth = scored(5, 400)
    found = auc_interval(score, truth)
    assert found is not None
    random = np.random.default_rng(0)
    again = [sk.roc_auc_score(truth[rows], score[rows]) for rows in random.integers(0, 400, (1000, 400))]
    assert found[1:] == pytest.approx(np.quantile(again, [0.025, 0.975]), abs=0.012)


def test_of_few_labels_of_a_class_no_interval_is_told() -> None:
    """One positive ranked last is no proof that the scores are upside down."""
    score = np.linspace(0.1, 0.9, 100)
    found = classification(both(score), ["yes", *["no"] * 99], LABELS, "yes")
    assert (found.metrics["auc"], found.metrics["auc_low"], found.metrics["auc_high"]) == (0.0, None, None)
    assert found.notes == ("an interval of AUC needs 10 labels of each class",)


def test_r2_of_labels_that_do_not_differ_has_no_meaning() -> None:
    found = regression(np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    assert found.metrics["r2"] is None
    assert found.notes == ("R2 needs labels that differ",)


def test_calibration_ranking_and_intervals_against_sklearn() -> None:
    score, truth = scored(7, 3000)
    found = classification(both(score), [LABELS[int(t)] for t in truth], LABELS, "yes")
    metrics = found.metrics
    assert metrics["average_precision"] == pytest.approx(sk.average_precision_score(truth, score))
    tied = np.round(score, 1)
    of_ties = classification(both(tied), [LABELS[int(t)] for t in truth], LABELS, "yes").metrics
    assert of_ties["average_precision"] == pytest.approx(sk.average_precision_score(truth, tied))
    for name in ("precision", "recall", "f1", "log_loss", "brier"):
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]
    assert metrics["top_tenth_lift"] > 1
    assert sum(group.rows for group in found.calibration) == 3000
    assert found.counts is not None
    assert (sum(found.counts.rows), sum(found.counts.positives)) == (3000, int(truth.sum()))


def test_the_interval_of_f1_holds_its_promise() -> None:
    random = np.random.default_rng(8)
    score, truth = scored(9, 50_000)
    f1 = sk.f1_score(truth, score > 0.5)
    held = 0
    for _ in range(200):
        rows = random.choice(len(score), 300)
        words = [LABELS[int(t)] for t in truth[rows]]
        found = classification(both(score[rows]), words, LABELS, "yes").metrics
        held += found["f1_low"] <= f1 <= found["f1_high"]
    assert held >= 180  # 190 expected; fewer than 180 once in a thousand


def test_true_probabilities_have_no_calibration_error_and_estimate_performance() -> None:
    random = np.random.default_rng(10)
    probability = random.beta(1, 2, 20_000)
    truth = random.random(20_000) < probability
    found = classification(both(probability), [LABELS[int(t)] for t in truth], LABELS, "yes").metrics
    assert found["calibration_error"] < 0.02
    estimated = estimate_binary(probability, probability > 0.5)
    for name in ("accuracy", "f1", "auc"):
        assert estimated[f"estimated_{name}"] == pytest.approx(found[name], abs=0.015)
    # Too sure by far, and corrected by labelled rows.
    sure = np.where(probability > 0.5, 0.99, 0.01)
    corrected = Counts.of(sure, truth).corrected(sure)
    estimate = estimate_binary(corrected, sure > 0.5)["estimated_accuracy"]
    assert estimate == pytest.approx(((sure > 0.5) == truth).mean(), abs=0.01)
    assert estimate_binary(sure, sure > 0.5)["estimated_accuracy"] == pytest.approx(0.99)


def test_ranks_of_labels_and_of_a_regression() -> None:
    probabilities = np.array([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5], [0.25, 0.25, 0.25, 0.25]])
    found = classification(probabilities, ["b", "a", "a"], ["a", "b", "c", "d"], None).metrics
    assert found["reciprocal_rank"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 2.5) / 3)
    assert found["top_3_accuracy"] == pytest.approx(2 / 3)
    numbers = np.arange(50.0)
    assert regression(numbers**3, numbers).metrics["spearman"] == pytest.approx(1)
    assert regression(-numbers, numbers).metrics["spearman"] == pytest.approx(-1)
    assert regression(np.ones(50), numbers).metrics["spearman"] is None
    exact = regression(numbers + np.where(numbers % 2, 1, -1), numbers).metrics
    assert (exact["mae"], exact["mae_low"], exact["rmse"], exact["rmse_high"]) == (1, 1, 1, 1)


def test_ranked_lists_against_sklearn_and_by_hand() -> None:
    random = np.random.default_rng(4)
    catalogue = [f"i{place}" for place in range(12)]
    scores = random.random((200, 12))
    right = random.random((200, 12)) < random.choice([0.1, 0.4, 0.9], (200, 1))
    right[:, 0] |= ~right.any(axis=1)
    order = np.argsort(-scores, axis=1)[:, :4]
    lists = [[catalogue[item] for item in row] for row in order]
    truth = [{catalogue[item] for item in np.flatnonzero(row)} for row in right]
    found = ranking(lists, truth).metrics
    assert found["ndcg"] == pytest.approx(sk.ndcg_score(right.astype(float), scores, k=4))
    hits = np.take_along_axis(right, order, axis=1)
    assert found["recall"] == pytest.approx((hits.sum(axis=1) / right.sum(axis=1)).mean())
    assert found["hit_rate"] == pytest.approx(hits.any(axis=1).mean())
    first = np.where(hits.any(axis=1), 1 / (1 + hits.argmax(axis=1)), 0)
    assert found["reciprocal_rank"] == pytest.approx(first.mean())
    assert found["recall_low"] < found["recall"] < found["recall_high"]  # type: ignore[operator]


def test_one_list_for_all_stands_beside_the_lists() -> None:
    truth = [{"a"}, {"a"}, {"a", "b"}, {"z"}]
    found = ranking([["b", "c"], ["b", "c"], ["b", "c"], ["z", "c"]], truth).metrics
    assert found["popular_recall"] == pytest.approx((1 + 1 + 1 + 0) / 4)  # a and b
    assert found["recall"] == pytest.approx((0 + 0 + 0.5 + 1) / 4)
    assert (found["top_k"], found["items_shown"]) == (2, 3)
    only = ranking([["x", "y"]], [{"a"}]).metrics
    assert (only["recall"], only["ndcg"], only["reciprocal_rank"], only["popular_recall"]) == (0, 0, 0, 1)
    assert ranking([], []).rows == 0
