"""`batch-platform status` in a project: words for people, JSON for programs, exit codes for scripts."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from batch_platform.cli.status import status
from batch_platform.core import outcomes
from batch_platform.core.models.registry import Registry
from batch_platform.core.outcomes import Outcome
from batch_platform.errors import PipelineFileError
from batch_platform_tests import tiny_models
from batch_platform_tests.mini import ATTRIBUTES, DAYS
from batch_platform_tests.project import Project

ENDED = {**ATTRIBUTES, "partitions": {"start": "2026-01-01", "end": "2026-01-16"}}
STAGES = ["raw", "features", "predictions", "drift_report"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path)
    made.add_pipeline("mini", ENDED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(made.settings.root))
    return made


def ask(*words: str) -> Result:
    result = CliRunner().invoke(status, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def record(project: Project, day: str, state: Any, cause: str = "") -> None:
    layout = project.layout("mini")
    outcomes.record(layout, day, {stage: Outcome.now(state, "r", cause) for stage in STAGES})


def days(first: int, last: int) -> list[str]:
    return [f"2026-01-{day:02d}" for day in range(first, last + 1)]


def test_words(project: Project) -> None:
    answer = ask()
    assert answer.exit_code == 0
    assert answer.stdout.splitlines() == [
        "mini: 15 partitions: 0 done, 0 failed, 15 missing",
        "  rows: 0 raw, 0 predictions, 0 quarantine",
        "  drift reference: not enough history: 0 of 3 reference partitions with rows",
        "  missing 2026-01-01 to 2026-01-15",
        "  next: dg launch --job mini --partition-range 2026-01-01...2026-01-15",
    ]
    for day in days(1, 15):
        record(project, day, "done")
    assert ask("mini").stdout.splitlines()[0] == "mini: 15 partitions: 15 done, 0 failed, 0 missing"
    assert "next" not in ask("mini").stdout


def test_failures_are_named_and_exit_1(project: Project) -> None:
    record(project, DAYS[0], "done")
    for day in days(2, 13):
        record(project, day, "failed", f"no file of {day}")
    answer = ask()
    assert answer.exit_code == 1
    lines = answer.stdout.splitlines()
    assert lines[0] == "mini: 15 partitions: 1 done, 12 failed, 2 missing"
    assert lines[3] == "  failed 2026-01-04: raw: no file of 2026-01-04"
    assert sum(line.startswith("  failed ") for line in lines) == 10
    assert lines[-3:] == [
        "  and 2 more failed before",
        "  missing 2026-01-14 to 2026-01-15",
        "  next: dg launch --job mini --partition 2026-01-02",
    ]


def test_a_model_that_must_not_score_is_named(project: Project, tmp_path: Path) -> None:
    registry = Registry(project.settings.root)
    signature = tiny_models.TABULAR_CONFIG.signature()
    card = tiny_models.CARD | {"expires": "2001-01-01"}
    source = tiny_models.tabular_model(tmp_path / "model")
    registry.register("churn", source, "torch", signature, card=card, by="a", why="b", alias="champion")
    assert "  model churn champion -> 1: the model card expired after 2001-01-01" in ask().stdout
    registry.suspend("churn", "1", "risk", "scores rose")
    lines = ask().stdout.splitlines()
    assert lines[2].startswith("  model churn champion -> 1: suspended by risk at 20")
    assert lines[-1] == (
        "  next: batch-platform models promote churn VERSION --alias champion --by WHO --why TEXT"
    )
    assert "scores rose" in json.loads(ask("--json").stdout)[0]["model"]
    (registry.folder / "churn" / "history" / "000003.json").write_text("{}")
    assert ask().stdout.splitlines()[-1] == "  next: batch-platform models verify"


def test_json(project: Project) -> None:
    project.add_pipeline("zoo", {**ENDED, "name": "zoo"})
    record(project, DAYS[1], "failed", "no file")
    answer = ask("--json")
    assert answer.exit_code == 1
    mini, zoo = json.loads(answer.stdout)
    assert (mini["pipeline"], mini["failed"]) == ("mini", {DAYS[1]: "raw: no file"})
    assert mini["missing"] == [[DAYS[0], DAYS[0]], [DAYS[2], "2026-01-15"]]
    assert (zoo["pipeline"], zoo["done"], zoo["failed"]) == ("zoo", 0, {})
    # Only the pipeline asked for counts.
    alone = ask("zoo", "--json")
    assert (alone.exit_code, [view["pipeline"] for view in json.loads(alone.stdout)]) == (0, ["zoo"])


def test_an_unknown_pipeline(project: Project) -> None:
    with pytest.raises(PipelineFileError, match="no pipeline 'nobody'; there are: mini"):
        ask("nobody")
