"""The owners' decisions: kept for good, in order, on a disk and in object storage, and no longer than they speak."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.monitoring.drift import Finding, Verdict
from batch_platform.core.monitoring.reviews import Cause, Review, Reviewed, ReviewStore, reviewed
from batch_platform.errors import MonitoringError

AMOUNT = Finding("amount", "mean rank", "up", 0.2, 6.0, 1e-6)
PLAN = Finding("plan", "share of 'pro'", "down", -0.1, -5.0, 1e-5)
ALARM = Verdict("alert", (AMOUNT, PLAN), 100, 28, {"amount": 6.0, "plan": 5.0}, "drift in amount, plan")


def review(number: int = 1, *causes: Finding, key: str = "2026-01-05", **more: Any) -> Review:
    made = tuple(Cause.of("features", finding) for finding in causes)
    usual = Review(number, key, "accept", "ann", "campaign", "2026-02-01T00:00:00+00:00", made, 1)
    return replace(usual, **more)


def after(
    *reviews: Review, key: str = "2026-01-07", reference: int = 1, verdict: Verdict = ALARM
) -> Reviewed:
    return reviewed({"features": verdict}, reviews, key, reference)["features"]


def test_decisions_are_kept_in_order_and_never_changed(root: Location) -> None:
    store = ReviewStore(root / "monitoring" / "mini")
    assert store.all() == []
    causes = [Cause.of("features", AMOUNT)]
    first = store.record("2026-01-05", "accept", "ann", "a <b>campaign</b>\n", causes, 1)
    second = store.record("2026-01-06", "reject", "bob", "no", causes, 1, retrain=True)
    assert store.all() == [first, second]
    assert (first.number, second.number, first.why) == (1, 2, "a <b>campaign</b>")
    assert second.words.startswith("rejected by bob on 20")
    assert second.words.endswith(": no; a training was asked for")


def test_decisions_at_the_same_moment_are_all_kept(root: Location) -> None:
    store = ReviewStore(root / "monitoring" / "mini")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda who: store.record("d", "accept", f"w{who}", "same", [], 1), range(8)))
    assert sorted(one.number for one in made) == list(range(1, 9))
    assert sorted(one.by for one in store.all()) == [f"w{who}" for who in range(8)]


@pytest.mark.parametrize(("by", "why"), [("", "x"), ("ann", " \n"), ("ann", "x" * 2001)])
def test_who_and_why_must_be_given(root: Location, by: str, why: str) -> None:
    store = ReviewStore(root / "monitoring" / "mini")
    with pytest.raises(MonitoringError, match="must be given"):
        store.record("2026-01-05", "accept", by, why, [], 1)
    assert store.all() == []


def test_an_altered_decision_is_refused(root: Location) -> None:
    store = ReviewStore(root / "monitoring" / "mini")
    store.record("2026-01-05", "reject", "ann", "why", [], 1)
    place = store.folder / "000001.json"
    files.replace(place, place.read_bytes().replace(b"reject", b"accept"))
    with pytest.raises(MonitoringError, match=r"000001\.json: not a decision as it was recorded"):
        store.all()


def test_an_accepted_cause_does_not_fire_again_and_the_others_do() -> None:
    assert after().verdict == ALARM
    both = after(review(1, AMOUNT, PLAN))
    assert (both.verdict.alert, both.verdict.findings) == (False, ())
    assert both.verdict.message.startswith("no new drift; accepted by an owner: amount (mean rank up), plan")
    assert [finding for finding, _ in both.accepted] == [AMOUNT, PLAN]
    assert both.words == "accepted as expected by ann on 2026-02-01: campaign"
    one = after(review(1, AMOUNT))
    assert (one.verdict.alert, one.verdict.findings) == (True, (PLAN,))


@pytest.mark.parametrize(
    "other",
    [
        review(1, replace(AMOUNT, direction="down"), replace(PLAN, direction="up")),
        review(1, replace(AMOUNT, statistic="null rate"), replace(PLAN, column="plans")),
        review(1, AMOUNT, PLAN, reference=2),
        review(1, AMOUNT, PLAN, key="2026-01-08"),
        review(1),
    ],
    ids=["direction", "statistic or column", "reference", "a later partition", "no cause"],
)
def test_what_a_decision_does_not_speak_of_still_fires(other: Review) -> None:
    assert after(other).verdict == ALARM


def test_another_group_with_the_same_column_still_fires() -> None:
    decided = reviewed({"predictions": ALARM}, [review(1, AMOUNT, PLAN)], "2026-01-07", 1)
    assert decided["predictions"].verdict == ALARM


def test_the_last_word_counts() -> None:
    taken_back = after(review(1, AMOUNT, PLAN), review(2, AMOUNT, decision="reject", why="no"))
    assert taken_back.verdict.findings == (AMOUNT,)
    assert [one.number for _, one in taken_back.rejected] == [2]
    assert "rejected by ann" in taken_back.words
    again = after(review(1, AMOUNT, PLAN, decision="reject"), review(2, AMOUNT, PLAN))
    assert not again.verdict.alert


def test_what_has_grown_well_beyond_what_was_accepted_fires_again() -> None:
    def verdict(effect: float) -> Verdict:
        return replace(ALARM, findings=(replace(AMOUNT, effect=effect), PLAN))

    accepted = review(1, AMOUNT, PLAN)
    assert not after(accepted, verdict=verdict(0.39)).verdict.alert
    grown = after(accepted, verdict=verdict(0.41))
    assert [finding.column for finding in grown.verdict.findings] == ["amount"]
    assert grown.verdict.message == (
        "drift in amount, plan; accepted by an owner: plan (share of 'pro' down); "
        "more than twice as large as what an owner accepted: amount (mean rank up)"
    )
    assert grown.words == "accepted as expected by ann on 2026-02-01: campaign"
    # Accepted anew it is quiet, and a smaller alarm that is accepted later takes nothing of that back.
    larger = review(2, replace(AMOUNT, effect=0.41))
    assert not after(accepted, larger, review(3, AMOUNT), verdict=verdict(0.8)).verdict.alert
    assert after(accepted, larger, verdict=verdict(0.83)).verdict.alert
    # Only since it was rejected last.
    rejected = review(3, AMOUNT, decision="reject")
    assert after(larger, rejected, review(4, AMOUNT, PLAN), verdict=verdict(0.41)).verdict.alert


def test_a_decision_that_recorded_no_size_speaks_of_every_size() -> None:
    causes = tuple(replace(Cause.of("features", finding), size=None) for finding in (AMOUNT, PLAN))
    old = replace(review(1), causes=causes)
    larger = replace(ALARM, findings=(replace(AMOUNT, effect=0.5), PLAN))
    assert not after(old, verdict=larger).verdict.alert


def test_what_follows_from_an_accepted_change_was_accepted_with_it() -> None:
    spread = replace(AMOUNT, statistic="spread of ranks", effect=0.05)
    basic = replace(PLAN, statistic="share of 'basic'", direction="up", effect=0.1)
    later = replace(ALARM, findings=(AMOUNT, PLAN, spread, basic))
    accepted = after(review(1, AMOUNT, PLAN), verdict=later)
    assert not accepted.verdict.alert
    assert len(accepted.accepted) == 4
    other = (
        replace(spread, direction="down"),
        replace(spread, effect=0.09),  # more than twice what a shift by 0.2 makes
        replace(spread, column="age"),
        replace(basic, direction="down"),  # two values that both became rarer made room for a third
        replace(AMOUNT, statistic="null rate"),
    )
    for finding in other:
        verdict = replace(ALARM, findings=(AMOUNT, PLAN, finding))
        assert after(review(1, AMOUNT, PLAN), verdict=verdict).verdict.findings == (finding,)
    # A shift does not follow from a spread, and nothing is rejected that nobody looked at.
    assert after(review(1, spread, PLAN)).verdict.findings == (AMOUNT,)
    rejected = after(review(1, AMOUNT, PLAN, decision="reject"), verdict=later)
    assert [finding for finding, _ in rejected.rejected] == [AMOUNT, PLAN]
