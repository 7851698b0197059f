"""`batch-platform drift review`: a decision on a real alarm from the command line, and what `status` makes of it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batch_platform.cli.drift import drift
from batch_platform.cli.status import status
from batch_platform.core import outcomes
from batch_platform.core.outcomes import Outcome
from batch_platform.errors import BatchPlatformError
from batch_platform_tests.core.committed import ATTRIBUTES
from batch_platform_tests.core.test_drift_reporting import DRIFT, KEYS, Pages, judge, table
from batch_platform_tests.project import Project

MOVED = KEYS[6]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose pipeline `mini` has an alarm on the seventh day."""
    made = Project(tmp_path)
    attributes = {**ATTRIBUTES, "drift": DRIFT, "partitions": {"start": KEYS[0], "end": KEYS[7]}}
    made.add_pipeline("mini", attributes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(made.settings.root))
    pages = Pages()
    for day in range(6):
        judge(tmp_path, pages, day)
    alarm = judge(tmp_path, pages, 6, table(6, shift=3))
    warnings = {check.name: check.description for check in alarm.checks}
    for day in KEYS[:7]:
        done = {stage: Outcome.now("done", "r") for stage in ("raw", "features", "predictions")}
        done["drift_report"] = Outcome.now("done", "r", warnings=warnings if day == MOVED else None)
        outcomes.record(made.layout("mini"), day, done)
    return made


def ask(*words: str) -> Result:
    command = status if words[0] == "status" else drift
    result = CliRunner().invoke(command, words[1:] if words[0] == "status" else words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_decision_is_recorded_and_shown(project: Project) -> None:
    lines = ask("status", "mini").stdout.splitlines()
    assert lines[-1] == (
        f"  next: batch-platform drift review mini {MOVED} (--accept | --reject | --new-reference) "
        "--by WHO --why TEXT"
    )
    said = ask("review", "mini", MOVED, "--accept", "--by", "ann", "--why", "a campaign")
    assert said.exit_code == 0
    assert said.stdout.startswith(f"mini {MOVED}: accepted as expected by ann on ")
    assert "  features: amount (mean rank up)" in said.stdout
    assert f"dg launch --assets mini/drift_report --partition-range {MOVED}...{MOVED}" in said.stdout
    shown = ask("status", "mini").stdout
    assert f"drift reference: version 1: 5 partitions, {KEYS[0]} to {KEYS[4]}, made 20" in shown
    assert "by batch_platform: the first partitions with rows" in shown
    assert f"drifting {MOVED}: features_drift: drift in amount" in shown
    assert "[accepted as expected by ann on " in shown
    assert "next:" not in shown
    (view,) = json.loads(ask("status", "mini", "--json").stdout)
    assert list(view["decisions"]) == [MOVED]


def test_json_and_a_training_that_is_asked_for(project: Project) -> None:
    words = ("review", "mini", MOVED, "--reject", "--retrain", "--by", "ann", "--why", "broken", "--json")
    with pytest.raises(BatchPlatformError, match=r"--retrain needs a training\.py beside the pipeline file"):
        ask(*words)
    (project.folder / "shop" / "defs" / "mini" / "training.py").touch()
    values = json.loads(ask(*words).stdout)
    assert (values["number"], values["decision"], values["retrain"], values["reference"]) == (
        (1, "reject", True, 1)
    )
    (amount,) = [c for c in values["causes"] if (c["column"], c["statistic"]) == ("amount", "mean rank")]
    assert (amount["group"], amount["direction"]) == ("features", "up")
    assert 0.2 < amount["size"] < 0.5


def test_wrong_usage(project: Project) -> None:
    assert ask("review", "mini", MOVED, "--by", "ann", "--why", "x").exit_code == 2
    assert ask("review", "mini", MOVED, "--accept", "--by", "ann").exit_code == 2
    with pytest.raises(BatchPlatformError, match="no pipeline 'nobody'"):
        ask("review", "nobody", MOVED, "--accept", "--by", "ann", "--why", "x")
    with pytest.raises(BatchPlatformError, match="raised no alarm of drift"):
        ask("review", "mini", KEYS[5], "--accept", "--by", "ann", "--why", "x")


def test_the_back_test_tells_what_each_strictness_would_have_done(project: Project) -> None:
    shown = ask("backtest", "mini")
    assert shown.exit_code == 0
    assert f"mini: reference 1, 5 partitions, {KEYS[0]} to {KEYS[4]}" in shown.stdout
    assert "too few reference days for a back-test" in shown.stdout
    values = json.loads(ask("backtest", "mini", "--json").stdout)
    features = next(group for group in values["groups"] if group["group"] == "features")
    assert features["alarms_since"] == [MOVED]
    assert (features["since"][0]["episodes"], features["since"][0]["days"]) == (1, 2)
    assert {each["column"] for each in features["calibration"]["detectable"]} == {"amount", "plan", "body"}


def test_a_back_test_without_a_reference_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Project(tmp_path)
    made.add_pipeline("mini", ATTRIBUTES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(made.settings.root))
    with pytest.raises(
        BatchPlatformError, match=r"pipeline mini: not enough history: .* materialize drift_report"
    ):
        ask("backtest", "mini")
