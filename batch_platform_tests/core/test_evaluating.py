"""The performance stage on committed predictions: labels that are late, wrong, corrected, or elsewhere."""

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from batch_platform.core import evaluating
from batch_platform.core.evaluating import evaluate_partition, with_new_labels
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.slice import Slice, StageResult
from batch_platform.errors import MonitoringError, SignatureError, SourceError
from batch_platform_tests.core.committed import commit, slice_of

DAY = "2026-01-05"
ROWS = 60
LABELS = {
    "uri": "labels/{partition}.csv",
    "format": "csv",
    "row_key": "id",
    "column": "truth",
    "horizon_days": 30,
}
Truth = dict[str, Any]


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, datetime(2026, 1, 20, tzinfo=UTC))


def at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Let the stage believe that it is this moment."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return moment.astimezone(tz)  # type: ignore[return-value]

    monkeypatch.setattr(evaluating, "datetime", Clock)


def signature(task: str) -> ModelSignature:
    classes = {"labels": ("no", "yes"), "positive_class": "yes"} if task == "classification" else {}
    sizes = {"output_size": 2} if task == "embedding" else {}
    return ModelSignature(inputs=(InputColumn("amount", "float64"),), task=task, **classes, **sizes)  # type: ignore[arg-type]


def partition(
    folder: Path, task: str = "classification", rows: int = ROWS, key: str = DAY, **sections: Any
) -> Slice:
    """Rows k0, k1, ... with scores of `yes` (or predictions) rising from 0 to 1."""
    slice_ = slice_of(folder, key, **{"labels": LABELS, **sections})
    score = np.linspace(0.01, 0.99, rows)
    columns = {
        "classification": {"scores": pa.array([[1 - s, s] for s in score], pa.list_(pa.float32()))},
        "regression": {"prediction": score},
        "embedding": {"embedding": pa.array([[s, s] for s in score], pa.list_(pa.float32()))},
    }[task]
    keys = pa.array([f"k{row}" for row in range(rows)], pa.string())
    commit(slice_, "predictions", pa.table({"row_key": keys, **columns}), signature=signature(task).to_dict())
    return slice_


def write(
    folder: Path, rows: list[tuple], name: str = DAY, columns: tuple[str, ...] = ("id", "truth")
) -> None:
    path = folder / "labels" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def good_labels(rows: int = ROWS, start: int = 0) -> list[tuple[str, str]]:
    """Mostly as the scores say."""
    return [
        (f"k{row}", "yes" if (row * 7919) % 100 < row * 100 / ROWS else "no") for row in range(start, rows)
    ]


def only_check(result: StageResult) -> tuple[bool, str, str]:
    (check,) = result.checks
    assert check.name == "performance"
    return check.passed, check.severity, check.description


def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_delta(str(folder / "root" / "lake" / "mini" / name))


def test_late_labels_are_waited_for_then_missed_then_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_ = partition(tmp_path)
    waiting = evaluate_partition(slice_)
    assert only_check(waiting) == (True, "warn", "no labels yet; they are due by 2026-02-05")
    assert waiting.rows == 0
    at(monkeypatch, datetime(2026, 2, 5, tzinfo=UTC))
    assert only_check(evaluate_partition(slice_))[:2] == (False, "warn")
    write(tmp_path, good_labels(20))
    some = evaluate_partition(slice_)
    assert only_check(some) == (True, "error", f"20 of {ROWS} predictions labelled")
    write(tmp_path, good_labels())
    all_ = evaluate_partition(slice_)
    assert (all_.rows, all_.metadata["labelled"], all_.metadata["predictions"]) == (ROWS, ROWS, ROWS)
    assert len({waiting.data_version, some.data_version, all_.data_version}) == 3
    assert evaluate_partition(slice_).data_version == all_.data_version
    metrics = table(tmp_path, "performance")
    values = dict(zip(metrics["metric"], metrics["value"], strict=True))
    assert values["auc"] == all_.metadata["auc"] > 0.6
    assert table(tmp_path, "labels").height == ROWS
    assert "| accuracy |" in all_.markdown


def test_the_last_label_of_a_row_counts(tmp_path: Path) -> None:
    slice_ = partition(tmp_path)
    write(tmp_path, [*good_labels(), *((f"k{row}", "yes") for row in range(ROWS))])
    assert evaluate_partition(slice_).metadata["positive_rate"] == 1.0


def test_labels_that_the_model_does_not_know_are_an_error_and_are_counted(tmp_path: Path) -> None:
    slice_ = partition(tmp_path)
    write(
        tmp_path,
        [*good_labels()[:-2], ("k58", "maybe"), ("k59", "1"), ("elsewhere", "yes"), ("k0", ""), ("", "no")],
    )
    result = evaluate_partition(slice_)
    passed, severity, words = only_check(result)
    assert (passed, severity) == (False, "error")
    assert words == "2 labels are none that the model knows; check labels.column"
    assert (result.rows, result.metadata["labels_without_prediction"]) == (58, 1)


def test_scores_that_order_rows_the_wrong_way_are_an_error(tmp_path: Path) -> None:
    slice_ = partition(tmp_path)
    write(tmp_path, [(key, "no" if label == "yes" else "yes") for key, label in good_labels()])
    passed, _, words = only_check(evaluate_partition(slice_))
    assert not passed
    assert "AUC is below 0.5 with confidence" in words


def test_one_unlucky_positive_is_no_error(tmp_path: Path) -> None:
    slice_ = partition(tmp_path)
    write(tmp_path, [(f"k{row}", "yes" if row == 0 else "no") for row in range(ROWS)])
    result = evaluate_partition(slice_)
    assert result.metadata["auc"] == 0.0
    assert only_check(result)[0]


def test_one_file_for_all_partitions(tmp_path: Path) -> None:
    labels = {**LABELS, "uri": "labels/all.csv", "partition_column": "scored_for"}
    slice_ = partition(tmp_path, labels=labels)
    here = [(DAY, *row) for row in good_labels(30)]
    as_time = [(f"{DAY}T00:00:00Z", *row) for row in good_labels(40, 30)]
    other = [("2026-01-06", *row) for row in good_labels(ROWS, 40)] + [
        (f"{DAY} 11:00:00", "k50", "yes"),
        ("", "k51", "no"),
    ]
    write(tmp_path, [*here, *as_time, *other], "all", ("scored_for", "id", "truth"))
    assert evaluate_partition(slice_).rows == 40


def test_an_hour_is_named_by_its_key_or_its_start(tmp_path: Path) -> None:
    labels = {**LABELS, "uri": "labels/all.csv", "partition_column": "scored_for"}
    hours = {"cadence": "hourly", "start": "2026-01-01", "end": "2026-03-01"}
    slice_ = partition(tmp_path, key="2026-01-05-13:00", labels=labels, partitions=hours)
    rows = [
        ("2026-01-05-13:00", "k0", "no"),
        ("2026-01-05 13:00:00", "k1", "no"),
        ("2026-01-05 14:00:00", "k2", "no"),
    ]
    write(tmp_path, rows, "all", ("scored_for", "id", "truth"))
    assert evaluate_partition(slice_).rows == 2


def test_regression(tmp_path: Path) -> None:
    slice_ = partition(tmp_path, "regression")
    score = np.linspace(0.01, 0.99, ROWS)
    write(
        tmp_path,
        [*((f"k{row}", score[row] + 0.1) for row in range(ROWS - 2)), ("k58", "nan"), ("k59", "many")],
    )
    result = evaluate_partition(slice_)
    assert (result.metadata["mae"], result.metadata["bias"]) == (pytest.approx(0.1), pytest.approx(-0.1))
    assert result.metadata["labels_unknown_to_the_model"] == 2
    write(tmp_path, [(f"k{row}", 1 - score[row]) for row in range(ROWS)])
    passed, _, words = only_check(evaluate_partition(slice_))
    assert not passed
    assert "R2 is below 0 with confidence" in words


def test_a_regression_day_that_is_bad_by_chance_is_no_error(tmp_path: Path) -> None:
    slice_ = partition(tmp_path, "regression")
    noise = np.random.default_rng(4).normal(0.5, 1.0, ROWS)
    write(tmp_path, [(f"k{row}", noise[row]) for row in range(ROWS)])
    result = evaluate_partition(slice_)
    assert result.metadata["r2"] < 0
    assert only_check(result)[0]


def test_embeddings_cannot_be_measured_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="remove `labels` from the pipeline file"):
        evaluate_partition(partition(tmp_path, "embedding"))


def test_a_partition_without_predictions_is_not_overdue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, datetime(2026, 6, 1, tzinfo=UTC))
    slice_ = partition(tmp_path, rows=0)
    write(tmp_path, good_labels())
    assert only_check(evaluate_partition(slice_)) == (True, "warn", "no predictions to judge")


def test_labels_that_cannot_be_read_are_an_error_and_not_absent(tmp_path: Path) -> None:
    slice_ = partition(tmp_path)
    write(tmp_path, [("k0", "yes")], columns=("id", "wrong"))
    with pytest.raises(SourceError, match="truth"):
        evaluate_partition(slice_)


# -- floors, segments, estimates, late labels -------------------------------------------------------------


def test_a_floor_fails_the_check_where_the_whole_interval_is_worse(tmp_path: Path) -> None:
    write(tmp_path, good_labels())
    for floors, passes in (({"auc": 0.5}, True), ({"auc": 0.999}, False), ({"log_loss": 5}, True)):
        slice_ = partition(tmp_path, labels={**LABELS, "floors": floors})
        passed, severity, words = only_check(evaluate_partition(slice_))
        assert (passed, severity) == (passes, "error")
        assert ("below the floor of 0.999 with confidence" in words) is not passes
    slice_ = partition(tmp_path, labels={**LABELS, "floors": {"log_loss": 0.01}})
    assert "above the floor of 0.01" in only_check(evaluate_partition(slice_))[2]


def test_a_floor_is_not_broken_by_noise_or_by_few_rows(tmp_path: Path) -> None:
    slice_ = partition(tmp_path, labels={**LABELS, "floors": {"accuracy": 0.999}})
    write(tmp_path, good_labels(20))
    assert only_check(evaluate_partition(slice_))[0]
    write(tmp_path, good_labels())
    value = evaluate_partition(slice_).metadata["accuracy"]
    slice_ = partition(tmp_path, labels={**LABELS, "floors": {"accuracy": value + 0.02}})
    assert only_check(evaluate_partition(slice_))[0]


def test_a_floor_that_the_model_cannot_have_is_refused(tmp_path: Path) -> None:
    write(tmp_path, good_labels())
    slice_ = partition(tmp_path, "regression", labels={**LABELS, "floors": {"auc": 0.7}})
    with pytest.raises(SignatureError, match=r"labels\.floors names auc, .* use mae, r2, rmse"):
        evaluate_partition(slice_)


def test_performance_by_segment(tmp_path: Path) -> None:
    labels = {**LABELS, "segments": ["plan"]}
    slice_ = partition(tmp_path, labels=labels)
    plan = ["b|asic" if row < 30 else "pro" for row in range(ROWS - 1)] + [None]
    keys = [f"k{row}" for row in range(ROWS)]
    commit(slice_, "features", pa.table({"row_key": keys, "plan": pa.array(plan, pa.string())}))
    write(tmp_path, good_labels())
    result = evaluate_partition(slice_)
    assert "| plan = b\\|asic | 30 |" in result.markdown
    frame = table(tmp_path, "performance")
    whole = frame.filter(pl.col("segment").is_null())
    basic = frame.filter(pl.col("segment_value") == "b|asic")
    assert dict(zip(basic["metric"], basic["value"], strict=True))["rows"] == 30
    assert set(frame["segment_value"].drop_nulls()) == {"b|asic"}  # of the others there are fewer than thirty
    assert whole.filter(pl.col("metric") == "accuracy").height == 1
    with pytest.raises(
        MonitoringError, match=r"labels\.segments names paln; features that are not sensitive: plan"
    ):
        evaluate_partition(partition(tmp_path, labels={**LABELS, "segments": ["paln"]}))


def test_without_labels_performance_is_estimated_and_the_blind_spot_is_told(tmp_path: Path) -> None:
    result = evaluate_partition(partition(tmp_path))
    assert 0.6 < result.metadata["estimated_auc"] < 1
    assert result.metadata["estimate_calibrated_on"] == 0
    assert "cannot see a change of what the labels mean" in result.metadata["estimate"]
    assert "never an all-clear" in result.markdown
    # A day before, all rows above the middle were negative: scores no longer promise so much.
    before = partition(tmp_path, key="2026-01-04")
    write(tmp_path, [(f"k{row}", "no") for row in range(ROWS)], "2026-01-04")
    evaluate_partition(before)
    corrected = evaluate_partition(partition(tmp_path)).metadata
    assert corrected["estimate_calibrated_on"] == ROWS
    assert corrected["estimated_positive_rate"] < result.metadata["estimated_positive_rate"]
    write(tmp_path, good_labels())
    assert "estimated_auc" not in evaluate_partition(partition(tmp_path)).metadata


def test_partitions_whose_label_files_changed_are_found(tmp_path: Path) -> None:
    slice_ = partition(tmp_path)
    moment = datetime(2026, 1, 20, tzinfo=UTC)

    def changed(at: datetime = moment) -> list[str]:
        return [key for key, _ in with_new_labels(slice_.spec, slice_.settings, tmp_path, at)]

    assert changed() == []  # never measured
    evaluate_partition(slice_)
    assert changed() == []
    write(tmp_path, good_labels(20))
    assert changed() == [DAY]
    assert changed(datetime(2026, 2, 13, tzinfo=UTC)) == []  # horizon and a week are over
    evaluate_partition(slice_)
    assert changed() == []


def labels_in_duckdb(
    folder: Path, rows: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    import duckdb

    with duckdb.connect(str(folder / "truth.duckdb")) as connection:
        connection.execute("CREATE OR REPLACE TABLE truth (day DATE, id VARCHAR, truth VARCHAR)")
        connection.executemany(f"INSERT INTO truth VALUES ('{DAY}', ?, ?)", rows)
        connection.execute("INSERT INTO truth VALUES ('2026-01-06', 'k0', 'yes')")
    monkeypatch.setenv("TRUTH_DB", "duckdb:///truth.duckdb")
    query = "SELECT id, truth FROM truth WHERE day = CAST(:partition AS date) ORDER BY id"
    return {**LABELS, "uri": None, "format": "sql", "connection_env": "TRUTH_DB", "query": query}


def labels_in_delta(folder: Path, rows: list[tuple[str, str]], _: pytest.MonkeyPatch) -> dict[str, Any]:
    from deltalake import write_deltalake

    keys, truth = zip(*rows, strict=True)
    days = [DAY] * len(rows)
    table = pa.table({"day": [*days, "2026-01-06"], "id": [*keys, "k0"], "truth": [*truth, "yes"]})
    write_deltalake(str(folder / "truth"), table, mode="overwrite")
    return {**LABELS, "uri": "truth", "format": "delta", "partition_column": "day"}


@pytest.mark.parametrize("place", [labels_in_duckdb, labels_in_delta])
def test_labels_of_a_database_or_table_are_measured_and_their_change_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any
) -> None:
    few, now = good_labels(20), datetime(2026, 1, 20, tzinfo=UTC)
    slice_ = partition(tmp_path, labels=place(tmp_path, few, monkeypatch))
    assert evaluate_partition(slice_).rows == 20
    assert with_new_labels(slice_.spec, slice_.settings, tmp_path, now) == []
    place(tmp_path, good_labels(), monkeypatch)
    ((key, _stamp),) = with_new_labels(slice_.spec, slice_.settings, tmp_path, now)
    assert key == DAY
    assert evaluate_partition(slice_).rows == ROWS
    assert with_new_labels(slice_.spec, slice_.settings, tmp_path, now) == []
