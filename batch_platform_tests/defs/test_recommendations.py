"""The gallery's recommendations: trained on the past alone, ranked by YAML alone, measured, delivered and shown."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import duckdb
import numpy as np
import polars as pl
import pytest

from batch_platform.core.pipelines import find_pipeline
from batch_platform.core.spec import SinkSpec
from batch_platform.core.verifying import verify
from batch_platform.defs.recommendations.training import Plan, train
from batch_platform.demo.purchases import write_days
from batch_platform.demo.recommended import recommended
from batch_platform_tests.demo.test_purchases import write_tables
from batch_platform_tests.mini import Mini

DEFS = Path(__file__).parents[2] / "batch_platform" / "defs"
PLAN = Plan(
    fit=("2017-01-15", "2017-02-05"),
    held_out=("2017-02-05", "2017-02-08"),
    test=("2017-02-15", "2017-02-20"),
    every=2,
    items=40,
    related=40,
    factors=4,
    top_k=3,
    shrinkage=5.0,
    strengths=(30.0,),
)


def purchases() -> list[tuple[int, int, datetime]]:
    """Of twenty households, each buys its own three products every other day, and rarely one of forty."""
    random, found = np.random.default_rng(0), []
    for day in range(60):
        for household in range(20):
            if (day + household) % 2:
                continue
            products = [household * 2 % 30 + place for place in range(3)] + [int(random.integers(40))]
            moment = datetime(2017, 1, 1, 10) + timedelta(days=day, minutes=household)
            found += [(household, 100 + product, moment) for product in products]
    return found


def test_lists_are_trained_scored_measured_delivered_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("SHOP_DB", f"duckdb:///{tmp_path / 'shop.duckdb'}")
    data = tmp_path / ".demo_data" / "recommendations"
    data.mkdir(parents=True)
    write_days(write_tables(tmp_path / "tables", purchases()), data)
    with dg.instance_for_test() as instance:
        mini = Mini(tmp_path, instance)
        sink = SinkSpec(type="sql", connection_env="SHOP_DB", table="lists")
        mini.spec = find_pipeline(DEFS, "recommendations").model_copy(update={"sinks": [sink]})
        version = train(mini.spec, mini.settings, PLAN)
        card = version.card
        metrics = card["metrics"]
        assert metrics["recall"] > metrics["popular_recall"] + 0.2
        assert (
            train(mini.spec, mini.settings, PLAN).version == version.version
        )  # equal inputs, an equal model
        day = "2017-02-16"
        mini.run(day)

        predictions = mini.table("predictions")
        assert predictions.height == 10
        lists = dict(predictions.select("row_key", "items").rows())
        assert set(lists["4"]) == {"108", "109", "110"}
        scores = predictions["item_scores"].to_list()
        assert all(row == sorted(row, reverse=True) for row in scores)
        assert predictions["score"].to_list() == [row[0] for row in scores]
        with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
            delivered = dict(connection.execute("SELECT row_key, items FROM lists").fetchall())
        assert delivered == lists

        measured = dict(mini.table("performance").select("metric", "value").rows())
        assert measured["recall"] > measured["popular_recall"]
        assert measured["top_k"] == 3
        labels = mini.table("labels")
        assert labels.height > predictions.height  # several a household
        shown = recommended(mini.spec, mini.settings, "4", day)
        assert [(each.rank, each.product_id) for each in shown] == list(enumerate(lists["4"], start=1))
        assert all(each.before and each.after for each in shown)
        assert recommended(mini.spec, mini.settings, "5", day) == []
        assert verify(mini.spec, mini.settings, tmp_path).ok
        # What was bought later changes nothing: the newest purchases are left out by the moment.
        features = mini.table("features").sort("row_key")
        known = pl.read_parquet(data / "purchases.parquet")
        known.filter(pl.col("bought_at") < datetime(2017, 2, 17, tzinfo=UTC)).write_parquet(
            data / "purchases.parquet"
        )
        mini.run(day, stages=["raw", "features"])
        assert mini.table("features").sort("row_key").equals(features)
