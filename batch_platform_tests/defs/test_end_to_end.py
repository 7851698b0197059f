"""Both demos on a few dates of their real data: fetched, trained, scored through Dagster, counted by another reader.

The real data is fetched into the project's `.demo_data` once, as `make demo` does; training takes a smaller plan.
"""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import duckdb
import polars as pl
import pytest

from batch_platform.core.layout import Layout
from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.spec import PipelineSpec
from batch_platform.defs.email_triage import training as email_training
from batch_platform.defs.flight_delays import training as flight_training
from batch_platform.demo import fetch
from batch_platform.orchestration.assets import pipeline_assets
from batch_platform.orchestration.model_assets import model_asset
from batch_platform.orchestration.stages import asset_key, stages_of
from batch_platform.settings import ROOT_VARIABLE, Settings
from batch_platform_tests.project import REPOSITORY
from batch_platform_tests.receipts import gaps, receipts

DATA = REPOSITORY / ".demo_data"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    fetch.fetch(DATA, lambda line: None)
    yield Settings.from_env()


def run(spec: PipelineSpec, first: str, last: str) -> dg.DagsterInstance:
    """Materialize a range of dates; ends well."""
    instance = dg.DagsterInstance.ephemeral()
    result = dg.materialize(
        [pipeline_assets(spec), model_asset(spec, is_trained=False)],
        selection=[asset_key(spec, stage.name) for stage in stages_of(spec)],
        instance=instance,
        tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
    )
    assert result.success
    return instance


def table(settings: Settings, spec: PipelineSpec, name: str) -> pl.DataFrame:
    return pl.read_delta(str(Layout.of(settings, spec.name).table(name)))


def by_date(frame: pl.DataFrame) -> dict[str, int]:
    return dict(frame.group_by("partition_key").len().rows())


def test_email_triage(settings: Settings) -> None:
    spec = find_pipeline(defs_folder(), "email_triage")
    plan = email_training.Plan(
        first="2002-07-08", cut_off="2002-07-20", end="2002-07-23", layers=1, epochs=1, tokens=32
    )
    email_training.train(spec, settings, plan)
    # Ordinary days, one with an e-mail without Message-Id (16), and one without any (14).
    run(spec, "2002-07-13", "2002-07-16")
    lines = {
        path.stem: path.read_bytes().count(b"\n")
        for path in (DATA / "email_triage" / "raw").glob("2002-07-1[3-6].jsonl")
    }
    assert "2002-07-14" not in lines
    predictions, quarantine = table(settings, spec, "predictions"), table(settings, spec, "quarantine")
    counted = by_date(predictions)
    for day, rows in by_date(quarantine).items():
        counted[day] += rows
    assert counted == lines
    assert quarantine.select("partition_key", "stage", "error_type").rows() == [
        ("2002-07-16", "raw", "null_key")
    ]
    assert set(predictions["decision"]) <= {"spam", "ham"}
    assert predictions["score"].is_between(0, 1).all()
    performance = table(settings, spec, "performance").filter(pl.col("metric") == "accuracy")
    assert performance.height == 3
    assert {r["table"] for r in receipts(Layout.of(settings, spec.name)) if gaps(r)} == set()


def test_flight_delays(settings: Settings) -> None:
    spec = find_pipeline(defs_folder(), "flight_delays")
    plan = flight_training.Plan(held_out="2013-01-25", test="2013-02-01", end="2013-02-08", epochs=1)
    flight_training.train(spec, settings, plan)
    instance = run(spec, "2013-05-01", "2013-05-03")
    source = DATA / "flight_delays" / "raw"
    expected = {
        day: duckdb.sql(f"select count(*) from read_parquet('{source / day}.parquet')").fetchall()[0][0]
        for day in ("2013-05-01", "2013-05-02", "2013-05-03")
    }
    predictions = table(settings, spec, "predictions")
    assert by_date(predictions) == expected
    assert predictions.select("partition_key", "row_key").is_duplicated().sum() == 0
    labels = table(settings, spec, "labels")
    assert set(labels["label"]) == {"late", "on_time"}
    assert table(settings, spec, "performance")["metric"].n_unique() > 5
    for stage in stages_of(spec):
        assert instance.get_materialized_partitions(asset_key(spec, stage.name)) == set(expected)
    for day in expected:
        report = Layout.of(settings, spec.name).report(day) / "drift.html"
        assert "not enough history" in report.read_text()
    assert {r["table"] for r in receipts(Layout.of(settings, spec.name)) if gaps(r)} == set()
