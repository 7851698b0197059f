"""`batch-platform quarantine` and `verify` from the shell, in a project with real runs."""

import json
from pathlib import Path

import pytest

from batch_platform_tests.mini import ATTRIBUTES, DAYS, good_row
from batch_platform_tests.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two days scored; two bad rows on the first, one on the second."""
    made = Project(tmp_path_factory.mktemp("shop"))
    made.add_pipeline("mini", {**ATTRIBUTES, "inference": {"max_error_share": 0.5}})
    mini = made.mini()
    mini.register()
    write(made, mended=False)
    done = made.command("dg", "launch", "--job", "mini", "--partition-range", f"{DAYS[0]}...{DAYS[1]}")
    assert done.returncode == 0, done.stdout[-2000:]
    return made


def write(project: Project, mended: bool) -> None:
    for day, bad in ((DAYS[0], 2), (DAYS[1], 1)):
        rows = [good_row(day, number) for number in range(20)]
        for row in rows[:bad]:
            row["plan"] = "pro" if mended else "platinum"
        project.mini().write(day, rows)


def test_list_and_show(project: Project) -> None:
    text = project.command("batch-platform", "quarantine", "list", "mini").stdout
    assert text.split()[:4] == ["3", "raw", "not_allowed", f"{DAYS[0]},"]
    assert "platinum" in text
    (cause,) = json.loads(project.command("batch-platform", "quarantine", "list", "mini", "--json").stdout)
    assert (cause["rows"], cause["partitions"], cause["stage"]) == (3, DAYS[:2], "raw")
    words = ["batch-platform", "quarantine", "show", "mini", "--partition", DAYS[0], "--json"]
    shown = json.loads(project.command(*words).stdout)
    assert [row["row_key"] for row in shown] == [f"{DAYS[0]}-0", f"{DAYS[0]}-1"]
    assert shown[0]["source_file"].endswith(f"{DAYS[0]}.csv") and shown[0]["source_row"] == 0
    assert json.loads(shown[0]["payload"])["plan"] == "platinum"
    text = project.command("batch-platform", "quarantine", "show", "mini", "--limit", "1").stdout
    assert "there are more: --limit 10" in text
    assert (
        "no such rows"
        in project.command("batch-platform", "quarantine", "show", "mini", "--stage", "features").stdout
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quarantine", "list", "maxi"], "no pipeline 'maxi'; there are: mini"),
        (["quarantine", "show", "mini", "--partition", "yesterday"], "yesterday"),
        (["quarantine", "redrive", "mini", "--partition", "1999-01-01"], "1999-01-01"),
        (["verify", "maxi"], "no pipeline 'maxi'; there are: mini"),
        (["verify", "mini", "--partition", "1999-01-01"], "1999-01-01"),
        (["verify", "mini", "--partition", "2026-01-05"], "nothing is committed here"),
    ],
)
def test_wrong_input_is_one_line(project: Project, words: list[str], message: str) -> None:
    answer = project.command("batch-platform", *words)
    assert answer.returncode == 2
    assert message in answer.stdout
    assert len(answer.stdout.splitlines()) == 1


def test_verify_and_redrive(project: Project) -> None:
    answer = project.command("batch-platform", "verify", "mini")
    assert (answer.returncode, "mini: all is well: 2 partitions" in answer.stdout) == (0, True), answer.stdout

    write(project, mended=True)
    answer = project.command("batch-platform", "quarantine", "redrive", "mini", "--partition", DAYS[0])
    assert answer.returncode == 0, answer.stdout[-2000:]
    assert answer.stdout.splitlines()[-1] == f"mini {DAYS[0]}: 2 rows were in quarantine, 0 are now"
    assert project.mini().rows("predictions", DAYS[0]) == 20
    answer = project.command("batch-platform", "quarantine", "redrive", "mini", "--partition", DAYS[0])
    assert (answer.returncode, answer.stdout.strip()) == (0, f"mini {DAYS[0]}: nothing is in quarantine")

    found = json.loads(project.command("batch-platform", "verify", "mini", "--json").stdout)
    assert (found["ok"], found["problems"], found["partitions"]) == (True, [], 2)
    assert set(found["chain"]) >= {"raw", "features", "predictions", "quarantine"}
    files = sorted(Path(str(project.settings.root)).glob(f"lake/mini/predictions/*{DAYS[1]}/*.parquet"))
    content = bytearray(files[-1].read_bytes())
    content[len(content) // 2] ^= 1
    files[-1].write_bytes(content)
    answer = project.command("batch-platform", "verify", "mini", "--json")
    assert answer.returncode == 1
    found = json.loads(answer.stdout)
    assert not found["ok"]
    (problem,) = found["problems"]
    assert problem == {
        "pipeline": "mini",
        "partition_key": DAYS[1],
        "file": str(files[-1]),
        "problem": "was altered: its digest is not the receipt's",
    }
    assert project.command("batch-platform", "verify", "mini", "--partition", DAYS[0]).returncode == 0
