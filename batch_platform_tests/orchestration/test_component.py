"""The component as its users meet it: scaffolded, explained, listed, made in Python, and a pipeline by YAML alone."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import yaml
from dagster.components.core.component_tree import ComponentTreeException
from dagster.components.testing import DefsFolderSandbox, create_defs_folder_sandbox

from batch_platform import BatchInferencePipeline
from batch_platform.core.models.predictor import SignatureRequest, describe
from batch_platform.core.models.registry import Registry
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.spec import parse_spec
from batch_platform.errors import NotYetSupportedError
from batch_platform_tests import tiny_models
from batch_platform_tests.mini import ATTRIBUTES, DAYS, Mini
from batch_platform_tests.project import REPOSITORY, Project

# Not pandas: pyarrow imports it with the first Python value, and steps run once over no rows at loading.
HEAVY = [
    "torch",
    "transformers",
    "evidently",
    "sklearn",
    "ray",
    "scipy",
    "lightgbm",
    "xgboost",
    "onnxruntime",
]
LABELLED = {
    **ATTRIBUTES,
    "labels": {"uri": "labels/{partition}.csv", "format": "csv", "row_key": "id", "column": "truth"},
}


def test_definitions_load_without_heavy_libraries() -> None:
    program = f"import sys, batch_platform.definitions; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# -- the pipeline file ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DefsFolderSandbox]:
    with create_defs_folder_sandbox() as made:
        yield made


def built(sandbox: DefsFolderSandbox, attributes: dict[str, Any], name: str = "shop") -> dg.Definitions:
    """The definitions that Dagster makes of one pipeline file."""
    path = sandbox.defs_folder_path / name
    path.mkdir(exist_ok=True)
    document = {"type": "batch_platform.BatchInferencePipeline", "attributes": attributes}
    (path / "defs.yaml").write_text(yaml.safe_dump(document))
    with sandbox.load_component_and_build_defs(path) as (component, defs):
        assert isinstance(component, BatchInferencePipeline)
        return defs


def said(error: BaseException) -> str:
    """An exception with all its causes, as Dagster shows it."""
    causes = []
    current: BaseException | None = error
    while current is not None:
        causes.append(str(current))
        current = current.__cause__ or current.__context__
    return "\n".join(causes)


def test_assets_checks_job_and_schedule(sandbox: DefsFolderSandbox) -> None:
    attributes = {**LABELLED, "automation": {"trigger": "schedule", "cron": "0 3 * * *"}}
    del attributes["name"]
    defs = built(sandbox, attributes)
    graph = defs.resolve_asset_graph()
    stages = ["raw", "features", "predictions", "drift_report", "performance"]
    keys = {f"shop/{stage}" for stage in [*stages, "model"]}
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == keys
    partitioned = {key.path[-1] for key in graph.get_all_asset_keys() if graph.get(key).is_partitioned}
    assert partitioned == set(stages)
    checks = {stage: set() for stage in stages}
    for key in graph.asset_check_keys:
        checks[key.asset_key.path[-1]].add(key.name)
        assert graph.get(key).partitions_def is not None
    complete, usual = {"complete"}, {"usual_nulls", "usual_ranges", "known_values"}
    assert checks == {
        "raw": {"contract", "volume", "duplicates", "quarantined_share", "usual_volume", "freshness"}
        | usual
        | complete,
        "features": {"schema", "nulls", "finite", "quarantined_share"} | usual | complete,
        "predictions": {"reconciliation", "finite", "range", "quarantined_share"} | complete,
        "drift_report": {"features_drift", "predictions_drift"} | complete,
        "performance": {"performance"} | complete,
    }
    predictions = graph.get(dg.AssetKey(["shop", "predictions"]))
    assert {key.path[-1] for key in predictions.parent_keys} == {"features", "model"}
    assert defs.resolve_job_def("shop").partitions_def == predictions.partitions_def
    schedules = {schedule.name: schedule.cron_schedule for schedule in defs.schedules}
    assert schedules.pop("shop_schedule") == "0 3 * * *"
    assert list(schedules) == ["shop_maintenance_schedule"]
    assert {job.name for job in defs.jobs} == {"shop", "shop_maintenance", "shop_drift_review"}
    names = [sensor.name for sensor in defs.sensors]
    assert names == ["shop_reviews", "shop_late_labels", "shop_model_sensor"]


def with_field(path: str, value: Any) -> dict[str, Any]:
    attributes = json.loads(json.dumps(ATTRIBUTES))
    *parents, last = path.split(".")
    section = attributes
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return attributes


WRONG = [
    ("colour", "red", ["attributes.colour", "shop/defs.yaml:"]),
    ("inference.shard_row", 5, ["attributes.inference.shard_row", "defs.yaml:"]),
    ("inference.shard_rows", "many", ["attributes.inference.shard_rows", "valid integer"]),
    ("source.columns.age.type", "number", ["attributes.source.columns.age.type", "'int64'"]),
    ("partitions.end", "2025-12-31", ["attributes.partitions", "'2025-12-31' is not after partitions.start"]),
    (
        "automation",
        {"trigger": "schedule", "cron": "61 3 * * *"},
        ["attributes.automation", "cron '61 3 * * *' is not valid: five fields, e.g. 0 3 * * *"],
    ),
    (
        "automation",
        {"trigger": "schedule", "cron": "0 0 31 2 *"},
        ["attributes.automation", "cron '0 0 31 2 *'"],
    ),
]
LATER = [
    ("automation.trigger", "on_arrival", "automation.trigger: on_arrival"),
    ("automation.trigger", "upstream", "automation.trigger: upstream"),
    ("automation.off_peak", "22:00-06:00", "automation.off_peak"),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG)
def test_a_mistake_is_named_with_its_place(
    sandbox: DefsFolderSandbox, path: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(ComponentTreeException) as caught:
        built(sandbox, with_field(path, value))
    for word in words:
        assert word in said(caught.value)


@pytest.mark.parametrize(("path", "value", "field"), LATER)
def test_what_comes_later_is_refused_and_not_ignored(
    sandbox: DefsFolderSandbox, path: str, value: Any, field: str
) -> None:
    with pytest.raises(ComponentTreeException) as caught:
        built(sandbox, with_field(path, value))
    assert f"pipeline mini: {field} comes with a later release of batch_platform; remove it" in said(
        caught.value
    )


def test_the_same_pipeline_in_python() -> None:
    component = BatchInferencePipeline(**ATTRIBUTES)
    defs = dg.build_defs_for_component(component)
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {f"mini/{name}" for name in ("raw", "features", "predictions", "drift_report", "model")}
    assert component.inference.shard_rows == 8
    with pytest.raises(ValueError, match="colour"):
        BatchInferencePipeline(**ATTRIBUTES, colour="red")
    with pytest.raises(NotYetSupportedError, match=r"automation\.off_peak comes with a later release"):
        dg.build_defs_for_component(BatchInferencePipeline(**with_field("automation.off_peak", "night")))


# -- as a user, by command --------------------------------------------------------------------------------


def test_scaffold_list_and_check(tmp_path: Path) -> None:
    project = Project(tmp_path)
    done = project.command("dg", "scaffold", "defs", "batch_platform.BatchInferencePipeline", "my_pipeline")
    assert done.returncode == 0, done.stdout
    path = tmp_path / "shop" / "defs" / "my_pipeline" / "defs.yaml"
    document = yaml.safe_load(path.read_text())
    assert document["type"] == "batch_platform.BatchInferencePipeline"
    spec = parse_spec(document["attributes"], "my_pipeline")
    assert (spec.name, spec.model.name, spec.partitions.cadence) == ("my_pipeline", "my_pipeline", "daily")
    assert "{partition}" in spec.source.uri
    # What is commented out as a default is the default.
    plain = parse_spec(
        {name: document["attributes"][name] for name in ("partitions", "source", "model")}, "my_pipeline"
    )
    assert spec == plain
    text = path.read_text()
    for line in (
        f"shard_rows: {plain.inference.shard_rows}",
        f"max_error_share: {plain.inference.max_error_share}",
        f"drift: {{reference_partitions: {plain.drift.reference_partitions}, false_alarms_per_quarter: 1, ",
        f"catch_up: {plain.automation.catch_up}}}",
        f"on_duplicate: {plain.source.on_duplicate}",
    ):
        assert line in text

    listed = json.loads(project.command("dg", "list", "components", "--json").stdout)["items"]
    (ours,) = [entry for entry in listed if entry["key"] == "batch_platform.BatchInferencePipeline"]
    assert "raw inputs -> features -> predictions" in ours["summary"]

    assert project.command("dg", "check", "defs").returncode == 0
    path.write_text(text.replace("format: parquet", "format: parquet\n    colour: red"))
    wrong = project.command("dg", "check", "defs")
    assert wrong.returncode == 1
    assert "attributes.source.colour" in wrong.stdout
    assert "my_pipeline/defs.yaml:" in wrong.stdout
    path.write_text(text + "\n  automation: {off_peak: night}\n")
    later = project.command("dg", "check", "defs")
    assert later.returncode == 1
    assert (
        "pipeline my_pipeline: automation.off_peak comes with a later release of batch_platform"
        in later.stdout
    )


MAIL: dict[str, Any] = {
    "partitions": {"start": "2026-01-01", "end": "2026-02-01"},
    "source": {
        "uri": "mail/{partition}.jsonl",
        "format": "jsonl",
        "row_key": "id",
        "columns": {"id": {"type": "string", "required": True}, "text": {"type": "string", "required": True}},
    },
    "model": {"name": "mail"},
    "decision": {"positive_class": "spam", "threshold": 0.4},
    "labels": {"uri": "truth/{partition}.csv", "format": "csv", "row_key": "id", "column": "label"},
}
PREDICTIONS = {
    "row_key": pl.String(),
    "partition_key": pl.String(),
    "label": pl.String(),
    "score": pl.Float64(),
    "scores": pl.List(pl.Float32()),
    "decision": pl.String(),
    "model_version": pl.String(),
    "model_digest": pl.String(),
    "recipe_version": pl.String(),
    "input_hash": pl.String(),
    "run_id": pl.String(),
    "scored_at": pl.Datetime("us", "UTC"),
}


def write_mail(folder: Path, day: str, seed: int = 0) -> list[str]:
    """A day of 30 mails with labels; returns the texts."""
    texts = tiny_models.texts(30, seed)
    for name in ("mail", "truth"):
        (folder / name).mkdir(exist_ok=True)
    lines = [json.dumps({"id": f"k{place}", "text": text, "more": 1}) for place, text in enumerate(texts)]
    (folder / "mail" / f"{day}.jsonl").write_text("\n".join(lines))
    truth = [f"k{place},{'spam' if 'money' in text else 'ham'}" for place, text in enumerate(texts)]
    (folder / "truth" / f"{day}.csv").write_text("\n".join(["id,label", *truth]))
    return texts


def test_a_third_pipeline_by_yaml_alone(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.add_pipeline("mail", MAIL)
    model = tiny_models.text_classifier(tmp_path / "model")
    card = tmp_path / "card.json"
    card.write_text(json.dumps(tiny_models.CARD))
    options = ("--flavor", "transformers", "--alias", "champion", "--card", str(card), "--by", "me")
    done = project.command("batch-platform", "models", "register", "mail", str(model), *options)
    assert (done.returncode, done.stdout) == (0, "1\n")

    for place, day in enumerate(DAYS[:4]):
        write_mail(tmp_path, day, seed=place)
    bad = DAYS[2]
    (tmp_path / "mail" / f"{bad}.jsonl").unlink()
    one = project.command("dg", "launch", "--job", "mail", "--partition", DAYS[0])
    assert one.returncode == 0, one.stdout[-3000:]
    many = project.command("dg", "launch", "--job", "mail", "--partition-range", f"{DAYS[1]}...{DAYS[3]}")
    assert many.returncode == 1
    assert "mail: 1 of 3 partitions failed, the others are done" in many.stdout
    (line,) = {line.strip() for line in many.stdout.splitlines() if line.strip().startswith(f"{bad}: ")}
    assert line.startswith(
        f"{bad}: raw: pipeline mail, partition {bad}: mail/{bad}.jsonl: no such jsonl file"
    )

    table = pl.read_delta(str(project.layout("mail").table("predictions")))
    assert dict(table.schema) == PREDICTIONS
    assert dict(table["partition_key"].value_counts().iter_rows()) == dict.fromkeys(
        [DAYS[0], DAYS[1], DAYS[3]], 30
    )
    assert table.null_count().sum_horizontal().item() == 0
    assert table.select("partition_key", "row_key").is_unique().all()
    version = Registry(project.settings.root).resolve("mail", "champion")
    assert set(table["model_version"]) == {"1"}
    assert set(table["model_digest"]) == {version.digest}
    assert table["recipe_version"].n_unique() == 1
    assert table["run_id"].n_unique() == 2
    spam = version.signature.labels.index("spam")
    assert table["score"].to_list() == pytest.approx([scores[spam] for scores in table["scores"]])
    assert table["label"].to_list() == [
        ["ham", "spam"][max((0, 1), key=s.__getitem__)] for s in table["scores"]
    ]
    assert table["decision"].to_list() == ["spam" if score >= 0.4 else "ham" for score in table["score"]]
    assert table["decision"].n_unique() == table["label"].n_unique() == 2
    performance = pl.read_delta(str(project.layout("mail").table("performance")))
    assert set(performance["partition_key"]) == {DAYS[0], DAYS[1], DAYS[3]}


# -- other tasks and cadences, in process -----------------------------------------------------------------


def test_an_embedding_pipeline(mini: Mini) -> None:
    mini.change(
        name="vectors",
        source={**MAIL["source"]},
        model={"name": "vectors"},
        inference={"shard_rows": 16},
    )
    signature = ModelSignature(
        inputs=(InputColumn("text", "string"),),
        task="embedding",
        text_column="text",
        max_tokens=32,
        output_size=32,
    )
    model = tiny_models.text_embedder(mini.folder / "vectors")
    Registry(mini.settings.root).register(
        "vectors", model, "transformers", signature, card=None, by="tests", why="a test", alias="champion"
    )
    for day in DAYS[:2]:
        write_mail(mini.folder, day)
    mini.run(DAYS[0], DAYS[1])
    table = mini.table("predictions")
    assert table.schema["embedding"] == pl.List(pl.Float32())
    assert "label" not in table.columns
    assert set(table["embedding"].list.len()) == {32}
    assert table["embedding"].explode().is_finite().all()
    first, second = (table.filter(pl.col("partition_key") == day).sort("row_key") for day in DAYS[:2])
    assert first["input_hash"].to_list() == second["input_hash"].to_list()
    assert first["embedding"].to_list() == second["embedding"].to_list()
    assert mini.check("drift_report", "complete", DAYS[1]) is True


def test_a_generation_pipeline(mini: Mini) -> None:
    mini.change(
        name="answers",
        source={**MAIL["source"]},
        model={"name": "answers"},
        inference={"shard_rows": 16},
    )
    model = tiny_models.text_answerer(mini.folder / "answers")
    signature = describe(model, "transformers", SignatureRequest(max_new_tokens=6))
    Registry(mini.settings.root).register(
        "answers", model, "transformers", signature, card=None, by="tests", why="a test", alias="champion"
    )
    for day in DAYS[:2]:
        write_mail(mini.folder, day)
    mini.run(DAYS[0], DAYS[1])
    table = mini.table("predictions")
    assert table.schema["generated_text"] == pl.String()
    assert table["generated_text"].str.len_chars().max() > 0
    first, second = (table.filter(pl.col("partition_key") == day).sort("row_key") for day in DAYS[:2])
    assert first["generated_text"].to_list() == second["generated_text"].to_list()
    assert mini.check("drift_report", "complete", DAYS[1]) is True


CADENCES = [
    ("weekly", "2026-01-01", ["2026-01-04", "2026-01-11"]),
    ("monthly", "2026-01-01", ["2026-01-01", "2026-02-01"]),
    ("hourly", "2026-01-01-00:00", ["2026-01-01-22:00", "2026-01-01-23:00"]),
]


@pytest.mark.parametrize(("cadence", "start", "keys"), CADENCES)
def test_other_cadences(mini: Mini, cadence: str, start: str, keys: list[str]) -> None:
    mini.change(name=cadence, partitions={"cadence": cadence, "start": start, "end": None})
    for count, key in enumerate(keys, start=5):
        mini.write(key, count)
    # Every stage for one of them: the reports have folders of their own.
    stages = None if cadence == "hourly" else ["raw", "features", "predictions"]
    mini.run(keys[0], keys[1], stages)
    for table in ("raw", "features", "predictions"):
        assert {key: mini.rows(table, key) for key in keys} == {keys[0]: 5, keys[1]: 6}
        assert set(mini.table(table)["partition_key"]) == set(keys)
    assert set(mini.table("raw")["source_file"]) == {f"data/{key}.csv" for key in keys}
    assert mini.check("predictions", "complete", keys[1]) is True
