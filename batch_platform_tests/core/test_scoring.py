"""Scoring a partition: resumed after a kill, never mixed with other work, streamed, and superseded in peace.

The stages are called without Dagster.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from batch_platform.core import featurizing, landing, scoring
from batch_platform.core.data.lake import Slot
from batch_platform.core.inference.engine import Engine
from batch_platform.core.inference.fleet import Fleet
from batch_platform.core.models.registry import RegisteredVersion
from batch_platform.core.reusing import RowPlan
from batch_platform.core.slice import Slice, StageResult
from batch_platform.errors import GateError, SignatureError, SupersededError, UpstreamMissingError
from batch_platform_tests.core.scoring_bench import DAY, OUTPUTS, ROWS, Bench
from batch_platform_tests.mini import Mini


@pytest.fixture
def bench(mini: Mini) -> Bench:
    return Bench(mini)


def test_killed_and_run_again_goes_on_from_the_last_shard(bench: Bench, tmp_path: Path) -> None:
    bench.killed_after(2)
    assert bench.predictions().is_empty()
    result = bench.score("second")
    assert bench.scored == [4]
    assert (result.rows, result.reused) == (ROWS, False)
    table = bench.predictions()
    runs = {row["row_key"]: row["run_id"] for row in table.to_dicts()}
    features = bench.mini.table("features")["row_key"].to_list()
    assert [runs[key] for key in features] == ["first"] * 16 + ["second"] * 4
    stamps = table.group_by("run_id").agg(pl.col("scored_at").max()).sort("run_id")["scored_at"]
    assert stamps[0] < stamps[1]
    assert result.metadata["stats rows"] == ROWS  # of all shards, whoever scored them

    # The same work again is adopted.
    assert bench.score("third").reused
    assert bench.scored == []
    assert bench.predictions().equals(table)

    # An undisturbed run elsewhere gives the same values.
    elsewhere = replace(bench.mini.settings, root=tmp_path / "elsewhere")
    slice_ = bench.slice("only", elsewhere)
    landing.land_partition(slice_)
    featurizing.featurize_partition(slice_)
    scoring.score_partition(slice_, bench.model, bench.engine(), bench.said.append)
    undisturbed = pl.read_delta(str(slice_.layout.table("predictions"))).sort("row_key")
    assert undisturbed.select(OUTPUTS).equals(table.select(OUTPUTS))


def test_killed_before_the_commit_nothing_is_scored_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "publish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bench.score()
    assert bench.predictions().is_empty()
    bench.score("second")
    assert bench.scored == []
    assert set(bench.predictions()["run_id"]) == {"first"}


def test_an_altered_shard_is_scored_again(bench: Bench) -> None:
    bench.killed_after(2)
    (shard,) = bench.mini.layout.staging(DAY).rglob("shard-000000-*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    bench.score("second")
    assert bench.scored == [4, 8]  # the damage shows when the bytes are read, after the missing one
    assert bench.predictions().height == ROWS


def other_model(bench: Bench) -> None:
    bench.model = bench.mini.register(seed=1)


def other_decision(bench: Bench) -> None:
    bench.mini.change(decision={"positive_class": "churned", "threshold": 0.5})


def other_threshold(bench: Bench) -> None:
    bench.mini.change(decision={"positive_class": "churned", "threshold": 0.9})


def other_features(bench: Bench) -> None:
    path = bench.mini.folder / "data" / f"{DAY}.csv"
    path.write_text(path.read_text().replace(",21,", ",22,", 1))
    bench.prepare()


def other_shards(bench: Bench) -> None:
    bench.mini.change(inference={"shard_rows": 10})


@pytest.mark.parametrize(
    "change", [other_model, other_decision, other_threshold, other_features, other_shards]
)
def test_other_work_never_resumes_over_old_shards(bench: Bench, change: Callable[[Bench], None]) -> None:
    if change is other_threshold:
        other_decision(bench)
    bench.killed_after(2)
    change(bench)
    bench.score("second")
    assert bench.scored == ([10, 10] if change is other_shards else [8, 8, 4])
    table = bench.predictions()
    assert set(table["run_id"]) == {"second"}
    assert set(table["model_version"]) == {bench.model.version}
    if bench.mini.spec.decision is not None:
        threshold = bench.mini.spec.decision.threshold
        expected = ["churned" if score >= threshold else "stays" for score in table["score"]]
        assert table["decision"].to_list() == expected


def test_a_superseded_attempt_leaves_the_newer_result_alone(bench: Bench) -> None:
    newer = bench.mini.register(seed=1)
    engine = bench.engine(newer)

    def overtaken(_line: str) -> None:
        head = bench.slice().lake.head(Slot("predictions", DAY))
        if head is None:  # at the first shard, another run does other work from beginning to end
            scoring.score_partition(bench.slice("second"), newer, engine, bench.said.append)

    with pytest.raises(SupersededError, match="nothing left to do"):
        bench.score("first", progress=overtaken)
    table = bench.predictions()
    assert table.height == table["row_key"].n_unique() == ROWS
    assert set(table["run_id"]) == {"second"}
    assert set(table["model_version"]) == {newer.version}
    assert bench.mini.table("quarantine").is_empty()


def test_a_superseded_attempt_does_not_change_the_quarantine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older attempt could not score a row that the newer one could: the row is not in both tables."""
    newer = bench.mini.register(seed=1)
    good_engine, spoiled_engine = bench.engine(newer), bench.engine()
    finish = spoiled_engine.predictor.finish

    def one_bad(raw: Any) -> pa.RecordBatch:
        raw[0] = float("nan")
        return finish(raw)

    monkeypatch.setattr(spoiled_engine.predictor, "finish", one_bad)
    monkeypatch.setattr(bench, "engine", lambda model: spoiled_engine)
    bench.mini.change(inference={"max_error_share": 0.5})
    once: list[str] = []

    def overtaken(line: str) -> None:
        if not once:
            once.append(line)
            scoring.score_partition(bench.slice("second"), newer, good_engine, bench.said.append)

    with pytest.raises(SupersededError):
        bench.score("first", progress=overtaken)
    assert bench.predictions().height == ROWS
    assert bench.mini.table("quarantine").is_empty()


def test_twins_of_the_same_work_commit_once(bench: Bench) -> None:
    engine = bench.engine()

    def twin(_line: str) -> None:
        if bench.slice().lake.head(Slot("predictions", DAY)) is None:
            scoring.score_partition(bench.slice("second"), bench.model, engine, bench.said.append)

    result = bench.score("first", progress=twin)
    table = bench.predictions()
    assert result.rows == table.height == table["row_key"].n_unique() == ROWS
    # What the first had finished, the second adopted; what the second finished, the first did.
    assert set(table["run_id"]) == {"first", "second"}
    assert result.data_version == bench.score("third").data_version


def test_a_superseded_run_ends_well_and_says_so(mini: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(mini)
    newer = mini.register(seed=1)
    engine = bench.engine(newer)
    real = scoring.score_partition
    overtaking: list[bool] = []

    def overtaken(
        slice_: Slice, model: RegisteredVersion, loaded: Engine, progress: Any, *_: Any
    ) -> StageResult:
        def line(text: str) -> None:
            progress(text)
            if not overtaking:
                overtaking.append(True)
                real(bench.slice("second"), newer, engine, progress)

        return real(slice_, bench.model, loaded, line)

    monkeypatch.setattr(scoring, "score_partition", overtaken)
    mini.run(DAY, stages=["raw", "features", "predictions"])
    assert overtaking
    assert set(bench.predictions()["run_id"]) == {"second"}


def test_features_are_streamed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than the shard in hand and the one prepared ahead have been read when a shard is finished."""
    bench.mini.write(DAY, 80)
    bench.prepare()
    read = 0
    real = scoring._cut

    def counted(slice_: Slice, work: scoring.Work, plan: RowPlan) -> Iterator[pa.Table]:
        nonlocal read
        for shard in real(slice_, work, plan):
            read += 1
            yield shard

    monkeypatch.setattr(scoring, "_cut", counted)
    ahead: list[int] = []
    finished = 0

    def look(_line: str) -> None:
        nonlocal finished
        finished += 1
        ahead.append(read - finished)

    bench.score(progress=look)
    assert finished == read == 10
    assert max(ahead) <= 2


def test_what_is_missing_or_does_not_fit_is_named(bench: Bench) -> None:
    bench.mini.change(name="empty")
    with pytest.raises(
        UpstreamMissingError, match=r"pipeline empty.*materialize empty/features for it first"
    ):
        bench.score()
    bench.mini.change(decision={"positive_class": "gone"})
    with pytest.raises(
        SignatureError, match=r"model churn version 1: decision\.positive_class 'gone' is none of"
    ):
        bench.score()


def test_too_many_failures_commit_nothing_and_say_where_the_rows_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.engine()
    monkeypatch.setattr(engine.predictor, "forward", lambda *batch: 1 / 0)
    with pytest.raises(GateError) as caught:
        scoring.score_partition(bench.slice(), bench.model, engine, bench.said.append)
    message = str(caught.value)
    assert "20 of 20 rows quarantined (100.00%, allowed 10.00%): 20 ZeroDivisionError" in message
    assert f"data/{DAY}.csv row 0: division by zero" in message
    rows = pl.read_parquet(message.rsplit("the rows are in ", 1)[1])
    assert rows.height == ROWS
    assert bench.predictions().is_empty()
    assert bench.mini.table("quarantine").is_empty()


def test_a_redrive_scores_only_the_quarantined_rows(bench: Bench) -> None:
    bench.mini.change(inference={"max_error_share": 0.5})
    keys = bench.mini.table("features")["row_key"].to_list()
    poison = [keys[0], keys[9], keys[10], keys[19]]
    bench.score("first", poison=poison)
    before = bench.predictions()
    assert before.height == ROWS - 4
    assert bench.mini.table("quarantine")["row_key"].to_list() == poison

    bench.score("second")  # the same work: nothing is tried again by itself
    assert bench.scored == []
    again = bench.score("third", redrive=True, poison=poison[:1])
    assert bench.scored == [3]
    assert (again.rows, again.metadata["quarantined"]) == (ROWS - 1, 1)
    table = bench.mini.table("predictions")
    assert table["row_key"].to_list() == [key for key in keys if key != poison[0]]
    runs = dict(zip(table["row_key"], table["run_id"], strict=True))
    assert {key for key, run in runs.items() if run == "third"} == set(poison[1:])
    kept = table.filter(pl.col("run_id") == "first").sort("row_key")
    assert kept.equals(before)
    assert bench.mini.table("quarantine")["row_key"].to_list() == poison[:1]

    bench.score("fourth", redrive=True)
    assert bench.predictions().height == ROWS
    assert bench.mini.table("quarantine").is_empty()
    # Values are those of a run in which nothing failed, within what another batch may change.
    whole = bench.predictions()
    bench.mini.register(seed=1)
    bench.mini.change(inference={"max_error_share": 0.4, "shard_rows": 9})
    bench.score("undisturbed")
    assert bench.predictions()["label"].equals(whole["label"])
    assert (bench.predictions()["score"] - whole["score"]).abs().max() < 1e-6
    assert bench.score("fifth", redrive=True).reused  # nothing is in quarantine


def test_staging_of_committed_work_is_gone(bench: Bench) -> None:
    bench.score()
    assert not list(bench.mini.layout.staging(DAY).rglob("*.parquet"))
    assert not list(bench.mini.layout.scratch(DAY).rglob("*.parquet"))


def test_staging_that_a_killed_run_left_behind_its_commit_goes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "discard_shards", lambda folder: None)
        bench.score()
    assert list(bench.mini.layout.staging(DAY).rglob("shard-*.json"))
    assert bench.score().reused
    assert not list(bench.mini.layout.staging(DAY).rglob("shard-*"))


def test_statistics_say_what_rows_cost_where_a_price_is_known(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_ = bench.slice("priced")
    priced = replace(slice_, settings=replace(slice_.settings, hourly_rate=3.6))
    result = scoring.score_partition(priced, bench.model, bench.engine(bench.model), lambda line: None)
    cost = result.metadata["stats cost_per_1000_rows"]
    assert cost == pytest.approx(result.metadata["stats wall_seconds"] / result.rows, abs=1e-4)
    stats = pl.read_delta(str(slice_.layout.table("run_stats")))
    assert stats["cost_per_1000_rows"].to_list() == [cost]


def test_several_processes_do_the_work_of_one(bench: Bench) -> None:
    bench.score("first")
    alone = bench.predictions()
    bench.mini.change(inference={"shard_rows": 8, "devices": 2})
    assert bench.score("second").reused  # the same work, however many compute it
    bench.mini.change(inference={"shard_rows": 7, "devices": 2})
    with closing(scoring.load_engine(bench.model, bench.mini.spec, bench.mini.settings.root)) as engine:
        assert isinstance(engine, Fleet)
        result = scoring.score_partition(bench.slice("third"), bench.model, engine, bench.said.append)
    assert (result.metadata["rows_scored"], result.reused) == (ROWS, False)
    assert bench.predictions().select(OUTPUTS).equals(alone.select(OUTPUTS))
    assert set(bench.predictions()["run_id"]) == {"third"}
