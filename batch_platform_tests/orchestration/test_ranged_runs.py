"""Many dates in one run: each date has its own events, and one bad date fails alone and is redone alone."""

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.definitions.observe import observe
from dagster._core.loader import LoadingContextForTest

from batch_platform.core import outcomes
from batch_platform.core.inference.engine import Engine
from batch_platform.orchestration.assets import pipeline_assets
from batch_platform.orchestration.model_assets import model_asset
from batch_platform.orchestration.stages import asset_key, stages_of
from batch_platform_tests.mini import DAYS, Mini, failure_message, good_row

BAD = DAYS[2]
STAGES = ["raw", "features", "predictions"]


def bad_rows() -> list[dict]:
    return [good_row(BAD, number) | {"age": ""} for number in range(20)]


def materialized(mini: Mini, stage: str) -> set[str]:
    return mini.instance.get_materialized_partitions(asset_key(mini.spec, stage))


def test_one_date(mini: Mini) -> None:
    mini.write(DAYS[0])
    mini.run(DAYS[0])
    for stage in stages_of(mini.spec):
        assert materialized(mini, stage.name) == {DAYS[0]}
        assert mini.check(stage.name, "complete", DAYS[0]) is True
        for check in stage.checks:
            assert mini.check(stage.name, check, DAYS[0]) is True, (stage.name, check)


def test_one_bad_date_of_five_fails_alone_and_is_redone_alone(
    mini: Mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in DAYS:
        mini.write(day)
    mini.write(BAD, bad_rows())
    result = mini.run(DAYS[0], DAYS[-1], fail=True)
    message = failure_message(result)
    assert "1 of 5 partitions failed" in message
    assert any(
        line.startswith(f"{BAD}: raw: ") and "age is required" in line for line in message.splitlines()
    )
    good = set(DAYS) - {BAD}
    for stage in stages_of(mini.spec):
        assert materialized(mini, stage.name) == good
        assert mini.check(stage.name, "complete", BAD) is False
        assert outcomes.recall(mini.layout, BAD)[stage.name].state == (
            "failed" if stage.name == "raw" else "skipped"
        )
    assert {day: mini.rows("predictions", day) for day in DAYS} == {day: 20 * (day != BAD) for day in DAYS}

    scored: list[int] = []
    score_stream = Engine.score_stream

    def counting(self: Engine, shards, tolerated):
        for result in score_stream(self, shards, tolerated):
            scored.append(result.outputs.num_rows)
            yield result

    monkeypatch.setattr(Engine, "score_stream", counting)
    mini.write(BAD)
    mini.run(DAYS[0], DAYS[-1])
    assert sum(scored) == 20  # the good dates were adopted
    assert materialized(mini, "predictions") == set(DAYS)
    assert mini.check("predictions", "complete", BAD) is True
    assert mini.rows("predictions", BAD) == 20


def test_metadata_and_data_versions_belong_to_the_date(mini: Mini) -> None:
    for number, day in enumerate(DAYS[:2]):
        mini.write(day, 10 + number)
    mini.run(DAYS[0], DAYS[1], STAGES)
    records = mini.instance.fetch_materializations(asset_key(mini.spec, "predictions"), limit=10).records
    found = {
        record.partition_key: record.asset_materialization
        for record in records
        if record.asset_materialization is not None
    }
    rows = {key: made.metadata["dagster/partition_row_count"].value for key, made in found.items()}
    assert rows == {DAYS[0]: 10, DAYS[1]: 11}
    versions = {(made.tags or {})["dagster/data_version"] for made in found.values()}
    assert len(versions) == 2


def test_an_unforeseen_error_in_one_date_does_not_stop_the_others(
    mini: Mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batch_platform.core import landing

    real = landing.land_partition

    def failing(slice_):
        if slice_.key == DAYS[0]:
            raise ZeroDivisionError("a bug")
        return real(slice_)

    monkeypatch.setattr(landing, "land_partition", failing)
    for day in DAYS[:2]:
        mini.write(day)
    result = mini.run(DAYS[0], DAYS[1], STAGES, fail=True)
    assert "ZeroDivisionError: a bug" in failure_message(result)
    assert mini.rows("predictions", DAYS[1]) == 20


def test_stages_can_be_run_one_by_one_and_a_missing_upstream_is_named(mini: Mini) -> None:
    mini.write(DAYS[0])
    result = mini.run(DAYS[0], stages=["predictions"], fail=True)
    assert "materialize mini/features for it first" in failure_message(result)
    for stage in STAGES:
        mini.run(DAYS[0], stages=[stage])
    assert mini.rows("predictions", DAYS[0]) == 20


def test_a_promoted_model_makes_exactly_the_predictions_stale(mini: Mini) -> None:
    mini.write(DAYS[0])
    mini.run(DAYS[0], stages=STAGES)
    model = model_asset(mini.spec, is_trained=False)
    graph = dg.Definitions([pipeline_assets(mini.spec), model]).resolve_asset_graph()

    def stale() -> dict[str, str]:
        resolver = CachingStaleStatusResolver(mini.instance, graph, LoadingContextForTest(mini.instance))
        return {stage: resolver.get_status(asset_key(mini.spec, stage), DAYS[0]).value for stage in STAGES}

    assert stale() == dict.fromkeys(STAGES, "FRESH")  # the run reported the model that it used
    mini.register(seed=1)
    assert observe([model], instance=mini.instance).success
    assert stale() == {"raw": "FRESH", "features": "FRESH", "predictions": "STALE"}
