"""Every commit says everything of itself, and the heads of the chains can be kept elsewhere."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from batch_platform.cli.main import cli
from batch_platform.core.data.files import canonical_json
from batch_platform.core.provenance import chain, receipts
from batch_platform.errors import StorageError
from batch_platform_tests.core.provenance.made import make
from batch_platform_tests.mini import ATTRIBUTES, DAYS, Mini, good_row
from batch_platform_tests.project import Project
from batch_platform_tests.receipts import gaps
from batch_platform_tests.receipts import receipts as receipts_of

LABELS = {"uri": "labels/{partition}.csv", "format": "csv", "row_key": "id", "column": "churned"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mini]:
    """Two days; the first one again after a row changed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "workspace.yaml").touch()
    (folder / "requirements.lock").touch()
    with dg.instance_for_test() as instance, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BATCH_PLATFORM_ROOT", str(folder / "root"))
        yield _make_twice(Mini(folder, instance))


def _make_twice(mini: Mini) -> Mini:
    mini.change(labels=LABELS)
    mini.register()
    for day in DAYS[:2]:
        rows = [good_row(day, number) for number in range(20)]
        mini.write(day, [*rows, {"id": "bad", "amount": -1, "age": 3, "plan": "pro"}])
        (mini.folder / "labels").mkdir(exist_ok=True)
        (mini.folder / "labels" / f"{day}.csv").write_text(f"id,churned\n{day}-1,churned\n{day}-2,stays\n")
    mini.run(DAYS[0], DAYS[1])
    rows = [good_row(DAYS[0], number) for number in range(20)]
    mini.write(DAYS[0], [*rows[:-1], rows[-1] | {"amount": 3.25}])
    mini.run(DAYS[0])
    return mini


def test_every_commit_has_every_field(made: Mini) -> None:
    found = list(receipts_of(made.layout))
    tables = {receipt["table"] for receipt in found}
    assert tables == {
        *(
            "raw",
            "features",
            "predictions",
            "quarantine",
            "run_stats",
            "drift_metrics",
            "labels",
            "performance",
        )
    }
    assert {(r["table"], r["partition_key"]): gaps(r) for r in found if gaps(r)} == {}


def test_what_the_fields_say(made: Mini) -> None:
    slice_key = DAYS[0]
    lake = receipts_of(made.layout)
    found = {r["table"]: r for r in lake if r["partition_key"] == slice_key and r["version"] > 0}
    by_attempt = sorted(
        (
            r
            for r in receipts_of(made.layout)
            if (r["table"], r["partition_key"]) == ("predictions", slice_key)
        ),
        key=lambda r: r["attempt"],
    )
    first, second = by_attempt
    assert (first["supersedes"], second["supersedes"]) == (None, first["attempt"])
    assert (second["rows_in"], second["rows_scored"], second["rows_reused"]) == (20, 1, 19)
    assert second["reasons"] == {"changed": 1}
    assert second["started_at"] <= second["committed_at"]
    assert second["model_alias"] == "champion"
    assert (second["approved_by"]["by"], second["approved_by"]["why"]) == ("tests", "a test")
    card = json.loads((made.settings.registry / "churn" / "1" / "card.json").read_text())
    assert second["card_digest"] == hashlib.sha256(canonical_json(card)).hexdigest()
    model = made.settings.registry / "churn" / "1" / "model"
    assert second["model_files"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in model.iterdir()
    }
    raw = next(r for r in receipts_of(made.layout) if (r["table"], r["partition_key"]) == ("raw", slice_key))
    source = made.folder / "data" / f"{slice_key}.csv"
    assert raw["inputs"] == [
        {
            "name": f"data/{slice_key}.csv",
            "rows": 20,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    ]
    features = next(
        r for r in receipts_of(made.layout) if (r["table"], r["partition_key"]) == ("features", slice_key)
    )
    assert second["table_versions"] == {"features": features["version"]}
    assert [file["sha256"] for file in second["inputs"]] == [file["sha256"] for file in features["files"]]
    assert second["contract_version"] == features["contract_version"] == raw["contract_version"]
    assert found["drift_metrics"]["drift"] == {
        "features": "not enough history",
        "predictions": "not enough history",
    }


def test_the_project_is_named_by_its_commit_and_its_lock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "workspace.yaml").touch()
    (tmp_path / "requirements.lock").write_text("dagster==1\n")
    monkeypatch.chdir(tmp_path)
    found = receipts.environment()
    assert found["git_commit"] is None
    assert found["lock_digest"] == hashlib.sha256(b"dagster==1\n").hexdigest()
    monkeypatch.setenv(receipts.GIT_COMMIT_VARIABLE, "f" * 40)
    assert receipts.environment()["git_commit"] == "f" * 40


def test_a_checkout_names_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "workspace.yaml").touch()
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert receipts.environment()["git_commit"] == head


# -- the chain --------------------------------------------------------------------------------------------


def test_an_exported_head_finds_rewritten_history(mini: Mini, tmp_path: Path) -> None:
    mini.register()
    mini.write(DAYS[0])
    make(mini, DAYS[0])
    anchor = chain.export("mini", mini.settings)
    pipeline, heads = chain.read_anchor(chain.write(anchor))
    assert pipeline == "mini"
    assert set(heads) == {"raw", "features", "predictions", "run_stats"}
    assert chain.check("mini", heads, mini.settings) == []

    # More commits come after it: it is still part of the chain.
    mini.write(DAYS[1])
    make(mini, DAYS[1])
    assert chain.check("mini", heads, mini.settings) == []

    # Somebody writes another commit in its place.
    log = mini.layout.table("predictions") / "_delta_log"
    last = log / f"{heads['predictions'].version:020}.json"
    content = last.read_bytes()
    last.write_bytes(content.replace(b"tests", b"TESTS").replace(b"manual", b"MANUAL"))
    (problem,) = chain.check("mini", heads, mini.settings)
    assert problem.startswith(f"predictions: version {heads['predictions'].version} is not the commit")
    last.write_bytes(content)
    first = log / f"{0:020}.json"
    first.write_bytes(first.read_bytes() + b"\n")
    (problem,) = chain.check("mini", heads, mini.settings)
    assert problem == "predictions: version 0 is not the commit that version 1 was made after"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"pipeline": "mini"}', b'{"pipeline": "mini", "heads": {"raw": 3}}']
)
def test_what_is_no_anchor_is_refused(content: bytes) -> None:
    with pytest.raises(StorageError, match="no exported head"):
        chain.read_anchor(content)


def test_the_command(mini: Mini, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project = Project(tmp_path / "shop")
    project.add_pipeline("mini", ATTRIBUTES)
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(mini.settings.root))

    def ask(*words: Any) -> Any:
        return CliRunner().invoke(cli, [str(word) for word in words])

    assert ask("chain", "export", "mini").exit_code == 1  # nothing is there
    mini.register()
    mini.write(DAYS[0])
    make(mini, DAYS[0])
    kept = tmp_path / "anchor.json"
    assert ask("chain", "export", "mini", "--output", kept).output == f"{kept}: heads of 4 tables\n"
    assert json.loads(ask("chain", "export", "mini").output)["heads"] == json.loads(kept.read_text())["heads"]
    answer = ask("chain", "check", kept)
    assert (answer.exit_code, answer.output) == (0, "mini: the heads of 4 tables are part of their chains\n")
    content = json.loads(kept.read_text())
    content["heads"]["raw"]["hash"] = "0" * 64
    kept.write_text(json.dumps(content))
    answer = ask("chain", "check", kept)
    assert (answer.exit_code, answer.output) == (
        1,
        f"mini: raw: version {content['heads']['raw']['version']} is not the commit that was exported\n",
    )
