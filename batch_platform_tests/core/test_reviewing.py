"""A decision on a real alarm: what it is about, what it makes, and the verdicts after it."""

import json
from pathlib import Path

import polars as pl
import pytest

from batch_platform.core.drift_reporting import report_drift
from batch_platform.core.monitoring.reference import ReferenceStore
from batch_platform.core.monitoring.reviews import Review, ReviewStore
from batch_platform.core.reviewing import alarm_of, decide, to_judge_again
from batch_platform.core.slice import StageResult
from batch_platform.errors import MonitoringError, PartitionKeyError
from batch_platform_tests.core.committed import slice_of
from batch_platform_tests.core.test_drift_reporting import DRIFT, KEYS, Pages, judge, table, verdicts


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def shifted(tmp_path: Path, pages: Pages) -> Path:
    """Five reference days, a quiet one, and two with a shifted amount."""
    for day in range(6):
        judge(tmp_path, pages, day)
    for day in (6, 7):
        assert set(verdicts(judge(tmp_path, pages, day, table(day, shift=3))).values()) == {"alert"}
    return tmp_path


def again(folder: Path, day: int, pages: Pages) -> StageResult:
    return report_drift(slice_of(folder, KEYS[day], drift=DRIFT), pages)  # type: ignore[arg-type]


def decision(folder: Path, day: int, what: str, **more: object) -> Review:
    slice_ = slice_of(folder, KEYS[day], drift=DRIFT)
    return decide(slice_.spec, slice_.settings, KEYS[day], what, "ann", "a campaign", **more)  # type: ignore[arg-type]


def test_an_accepted_alarm_is_quiet_from_then_on_and_says_by_whom(shifted: Path, pages: Pages) -> None:
    made = decision(shifted, 6, "accept")
    assert {"amount", "score"} <= {cause.column for cause in made.causes}
    layout = slice_of(shifted, KEYS[6]).layout
    assert to_judge_again(layout, made) == [KEYS[6], KEYS[7]]
    for day in (6, 7):
        result = again(shifted, day, pages)
        assert [check.passed for check in result.checks] == [True, True]
        for check in result.checks:
            assert "accepted by an owner" in check.description
            assert check.values["owner's decision"].startswith("accepted as expected by ann on ")
        assert "accepted as expected by ann" in result.metadata["owner's decision"]
        assert "a campaign" in result.markdown
        assert "a campaign" in pages.requests[-1].summary_html
    head = slice_of(shifted, KEYS[7]).committed("drift_metrics")
    assert head.receipt["owners_decisions"] == [1]
    metrics = pl.read_delta(str(shifted / "root/lake/mini/drift_metrics"))
    assert not metrics.filter(pl.col("partition_key") == KEYS[7])["alert"].any()
    down = judge(shifted, pages, 8, table(8, shift=-3))  # the other direction is another cause
    assert verdicts(down) == {"features": "alert", "predictions": "alert"}


def test_a_rejected_alarm_goes_on_firing_and_can_be_accepted_later(shifted: Path, pages: Pages) -> None:
    rejected = decision(shifted, 6, "reject", retrain=True)
    assert rejected.retrain
    assert to_judge_again(slice_of(shifted, KEYS[6]).layout, rejected) == [KEYS[6]]
    result = again(shifted, 6, pages)
    assert [check.passed for check in result.checks] == [False, False]
    assert "rejected by ann" in result.checks[0].values["owner's decision"]
    decision(shifted, 6, "accept")
    assert all(check.passed for check in again(shifted, 6, pages).checks)
    taken_back = decision(
        shifted, 6, "reject"
    )  # the causes are still known although the verdict is quiet now
    assert {cause.column for cause in taken_back.causes} >= {"amount", "score"}
    assert not all(check.passed for check in again(shifted, 6, pages).checks)


def test_a_new_reference_is_made_of_the_partitions_up_to_the_decision(shifted: Path, pages: Pages) -> None:
    layout = slice_of(shifted, KEYS[6]).layout
    for day in range(8, 11):
        judge(shifted, pages, day, table(day, shift=3))
    made = decision(shifted, 10, "new_reference")
    reference = ReferenceStore(layout.monitoring).current()
    assert reference is not None
    assert (reference.version, reference.keys, reference.by) == (2, tuple(KEYS[6:11]), "ann")
    assert made.made_reference == 2
    quiet = judge(shifted, pages, 11, table(11, shift=3))
    assert verdicts(quiet) == {"features": "ok", "predictions": "ok"}
    back = judge(shifted, pages, 12, table(12))
    assert verdicts(back)["predictions"] == "alert"
    assert decision(shifted, 10, "new_reference").made_reference == 2  # said again: nothing new is made


def test_a_new_reference_from_a_first_partition_on(shifted: Path, pages: Pages) -> None:
    with pytest.raises(
        MonitoringError, match=r"2 partitions with rows from 2026-01-07 to 2026-01-08; .* needs"
    ):
        decision(shifted, 7, "new_reference", since=KEYS[6])
    judge(shifted, pages, 8, table(8, shift=3))
    for day in (9, 10, 11, 12):
        judge(shifted, pages, day, table(day, shift=3))
    decision(shifted, 12, "new_reference", since=KEYS[6])
    reference = ReferenceStore(slice_of(shifted, KEYS[6]).layout.monitoring).current()
    assert reference is not None
    assert reference.keys == tuple(KEYS[6:13])


def test_what_cannot_be_decided_on(shifted: Path) -> None:
    for day, what, more, words in (
        (9, "accept", {}, "no verdict to decide on; materialize mini/drift_report"),
        (5, "accept", {}, "the partition raised no alarm of drift"),
        (6, "accept", {"retrain": True}, "a training can be asked for when an alarm is rejected"),
        (6, "reject", {"since": KEYS[1]}, "a first partition belongs to a new reference"),
        (3, "new_reference", {}, "4 partitions with rows up to 2026-01-04; a reference needs 5"),
    ):
        with pytest.raises(MonitoringError, match=words):
            decision(shifted, day, what, **more)
    slice_ = slice_of(shifted, KEYS[6])
    with pytest.raises(PartitionKeyError):
        decide(slice_.spec, slice_.settings, "yesterday", "accept", "ann", "why")
    assert ReviewStore(slice_.layout.monitoring).all() == []


def test_a_verdict_file_that_cannot_be_read_says_what_to_do(shifted: Path) -> None:
    layout = slice_of(shifted, KEYS[6]).layout
    path = shifted / "root" / "reports" / "mini" / KEYS[6] / "drift.json"
    path.write_text(json.dumps({"features": {}}))
    with pytest.raises(MonitoringError, match=r"materialize mini/drift_report for 2026-01-07 again"):
        alarm_of(layout, KEYS[6])
