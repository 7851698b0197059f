"""`make demo`: what is missing is done and nothing else; a failing step ends it with one sentence."""

import sys
from pathlib import Path
from typing import Any

import pytest

from batch_platform.core import outcomes
from batch_platform.core.models.registry import Registry
from batch_platform.core.outcomes import Outcome
from batch_platform.core.pipelines import load_pipelines
from batch_platform.demo import run
from batch_platform_tests import tiny_models
from batch_platform_tests.mini import ATTRIBUTES, DAYS
from batch_platform_tests.project import Project

LABELS = {"uri": "l/{partition}.csv", "format": "csv", "row_key": "id", "column": "y"}
DG = str(Path(sys.executable).with_name("dg"))
STAGES = ("raw", "features", "predictions", "drift_report", "performance")
FETCH = [sys.executable, "-m", "batch_platform.demo.fetch"]
TRAIN = [DG, "launch", "--assets", "mini/training"]


class Demo:
    """The demo over one small pipeline; its steps are noted and do by hand what they would do."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project = Project(folder)
        self.project.add_pipeline("mini", {**ATTRIBUTES, "labels": LABELS})
        self.commands: list[list[str]] = []
        monkeypatch.chdir(folder)
        monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(self.project.settings.root))
        monkeypatch.setattr(run, "RANGES", {"mini": (DAYS[0], DAYS[4])})
        monkeypatch.setattr(run, "_step", self._step)

    def _step(self, _title: str, command: list[str]) -> None:
        self.commands.append(command)
        if command == TRAIN:
            self.register()
        elif "--partition-range" in command:
            first, last = command[-1].split("...")
            self.finish(*(day for day in DAYS if first <= day <= last))

    def register(self) -> None:
        model = tiny_models.tabular_model(self.project.folder / "model")
        signature = tiny_models.TABULAR_CONFIG.signature()
        registry = Registry(self.project.settings.root)
        registry.register(
            "churn", model, "torch", signature, card=None, by="tests", why="a test", alias="champion"
        )

    def finish(self, *days: str, state: Any = "done") -> None:
        for day in days:
            made = {stage: Outcome.now(state, "r") for stage in STAGES}
            outcomes.record(self.project.layout("mini"), day, made)

    def again(self) -> list[list[str]]:
        """The commands of another run of the demo."""
        self.commands = []
        assert run.main() == 0
        return self.commands


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    return Demo(tmp_path, monkeypatch)


def score(first: str, last: str) -> list[str]:
    return [DG, "launch", "--job", "mini", "--partition-range", f"{first}...{last}"]


def test_only_what_is_missing_is_done(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.again() == [FETCH, TRAIN, score(DAYS[0], DAYS[4])]
    # Fetching looks by itself at what is there, so it is always asked.
    capsys.readouterr()
    assert demo.again() == [FETCH]
    said = capsys.readouterr().out
    assert "mini: model churn version 1 is registered" in said
    assert "mini: 5 partitions are there" in said
    assert "`make ui`" in said
    demo.finish(DAYS[2], state="failed")
    assert demo.again() == [FETCH, score(DAYS[2], DAYS[2])]


def test_one_run_covers_all_gaps(demo: Demo) -> None:
    demo.register()
    demo.finish(DAYS[0], DAYS[2], DAYS[4])
    assert demo.again() == [FETCH, score(DAYS[1], DAYS[3])]


def test_the_real_ranges_lie_in_the_real_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = load_pipelines(Path(run.__file__).parent.parent / "defs")
    for name, (first, last) in run.RANGES.items():
        assert len(specs[name].partitions.calendar().between(first, last)) >= 60
    for name, (first, last) in run.MORE.items():
        assert specs[name].partitions.calendar().between(first, last)


STEPS = [
    "print('[mini] 1 of 2', flush=True); print('a line of a library'); print('the cause'); raise SystemExit(3)"
]


def test_a_failing_step_ends_it_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    project.add_pipeline("mini", ATTRIBUTES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(project.settings.root))
    monkeypatch.setattr(run, "RANGES", {"mini": (DAYS[0], DAYS[4])})
    real = run._step
    monkeypatch.setattr(run, "_step", lambda title, _command: real(title, [sys.executable, "-c", *STEPS]))
    assert run.main() == 1
    said = capsys.readouterr()
    log = tmp_path / ".dagster_home" / "demo.log"
    assert said.err.splitlines()[-1] == (
        f"make demo: real data failed with exit code 3; everything it said is in {log}"
    )
    assert "the cause" in said.err
    assert "Traceback" not in said.err
    # Progress is shown as it comes, the chatter of libraries only in the log.
    assert said.out.splitlines() == ["== real data", "   [mini] 1 of 2"]
    assert "a line of a library" in log.read_text()


def test_a_tool_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    project.add_pipeline("mini", ATTRIBUTES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(project.settings.root))
    real = run._step
    monkeypatch.setattr(run, "_step", lambda title, _command: real(title, [str(tmp_path / "nothing")]))
    assert run.main() == 1
    assert capsys.readouterr().err == (
        f"make demo: real data: {tmp_path / 'nothing'} cannot be run (No such file or directory): "
        "make clean-venv demo\n"
    )


def test_a_wrong_pipeline_file_or_setting_is_one_sentence(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.project.add_pipeline("mini", {**ATTRIBUTES, "colour": "red"})
    assert run.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("make demo: ")
    assert "colour: unknown field" in error
    assert demo.commands == []
