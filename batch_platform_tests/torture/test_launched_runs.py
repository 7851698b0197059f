"""`dg launch` killed at random moments, everything it started with it; the last run finishes the range."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from batch_platform.core.data import files
from batch_platform.core.verifying import verify
from batch_platform_tests.mini import ATTRIBUTES, Mini
from batch_platform_tests.project import BIN, Project
from batch_platform_tests.torture.bench import record

_DAYS = [f"2026-01-{number:02}" for number in range(1, 9)]
_NOT_VALUES = ("run_id", "scored_at")
_ROUNDS, _KILLS = 5, 3


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_killed_three_times_and_finished(tmp_path: Path) -> None:
    undisturbed = made(tmp_path / "undisturbed")
    launch(undisturbed)
    expected = values(undisturbed.mini())
    draw, kills = random.Random(3), 0
    for number in range(_ROUNDS):
        project = made(tmp_path / f"round-{number}")
        for _ in range(_KILLS):
            kills += killed(project, more=draw.randint(1, 2), delay=draw.uniform(0, 0.3))
        launch(project)
        mini = project.mini()
        assert values(mini).equals(expected)
        assert verify(mini.spec, mini.settings, mini.folder).problems == ()
    assert kills == _ROUNDS * _KILLS
    record(
        "kill -9 of `dg launch` of 8 dates, thrice each",
        kills,
        "the fourth run finished all dates; values equal the undisturbed run's",
    )


def made(folder: Path) -> Project:
    project = Project(folder)
    project.add_pipeline("mini", ATTRIBUTES)
    mini = project.mini()
    mini.register()
    for day in _DAYS:
        mini.write(day, 50)
    return project


def words() -> list[str]:
    return ["dg", "launch", "--job", "mini", "--partition-range", f"{_DAYS[0]}...{_DAYS[-1]}"]


def launch(project: Project) -> None:
    done = project.command(*words())
    assert done.returncode == 0, done.stdout[-2000:]


def killed(project: Project, more: int, delay: float) -> bool:
    """Launch, and kill the whole process group some moments after it committed predictions so many times more.

    Returns:
        Whether it was still at work.
    """
    wanted = commits(project) + more
    process = subprocess.Popen(
        [str(BIN / "dg"), *words()[1:]],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and commits(project) < wanted:
        time.sleep(0.01)
    time.sleep(delay)
    was_at_work = process.poll() is None
    if was_at_work:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return was_at_work


def commits(project: Project) -> int:
    return len(files.entries(project.layout("mini").table("predictions") / "_delta_log", "*.json"))


def values(mini: Mini) -> object:
    return mini.table("predictions").drop(*_NOT_VALUES).sort("partition_key", "row_key")
