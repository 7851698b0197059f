"""Scoring a partition on a real Ray cluster: the values, the quarantine and the ledger of one engine."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from batch_platform.core import scoring
from batch_platform.core.inference.ray_executor import RayExecutor
from batch_platform.core.slice import StageResult
from batch_platform.errors import GateError, ModelError
from batch_platform_tests.core.scoring_bench import DAY, OUTPUTS, ROWS, Bench
from batch_platform_tests.mini import ATTRIBUTES, Mini, good_row
from batch_platform_tests.project import wait_for
from batch_platform_tests.ray_cluster import RayCluster, ray_cluster
from batch_platform_tests.torture.worker import PIPELINE_FILE

ON_RAY = {"executor": "ray", "devices": 2, "max_error_share": 0.1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(cpus=2) as running:
        yield running


def score(bench: Bench, run: str, engine: Any) -> StageResult:
    return scoring.score_partition(bench.slice(run), bench.model, engine, bench.said.append)


def made(bench: Bench) -> pl.DataFrame:
    return bench.predictions().select(OUTPUTS)


def test_actors_do_the_work_of_one_engine(cluster: RayCluster, mini: Mini) -> None:
    bench = Bench(mini)
    # One row that the model cannot read.
    mini.write(DAY, [*(good_row(DAY, number) for number in range(ROWS - 1)), POISON])
    bench.prepare()
    bench.score("first")
    alone, failed = made(bench), mini.table("quarantine").select("row_key", "error_type", "stage")
    assert (alone.height, failed.rows()) == (ROWS - 1, [(POISON["id"], "InfiniteFeature", "predictions")])

    mini.change(inference={**ON_RAY, "shard_rows": 8})
    with closing(scoring.load_engine(bench.model, mini.spec, mini.settings.root)) as engine:
        assert isinstance(engine, RayExecutor)
        assert score(bench, "second", engine).reused  # the same work, whatever computes it
        mini.change(inference={**ON_RAY, "shard_rows": 7})
        assert score(bench, "third", engine).metadata["rows_scored"] == ROWS
        assert set(bench.predictions()["run_id"]) == {"third"}
        assert made(bench).equals(alone)
        quarantine = mini.table("quarantine").select("row_key", "error_type", "stage")
        assert quarantine.unique().rows() == failed.rows()
        assert " by " in bench.said[-1] and bench.said[-1].endswith(" on 1 node")

        mini.change(inference={**ON_RAY, "shard_rows": 6, "max_error_share": 0.0})
        with pytest.raises(GateError):
            score(bench, "fourth", engine)
    wait_for(lambda: cluster.actors() == [], "the end of the actors", 60)

    mini.change(inference={"shard_rows": 7})
    assert bench.score("fifth").reused


POISON = {**good_row(DAY, 99), "amount": 1e39}  # beyond float32


def test_a_killed_driver_leaves_no_actor_and_its_shards_are_kept(cluster: RayCluster, mini: Mini) -> None:
    rows = 400
    inference = {"executor": "ray", "shard_rows": 1}
    (mini.folder / PIPELINE_FILE).write_text(yaml.safe_dump({**ATTRIBUTES, "inference": inference}))
    mini.write(DAY, rows)
    command = [sys.executable, "-m", "batch_platform_tests.torture.worker", str(mini.folder), DAY]
    with subprocess.Popen([*command, "--run-id", "killed"], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "scored\n"
        assert cluster.actors() == ["ALIVE"]
        driver.kill()
    wait_for(lambda: cluster.actors() == [], "the end of the actors", 60)

    mini.change(inference=inference)
    bench = Bench.__new__(Bench)
    bench.mini, bench.model, bench.said = mini, mini.register(), []
    with closing(scoring.load_engine(bench.model, mini.spec, mini.settings.root)) as engine:
        assert score(bench, "second", engine).rows == rows
    by_run = dict(bench.predictions()["run_id"].value_counts().rows())
    assert by_run.keys() == {"killed", "second"}
    assert sum(by_run.values()) == rows


def test_a_node_without_the_model_says_so(mini: Mini, tmp_path: Path) -> None:
    model = mini.register()
    asked = (mini.spec, mini.settings.root, "cpu")
    assert scoring._load_elsewhere(model.name, model.version, model.digest, *asked).plan.device == "cpu"
    with pytest.raises(ModelError, match=r"is another one .*every node needs the same BATCH_PLATFORM_ROOT"):
        scoring._load_elsewhere(model.name, model.version, "sha256:0", *asked)
    with pytest.raises(ModelError, match=r"does not find model churn version 1 in .*/elsewhere: every node"):
        scoring._load_elsewhere(
            model.name, model.version, model.digest, mini.spec, tmp_path / "elsewhere", "cpu"
        )
