"""The words of a diagnosis: what moved and by how much, the mix told from a change within, and who changed."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core.monitoring.diagnosis import (
    Change,
    Diagnosis,
    SourceShare,
    measure,
    prediction_words,
    segment_words,
    shared_value,
    unusual,
)
from batch_platform.core.monitoring.drift import Finding

ROWS = 400


def finding(column: str, statistic: str = "mean rank", direction: Any = "up") -> Finding:
    return Finding(column, statistic, direction, 0.2 if direction == "up" else -0.2, 6.0, 1e-6)


def table(pro: float = 0.2, shift: float = 0.0, nulls: float = 0.0, seed: int = 1) -> pa.Table:
    """Amounts around 10 for basic and 20 for pro; `pro` is the share of these."""
    random = np.random.default_rng(seed)
    is_pro = np.arange(ROWS) < pro * ROWS
    amount = np.where(is_pro, 20.0, 10.0) + random.normal(0, 1, ROWS) + shift
    amount[: int(nulls * ROWS)] = np.nan
    score = np.clip(amount / 40, 0, 1)
    return pa.table(
        {
            "amount": pa.array(amount, from_pandas=True),
            "plan": pa.array(np.where(is_pro, "pro", "basic").tolist()),
            "label": pa.array(np.where(score > 0.4, "yes", "no").tolist()),
            "score": score,
        }
    )


BEFORE = table()


@pytest.mark.parametrize(
    ("found", "now", "words"),
    [
        (finding("amount"), table(shift=5), "its median went from 10.19"),
        (finding("amount", "null rate"), table(nulls=0.25), "rows without a value from 0.0% to 25.0%"),
        (finding("plan", "share of 'pro'"), table(pro=0.6), "the share of 'pro' from 20.0% to 60.0%"),
        (finding("amount", "spread of ranks"), table(pro=0.5), "the middle half of its values is 1"),
        (
            finding("plan", "share of other values"),
            BEFORE.set_column(1, "plan", pa.array(["", "gold"] * 40 + ["pro"] * 320)),
            "20.0% have values that its sample has not: '' 10.0%, 'gold' 10.0%",
        ),
        (finding("plan", "share of other values"), BEFORE, ""),
        (finding("region", "schema", "changed"), BEFORE, "it came, went, or changed its kind"),
        (finding("plan", "schema", "changed"), BEFORE.drop_columns("plan"), "it is gone"),
        (finding("plan", "share of the values of bin ff"), BEFORE, ""),
        (finding("embedding", "mean vector"), BEFORE, ""),
    ],
)
def test_before_and_now(found: Finding, now: pa.Table, words: str) -> None:
    said = measure(found, now, BEFORE)
    assert words in said
    assert bool(words) == bool(said)


def test_a_shift_of_the_mix_is_told_from_a_change_within_segments() -> None:
    mix = segment_words(finding("amount"), table(pro=0.7, seed=2), BEFORE, ["plan", "amount"])
    assert mix.startswith("It is mostly a shift of the mix: plan = ")
    assert "70% of the rows" in mix or "30% of the rows" in mix
    within = segment_words(finding("amount"), table(shift=3, seed=2), BEFORE, ["plan"])
    assert within == "It is a change within segments: the same way in 2 of 2 of plan"
    assert segment_words(finding("amount"), table(shift=3), BEFORE, []) == ""
    assert segment_words(finding("embedding", "mean vector"), table(), BEFORE, ["plan"]) == ""
    nulls = segment_words(finding("amount", "null rate"), table(nulls=0.2), BEFORE, ["plan"])
    assert nulls == "It is a change within segments: the same way in 1 of 2 of plan"


def test_predictions_that_moved() -> None:
    said = list(prediction_words(table(pro=0.6), BEFORE))
    assert said[0].startswith("At least 40% of the labels are others than in the reference: ")
    assert "'yes' went from 20% to 60%" in said[0] or "'no' went from 80% to 40%" in said[0]
    assert said[1].startswith("The mean score went from 0.29")
    assert list(prediction_words(BEFORE.select(["amount"]), BEFORE)) == []
    assert list(prediction_words(BEFORE.slice(0, 0), BEFORE)) == []
    # Decisions are told where they are not the labels once more.
    now, before = (each.append_column("decision", each["label"]) for each in (table(pro=0.6), BEFORE))
    assert list(prediction_words(now, before)) == said
    now = now.set_column(4, "decision", pa.array(["no"] * ROWS))
    assert "of the decisions are others" in list(prediction_words(now, before))[1]


def test_unusual_rows_are_those_that_the_finding_speaks_of() -> None:
    now = table(shift=30)
    high = unusual(finding("amount"), now["amount"], BEFORE)
    assert high is not None
    assert high.all()
    low = unusual(finding("amount", direction="down"), now["amount"], BEFORE)
    assert low is not None
    assert not low.any()
    missing = unusual(finding("amount", "null rate"), table(nulls=0.1)["amount"], BEFORE)
    assert missing is not None
    assert missing.sum() == 0.1 * ROWS
    pro = unusual(finding("plan", "share of 'pro'"), BEFORE["plan"], BEFORE)
    assert pro is not None
    assert pro.sum() == 0.2 * ROWS
    new = unusual(finding("plan", "share of other values"), pa.chunked_array([["gold", "pro"]]), BEFORE)
    assert new is not None
    assert new.tolist() == [True, False]
    assert unusual(finding("plan", "share of 'pro'", "down"), BEFORE["plan"], BEFORE) is None


def test_values_named_in_statistics() -> None:
    assert shared_value("share of 'it's'") == "it's"
    assert shared_value("share of 'pro' (bin ab)") == "pro"
    assert shared_value("share of other values") is None
    assert shared_value("mean rank") is None


def diagnosis(**more: Any) -> Diagnosis:
    change = Change("features", finding("amount"), "2026-01-07", "its median went from 1 to 3")
    return Diagnosis((change,), **more)


def test_the_paragraph_tells_of_the_predictions_and_of_the_mix_where_they_moved() -> None:
    quiet = diagnosis(predictions=("At least 2% of the labels are others",)).paragraph
    assert "The predictions raise no alarm." in quiet
    assert "labels" not in quiet
    score = Change(
        "predictions", finding("score"), "2026-01-08", "up", "It is mostly a shift of the mix: plan"
    )
    moved = Diagnosis((*diagnosis().changes, score), predictions=("Labels moved", "The mean score went up"))
    assert (
        "score: It is mostly a shift of the mix: plan. Labels moved. The mean score went up."
        in moved.paragraph
    )


def test_who_changed_is_told_apart() -> None:
    world = diagnosis().paragraph
    assert world.startswith("The column amount moved: its median went from 1 to 3; so since 2026-01-07.")
    assert "Nothing changed on our side since the reference" in world
    assert "the data changed" in world
    ours = diagnosis(ours={"model": "churn 1 -> churn 2"}, ours_with_it=frozenset({"model"})).paragraph
    assert "We changed when it began: model churn 1 -> churn 2. Look there first." in ours
    earlier = diagnosis(ours={"code": "a -> b"}).paragraph
    assert "we changed before it began: code a -> b. Nothing of ours changed with the alarm." in earlier
    assert "is not known: model was not recorded" in diagnosis(unknown=("model was not recorded",)).paragraph
    files = diagnosis(files=(SourceShare("b.csv", 0.1, 0.9, 40),)).paragraph
    assert "90% of the unusual rows come from b.csv, which has 10% of the rows." in files
    for by_chance in (SourceShare("b.csv", 0.3, 0.34, 100), SourceShare("b.csv", 0.1, 0.5, 4)):
        assert "b.csv" not in diagnosis(files=(by_chance,)).paragraph
