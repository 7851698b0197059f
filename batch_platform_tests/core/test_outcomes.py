"""The memory of the last try of each partition."""

from pathlib import Path

from batch_platform.core import outcomes
from batch_platform.core.layout import Layout
from batch_platform.core.outcomes import Outcome

DAY = "2026-01-01"


def test_later_tries_replace_only_the_stages_that_they_name(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "mini")
    assert outcomes.recall(layout, DAY) == {}
    assert not outcomes.finished(layout, DAY, ["raw"])
    failed = {
        "raw": Outcome.now("failed", "r1", "no file"),
        "features": Outcome.now("skipped", "r1", "raw failed"),
    }
    outcomes.record(layout, DAY, failed)
    assert outcomes.recall(layout, DAY) == failed
    outcomes.record(layout, DAY, {"raw": Outcome.now("done", "r2")})
    known = outcomes.recall(layout, DAY)
    assert (known["raw"].state, known["raw"].cause, known["raw"].run_id) == ("done", "", "r2")
    assert known["features"] == failed["features"]
    assert outcomes.finished(layout, DAY, ["raw"])
    assert not outcomes.finished(layout, DAY, ["raw", "features"])
    assert not outcomes.finished(layout, DAY, ["raw", "performance"])
    assert outcomes.recall(layout, "2026-01-02") == {}


def test_hourly_keys_and_pipelines_have_files_of_their_own(tmp_path: Path) -> None:
    done = {"raw": Outcome.now("done", "r")}
    outcomes.record(Layout(tmp_path, "a"), "2026-01-01-22:00", done)
    assert outcomes.finished(Layout(tmp_path, "a"), "2026-01-01-22:00", ["raw"])
    assert not outcomes.finished(Layout(tmp_path, "a"), "2026-01-01-23:00", ["raw"])
    assert not outcomes.finished(Layout(tmp_path, "b"), "2026-01-01-22:00", ["raw"])
    assert not [path for path in tmp_path.rglob("*") if ":" in path.name or path.suffix == ".tmp"]
