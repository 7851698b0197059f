"""An owner's decision through Dagster: the form, the sensor, and the checks after it."""

import dagster as dg
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from batch_platform.core.monitoring import rendering
from batch_platform.core.monitoring.reviews import ReviewStore
from batch_platform.orchestration.automation import pipeline_job
from batch_platform.orchestration.reviews import review_job, review_sensor, training_job
from batch_platform_tests.core.test_drift_reporting import Pages
from batch_platform_tests.mini import DAYS, Mini, good_row

QUIET, MOVED, LAST = "2026-01-06", "2026-01-07", "2026-01-08"


@pytest.fixture
def drifting(mini: Mini, monkeypatch: pytest.MonkeyPatch) -> Mini:
    """Five reference days, a quiet one, and two whose amounts are higher than any before."""
    monkeypatch.setattr(rendering, "Renderer", Pages)
    mini.change(drift={"reference_partitions": len(DAYS)})
    for day in (*DAYS, QUIET, MOVED, LAST):
        more = 1000 if day in (MOVED, LAST) else 0
        mini.write(day, [good_row(day, n) | {"amount": 1.5 * n + more} for n in range(60)])
    mini.run(DAYS[0], LAST)
    assert [mini.check("drift_report", "features_drift", day) for day in (QUIET, MOVED, LAST)] == (
        [True, False, False]
    )
    return mini


def launch(mini: Mini, succeeds: bool = True, is_trained: bool = False, **form: object) -> str:
    """Launch the form; returns what a failed run says."""
    config = {"partition": MOVED, "by": "ann", "why": "a campaign", **form}
    result = review_job(mini.spec, is_trained).execute_in_process(
        run_config={"ops": {"mini__decision": {"config": config}}},
        instance=mini.instance,
        raise_on_error=False,
    )
    assert result.success is succeeds
    return "".join(str(event.step_failure_data.error) for event in result.all_events if event.is_step_failure)


def tick(mini: Mini, cursor: str | None = None, is_trained: bool = True) -> dg.SensorResult:
    sensor = review_sensor(
        mini.spec, pipeline_job(mini.spec), training_job(mini.spec) if is_trained else None
    )
    context = dg.build_sensor_context(mini.instance, cursor=cursor, sensor_name=sensor.name)
    return sensor.evaluate_tick(context)  # type: ignore[return-value]


def test_an_alarm_is_accepted_in_the_form_and_the_sensor_makes_the_checks_green(drifting: Mini) -> None:
    assert tick(drifting).run_requests == []
    assert drifting.layout.trend.is_file()
    launch(drifting, decision="accept")
    (request,) = tick(drifting).run_requests or []
    assert request.asset_selection == [dg.AssetKey(["mini", "drift_report"])]
    first, last = (
        request.tags[tag] for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
    )
    assert (first, last) == (MOVED, LAST)
    drifting.run(first, last, ["drift_report"])
    assert [drifting.check("drift_report", "features_drift", day) for day in (MOVED, LAST)] == [True, True]
    assert tick(drifting, cursor="1").run_requests == []


def test_a_rejected_alarm_starts_the_training(drifting: Mini) -> None:
    launch(drifting, is_trained=True, decision="reject", retrain=True)
    again, training = tick(drifting).run_requests or []
    assert again.tags[ASSET_PARTITION_RANGE_END_TAG] == MOVED
    assert (training.job_name, training.run_key) == ("mini_training", "decision 1 training")


def test_a_partition_refused_for_its_quality_is_run_again_when_it_was_accepted(
    mini: Mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "Renderer", Pages)
    mini.change(drift={"reference_partitions": 3}, quality={"severity": "error"})
    quiet, refused = [f"2026-01-{day:02d}" for day in range(1, 15)], ["2026-01-15", "2026-01-16"]
    for day in (*quiet, *refused):
        mini.write(day, 8 if day in refused else 60)
    mini.run(quiet[0], refused[-1], ["raw", "features"], fail=True)
    assert [mini.check("raw", "usual_volume", day) for day in refused] == [False, False]
    launch(mini, decision="accept", about="quality", partition=refused[0])
    (request,) = tick(mini).run_requests or []
    assert request.asset_selection is None
    tags = (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
    assert [request.tags[tag] for tag in tags] == refused
    mini.run(refused[0], refused[-1])
    assert [mini.check("raw", "usual_volume", day) for day in refused] == [True, True]
    assert mini.rows("predictions", refused[1]) == 8


def test_mistakes_in_the_form_are_told_and_nothing_is_recorded(drifting: Mini) -> None:
    for form, words in (
        ({"decision": "accept", "partition": QUIET}, "raised no alarm"),
        ({"decision": "accept", "partition": "someday"}, "someday"),
        ({"decision": "accept", "why": " "}, "the reason must be given"),
        ({"decision": "reject", "retrain": True}, "has no asset `training`"),
    ):
        assert words in launch(drifting, succeeds=False, **form)
    with pytest.raises(dg.DagsterInvalidConfigError):
        review_job(drifting.spec, False).execute_in_process(
            run_config={"ops": {"mini__decision": {"config": {"partition": MOVED, "decision": "perhaps"}}}}
        )
    assert ReviewStore(drifting.layout.monitoring).all() == []
