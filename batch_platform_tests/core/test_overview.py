"""The state of a pipeline at a glance, and the next command."""

from datetime import UTC, datetime
from pathlib import Path

from batch_platform.core import landing, outcomes
from batch_platform.core.monitoring.reviews import ReviewStore
from batch_platform.core.outcomes import Outcome
from batch_platform.core.overview import Overview, overview, stage_names
from batch_platform.core.slice import Run, Slice
from batch_platform.core.spec import PipelineSpec, parse_spec
from batch_platform.settings import Settings
from batch_platform_tests.mini import ATTRIBUTES, DAYS

NOW = datetime(2026, 1, 6, 12, tzinfo=UTC)  # five days have ended


class Shop:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: PipelineSpec = parse_spec(ATTRIBUTES, "mini")
        self.settings = Settings(root=folder / "root")

    def slice(self, day: str) -> Slice:
        return Slice(
            self.spec, self.spec.partitions.calendar().partition(day), self.settings, self.folder, Run("r")
        )

    def record(self, day: str, **states: str) -> None:
        layout = self.slice(day).layout
        made = {stage: Outcome.now(state, "r", f"why {stage}") for stage, state in states.items()}  # type: ignore[arg-type]
        outcomes.record(layout, day, made)

    def done(self, *days: str) -> None:
        for day in days:
            self.record(day, **dict.fromkeys(stage_names(self.spec), "done"))

    def look(self) -> Overview:
        return overview(self.spec, self.settings, NOW)


def test_nothing_was_tried(tmp_path: Path) -> None:
    view = Shop(tmp_path).look()
    assert (view.partitions, view.done, view.failed) == (5, 0, {})
    assert view.missing == ((DAYS[0], DAYS[4]),)
    assert view.rows == {"raw": 0, "predictions": 0, "quarantine": 0}
    assert view.next_command == f"dg launch --job mini --partition-range {DAYS[0]}...{DAYS[4]}"


def test_done_failed_half_done_and_missing(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.done(DAYS[0], DAYS[2])
    shop.record(DAYS[1], raw="done", features="failed", predictions="skipped", drift_report="skipped")
    shop.record(DAYS[3], raw="done")
    view = shop.look()
    assert (view.partitions, view.done) == (5, 2)
    assert view.failed == {DAYS[1]: "features: why features"}
    assert view.missing == ((DAYS[3], DAYS[4]),)
    assert view.next_command == f"dg launch --job mini --partition {DAYS[1]}"


def test_everything_is_done(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.done(*DAYS)
    assert (shop.look().done, shop.look().missing, shop.look().next_command) == (5, (), "")


def test_rows_are_counted_in_the_tables(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    (tmp_path / "data").mkdir()
    for day, ages in ((DAYS[0], [20] * 9 + [-1]), (DAYS[1], [30] * 5)):
        lines = [f"{place},1.0,{age},basic" for place, age in enumerate(ages)]
        (tmp_path / "data" / f"{day}.csv").write_text("\n".join(["id,amount,age,plan", *lines]))
        landing.land_partition(shop.slice(day))
    assert shop.look().rows == {"raw": 14, "predictions": 0, "quarantine": 1}
    assert shop.look().quarantined == {DAYS[0]: 1}


def test_what_checks_say_that_stop_nothing(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.done(*DAYS)
    warned = {
        "raw": Outcome.now("done", "r", warnings={"nulls": "plan has none"}),
        "features": Outcome.now("done", "r", warnings={"nulls": "plan has none"}),
        "drift_report": Outcome.now(
            "done", "r", warnings={"features_drift": "age up", "predictions_drift": "score up"}
        ),
    }
    outcomes.record(shop.slice(DAYS[1]).layout, DAYS[1], warned)
    view = shop.look()
    assert (view.done, view.failed) == (5, {})
    assert view.drifting == {DAYS[1]: "features_drift: age up; predictions_drift: score up"}
    assert view.warnings == {DAYS[1]: "nulls: plan has none"}
    for later in (DAYS[2], DAYS[4]):
        outcomes.record(shop.slice(later).layout, later, {"drift_report": warned["drift_report"]})
    assert f"drift review mini {DAYS[4]} " in shop.look().next_command
    outcomes.record(shop.slice(DAYS[3]).layout, DAYS[3], {"drift_report": warned["drift_report"]})
    assert f"drift review mini {DAYS[1]} " in shop.look().next_command  # where the newest alarms began


def test_late_is_what_the_schedule_should_have_brought(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.done(*DAYS[:2])
    assert shop.look().late == ()
    automation = {"trigger": "schedule", "cron": "0 15 * * *"}  # at noon of the sixth, last due on the fifth
    shop.spec = parse_spec({**ATTRIBUTES, "automation": automation}, "mini")
    assert shop.look().late == (DAYS[2], DAYS[3])


def test_stages_of_a_pipeline_with_and_without_labels() -> None:
    plain = parse_spec(ATTRIBUTES, "mini")
    assert stage_names(plain) == ["raw", "features", "predictions", "drift_report"]
    labels = {"uri": "l/{partition}.csv", "format": "csv", "row_key": "id", "column": "y"}
    assert stage_names(parse_spec({**ATTRIBUTES, "labels": labels}, "mini"))[-1] == "performance"


def test_decisions_on_data_quality_stand_beside_its_warnings_alone(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.done(*DAYS)
    layout = shop.slice(DAYS[1]).layout
    for day, warning in ((DAYS[1], "usual_volume"), (DAYS[2], "performance")):
        ended = Outcome.now("done", "r", warnings={warning: "not as usual"})
        outcomes.record(layout, day, {"raw": ended})
        ReviewStore(layout.monitoring).record(day, "accept", "ann", "a sale", (), 0, about="quality")
    assert list(shop.look().quality_decisions) == [DAYS[1]]
