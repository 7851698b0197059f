import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch_platform.core.spec import PipelineSpec, parse_spec
from batch_platform.core.training import (
    base_rate_threshold,
    binary_metrics,
    labelled_rows,
    precise_threshold,
)
from batch_platform.errors import PipelineFileError, SourceError

ATTRIBUTES: dict[str, Any] = {
    "partitions": {"start": "2026-01-02", "end": "2026-02-01"},
    "source": {
        "uri": "raw/{partition}.jsonl",
        "format": "jsonl",
        "row_key": "id",
        "on_duplicate": "quarantine",
        "allow_empty": True,
        "columns": {"id": {"type": "string", "required": True}, "age": {"type": "int64", "min": 0}},
    },
    "model": {"name": "m"},
    "labels": {"uri": "labels/{partition}.csv", "format": "csv", "row_key": "id", "column": "truth"},
}


def pipeline(**changes: Any) -> PipelineSpec:
    return parse_spec(ATTRIBUTES | changes, "p")


def write(base: Path, day: str, rows: list[dict[str, Any]], labels: dict[str, str] | None) -> None:
    (base / "raw").mkdir(exist_ok=True)
    (base / "labels").mkdir(exist_ok=True)
    (base / "raw" / f"{day}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if labels is not None:
        lines = ["id,truth", *(f"{key},{label}" for key, label in labels.items())]
        (base / "labels" / f"{day}.csv").write_text("\n".join(lines))


def test_rows_that_scoring_would_quarantine_are_no_training_rows(tmp_path: Path) -> None:
    rows = [{"id": "a", "age": 1}, {"id": "b", "age": -1}, {"id": "a", "age": 2}, {"id": None, "age": 3}]
    write(tmp_path, "2026-01-01", rows, {"a": "yes", "b": "no"})
    found = labelled_rows(pipeline(), tmp_path, "2026-01-01", "2026-01-02")
    assert found.features["age"].to_pylist() == [1]
    assert (found.labels, found.partitions) == (["yes"], ["2026-01-01"])


def test_rows_meet_their_own_labels_across_days_and_those_without_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "2026-01-01", [{"id": "a", "age": 1}, {"id": "b", "age": 2}], {"b": "x"})
    write(tmp_path, "2026-01-03", [{"id": "b", "age": 3}], {"a": "w", "b": "y"})
    write(tmp_path, "2026-01-04", [{"id": "b", "age": 4}], None)
    found = labelled_rows(pipeline(), tmp_path, "2026-01-01", "2026-01-05")
    assert list(zip(found.features["age"].to_pylist(), found.labels, found.partitions, strict=True)) == [
        (2, "x", "2026-01-01"),
        (3, "y", "2026-01-03"),
    ]
    later = found.between("2026-01-02", "2026-01-04")
    assert (later.features["age"].to_pylist(), later.labels) == ([3], ["y"])
    assert found.between("2026-01-01", "2026-01-03").labels == ["x"]


def test_without_labelled_rows_or_labels_it_says_so(tmp_path: Path) -> None:
    write(tmp_path, "2026-01-01", [{"id": "a", "age": 1}], {})
    with pytest.raises(SourceError, match="p: no labelled rows from 2026-01-01"):
        labelled_rows(pipeline(), tmp_path, "2026-01-01", "2026-01-02")
    with pytest.raises(PipelineFileError, match="labels"):
        labelled_rows(pipeline(labels=None), tmp_path, "2026-01-01", "2026-01-02")


def test_metrics_agree_with_sklearn_also_where_scores_tie() -> None:
    from sklearn import metrics

    random = np.random.default_rng(0)
    truth = random.random(500) < 0.3
    scores = np.round(random.random(500) * 0.6 + truth * 0.3, 2)
    ours = binary_metrics(truth, scores, 0.5)
    flagged = scores >= 0.5
    theirs = {
        "accuracy": metrics.accuracy_score(truth, flagged),
        "precision": metrics.precision_score(truth, flagged),
        "recall": metrics.recall_score(truth, flagged),
        "f1": metrics.f1_score(truth, flagged),
        "auc": metrics.roc_auc_score(truth, scores),
    }
    assert ours == pytest.approx(theirs, abs=6e-5)


def test_the_precise_threshold_is_the_lowest_that_keeps_the_promise() -> None:
    truth = np.array([True, True, False, True, False, False])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert precise_threshold(truth, scores, 1.0) == 0.8
    assert precise_threshold(truth, scores, 0.75) == 0.6
    assert precise_threshold(truth, scores, 0.5) == 0.4


def test_equal_scores_are_never_parted_by_the_precise_threshold() -> None:
    truth = np.array([True, True, False, False])
    scores = np.array([0.9, 0.8, 0.8, 0.8])
    assert precise_threshold(truth, scores, 0.9) == 0.9


def test_the_base_rate_threshold_flags_as_many_as_are_positive() -> None:
    scores = np.random.default_rng(0).random(1000)
    truth = np.arange(1000) < 230
    assert abs(int((scores >= base_rate_threshold(truth, scores)).sum()) - 230) <= 1
