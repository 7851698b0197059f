"""`explain`, `replay` and `affected` as commands: words, JSON, exit codes, keys that look like options."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from batch_platform.cli.main import cli
from batch_platform.errors import BatchPlatformError, RowNotFoundError
from batch_platform_tests.core.provenance.made import make
from batch_platform_tests.mini import ATTRIBUTES, DAYS, Mini, good_row
from batch_platform_tests.project import Project

KEYS = ["-1", "--json", "a b", "ü/7"]
FIELDS = {
    *(
        "row_key",
        "partition_key",
        "source_file",
        "source_row",
        "input_hash",
        "recipe_version",
        "code_version",
    ),
    *("model_version", "model_digest", "parameters", "run_id", "shard", "commit"),
}


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    project = Project(tmp_path_factory.mktemp("shop"))
    project.add_pipeline("mini", ATTRIBUTES)
    with dg.instance_for_test() as instance:
        made = Mini(project.folder, instance)
        made.register()
        for day in DAYS[:2]:
            made.write(day, [good_row(day, number) | {"id": key} for number, key in enumerate(KEYS)])
            make(made, day)
    return made


@pytest.fixture
def ask(mini: Mini, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(mini.folder)
    monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(mini.settings.root))

    def asking(*words: str) -> Result:
        result = CliRunner().invoke(cli, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return asking


@pytest.mark.parametrize("key", KEYS)
def test_explain_and_replay(ask: Any, key: str) -> None:
    told = json.loads(ask("explain", "mini", "--json", "--", key).stdout)
    assert told.keys() >= FIELDS
    assert all(told[name] is not None for name in FIELDS)
    assert (told["row_key"], told["partition_key"], told["shard"]) == (key, DAYS[1], 0)
    text = ask("explain", "mini", "--partition", DAYS[0], "--", key).stdout
    assert text.startswith(f"mini {DAYS[0]}, row {key}: predicted\n")
    assert f"data/{DAYS[0]}.csv, data row {KEYS.index(key)}" in text
    answer = ask("replay", "mini", "--json", "--", key)
    assert (answer.exit_code, json.loads(answer.stdout)["equal"]) == (0, True)
    assert f"row {key}: equal within 0.001" in ask("replay", "mini", "--", key).stdout


def test_a_replay_that_differs_exits_1(ask: Any, mini: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch_platform.core.provenance.replaying.agree", lambda *_values: False)
    answer = ask("replay", "mini", "a b")
    assert answer.exit_code == 1
    assert "VALUES DIFFER" in answer.stdout and "score: recorded" in answer.stdout


def test_affected(ask: Any) -> None:
    wanted = [{"pipeline": "mini", "partition_key": day, "rows": 4} for day in DAYS[:2]]
    for words in (["--model", "churn"], ["--model", "churn:1"], ["--run", "run-1"], ["--from", "2026"]):
        told = json.loads(ask("affected", *words, "--json").stdout)
        assert (told["rows"], told["partitions"]) == (8, wanted), words
    told = json.loads(ask("affected", "--source-file", f"data/{DAYS[1]}.csv", "--json").stdout)
    assert told["partitions"] == wanted[1:]
    absolute = str(Path(f"data/{DAYS[1]}.csv").absolute())
    assert json.loads(ask("affected", "--source-file", absolute, "--json").stdout) == told
    assert json.loads(ask("affected", "--model", "churn", "--to", DAYS[0], "--json").stdout)["rows"] == 4
    assert ask("affected", "--model", "churn").stdout.splitlines()[1:] == [
        f"  mini {day}: 4" for day in DAYS[:2]
    ]
    assert ask("affected", "--model", "churn:2").stdout == "0 predictions in 0 partitions\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["affected"], "give --model"),
        (["affected", "--model", "churn", "--run", "x"], "--model and --run: ask for one at a time"),
        (["affected", "--rescore", "--history", "--run", "x"], "cannot be scored again"),
        (["affected", "--from", "yesterday"], "'yesterday' is no partition key"),
    ],
)
def test_wrong_usage(ask: Any, words: list[str], message: str) -> None:
    answer = ask(*words)
    assert answer.exit_code == 2
    assert message in answer.output


def test_unknown_rows_and_pipelines(ask: Any) -> None:
    with pytest.raises(RowNotFoundError, match="'nobody'"):
        ask("explain", "mini", "nobody")
    with pytest.raises(BatchPlatformError, match="no pipeline 'maxi'"):
        ask("replay", "maxi", "a b")
    with pytest.raises(BatchPlatformError, match="1999-01-01"):
        ask("explain", "mini", "a b", "--partition", "1999-01-01")


def test_rescore_touches_no_other_row(ask: Any, mini: Mini) -> None:
    def rows(wanted: bool) -> list[dict[str, Any]]:
        frame = mini.table("predictions").sort("partition_key", "row_key")
        return frame.filter((frame["partition_key"] == DAYS[0]) == wanted).to_dicts()

    others = rows(wanted=False)
    mini.register(seed=1)
    words = ["affected", "--source-file", f"data/{DAYS[0]}.csv", "--rescore", "--json"]
    (told,) = json.loads(ask(*words).stdout)["rescored"]
    assert (told["partition_key"], told["rows"], told["changed"], told["attempt"]) == (DAYS[0], 4, 4, 2)
    assert rows(wanted=False) == others
    assert {row["model_version"] for row in rows(wanted=True)} == {"2"}
    text = ask("affected", "--model", "churn:1", "--rescore").stdout
    assert f"  mini {DAYS[1]}: 4 rows scored again, 4 changed, " in text
    assert json.loads(ask("affected", "--model", "churn:1", "--json").stdout)["rows"] == 0
    assert json.loads(ask("affected", "--model", "churn:1", "--history", "--json").stdout)["rows"] == 8
