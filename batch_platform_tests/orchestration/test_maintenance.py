"""The maintenance job of a pipeline: made by the component, launched like any other job, on every day."""

import os
import time

import dagster as dg

from batch_platform.orchestration.maintenance import maintenance_job, maintenance_schedule
from batch_platform_tests.mini import DAYS, Mini


def test_the_job_removes_what_is_old(mini: Mini) -> None:
    mini.write(DAYS[0])
    mini.run(DAYS[0])
    old = mini.layout.staging(DAYS[1]) / "abandoned" / "shard-000000.json"
    old.parent.mkdir(parents=True)  # type: ignore[union-attr]
    old.write_text("{}")  # type: ignore[union-attr]
    then = time.time() - 8 * 86_400
    os.utime(str(old), (then, then))
    job = maintenance_job(mini.spec)
    assert job.name == "mini_maintenance"
    assert job.execute_in_process(instance=mini.instance).success
    assert not old.is_file()
    assert mini.rows("predictions", DAYS[0]) == 20


def test_it_runs_every_day_without_being_asked(mini: Mini) -> None:
    schedule = maintenance_schedule(mini.spec, maintenance_job(mini.spec))
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert schedule.cron_schedule == "30 4 * * *"
