"""What a promoted model, a changed recipe or contract marks as stale: the same in Dagster and in `status`, and no more."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.definitions.observe import observe
from dagster._core.loader import LoadingContextForTest

from batch_platform.core.models.registry import Registry
from batch_platform.core.overview import overview
from batch_platform.orchestration.assets import pipeline_assets
from batch_platform.orchestration.automation import pipeline_job, pipeline_schedule
from batch_platform.orchestration.model_assets import model_asset, model_sensor
from batch_platform.orchestration.stages import asset_key, stages_of
from batch_platform_tests.mini import ATTRIBUTES, DAYS, Mini

FIRST, SECOND = DAYS[:2]
STAGES = ["raw", "features", "predictions", "drift_report"]


def stale_in_dagster(mini: Mini) -> dict[str, set[str]]:
    """By day, the stages that the UI calls stale."""
    assets = [pipeline_assets(mini.spec), model_asset(mini.spec, is_trained=False)]
    graph = dg.Definitions(assets).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(mini.instance, graph, LoadingContextForTest(mini.instance))
    return {
        day: {
            stage.name
            for stage in stages_of(mini.spec)
            if resolver.get_status(asset_key(mini.spec, stage.name), day).value == "STALE"
        }
        for day in (FIRST, SECOND)
    }


def stale_in_status(mini: Mini) -> dict[str, set[str]]:
    """By day, the stages that `batch-platform status` calls stale."""
    view = overview(mini.spec, mini.settings, datetime(2026, 1, 3, tzinfo=UTC))
    lines = {day: view.stale.get(day, "") for day in (FIRST, SECOND)}
    return {day: {part.split(":")[0] for part in line.split("; ") if part} for day, line in lines.items()}


def sense(mini: Mini, cursor: str | None = None) -> dg.SensorResult:
    told = model_sensor(mini.spec)(dg.build_sensor_context(instance=mini.instance, cursor=cursor))
    assert isinstance(told, dg.SensorResult)
    assert not told.run_requests
    return told


def report(mini: Mini, told: dg.SensorResult) -> None:
    """What the daemon does with a sensor's result."""
    for event in told.asset_events:
        mini.instance.report_runless_asset_event(event)


def with_note(mini: Mini) -> None:
    columns = {
        **ATTRIBUTES["source"]["columns"],
        "plan": {"type": "string", "allowed": ["basic", "pro", "gold", "tin"]},
    }
    mini.change(source={"columns": columns})


def run(mini: Mini, day: str) -> None:
    mini.write(day)
    mini.run(day)


def test_a_promoted_model(mini: Mini) -> None:
    run(mini, FIRST)
    mini.register(seed=1)
    run(mini, SECOND)  # with the new one
    expected = {FIRST: {"predictions"}, SECOND: set()}
    assert stale_in_status(mini) == stale_in_dagster(mini) == expected
    view = overview(mini.spec, mini.settings, datetime(2026, 1, 3, tzinfo=UTC))
    assert view.stale[FIRST] == "predictions: model changed"
    assert view.next_command == f"dg launch --job mini --partition-range {FIRST}...{FIRST}"

    # A promotion alone, seen by the sensor: once.
    Registry(mini.settings.root).promote("churn", "1", "champion", "tests", "a rollback")
    told = sense(mini)
    report(mini, told)
    assert stale_in_status(mini) == stale_in_dagster(mini) == {FIRST: set(), SECOND: {"predictions"}}
    assert sense(mini, told.cursor).skip_reason is not None
    mini.run(SECOND)
    assert stale_in_status(mini) == stale_in_dagster(mini) == {FIRST: set(), SECOND: set()}


def test_a_changed_contract_or_setting(mini: Mini) -> None:
    run(mini, FIRST)
    before = mini.spec
    with_note(mini)
    run(mini, SECOND)
    assert stale_in_status(mini) == stale_in_dagster(mini) == {FIRST: {"raw"}, SECOND: set()}
    mini.spec = before
    assert stale_in_status(mini) == stale_in_dagster(mini) == {FIRST: set(), SECOND: {"raw"}}
    mini.change(decision={"positive_class": "churned"}, drift={"reference_partitions": 4})
    stages = {"predictions", "drift_report"}
    assert stale_in_status(mini) == stale_in_dagster(mini) == {FIRST: stages, SECOND: stages | {"raw"}}


def test_a_changed_recipe_and_what_is_made_of_it(mini: Mini) -> None:
    run(mini, FIRST)
    run(mini, SECOND)
    columns = {name: column for name, column in ATTRIBUTES["source"]["columns"].items() if name != "id"}
    mini.change(source={"columns": {**columns, "id": {"type": "string", "required": True}}})
    everything = {"features"}  # the recipe passes the columns on in another order
    assert stale_in_status(mini) == stale_in_dagster(mini) == {FIRST: everything, SECOND: everything}
    mini.run(FIRST, stages=["raw", "features"])
    expected = {FIRST: {"predictions", "drift_report"}, SECOND: everything}
    assert stale_in_status(mini) == stale_in_dagster(mini) == expected
    mini.run(FIRST)
    assert stale_in_status(mini) == stale_in_dagster(mini) == {FIRST: set(), SECOND: everything}


@pytest.mark.parametrize("redo", [False, True])
def test_the_schedule_redoes_stale_partitions_only_where_the_file_says_so(mini: Mini, redo: bool) -> None:
    automation: dict[str, Any] = {
        "trigger": "schedule",
        "cron": "0 3 * * *",
        "catch_up": 1,
        "redo_stale": redo,
    }
    mini.change(automation=automation)
    for day in (FIRST, SECOND):
        run(mini, day)
    mini.register(seed=1)
    assert observe([model_asset(mini.spec, is_trained=False)], instance=mini.instance).success
    (schedule,) = pipeline_schedule(mini.spec, pipeline_job(mini.spec))
    moment = datetime(2026, 1, 3, 3, tzinfo=UTC)
    context = dg.build_schedule_context(mini.instance, scheduled_execution_time=moment)
    requests = schedule.evaluate_tick(context).run_requests
    ranges = [
        (
            request.tags["dagster/asset_partition_range_start"],
            request.tags["dagster/asset_partition_range_end"],
        )
        for request in requests or ()
    ]
    assert ranges == ([(FIRST, SECOND)] if redo else [])
