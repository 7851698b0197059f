"""Learned quality in the stages: what turns red, what is refused, what is kept, and that nothing is read twice."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batch_platform.core import drift_reporting
from batch_platform.core.featurizing import featurize_partition
from batch_platform.core.landing import land_partition
from batch_platform.core.monitoring.profile import Profile
from batch_platform.core.monitoring.reference import ReferenceStore
from batch_platform.core.monitoring.reviews import Decision, Review
from batch_platform.core.reviewing import decide, decisions, to_judge_again
from batch_platform.core.slice import Slice, StageResult
from batch_platform.core.watching import quality_of
from batch_platform.errors import GateError, MonitoringError
from batch_platform_tests.core.committed import commit, slice_of

SOURCE = {
    "uri": "data/{partition}.csv",
    "format": "csv",
    "row_key": "id",
    "columns": {
        "id": {"type": "string", "required": True},
        "amount": {"type": "float64"},
        "plan": {"type": "string"},
        "email": {"type": "string", "sensitive": True},
    },
}
QUIET = 15
DAYS = [f"2026-01-{day:02d}" for day in range(1, QUIET + 3)]


class Pipeline:
    """CSV files by day, landed one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sections: dict[str, Any] = {"source": SOURCE}
        (folder / "data").mkdir()

    def slice(self, day: str) -> Slice:
        return slice_of(self.folder, day, **self.sections)

    def write(
        self, day: str, rows: int = 300, nulls: int = 3, plan: str = "basic", emails: bool = True
    ) -> None:
        lines = [
            f"{day}-{row},{'' if row < nulls else row % 50},{plan if row % 3 else 'pro'},{f'a{row}@b.c' if emails else ''}"
            for row in range(rows)
        ]
        (self.folder / "data" / f"{day}.csv").write_text("\n".join(["id,amount,plan,email", *lines]))

    def land(self, day: str, **changes: Any) -> StageResult:
        self.write(day, **changes)
        return land_partition(self.slice(day))

    def red(self, result: StageResult) -> set[str]:
        return {check.name for check in result.checks if not check.passed}


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    made = Pipeline(tmp_path)
    for place, day in enumerate(DAYS[:QUIET]):
        result = made.land(day, rows=290 + place % 5 * 5, nulls=2 + place % 3)
        assert made.red(result) == set()
    return made


def test_it_learns_and_then_sees(pipeline: Pipeline) -> None:
    quiet = pipeline.land(DAYS[QUIET])
    said = {check.name: check.description for check in quiet.checks}
    assert said["usual_volume"] == "as usual: 1 statistic against 15 partitions"
    assert said["freshness"] == "no column of moments to judge by"
    store = ReferenceStore(pipeline.slice(DAYS[0]).layout.monitoring)
    assert store.keys("raw") == DAYS[: QUIET + 1]
    for changes, check in (
        ({"rows": 90, "nulls": 1}, "usual_volume"),
        ({"nulls": 30}, "usual_nulls"),
        ({"plan": "gold"}, "known_values"),
        ({"emails": False}, "usual_nulls"),
    ):
        result = pipeline.land(DAYS[QUIET + 1], **changes)
        assert pipeline.red(result) == {check}
        assert {each.severity for each in result.checks if not each.passed} == {"warn"}
    kept = quality_of(pipeline.slice(DAYS[0]).layout, DAYS[QUIET + 1])
    assert kept["raw usual_nulls"]["message"] == "email: without a value 100.0 %, usual 0.0 % to 1.0 %"


def test_nothing_is_kept_of_the_values_of_sensitive_columns(pipeline: Pipeline) -> None:
    folder = pipeline.slice(DAYS[0]).layout.monitoring
    profile = ReferenceStore(folder).load_profile("raw", DAYS[0])
    assert profile.columns["email"].kind == "boolean"
    assert profile.columns["email"].names == ("true",)
    assert set(profile.columns) == {"amount", "plan", "email"}


def test_rows_without_a_watched_column_are_counted(tmp_path: Path) -> None:
    made = Pipeline(tmp_path)
    made.sections["source"] = {**SOURCE, "columns": {"id": SOURCE["columns"]["id"]}}
    made.land(DAYS[0])
    assert ReferenceStore(made.slice(DAYS[0]).layout.monitoring).rows("raw", DAYS[0]) == 300


def test_with_severity_error_an_unusual_partition_is_not_published(pipeline: Pipeline) -> None:
    pipeline.sections["quality"] = {"severity": "error"}
    day = DAYS[QUIET]
    with pytest.raises(GateError, match=r"usual_volume: rows 90, usual 2\d\d to 3\d\d") as refused:
        pipeline.land(day, rows=90, nulls=1)
    assert [check.name for check in refused.value.checks if not check.passed] == ["usual_volume"]
    store = ReferenceStore(pipeline.slice(day).layout.monitoring)
    assert day not in store.keys("raw")
    assert quality_of(pipeline.slice(day).layout, day) == {}
    assert pipeline.red(pipeline.land(day)) == set()


def test_a_damaged_file_of_the_history_is_named_and_stops_nothing(pipeline: Pipeline) -> None:
    path = pipeline.slice(DAYS[0]).layout.monitoring / "profiles" / "raw" / f"{DAYS[3]}.profile"
    path.write_bytes(b"nothing")
    result = pipeline.land(DAYS[QUIET])
    assert pipeline.red(result) == {
        "usual_volume",
        "freshness",
        "usual_nulls",
        "usual_ranges",
        "known_values",
    }
    assert all(str(path) in check.description for check in result.checks if not check.passed)


def test_the_drift_report_takes_the_profile_that_the_features_left(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = DAYS[0]
    slice_ = pipeline.slice(day)
    featurize_partition(slice_)
    commit(slice_, "predictions", pa.table({"row_key": ["a"], "score": [0.5]}))
    watched = drift_reporting._watched(slice_)
    made = drift_reporting._profile(slice_, "features", watched["features"])
    assert set(made.columns) == {"amount", "plan"}

    def read(*_args: Any) -> None:
        raise AssertionError("the rows are read again")

    with monkeypatch.context() as patch:
        patch.setattr(drift_reporting.Profiler, "add", read)
        assert drift_reporting._profile(slice_, "features", watched["features"]) == made
    # Of other rows, or of other columns, it is made anew.
    path = slice_.layout.monitoring / "profiles" / "features" / f"{day}.profile"
    path.write_bytes(Profile().to_bytes())
    assert drift_reporting._profile(slice_, "features", watched["features"]) == made
    only = {"plan": "plan"}
    assert set(drift_reporting._profile(slice_, "features", only).columns) == {"plan"}


def test_features_are_judged_by_their_own_history(pipeline: Pipeline) -> None:
    for day in DAYS[:QUIET]:
        assert pipeline.red(featurize_partition(pipeline.slice(day))) == set()
    pipeline.land(DAYS[QUIET], plan="gold")
    result = featurize_partition(pipeline.slice(DAYS[QUIET]))
    assert pipeline.red(result) == {"known_values"}
    again = featurize_partition(pipeline.slice(DAYS[QUIET]))
    assert again.reused
    assert pipeline.red(again) == {"known_values"}
    path = pipeline.slice(DAYS[QUIET]).layout.report(DAYS[QUIET]) / "quality-features.json"
    told = json.loads(path.read_bytes())
    assert "plan: never seen before" in told["known_values"]["plan never seen before"]


def decide_on(pipeline: Pipeline, day: str, what: Decision, **more: Any) -> Review:
    slice_ = pipeline.slice(day)
    return decide(slice_.spec, slice_.settings, day, what, "ann", "a <b>sale</b>", about="quality", **more)


def test_a_refused_partition_passes_after_its_owner_accepted_it(pipeline: Pipeline) -> None:
    pipeline.sections["quality"] = {"severity": "error"}
    day, after = DAYS[QUIET], DAYS[QUIET + 1]
    for refused in (day, after):
        with pytest.raises(
            GateError, match=rf"drift review mini {refused} --about quality --accept"
        ) as error:
            pipeline.land(refused, rows=90, nulls=1)
        assert [check.name for check in error.value.checks if not check.passed] == ["usual_volume"]
    layout = pipeline.slice(day).layout
    with pytest.raises(MonitoringError, match=r"no alarm of drift, .* --about quality"):
        decide(pipeline.slice(day).spec, pipeline.slice(day).settings, day, "accept", "ann", "sale")
    made = decide_on(pipeline, day, "accept")
    assert [(cause.group, str(cause)) for cause in made.causes] == [("raw quality", "rows down")]
    assert to_judge_again(layout, made) == [day, after]
    assert decisions(layout, [day, after], "quality") == {day: made.words, after: made.words}
    assert decisions(layout, [day, after]) == {}

    result = pipeline.land(day, rows=90, nulls=1)
    (volume,) = [check for check in result.checks if check.name == "usual_volume"]
    assert volume.passed
    assert volume.description == "nothing else is unusual; accepted by an owner: rows down"
    assert volume.values["owner's decision"] == made.words
    assert pipeline.slice(day).committed("raw").receipt["owners_decisions"] == [1]
    assert quality_of(layout, day)["raw usual_volume"]["owner's decision"] == made.words
    assert pipeline.red(pipeline.land(after, rows=80, nulls=1)) == set()
    assert to_judge_again(layout, made) == [day]


def test_what_was_not_accepted_is_refused_still(pipeline: Pipeline) -> None:
    pipeline.sections["quality"] = {"severity": "error"}
    day, after = DAYS[QUIET], DAYS[QUIET + 1]
    with pytest.raises(GateError, match="never seen before"):
        pipeline.land(day, plan="gold")
    assert str(decide_on(pipeline, day, "accept").causes[0]) == "plan (never seen before 'gold' up)"
    for changes, check in (
        ({"plan": "silver"}, "known_values"),  # another new value
        ({"plan": "gold", "nulls": 60}, "usual_nulls"),  # more than what was accepted
        ({"plan": "gold", "rows": 20, "nulls": 0}, "usual_volume"),
    ):
        with pytest.raises(GateError) as error:
            pipeline.land(day, **changes)
        assert [each.name for each in error.value.checks if not each.passed] == [check]
    assert pipeline.red(pipeline.land(day, plan="gold")) == set()
    assert pipeline.red(pipeline.land(after, plan="gold")) == set()  # known by now
    with pytest.raises(MonitoringError, match="raised no alarm of data quality"):
        decide_on(pipeline, after, "accept")
    with pytest.raises(MonitoringError, match="a new reference is of drift"):
        decide_on(pipeline, day, "new_reference")
    with pytest.raises(MonitoringError, match="no verdict to decide on; materialize mini/raw"):
        decide_on(pipeline, "2026-02-01", "accept")


def test_far_more_than_what_was_accepted_is_refused_again(pipeline: Pipeline) -> None:
    pipeline.sections["quality"] = {"severity": "error"}
    day = DAYS[QUIET]
    with pytest.raises(GateError, match="rows 150"):
        pipeline.land(day, rows=150, nulls=1)
    decide_on(pipeline, day, "accept")
    with pytest.raises(GateError, match=r"rows 20, .*more than twice as large as what an owner accepted"):
        pipeline.land(day, rows=20, nulls=0)
    assert pipeline.red(pipeline.land(day, rows=150, nulls=1)) == set()


def test_a_rejected_warning_stays_and_says_by_whom(pipeline: Pipeline) -> None:
    day = DAYS[QUIET]
    pipeline.land(day, rows=90, nulls=1)
    decide_on(pipeline, day, "reject")
    result = pipeline.land(day, rows=90, nulls=1)
    (volume,) = [check for check in result.checks if not check.passed]
    assert volume.values["owner's decision"].startswith("rejected (data quality) by ann on ")


def test_verdicts_of_an_earlier_version_are_to_be_made_again_before_they_are_decided_on(
    pipeline: Pipeline,
) -> None:
    day = DAYS[QUIET]
    pipeline.land(day, rows=90, nulls=1)
    path = pipeline.slice(day).layout.report(day) / "quality-raw.json"
    told = {check: {"passed": False, "message": "rows 90"} for check in json.loads(path.read_bytes())}
    path.write_bytes(json.dumps(told).encode())
    with pytest.raises(MonitoringError, match=rf"materialize mini/raw for {day} again"):
        decide_on(pipeline, day, "accept")
