"""The real daemon: a backfill with one bad date, its repair, and ticks of a schedule."""

import os
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from batch_platform.core import outcomes
from batch_platform_tests.mini import ATTRIBUTES, DAYS, good_row
from batch_platform_tests.project import Project, graphql, wait_for

pytestmark = pytest.mark.daemon

BAD = DAYS[2]
STAGES = ["raw", "features", "predictions", "drift_report"]
LAUNCH = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.add_pipeline("mini", ATTRIBUTES)
    return made


def backfill(url: str, days: list[str]) -> str:
    params = {"assetSelection": [{"path": ["mini", stage]} for stage in STAGES], "partitionNames": days}
    answer = graphql(url, LAUNCH, {"params": params})["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    return answer["backfillId"]


def ended(instance: dg.DagsterInstance, backfill_id: str) -> Any:
    found = instance.get_backfill(backfill_id)
    return (
        found
        if found is not None and found.status.value not in ("REQUESTED", "CANCELING", "FAILING")
        else None
    )


def runs_of(instance: dg.DagsterInstance, backfill_id: str) -> list[dg.DagsterRun]:
    return list(instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill_id})))


def test_backfill_with_one_bad_date(project: Project) -> None:
    mini = project.mini()
    mini.register()
    for day in DAYS:
        mini.write(day)
    mini.write(BAD, [good_row(BAD, number) | {"age": ""} for number in range(20)])
    with project.web_server() as url, project.daemon():
        first = backfill(url, DAYS)
        wait_for(lambda: ended(mini.instance, first), "the end of the backfill")
        assert len(runs_of(mini.instance, first)) == 1
        good = {day: day != BAD for day in DAYS}
        for stage in STAGES:
            assert {day: mini.check(stage, "complete", day) for day in DAYS} == good, stage
        assert {day: mini.rows("predictions", day) for day in DAYS} == {
            day: 20 if is_good else 0 for day, is_good in good.items()
        }

        mini.write(BAD)
        second = backfill(url, [BAD])
        wait_for(lambda: ended(mini.instance, second), "the end of the second backfill")
        assert [run.status for run in runs_of(mini.instance, second)] == [dg.DagsterRunStatus.SUCCESS]
        assert all(mini.check(stage, "complete", BAD) for stage in STAGES)
    frame = mini.table("predictions")
    assert frame.height == frame["row_key"].n_unique() == 100
    assert frame["run_id"].n_unique() == 2


def test_ticks_of_the_schedule(project: Project) -> None:
    """The newest, the missing and the failed date are asked for, contiguous ones in one run; done ones never."""
    days = newest_days(4)
    attributes = {
        **ATTRIBUTES,
        "partitions": {"start": days[0]},
        "automation": {"trigger": "schedule", "cron": "* * * * *", "catch_up": 3},
    }
    project.add_pipeline("mini", attributes)
    mini = project.mini()
    mini.change(partitions={"start": days[0], "end": None})
    mini.register()
    for day in days:
        mini.write(day)
    # The second of the four is done already; the first is missing, the third failed before.
    assert project.command("dg", "launch", "--job", "mini", "--partition", days[1]).returncode == 0
    mini.write(days[2], [])
    assert project.command("dg", "launch", "--job", "mini", "--partition", days[2]).returncode == 1
    assert outcomes.recall(mini.layout, days[2])["raw"].state == "failed"
    mini.write(days[2])
    with project.daemon():
        start_schedule(project)
        wait_for(
            lambda: all(outcomes.finished(mini.layout, day, STAGES) for day in days),
            "the dates of the tick",
            240,
        )
        ranges = sorted(
            (
                run.tags["dagster/asset_partition_range_start"],
                run.tags["dagster/asset_partition_range_end"],
            )
            for run in mini.instance.get_runs()
            if "dagster/schedule_name" in run.tags
        )
        assert ranges == [(days[0], days[0]), (days[2], days[3])]


def test_a_preempted_run_is_started_again_and_goes_on(project: Project) -> None:
    """SIGTERM, as a machine that is taken away sends it: no one has to press a button, no shard is scored twice."""
    rows = 3_000
    project.add_pipeline("mini", {**ATTRIBUTES, "inference": {"shard_rows": 2}})
    mini = project.mini()
    mini.register()
    mini.write(DAYS[0], rows)
    staging = mini.layout.staging(DAYS[0])
    with project.web_server() as url, project.daemon():
        backfill(url, DAYS[:1])
        wait_for(lambda: len(list(staging.rglob("shard-*.json"))) > 50, "some shards")  # type: ignore[union-attr]
        for worker in _run_workers(project):
            os.kill(worker, signal.SIGTERM)
        wait_for(lambda: outcomes.finished(mini.layout, DAYS[0], STAGES), "the end of the second run")
    frame = mini.table("predictions")
    assert frame.height == frame["row_key"].n_unique() == rows
    first, second = (
        count for _, count in sorted(frame["run_id"].value_counts().rows(), key=lambda row: row[1])
    )
    assert first >= 100  # the 50 shards and more
    assert first + second == rows


def _run_workers(project: Project) -> list[int]:
    """Processes that execute runs of this project: spawned by its code server."""
    home = str(project.home).encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            words, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            if b"multiprocessing.spawn" in words and b"resource_tracker" not in words and home in environment:
                found.append(int(folder.name))
    assert found
    return found


def start_schedule(project: Project) -> None:
    done = project.command("dagster", "schedule", "start", "mini_schedule", "-w", "workspace.yaml")
    assert done.returncode == 0, done.stdout


def newest_days(count: int) -> list[str]:
    """The last days that have ended, in UTC, oldest first."""
    today = datetime.now(UTC).date()
    return [str(today - timedelta(days=back)) for back in range(count, 0, -1)]
