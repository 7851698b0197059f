"""What a schedule asks for at a tick: newest, missing and failed partitions, and none that is being worked on."""

import uuid
from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteRepositoryOrigin

from batch_platform.core import outcomes
from batch_platform.core.outcomes import Outcome
from batch_platform.core.spec import parse_spec
from batch_platform.orchestration.assets import pipeline_assets
from batch_platform.orchestration.automation import (
    PIPELINE_TAG,
    due_window,
    pipeline_job,
    pipeline_schedule,
)
from batch_platform.orchestration.model_assets import model_asset
from batch_platform.orchestration.stages import asset_key, stages_of
from batch_platform_tests.mini import ATTRIBUTES, Mini

TICK = datetime(2026, 1, 10, 3, tzinfo=UTC)
SCHEDULED = {"trigger": "schedule", "cron": "0 3 * * *", "catch_up": 4}
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
DUE = [f"2026-01-{day:02d}" for day in range(5, 10)]


@pytest.fixture
def scheduled(mini: Mini) -> Mini:
    mini.change(automation=SCHEDULED)
    return mini


def tick(mini: Mini, now: datetime = TICK) -> list[dg.RunRequest | dg.SkipReason]:
    """What the schedule gives at a tick."""
    job = pipeline_job(mini.spec)
    (schedule,) = pipeline_schedule(mini.spec, job)
    definitions = dg.Definitions(
        [pipeline_assets(mini.spec), model_asset(mini.spec, is_trained=False)],
        jobs=[job],
        schedules=[schedule],
    )
    context = dg.build_schedule_context(
        mini.instance, scheduled_execution_time=now, repository_def=definitions.get_repository_def()
    )
    answer = schedule.evaluate_tick(context)
    return answer.run_requests or [dg.SkipReason(answer.skip_message)]


def asked(mini: Mini, now: datetime = TICK) -> list[tuple[str, str]]:
    """First and last partition of each run that a tick asks for."""
    requests = tick(mini, now)
    assert all(isinstance(request, dg.RunRequest) for request in requests), requests
    assert {request.tags[PIPELINE_TAG] for request in requests} == {"mini"}
    return [(request.tags[START], request.tags[END]) for request in requests]


def finish(mini: Mini, *days: str, state: str = "done", stages: list[str] | None = None) -> None:
    names = stages or [stage.name for stage in stages_of(mini.spec)]
    for day in days:
        outcomes.record(mini.layout, day, {name: Outcome.now(state, "a run") for name in names})


def test_the_window_ends_with_the_newest_partition_that_has_ended() -> None:
    spec = parse_spec(ATTRIBUTES, "mini")
    calendar = spec.partitions.calendar()
    assert [partition.key for partition in due_window(calendar, TICK, 4)] == DUE
    midnight = datetime(2026, 1, 10, tzinfo=UTC)
    assert due_window(calendar, midnight, 0)[0].key == "2026-01-09"
    assert [partition.key for partition in due_window(calendar, datetime(2026, 1, 3, tzinfo=UTC), 7)] == [
        "2026-01-01",
        "2026-01-02",
    ]
    assert due_window(calendar, datetime(2025, 12, 31, tzinfo=UTC), 7) == []
    # Beyond the end of the calendar the last ones stay due.
    assert due_window(calendar, datetime(2027, 1, 1, tzinfo=UTC), 0)[0].key == "2026-01-31"


def test_everything_is_missing_at_first_and_asked_for_in_one_run(scheduled: Mini) -> None:
    assert asked(scheduled) == [(DUE[0], DUE[-1])]


def test_missing_failed_and_half_done_partitions_in_as_few_runs_as_possible(scheduled: Mini) -> None:
    finish(scheduled, DUE[1])
    finish(scheduled, DUE[2], state="failed")
    finish(scheduled, DUE[3], stages=["raw", "features"])
    assert asked(scheduled) == [(DUE[0], DUE[0]), (DUE[2], DUE[4])]
    # The next day, the window has moved on.
    assert asked(scheduled, datetime(2026, 1, 11, 3, tzinfo=UTC)) == [(DUE[2], "2026-01-10")]


RANGE = {START: DUE[3], END: DUE[4]}
IN_PROGRESS = [
    # Asked for by the schedule or `dg launch --job`, still in the queue.
    (dg.DagsterRunStatus.QUEUED, {PIPELINE_TAG: "mini", **RANGE}, None),
    (dg.DagsterRunStatus.STARTED, {PIPELINE_TAG: "mini", **RANGE}, None),
    # Launched from the assets' page: no tag of ours.
    (dg.DagsterRunStatus.STARTING, RANGE, "predictions"),
    (dg.DagsterRunStatus.CANCELING, RANGE, "raw"),
]
NOT_IN_PROGRESS = [
    (dg.DagsterRunStatus.SUCCESS, {PIPELINE_TAG: "mini", **RANGE}, None),
    (dg.DagsterRunStatus.FAILURE, {PIPELINE_TAG: "mini", **RANGE}, None),
    (dg.DagsterRunStatus.CANCELED, {PIPELINE_TAG: "mini", **RANGE}, None),
    (dg.DagsterRunStatus.STARTED, {PIPELINE_TAG: "another", **RANGE}, None),
    (dg.DagsterRunStatus.STARTED, {PIPELINE_TAG: "mini"}, None),
]


def add_run(mini: Mini, status: dg.DagsterRunStatus, tags: dict[str, str], stage: str | None) -> None:
    location = GrpcServerCodeLocationOrigin("127.0.0.1", port=1)
    run = dg.DagsterRun(
        job_name="mini",
        run_id=str(uuid.uuid4()),
        status=status,
        tags=tags,
        asset_selection=None if stage is None else frozenset({asset_key(mini.spec, stage)}),
        remote_job_origin=RemoteRepositoryOrigin(location, "__repository__").get_job_origin("mini"),
    )
    mini.instance.add_run(run)


@pytest.mark.parametrize(("status", "tags", "stage"), IN_PROGRESS)
def test_partitions_in_progress_are_left_alone(
    scheduled: Mini, status: dg.DagsterRunStatus, tags: dict[str, str], stage: str | None
) -> None:
    add_run(scheduled, status, tags, stage)
    assert asked(scheduled) == [(DUE[0], DUE[2])]


def test_a_single_partition_in_progress(scheduled: Mini) -> None:
    add_run(scheduled, dg.DagsterRunStatus.STARTED, {"dagster/partition": DUE[2]}, "features")
    assert asked(scheduled) == [(DUE[0], DUE[1]), (DUE[3], DUE[4])]


def test_runs_that_ended_or_are_not_ours_hold_nothing_up(scheduled: Mini) -> None:
    for run in NOT_IN_PROGRESS:
        add_run(scheduled, *run)
    assert asked(scheduled) == [(DUE[0], DUE[4])]


def test_nothing_to_do_says_why(scheduled: Mini) -> None:
    finish(scheduled, *DUE[:3])
    add_run(scheduled, dg.DagsterRunStatus.STARTED, {PIPELINE_TAG: "mini", **RANGE}, None)
    (answer,) = tick(scheduled)
    assert isinstance(answer, dg.SkipReason)
    assert answer.skip_message == "nothing to do: of 5 partitions 3 are done and 2 are being worked on"


def test_a_schedule_is_made_only_where_one_is_asked_for(mini: Mini) -> None:
    assert pipeline_schedule(mini.spec, pipeline_job(mini.spec)) == []
    mini.change(automation=SCHEDULED, partitions={"timezone": "Europe/Berlin"})
    (schedule,) = pipeline_schedule(mini.spec, pipeline_job(mini.spec))
    assert (schedule.name, schedule.cron_schedule) == ("mini_schedule", "0 3 * * *")
    assert schedule.execution_timezone == "Europe/Berlin"
