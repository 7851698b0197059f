"""A challenger beside the champion: scored on the same rows, compared, and promoted through the gate."""

import json
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import polars as pl
import pytest
from click.testing import CliRunner

from batch_platform.cli.main import cli
from batch_platform.core import scoring
from batch_platform.core.comparing import Comparison
from batch_platform.core.data.files import Location
from batch_platform.core.housekeeping import clean
from batch_platform.core.inference.engine import Engine, Scorer
from batch_platform.core.models.registry import RegisteredVersion, Registry
from batch_platform.core.overview import overview
from batch_platform.core.promoting import Evidence, evidence
from batch_platform.core.provenance.bundle import audit_bundle
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.verifying import verify
from batch_platform.errors import BatchPlatformError, ModelNotFoundError, NotYetSupportedError
from batch_platform_tests.core.scoring_bench import spoil
from batch_platform_tests.mini import ATTRIBUTES, DAYS, Mini, failure_message, good_row
from batch_platform_tests.project import Project
from batch_platform_tests.receipts import gaps, receipts

MODEL = {"name": "churn", "challenger": "next"}
LABELS = {"uri": "labels/{partition}.csv", "format": "csv", "row_key": "id", "column": "churned"}
DECISION = {
    "otherwise": "keep",
    "rules": [{"when": {"age": {"above": 40}, "label": {"is_in": ["churned"]}}, "decide": "call"}],
}


def ask(*words: Any) -> Any:
    result = CliRunner().invoke(cli, ["models", *[str(word) for word in words]])
    if isinstance(result.exception, BatchPlatformError):
        raise result.exception
    return result


def move(*words: Any) -> Any:
    return ask(*words, "--alias", "champion", "--by", "me", "--why", "it is better")


@pytest.fixture
def shop(mini: Mini) -> Mini:
    """The pipeline with a challenger, in a project: version 1 is champion, version 2 is `next`."""
    (mini.folder / "requirements.lock").touch()
    Project(mini.folder).add_pipeline(
        "mini", {**ATTRIBUTES, "model": MODEL, "labels": LABELS, "decision": DECISION}
    )
    mini.change(model=MODEL, labels=LABELS, decision=DECISION)
    registry = Registry(mini.settings.root)
    second = mini.register(seed=3)  # is champion now
    registry.promote("churn", second.version, "next", "tests", "to be tried")
    registry.roll_back("churn", "champion", "tests", "as before")
    return mini


def label(mini: Mini, day: str, right: str) -> None:
    """Labels of a day, by which the predictions of a table are right."""
    (mini.folder / "labels").mkdir(exist_ok=True)
    rows = mini.table(right).filter(pl.col("partition_key") == day)
    rows.select(id="row_key", churned="label").write_csv(mini.folder / "labels" / f"{day}.csv")


def approval(mini: Mini) -> dict[str, str]:
    approved = Registry(mini.settings.root).pointed("churn", "champion").approved
    assert approved is not None
    return dict(approved)


def test_scored_beside_the_champion_and_compared(shop: Mini) -> None:
    for day in DAYS[:2]:
        shop.write(day)
    shop.run(DAYS[0], DAYS[1])
    champion, challenger = shop.table("predictions"), shop.table("challenger_predictions")
    both = champion.join(challenger, on=["partition_key", "row_key"], suffix="_new")
    assert champion.height == challenger.height == both.height == 40
    assert champion.schema == challenger.schema
    assert set(challenger["model_version"]) == {"2"}
    assert both["input_hash"].equals(both["input_hash_new"])
    ages = shop.table("features").select("row_key", "age")
    decided = challenger.join(ages, on="row_key").with_columns(
        wanted=pl.when((pl.col("age") > 40) & (pl.col("label") == "churned"))
        .then(pl.lit("call"))
        .otherwise(pl.lit("keep"))
    )
    assert decided["decision"].equals(decided["wanted"])
    for check in ("reconciliation", "finite", "range", "failed_share", "comparison", "complete"):
        assert shop.check("challenger_predictions", check, DAYS[0]) is True, check

    (found,) = evidence([shop.spec], shop.settings, "churn", "champion")
    assert (found.champion, found.challenger, [*found.partitions]) == ("1", "2", DAYS[:2])
    assert found.total.flipped == both.filter(pl.col("decision") != pl.col("decision_new")).height
    assert found.total.shift == pytest.approx((both["score_new"] - both["score"]).sum())
    made = shop.instance.get_latest_materialization_event(dg.AssetKey(["mini", "challenger_predictions"]))
    assert made is not None and made.asset_materialization is not None
    metadata = {name: value.value for name, value in made.asset_materialization.metadata.items()}
    assert (metadata["champion"], metadata["challenger"]) == ("churn version 1", "churn version 2")
    assert (metadata["rows"], metadata["reused"], metadata["failed"]) == (20, False, 0)
    assert metadata["decisions_flipped"] == found.partitions[DAYS[1]].flipped
    assert (metadata["only_champion"], metadata["only_challenger_right"]) == (0, 0)


def test_known_like_any_other_table(shop: Mini) -> None:
    shop.write(DAYS[0])
    shop.run(DAYS[0])
    table = "challenger_predictions"
    assert [gaps(receipt) for receipt in receipts(shop.layout) if receipt["table"] == table] == [set()]
    now = datetime(2026, 1, 2, tzinfo=UTC)
    view = overview(shop.spec, shop.settings, now)
    assert (view.done, view.rows[table], view.stale) == (1, 20, {})
    found = verify(shop.spec, shop.settings, shop.folder)
    assert (found.ok, found.rows[table], table in found.chain) == (True, 20, True)
    clean(shop.spec, shop.settings, now, print)
    assert verify(shop.spec, shop.settings, shop.folder).ok
    inside = audit_bundle(shop.spec, shop.settings, DAYS[0], DAYS[0], shop.folder / "bundle.zip")
    assert {f"receipts/{table}/{DAYS[0]}/1.json", "models/churn/2/card.json"} <= set(inside)

    # A row that is taken away, by somebody who makes file and receipt fit each other, is still missed.
    (path,) = shop.layout.table(table).rglob("*.parquet")
    pl.read_parquet(path)[1:].write_parquet(path)
    problems = [found.problem for found in verify(shop.spec, shop.settings, shop.folder).problems]
    assert any("digest" in problem or "altered" in problem for problem in problems), problems


def test_the_next_run_scores_nothing_again(shop: Mini) -> None:
    shop.write(DAYS[0])
    shop.run(DAYS[0])
    again = shop.run(DAYS[0], stages=["challenger_predictions"])
    (event,) = again.asset_materializations_for_node("mini__pipeline")
    assert event.metadata["reused"].value is True
    # Another challenger makes its predictions stale, and no others.
    third = shop.register(seed=2)
    registry = Registry(shop.settings.root)
    registry.roll_back("churn", "champion", "tests", "as before")
    registry.promote("churn", third.version, "next", "tests", "to be tried")
    view = overview(shop.spec, shop.settings, datetime(2026, 1, 2, tzinfo=UTC))
    assert view.stale == {DAYS[0]: "challenger_predictions: challenger changed"}
    shop.run(DAYS[0])
    assert set(shop.table("challenger_predictions")["model_version"]) == {"3"}
    assert set(shop.table("predictions")["model_version"]) == {"1"}


def test_a_challenger_that_fails_blocks_nobody(shop: Mini) -> None:
    shop.write(DAYS[0])
    weights = next((shop.settings.registry / "churn" / "2" / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    failed = shop.run(DAYS[0], fail=True)
    assert "challenger_predictions" in failure_message(failed)
    assert shop.rows("predictions", DAYS[0]) == 20
    for stage in ("predictions", "drift_report", "performance"):
        assert shop.check(stage, "complete", DAYS[0]) is True, stage
    assert shop.check("challenger_predictions", "complete", DAYS[0]) is False
    assert shop.table("challenger_predictions").is_empty()


def test_rows_that_it_cannot_score_are_left_out_and_counted(
    shop: Mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [f"{DAYS[0]}-{number}" for number in (0, 9)] + [f"{DAYS[1]}-{number}" for number in (1, 2, 19)]
    load = scoring.load_engine

    def spoiled(version: RegisteredVersion, spec: PipelineSpec, root: Location) -> Scorer:
        engine = load(version, spec, root)
        if version.version == "2":
            assert isinstance(engine, Engine)
            spoil(engine, bad)
        return engine

    monkeypatch.setattr(scoring, "load_engine", spoiled)
    for day in DAYS[:2]:
        shop.write(day)
    failed = shop.run(DAYS[0], DAYS[1], fail=True)
    # Two of twenty are a tenth, which the pipeline allows; three are not.
    assert "1 of 2 partitions failed" in failure_message(failed)
    assert shop.check("challenger_predictions", "complete", DAYS[1]) is False
    keys = shop.table("challenger_predictions")["row_key"].to_list()
    assert keys == [f"{DAYS[0]}-{number}" for number in range(20) if number not in (0, 9)]
    assert shop.table("predictions").height == 40
    assert shop.table("quarantine").is_empty()
    assert verify(shop.spec, shop.settings, shop.folder).ok
    shop.run(DAYS[0], stages=["challenger_predictions"])  # adopted, and judged again
    (found,) = evidence([shop.spec], shop.settings, "churn", "champion")
    assert (found.total.rows, found.total.only_before) == (18, 2)


def test_the_gate_wants_a_comparison(shop: Mini) -> None:
    for words in (["compare", "churn"], ["promote", "churn", "2"]):
        answer = ask(*words) if words[0] == "compare" else move(*words)
        assert answer.exit_code == 1
        assert "version 2 was never compared with the champion, version 1" in answer.output
    assert Registry(shop.settings.root).pointed("churn", "champion").version == "1"
    # Nor does registering lead past it.
    with pytest.raises(BatchPlatformError, match="register it with --alias next"):
        ask("register", "churn", shop.folder / "model-3", "--flavor", "torch", "--alias", "champion")
    # Another alias, and a model that no pipeline challenges, are nobody's business.
    assert ask("promote", "churn", "1", "--alias", "next", "--by", "me", "--why", "y").exit_code == 0


def test_from_the_challenger_to_the_champion_and_back(shop: Mini) -> None:
    shop.write(DAYS[0])
    shop.run(DAYS[0])
    told = json.loads(ask("compare", "churn", "--json").output)
    assert [(each["champion"], each["challenger"], each["refusal"]) for each in told] == [("1", "2", None)]
    answer = move("promote", "churn", "2")
    assert answer.exit_code == 0, answer.output
    first = answer.output.splitlines()[0]
    assert first.startswith("mini: 1 -> 2 over 1 partitions: 20 rows, agreement ")
    assert (approval(shop)["why"], approval(shop)["compared"]) == ("it is better", first)
    assert "despite" not in approval(shop)
    shop.run(DAYS[0], stages=["predictions"])
    # Champion and challenger are the same version now: there is nothing to hold against each other.
    assert (ask("compare", "churn").output, ask("compare", "churn").exit_code) == ("nothing to compare\n", 0)

    answer = move("rollback", "churn")
    assert (answer.exit_code, answer.output) == (0, "churn: champion -> 1\n")
    registry = Registry(shop.settings.root)
    assert registry.pointed("churn", "champion").version == "1"
    assert registry.verify() == ()
    with pytest.raises(ModelNotFoundError, match="pointed to no other version before"):
        move("rollback", "churn")


def test_a_challenger_that_is_worse_on_labels_is_refused(shop: Mini) -> None:
    shop.write(DAYS[0], 200)
    shop.run(DAYS[0], stages=["raw", "features", "predictions"])
    label(shop, DAYS[0], right="predictions")
    shop.run(DAYS[0], stages=["predictions", "performance", "challenger_predictions"])
    assert shop.check("challenger_predictions", "comparison", DAYS[0]) is False
    answer = ask("compare", "churn")
    assert (answer.exit_code, answer.output.splitlines()[-1]) == (
        1,
        "  the gate refuses: pipeline mini: on labels version 2 is worse than 1",
    )
    answer = move("promote", "churn", "2")
    assert answer.exit_code == 1
    assert "refused: pipeline mini: on labels version 2 is worse than 1" in answer.output
    answer = move("promote", "churn", "2", "--despite-gate")
    assert answer.exit_code == 0
    said = approval(shop)
    assert (said["by"], said["why"]) == ("me", "it is better")
    assert said["despite"] == "pipeline mini: on labels version 2 is worse than 1"
    assert "on 200 labels worse" in said["compared"]


def test_labels_that_come_later_count(shop: Mini) -> None:
    shop.write(DAYS[0], 200)
    shop.run(DAYS[0])
    (found,) = evidence([shop.spec], shop.settings, "churn", "champion")
    assert (found.total.labelled, found.refusal) == (0, None)
    label(shop, DAYS[0], right="challenger_predictions")
    shop.run(DAYS[0], stages=["performance"])
    (found,) = evidence([shop.spec], shop.settings, "churn", "champion")
    assert (found.total.labelled, found.total.right_before) == (200, 0)
    assert found.total.verdict == "better"


def test_rows_of_other_features_are_not_compared(shop: Mini) -> None:
    shop.write(DAYS[0])
    shop.run(DAYS[0])
    shop.write(DAYS[0], [good_row(DAYS[0], number) | {"amount": 7} for number in range(20)])
    shop.run(DAYS[0], stages=["raw", "features", "predictions"])
    (found,) = evidence([shop.spec], shop.settings, "churn", "champion")
    assert found.partitions == {}
    shop.run(DAYS[0], stages=["challenger_predictions"])
    (found,) = evidence([shop.spec], shop.settings, "churn", "champion")
    assert [*found.partitions] == [DAYS[0]]


def test_evidence_adds_up() -> None:
    one = Comparison(rows=3, labelled=3, right_before=6, right_after=1)
    found = Evidence("p", "1", "2", {"a": one, "b": one})
    assert (found.total.rows, found.total.right_before) == (6, 12)
    assert found.refusal == "pipeline p: on labels version 2 is worse than 1"


def test_a_challenger_of_mlflow_is_refused(mini: Mini) -> None:
    with pytest.raises(NotYetSupportedError, match=r"model\.challenger of MLflow"):
        mini.change(model={"name": "models:/churn@champion", "challenger": "next"})
