"""The drift stage on committed tables: what is watched, what is said, and pages for every kind of day."""

import json
from concurrent.futures import Future
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_platform.core import drift_reporting
from batch_platform.core.drift_reporting import report_drift
from batch_platform.core.monitoring.drift import Finding
from batch_platform.core.monitoring.evidently_report import RenderRequest, render
from batch_platform.core.slice import StageResult
from batch_platform.errors import MonitoringError, UpstreamMissingError
from batch_platform_tests.core.committed import ATTRIBUTES, commit, slice_of

KEYS = [(date(2026, 1, 1) + timedelta(days=day)).isoformat() for day in range(20)]
DRIFT = {"reference_partitions": 5}


class Pages:
    """Stands for the renderer: keeps the requests, and makes a page only when asked."""

    def __init__(self) -> None:
        self.requests: list[RenderRequest] = []

    def submit(self, request: RenderRequest) -> "Future[Path]":
        self.requests.append(request)
        done: Future[Path] = Future()
        request.out.write_text("a page")
        done.set_result(request.out)
        return done

    def close(self) -> None:
        """Nothing was started."""


def table(day: int, rows: int = 60, shift: float = 0.0, **more: Any) -> pa.Table:
    random = np.random.default_rng(day)
    columns = {
        "row_key": pa.array([f"{day}-{row}" for row in range(rows)], pa.string()),
        "amount": random.normal(shift, 1, rows),
        "plan": pa.array(random.choice(["basic", "pro"], rows), pa.string()),
        "body": pa.array([f"{value:.9f} {'x' * 90}" for value in random.normal(size=rows)], pa.string()),
    }
    return pa.table({**columns, **{name: pa.array([value] * rows) for name, value in more.items()}})


def scored(features: pa.Table) -> pa.Table:
    score = 1 / (1 + np.exp(-features["amount"].to_numpy()))
    label = pa.array(["yes" if one > 0.5 else "no" for one in score], pa.string())
    return pa.table({"row_key": features["row_key"], "label": label, "score": score})


@pytest.fixture
def pages() -> Pages:
    return Pages()


def judge(
    folder: Path,
    pages: Pages,
    day: int,
    features: pa.Table | None = None,
    predictions: pa.Table | None = None,
    **sections: Any,
) -> StageResult:
    slice_ = slice_of(folder, KEYS[day], **{"drift": DRIFT, **sections})
    features = table(day) if features is None else features
    commit(slice_, "features", features)
    commit(slice_, "predictions", scored(features) if predictions is None else predictions)
    return report_drift(slice_, pages)  # type: ignore[arg-type]


def verdicts(result: StageResult) -> dict[str, str]:
    assert result.report is not None
    values = json.loads(result.report.with_suffix(".json").read_bytes())
    return {table: values[table]["status"] for table in ("features", "predictions")}


def test_from_no_history_to_an_alert(tmp_path: Path, pages: Pages) -> None:
    first = [judge(tmp_path, pages, day) for day in range(5)]
    assert {status for result in first for status in verdicts(result).values()} == {"not enough history"}
    assert "4 of 5 reference partitions" in first[4].metadata["features verdict"]
    assert all(check.passed and check.severity == "warn" for result in first for check in result.checks)
    quiet = judge(tmp_path, pages, 5)
    assert verdicts(quiet) == {"features": "ok", "predictions": "ok"}
    page = pages.requests[-1].summary_html
    for said in (page, quiet.markdown):
        assert "false alarms a quarter" in said
    assert "smallest lasting change" in page
    assert "not calibrated yet" in pages.requests[4].summary_html
    assert quiet.metadata["reference"] == f"version 1: 5 partitions, {KEYS[0]} to {KEYS[4]}"
    moved = judge(tmp_path, pages, 6, table(6, shift=3))
    assert verdicts(moved) == {"features": "alert", "predictions": "alert"}
    assert [check.passed for check in moved.checks] == [False, False]
    assert "drift in amount" in moved.checks[0].description
    assert {"amount", "score"} <= pages.requests[-1].detected
    assert "![largest z by column](data:image/svg+xml" in moved.markdown
    metrics = pl.read_delta(str(tmp_path / "root/lake/mini/drift_metrics"))
    today = metrics.filter(pl.col("partition_key") == KEYS[6])
    assert set(today.filter("alert")["column"]) >= {"amount", "score"}
    assert set(today["status"]) == {"alert"}


def test_the_samples_of_the_page_are_rows_of_the_partition(tmp_path: Path, pages: Pages) -> None:
    features = table(0, rows=1300)
    judge(tmp_path, pages, 0, features)
    sample = pq.read_table(pages.requests[0].current)
    assert sample.column_names == ["amount", "plan", "body", "label", "score"]
    assert 300 < sample.num_rows <= 500
    expected = 1 / (1 + np.exp(-sample["amount"].to_numpy()))
    assert np.allclose(sample["score"].to_numpy(), expected)  # features and outputs are of the same rows


def test_a_day_without_rows_says_so_and_has_a_page(tmp_path: Path, pages: Pages) -> None:
    nothing = table(0, rows=0)
    for day, wanted in ((0, "not enough history"), (7, "no rows")):
        for before in range(1, day):
            judge(tmp_path, pages, before)
        result = judge(tmp_path, pages, day, nothing)
        assert set(verdicts(result).values()) == {wanted}
        assert all(check.passed for check in result.checks)
        assert "Drift report: mini" in render(pages.requests[-1]).read_text()


def test_predictions_that_were_all_quarantined_from_the_first_run_on(tmp_path: Path, pages: Pages) -> None:
    for day in range(6):
        features = table(day)
        result = judge(tmp_path, pages, day, features, scored(features).slice(0, 0))
    assert verdicts(result) == {"features": "ok", "predictions": "not enough history"}
    assert "Drift report" in render(pages.requests[-1]).read_text()


def test_features_that_come_and_go_are_findings_and_the_page_is_still_made(
    tmp_path: Path, pages: Pages
) -> None:
    for day in range(6):
        judge(tmp_path, pages, day, table(day, region="north"))
    gone = judge(tmp_path, pages, 6, table(6))
    assert verdicts(gone)["features"] == "alert"
    assert "region (schema changed)" in gone.metadata["features verdict"]
    page = render(pages.requests[-1]).read_text()
    assert "region" in page
    assert "Dataset Drift is detected" in page  # also where the column at fault cannot be drawn
    new = judge(tmp_path, pages, 7, table(7, region="north", channel="web"))
    assert "channel (schema changed)" in new.metadata["features verdict"]


def test_a_feature_that_bears_the_name_of_an_output_is_kept_apart(tmp_path: Path, pages: Pages) -> None:
    for day in range(6):
        judge(tmp_path, pages, day, table(day, score=0.25))
    moved = judge(tmp_path, pages, 6, table(6, score=0.75))
    assert verdicts(moved) == {"features": "alert", "predictions": "ok"}
    assert "score" in pages.requests[-1].detected
    assert "score (prediction)" not in pages.requests[-1].detected
    assert {"score", "score (prediction)"} <= set(pq.read_table(pages.requests[-1].current).column_names)


def test_keys_and_sensitive_columns_are_not_watched_and_appear_nowhere(tmp_path: Path, pages: Pages) -> None:
    columns = {**ATTRIBUTES["source"]["columns"], "email": {"type": "string", "sensitive": True}}
    source = {**ATTRIBUTES["source"], "columns": columns}
    result = judge(tmp_path, pages, 0, table(0, email="ann@example.org", id="7"), source=source)
    assert {"email", "id", "row_key"}.isdisjoint(pq.read_table(pages.requests[0].current).column_names)
    kept = b"".join(
        path.read_bytes() for path in (tmp_path / "root" / "monitoring").rglob("*") if path.is_file()
    )
    assert b"ann@example.org" not in kept
    assert "email" not in result.markdown


def test_only_the_columns_asked_for_are_watched_and_unknown_ones_are_refused(
    tmp_path: Path, pages: Pages
) -> None:
    judge(tmp_path, pages, 0, drift={**DRIFT, "columns": ["amount"]})
    assert pq.read_table(pages.requests[0].current).column_names == ["amount", "label", "score"]
    with pytest.raises(
        MonitoringError, match=r"drift\.columns names amuont; what can be watched is amount, plan, body"
    ):
        judge(tmp_path, pages, 1, drift={**DRIFT, "columns": ["amuont"]})


def test_judging_again_makes_no_page_until_something_changed(tmp_path: Path, pages: Pages) -> None:
    for day in range(6):
        judge(tmp_path, pages, day)
    slice_ = slice_of(tmp_path, KEYS[5], drift=DRIFT)
    again = report_drift(slice_, pages)  # type: ignore[arg-type]
    assert (again.reused, again.rendering, len(pages.requests)) == (True, None, 6)
    commit(slice_, "features", table(5, shift=3))
    changed = report_drift(slice_, pages)  # type: ignore[arg-type]
    assert (changed.reused, len(pages.requests)) == (False, 7)
    assert changed.data_version != again.data_version


def test_a_verdict_that_the_days_before_changed_is_committed_and_drawn_again(
    tmp_path: Path, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two-of-three rule looks back: the date's own tables are the same, and yet its verdict is another."""
    for day in range(6):
        judge(tmp_path, pages, day)
    real = drift_reporting.judge_partition

    def alarmed(*arguments: Any) -> Any:
        judgement = real(*arguments)
        finding = Finding("amount", "mean rank", "up", 0.2, 5.0, 1e-4)
        changed = {
            name: replace(v, status="alert", findings=(finding,)) for name, v in judgement.verdicts.items()
        }
        return replace(judgement, verdicts=changed)

    monkeypatch.setattr(drift_reporting, "judge_partition", alarmed)
    again = report_drift(slice_of(tmp_path, KEYS[5], drift=DRIFT), pages)  # type: ignore[arg-type]
    assert (again.reused, len(pages.requests)) == (False, 7)
    metrics = pl.read_delta(str(tmp_path / "root/lake/mini/drift_metrics"))
    assert set(metrics.filter(pl.col("partition_key") == KEYS[5])["status"]) == {"alert"}


def test_dates_that_left_the_calendar_are_still_history(tmp_path: Path, pages: Pages) -> None:
    for day in range(6):
        judge(tmp_path, pages, day)
    later = {"start": KEYS[4], "end": "2026-03-01"}
    assert verdicts(judge(tmp_path, pages, 7, partitions=later))["features"] == "ok"


def test_without_features_or_predictions_the_message_says_which(tmp_path: Path, pages: Pages) -> None:
    slice_ = slice_of(tmp_path, KEYS[0])
    with pytest.raises(UpstreamMissingError, match="features is not there yet"):
        report_drift(slice_, pages)  # type: ignore[arg-type]
    commit(slice_, "features", table(0))
    with pytest.raises(UpstreamMissingError, match="predictions is not there yet"):
        report_drift(slice_, pages)  # type: ignore[arg-type]
