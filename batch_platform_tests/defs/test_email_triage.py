import json
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from batch_platform.core.models.registry import Registry
from batch_platform.core.pipelines import find_pipeline
from batch_platform.core.spec import PipelineSpec
from batch_platform.defs.email_triage.features import RECIPE
from batch_platform.defs.email_triage.training import Plan, train
from batch_platform.errors import SourceError
from batch_platform.settings import Settings
from batch_platform_tests.tiny_models import text_embedder

DEFS = Path(__file__).parents[2] / "batch_platform" / "defs"


@pytest.fixture
def spec() -> PipelineSpec:
    return find_pipeline(DEFS, "email_triage")


def raw(**columns: object) -> pa.RecordBatch:
    row = {
        "row_key": "a",
        "received_at": None,
        "subject": "Hi",
        "content_type": "text/plain",
        "body": "hello",
        "attachments": 0,
    } | columns
    schema = pa.schema(
        [
            ("row_key", pa.string()),
            ("received_at", pa.timestamp("us", tz="UTC")),
            ("subject", pa.string()),
            ("content_type", pa.string()),
            ("body", pa.string()),
            ("attachments", pa.int32()),
        ]
    )
    received = row["received_at"] or "2002-08-22T09:45:38+00:00"
    moment = pa.array([received]).cast(pa.timestamp("us", tz="UTC"))[0].as_py()
    return pa.RecordBatch.from_pylist([row | {"received_at": moment}], schema)


def features(**columns: object) -> dict[str, object]:
    return RECIPE.apply(raw(**columns)).to_pylist()[0]


def test_html_keeps_its_words_and_the_names_of_its_tags() -> None:
    made = features(
        content_type="text/html", body='<p align="x">Buy\n <a href="http://spam.example/?q=1">now</a></p>'
    )
    assert made["text"] == "Hi <p>Buy <a>now</a></p>"
    assert (made["links"], made["is_html"]) == (1, True)


def test_plain_text_is_not_taken_for_html() -> None:
    assert features(body="if a < b and c > d")["text"] == "Hi if a < b and c > d"


def test_what_is_watched_is_counted() -> None:
    made = features(subject="Re: Re: lunch", body="https://a http://b HTTP://c", attachments=2)
    assert {name: made[name] for name in ("links", "is_reply", "attachments", "hour", "is_html")} == {
        "links": 3,
        "is_reply": True,
        "attachments": 2,
        "hour": 9,
        "is_html": False,
    }


def test_missing_subject_and_body_give_an_empty_text() -> None:
    made = features(subject=None, body=None)
    assert (made["text"], made["body_characters"], made["is_reply"]) == ("", 0, False)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("body", ["<" * 1_000_000, "<a " * 300_000, "&#x" * 300_000])
def test_a_hostile_megabyte_costs_no_more_than_its_length(body: str) -> None:
    assert len(str(features(content_type="text/html", body=body)["text"])) <= 4000


def write_corpus(base: Path) -> None:
    folder = base / ".demo_data" / "email_triage"
    (folder / "raw").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(10):
        day = (date(2002, 8, 1) + timedelta(days=number)).isoformat()
        rows = [
            {
                "message_id": f"<{number}-{place}>",
                "received_at": f"{day}T10:00:00Z",
                "sender": "a@b",
                "subject": "free money" if place % 2 else "lunch",
                "content_type": "text/plain",
                "body": f"win now {place}" if place % 2 else f"see you tomorrow {place}",
            }
            for place in range(8)
        ]
        (folder / "raw" / f"{day}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        lines = [f"{row['message_id']},{'spam' if place % 2 else 'ham'}" for place, row in enumerate(rows)]
        (folder / "labels" / f"{day}.csv").write_text("\n".join(["message_id,label", *lines]))


PLAN = Plan(first="2002-08-01", cut_off="2002-08-09", end="2002-08-11", layers=1, epochs=2, head_rate=0.1)


def test_training_registers_a_champion_that_the_platform_scores_as_the_training_did(
    spec: PipelineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "workspace.yaml").touch()
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path)
    text_embedder(tmp_path / ".demo_data" / "minilm")
    settings = Settings(root=tmp_path / "root")
    # Registration scores the golden rows through the platform's own loading, and refuses a difference.
    version = train(spec, settings, PLAN)
    assert Registry(settings.root).resolve("email_triage", "champion").digest == version.digest
    assert version.card is not None
    assert version.card["metrics"]["rows"] == 16
    assert {"auc", "baseline_auc", "threshold"} <= set(version.card["metrics"])
    assert "[email_triage] training: epoch 2 of 2" in capsys.readouterr().out
    # The same data and plan give the same model.
    assert train(spec, settings, PLAN).digest == version.digest


def test_without_minilm_the_next_step_is_named(
    spec: PipelineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workspace.yaml").touch()
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path)
    with pytest.raises(SourceError, match=r"batch_platform\.demo\.fetch"):
        train(spec, Settings(root=tmp_path / "root"), PLAN)
