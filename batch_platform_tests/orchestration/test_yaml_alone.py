"""Two jobs written by YAML alone and run through Dagster on fresh data: churn with joins and late labels, and documents.

What a pipeline file and a registered model can do without a line of Python.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from batch_platform.core.models.registry import Registry
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.models.tabular import TabularConfig
from batch_platform.core.provenance.explaining import explain
from batch_platform.core.provenance.impact import Question, affected
from batch_platform.core.spec import parse_spec
from batch_platform.core.verifying import verify
from batch_platform_tests import tiny_models
from batch_platform_tests.mini import Mini

CHURN = """
name: churn
partitions: {cadence: monthly, start: "2025-01-01"}
source:
  uri: "data/customers/{partition}.csv"
  format: csv
  row_key: customer_id
  columns:
    customer_id: {type: string, required: true}
    plan: {type: string, allowed: [basic, pro]}
    joined: {type: date}
lookups:
  - uri: "data/usage/*.parquet"
    on: customer_id
    event_time: day
    lookback_days: 40
    columns: {minutes: {type: float64, required: true}}
  - uri: data/complaints.csv
    format: csv
    on: customer_id
    event_time: received_at
    lookback_days: 90
    columns: {severity: {type: int32}}
    aggregates:
      complaints_90d: {function: count}
      worst_90d: {function: max, column: severity}
features:
  steps:
    - encode: {columns: [plan], suffix: _code}
    - date_parts: {column: joined, parts: [year]}
model: {name: churn}
labels:
  uri: "data/labels/{partition}.csv"
  format: csv
  row_key: customer_id
  column: churned
  horizon_days: 30
inference: {max_error_share: 0.2}
drift: {reference_partitions: 3}
"""

DOCUMENTS = """
name: documents
partitions: {start: "2026-01-01"}
source:
  uri: "data/documents/{partition}.jsonl"
  format: jsonl
  row_key: doc
  columns:
    doc: {type: string, required: true}
    title: {type: string}
    body: {type: string}
features:
  steps:
    - clean_text: {column: body}
    - chunk: {column: body, max_tokens: 16, overlap: 3}
    - compose_text: {template: "{title} {body}"}
model: {name: embedder}
inference: {max_error_share: 0.5}
drift: {reference_partitions: 3}
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mini]:
    """A project folder without any pipeline, model or data."""
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(tmp_path / "root"))
    with dg.instance_for_test() as instance:
        yield Mini(tmp_path, instance)


def use(workplace: Mini, file: str) -> None:
    attributes = yaml.safe_load(file)
    workplace.spec = parse_spec(attributes, attributes["name"])


def register(workplace: Mini, name: str, folder: Path, flavor: str, signature: ModelSignature) -> None:
    Registry(workplace.settings.root).register(
        name,
        folder,
        flavor,
        signature,
        card=tiny_models.CARD,
        golden=None,
        alias="champion",
        by="tests",
        why="a test",
    )


def write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def churn_model(workplace: Mini, values: Sequence[str] = ("basic", "pro")) -> None:
    numeric = ("minutes", "complaints_90d", "worst_90d", "plan_code", "joined_year")
    config = TabularConfig(numeric, {}, "classification", ("stays", "churned"), (8,), 4)
    folder = tiny_models.tabular_model(workplace.folder / f"model-{len(values)}", config)
    (folder / "encoders.json").write_text(json.dumps({"plan": {"kind": "ordinal", "values": list(values)}}))
    register(workplace, "churn", folder, "torch", config.signature())


def write_customers(workplace: Mini, month: str) -> None:
    rows = [f"c{n},{'pro' if n % 2 else 'basic'},201{n % 10}-05-0{1 + n % 9}" for n in range(40)]
    write(workplace.folder / "data" / "customers" / f"{month}.csv", ["customer_id,plan,joined", *rows])


def write_usage(workplace: Mini, month: str, minutes: float) -> None:
    """Usage of every customer but c7 on the first ten days of a month; the last day counts."""
    first = date.fromisoformat(month)
    days = [first + timedelta(days=n) for n in range(10)]
    rows = [
        (f"c{n}", day, minutes + n + place) for place, day in enumerate(days) for n in range(40) if n != 7
    ]
    keys, moments, values = zip(*rows, strict=True)
    path = workplace.folder / "data" / "usage" / f"{month}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"customer_id": keys, "day": pa.array(moments, pa.date32()), "minutes": values}), path
    )


def test_churn_with_joins_and_delayed_labels(workplace: Mini) -> None:
    use(workplace, CHURN)
    churn_model(workplace)
    for month, minutes in (("2026-01-01", 100.0), ("2026-02-01", 200.0)):
        write_customers(workplace, month)
        write_usage(workplace, month, minutes)
    complaints = ["c1,2026-01-05T10:00:00Z,2", "c1,2026-02-03T10:00:00Z,5", "c2,2025-06-01T00:00:00Z,9"]
    write(workplace.folder / "data" / "complaints.csv", ["customer_id,received_at,severity", *complaints])

    workplace.run("2026-01-01", "2026-02-01")
    features = workplace.table("features")
    january, february = (features.filter(pl.col("partition_key") == f"2026-0{n}-01") for n in (1, 2))
    assert dict(january.select("row_key", "minutes").rows())["c3"] == 112.0
    assert dict(february.select("row_key", "minutes").rows())["c3"] == 212.0
    told = {
        key: rest
        for key, *rest in february.select("row_key", "complaints_90d", "worst_90d", "plan_code").rows()
    }
    assert (told["c1"], told["c2"], told["c3"]) == ([2, 5.0, 1.0], [0, None, 0.0], [0, None, 1.0])
    assert (
        dict(january.select("row_key", "worst_90d").rows())["c1"] == 2.0
    )  # February's complaint is not known yet
    quarantined = workplace.table("quarantine").filter(pl.col("partition_key") == "2026-01-01")
    assert quarantined.select("row_key", "error_type").rows() == [("c7", "lookup_missing")]
    assert workplace.rows("predictions", "2026-01-01") == 39

    # Labels of January are due a month after its end; they come late, and some are corrected later still.
    assert workplace.check("performance", "performance", "2026-01-01") is False
    labels = workplace.folder / "data" / "labels" / "2026-01-01.csv"
    write(labels, ["customer_id,churned", *(f"c{n},{'churned' if n % 3 else 'stays'}" for n in range(20))])
    workplace.run("2026-01-01", stages=["performance"])
    assert workplace.check("performance", "performance", "2026-01-01") is True
    assert measured(workplace)["rows"] == 19  # c7 has a label and no prediction
    write(labels, ["customer_id,churned", *(f"c{n},{'churned' if n % 3 else 'stays'}" for n in range(40))])
    workplace.run("2026-01-01", stages=["performance"])
    assert measured(workplace)["rows"] == 39

    # Nothing is made anew for usage of later months; a corrected past is.
    standing = attempts(workplace)
    write_usage(workplace, "2026-03-01", 300.0)
    workplace.run("2026-01-01", "2026-02-01")
    assert attempts(workplace) == standing
    write_usage(workplace, "2026-02-01", 250.0)
    workplace.run("2026-01-01", "2026-02-01")
    assert [new > old for new, old in zip(attempts(workplace), standing, strict=True)] == [False, True]
    assert verify(workplace.spec, workplace.settings, workplace.folder).ok


def test_features_follow_the_encoders_of_the_model_and_are_not_mixed_with_others(workplace: Mini) -> None:
    use(workplace, CHURN)
    churn_model(workplace)
    write_customers(workplace, "2026-01-01")
    write_usage(workplace, "2026-01-01", 100.0)
    write(workplace.folder / "data" / "complaints.csv", ["customer_id,received_at,severity"])
    workplace.run("2026-01-01", stages=["raw", "features"])
    churn_model(workplace, values=("free", "basic", "pro"))
    result = workplace.run("2026-01-01", stages=["predictions"], fail=True)
    assert "were made with another encoders.json than that of model churn version 2" in str(
        [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    )
    workplace.run("2026-01-01")
    assert set(workplace.table("features")["plan_code"]) == {1.0, 2.0}


def measured(workplace: Mini) -> Mapping[str, Any]:
    table = workplace.table("performance").filter(pl.col("partition_key") == "2026-01-01")
    rows = workplace.table("labels").join(workplace.table("predictions"), on=["row_key", "partition_key"])
    return {**dict(table.select("metric", "value").rows()), "rows": rows.height}


def attempts(workplace: Mini) -> list[int]:
    from batch_platform.core.data.lake import Lake, Slot

    heads = [Lake(workplace.layout).head(Slot("predictions", f"2026-0{n}-01")) for n in (1, 2)]
    return [head.attempt for head in heads if head is not None]


def test_documents_are_cut_embedded_and_found(workplace: Mini) -> None:
    use(workplace, DOCUMENTS)
    folder = tiny_models.text_embedder(workplace.folder / "embedder")
    signature = ModelSignature(
        (InputColumn("text", "string"),), "embedding", text_column="text", normalize=True
    )
    register(workplace, "embedder", folder, "transformers", signature)
    day = "2026-01-01"
    words = " ".join(tiny_models.WORDS)
    documents = [
        {"doc": "long", "title": "report", "body": f"{words} {words} {words}"},
        {"doc": "short", "title": "lunch", "body": "see you\tat lunch"},
        {"doc": "empty", "title": "nothing", "body": "  "},
        {"doc": "twin#0", "title": "lunch", "body": "see you at lunch"},
    ]
    write(workplace.folder / "data" / "documents" / f"{day}.jsonl", [json.dumps(each) for each in documents])
    workplace.run(day)

    features = workplace.table("features")
    pieces = features.filter(pl.col("parent_key") == "long").sort("row_key")
    assert pieces["row_key"].to_list() == [f"long#{n}" for n in range(pieces.height)]
    assert pieces.height >= 3
    assert features.filter(pl.col("parent_key") != "long")["row_key"].to_list() == ["short#0", "twin#0#0"]
    assert workplace.table("quarantine")["row_key"].to_list() == ["empty"]

    predictions = workplace.table("predictions")
    assert sorted(predictions["row_key"]) == sorted(features["row_key"])
    found = top_k(predictions, key="short#0", k=2)
    assert found[0] == ("twin#0#0", pytest.approx(1.0, abs=1e-5))

    assert verify(workplace.spec, workplace.settings, workplace.folder).ok
    told = explain(workplace.spec, workplace.settings, "long#1")
    assert (told.status, told.source_row, told.raw and told.raw["title"]) == ("predicted", 0, "report")
    file = f"data/documents/{day}.jsonl"
    assert affected(workplace.settings, Question(by="source_file", value=file)).rows == predictions.height
    workplace.run(day)
    assert set(workplace.table("predictions")["run_id"]) == set(predictions["run_id"])


def top_k(predictions: pl.DataFrame, key: str, k: int) -> list[tuple[str, float]]:
    """The nearest pieces by cosine: the search that the README shows."""
    keys, vectors = predictions["row_key"].to_list(), np.array(predictions["embedding"].to_list())
    likeness = vectors @ vectors[keys.index(key)]
    order = [place for place in np.argsort(-likeness, kind="stable") if keys[place] != key]
    return [(keys[place], float(likeness[place])) for place in order[:k]]


def test_the_e_mails_of_the_gallery_are_found_by_meaning(workplace: Mini) -> None:
    """The real pipeline file on a few e-mails and a tiny model: each e-mail comes once, the likest first."""
    from batch_platform.defs.mail_search import training
    from batch_platform.demo.search import search

    file = Path(training.__file__).with_name("defs.yaml")
    workplace.spec = parse_spec(yaml.safe_load(file.read_text())["attributes"], "mail_search")
    folder = tiny_models.text_embedder(workplace.folder / "embedder")
    signature = replace(training.SIGNATURE, output_size=32)
    register(workplace, "mail_search", folder, "transformers", signature)
    day = "2002-08-26"
    mails = [
        {"message_id": "<one>", "subject": "lunch", "body": "see you tomorrow"},
        {"message_id": "<two>", "subject": "money", "body": " ".join(["win free money now click"] * 40)},
        {"message_id": "<three>", "subject": "a report", "body": "the meeting"},
    ]
    source = workplace.folder / ".demo_data" / "email_triage" / "raw" / f"{day}.jsonl"
    write(source, [json.dumps(mail) for mail in mails])
    workplace.run(day, stages=["raw", "features", "predictions"])
    assert workplace.table("features").filter(pl.col("parent_key") == "<two>").height > 1
    hits = search(workplace.spec, workplace.settings, "lunch see you tomorrow", 3)
    assert (hits[0].row_key, hits[0].day) == ("<one>#0", day)
    assert hits[0].likeness == pytest.approx(1.0, abs=1e-4)
    assert sorted(hit.row_key.rpartition("#")[0] for hit in hits) == ["<one>", "<three>", "<two>"]
