"""Learned data quality: each kind of accident turns its check red, and quiet histories stay quiet."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core.monitoring.facts import facts_in, facts_of
from batch_platform.core.monitoring.profile import Profile, profile_table
from batch_platform.core.monitoring.quality import (
    FRESHNESS,
    NULLS,
    RANGES,
    VALUES,
    VOLUME,
    Observed,
    QualityVerdict,
    judge_quality,
)

CHECKS = (VOLUME, FRESHNESS, NULLS, RANGES, VALUES)
START = datetime(2026, 1, 5, tzinfo=UTC)
HISTORY = 56
Columns = dict[str, Any]


def rows_of(random: np.random.Generator, day: int, rows: int) -> Columns:
    """A quiet day: shares and means differ a little between days, moments reach the day's end."""
    effect = random.normal(0, 0.1, 4)
    amount = np.exp(random.normal(effect[0], 1, rows))
    plans = np.array(["basic", "pro", "team", "gold"])
    seconds = random.uniform(0, 86_400, rows)
    at = (START + timedelta(days=day)).timestamp() + seconds
    return {
        "amount": np.where(random.random(rows) < 0.01, np.nan, amount),
        "level": random.normal(effect[1], 1, rows),
        "plan": random.choice(plans, rows, p=[0.4, 0.3, 0.2, 0.1]).astype(object),
        "city": np.array([f"city {place}" for place in random.zipf(1.6, rows) % 400], object),
        "note": np.where(random.random(rows) < 0.02, "", "a note").astype(object),
        "at": (at * 1e6).astype(np.int64),
    }


def observed(day: int, columns: Columns) -> Observed:
    arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
    arrays["at"] = arrays["at"].cast(pa.timestamp("us", "UTC"))
    start = START + timedelta(days=day)
    return Observed.of(start, start + timedelta(days=1), facts_of(profile_table(pa.table(arrays))))


@cache
def history(seed: int = 7, days: int = HISTORY, rows: int = 2000) -> tuple[Observed, ...]:
    """Fewer rows on Saturdays and Sundays."""
    random = np.random.default_rng(seed)
    return tuple(
        observed(
            day, rows_of(random, day, int(rows * (0.4 if day % 7 > 4 else 1) * np.exp(random.normal(0, 0.1))))
        )
        for day in range(days)
    )


def judged(day: Observed, past: Sequence[Observed] | None = None) -> dict[str, QualityVerdict]:
    return judge_quality(history() if past is None else past, day, CHECKS, 0.5)


def today(rows: int = 2000, day: int = HISTORY) -> Columns:
    return rows_of(np.random.default_rng(99), day, rows)


def few_rows(columns: Columns) -> Columns:
    return {name: values[: int(0.3 * len(values))] for name, values in columns.items()}


def more_nulls(columns: Columns, seed: int = 1) -> Columns:
    gone = np.random.default_rng(seed).random(len(columns["amount"])) < 0.09
    return columns | {"amount": np.where(gone, np.nan, columns["amount"])}


def infinite(columns: Columns) -> Columns:
    return columns | {"level": np.where(np.arange(len(columns["level"])) % 50 == 0, np.inf, columns["level"])}


def empty_strings(columns: Columns) -> Columns:
    return columns | {"note": np.where(np.arange(len(columns["note"])) % 8 == 0, "", columns["note"])}


def another_unit(columns: Columns) -> Columns:
    return columns | {"amount": columns["amount"] * 1000}


def a_sentinel(columns: Columns) -> Columns:
    values = columns["level"].copy()
    values[5] = -999.0
    return columns | {"level": values}


def all_the_same(columns: Columns) -> Columns:
    return columns | {"level": np.full(len(columns["level"]), 0.5)}


def a_new_plan(columns: Columns) -> Columns:
    return columns | {
        "plan": np.where(np.arange(len(columns["plan"])) % 33 == 0, "platinum", columns["plan"])
    }


def cut_in_the_afternoon(columns: Columns) -> Columns:
    last = (START + timedelta(days=HISTORY, hours=15)).timestamp() * 1e6
    return columns | {"at": np.minimum(columns["at"], np.int64(last))}


def before_time_began(columns: Columns) -> Columns:
    return columns | {"at": np.where(np.arange(len(columns["at"])) == 3, 0, columns["at"])}


@pytest.mark.parametrize(
    ("accident", "check", "words"),
    [
        (few_rows, VOLUME, "rows 600, usual 1,"),
        (cut_in_the_afternoon, FRESHNESS, "at: newest moment 9.0 hours before the end, usual"),
        (more_nulls, NULLS, "amount: without a value"),
        (infinite, NULLS, "level: without a value 2.0 %, usual 0.0"),
        (empty_strings, NULLS, "note: empty"),
        (another_unit, RANGES, "amount: largest value"),
        (a_sentinel, RANGES, "level: smallest value -999, usual -"),
        (all_the_same, RANGES, "level: all values are the same, never so before"),
        (before_time_began, RANGES, "at: oldest moment 1970-01-01 00:00, usual 2026-0"),
        (a_new_plan, VALUES, "plan: never seen before 3.0 % ('platinum'), usual 0.0 % to"),
    ],
)
def test_every_accident_turns_its_check_red_and_no_other(
    accident: Callable[[Columns], Columns], check: str, words: str
) -> None:
    verdicts = judged(observed(HISTORY, accident(today())))
    red = {name for name, verdict in verdicts.items() if verdict.status == "alert"}
    assert red == {check}
    assert words in verdicts[check].message


def test_a_quiet_day_is_as_usual() -> None:
    verdicts = judged(observed(HISTORY, today()))
    assert {verdict.status for verdict in verdicts.values()} == {"ok"}
    assert verdicts[VOLUME].message == "as usual: 1 statistic against 56 partitions, by weekday"


def test_each_weekday_has_its_own_volume() -> None:
    saturday = observed(HISTORY + 5, today(800, HISTORY + 5))
    monday = observed(HISTORY + 7, today(800, HISTORY + 7))
    assert judged(saturday)[VOLUME].status == "ok"
    assert judged(monday)[VOLUME].status == "alert"


@pytest.mark.parametrize("days", [0, 13])
def test_below_the_least_history_it_says_so(days: int) -> None:
    verdicts = judged(observed(HISTORY, few_rows(today())), history()[:days])
    assert {verdict.status for verdict in verdicts.values()} == {"not enough history"}
    assert verdicts[VOLUME].message == f"not enough history: {days} of 14 partitions before this one"


def test_a_column_that_is_new_has_not_enough_history() -> None:
    past = [observed(day, {"at": today(50, day)["at"]}) for day in range(20)]
    now = observed(20, {"at": today(50, 20)["at"], "other": np.ones(50), "kind": np.full(50, "a", object)})
    verdicts = judged(now, past)
    assert verdicts[RANGES].status == "ok"  # of the moments
    assert verdicts[VALUES].message == "not enough history: too few partitions with such values"


def test_a_day_without_rows_is_about_volume_alone() -> None:
    verdicts = judged(observed(HISTORY, {name: values[:0] for name, values in today().items()}))
    assert verdicts[VOLUME].status == "alert"
    assert {verdicts[check].status for check in CHECKS[1:]} == {"no rows"}


def test_a_fall_to_no_rows_or_a_few_is_not_excused_by_how_few_they_are() -> None:
    random = np.random.default_rng(5)
    past = [observed(day, rows_of(random, day, 60 + day % 5)) for day in range(28)]
    for rows in (0, 1, 5):
        verdict = judged(observed(28, rows_of(random, 28, rows)), past)[VOLUME]
        assert verdict.status == "alert"
        assert verdict.message.startswith(f"rows {rows}, usual ")
        low = int(verdict.message.split("usual ")[1].split(" to ")[0])
        assert low > 30  # what is usual does not depend on the day in question


def test_a_bad_day_in_the_history_does_not_hide_the_next_one() -> None:
    bad = observed(40, more_nulls(today(2000, 40)))
    past = [*history()[:40], bad, *history()[41:]]
    worse = observed(HISTORY, more_nulls(more_nulls(today()), 2))
    assert judged(worse, past)[NULLS].status == "alert"
    # As bad as it was before is known: only what is worse than everything seen is told.
    assert judged(observed(HISTORY, more_nulls(today())), past)[NULLS].status == "ok"


def test_shares_do_not_depend_on_how_few_rows_the_partitions_before_had() -> None:
    past = [observed(day, today(1 if day % 7 > 4 else 100, day)) for day in range(HISTORY)]
    saturday = observed(HISTORY + 5, today(100, HISTORY + 5) | {"level": np.ones(100) * np.arange(100)})
    assert judged(saturday, past)[NULLS].status == "ok"


def test_hourly_partitions_have_a_budget_a_quarter_too() -> None:
    random = np.random.default_rng(3)
    hours = []
    for hour in range(60):
        facts = facts_of(profile_table(pa.table({"x": random.normal(size=500)})))
        start = START + timedelta(hours=hour)
        hours.append(Observed.of(start, start + timedelta(hours=1), facts))
    assert judge_quality(hours[:-1], hours[-1], (VOLUME, RANGES), 1.0)[RANGES].status == "ok"


def test_quiet_histories_stay_quiet() -> None:
    """Fresh seeds: two pipelines of 60 judged days, at a budget of one false alarm a quarter."""
    red = []
    for _ in range(2):
        seed = int(np.random.SeedSequence().generate_state(1)[0])
        days = history(seed, 74, 300)
        for place in range(14, len(days)):
            verdicts = judged(days[place], days[max(0, place - HISTORY) : place])
            red += [
                (seed, place, verdict.message) for verdict in verdicts.values() if verdict.status == "alert"
            ]
    assert len(red) <= 5, (
        red
    )  # of the 1.3 that the budget allows in the mean, more than 5 come once in 500 times


def test_profiles_of_the_format_before_are_judged_too() -> None:
    rows = [{"x": float(value), "t": text} for value, text in zip(range(-5, 25), "abc" * 10, strict=True)]
    now = profile_table(pa.Table.from_pylist(rows))
    content = now.to_bytes()
    facts, old = facts_in(content).columns, facts_of(_as_of_format_2(now)).columns
    assert (facts["x"].low, facts["x"].high) == (-5.0, 24.0)
    assert (old["x"].low, old["x"].high) == pytest.approx((-5.0, 24.0), rel=0.02)
    assert old["t"].values == facts["t"].values


def _as_of_format_2(profile: Profile) -> Profile:
    import json
    import zlib

    body = json.loads(zlib.decompress(profile.to_bytes().partition(b"\n")[2]))
    for column in body["columns"].values():
        for name in ("low", "high", "token_lengths", "symbols", "heavy", "infinite"):
            column.pop(name, None)
        for name, empty in (
            ("names", []),
            ("sums", []),
            ("dimension", 0),
            ("squares", 0),
            ("nulls", 0),
            ("bad", 0),
        ):
            column.setdefault(name, empty)
    header = b"batch_platform profile 2 rows %d\n" % profile.rows
    return Profile.from_bytes(header + zlib.compress(json.dumps(body).encode()))
