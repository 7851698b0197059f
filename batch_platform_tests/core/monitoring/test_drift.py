"""The drift decision on simulated days with fixed seeds: weekday and day-to-day effects, as real streams have."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core.monitoring.day_statistics import Yardstick
from batch_platform.core.monitoring.drift import DriftMonitor, Finding, Verdict
from batch_platform.core.monitoring.profile import Profile, profile_table
from batch_platform.errors import MonitoringError

START = date(2026, 1, 5)
REFERENCE_DAYS = 28
ROWS = 500
Change = Callable[[dict[str, pa.Array], np.random.Generator], None]


def day_columns(seed: int, day: int, rows: int) -> dict[str, pa.Array]:
    """Ten numbers with a null share of 1 % and two categories; each day has effects of its own."""
    weekdays = np.random.default_rng(seed).normal(0, 0.15, (10, 7))
    random = np.random.default_rng([seed, day])
    means = weekdays[:, day % 7] + random.normal(0, 0.05, 10)
    columns = {
        f"n{place}": pa.array(random.normal(mean, 1, rows), mask=random.random(rows) < 0.01)
        for place, mean in enumerate(means)
    }
    for name in ("c0", "c1"):
        shares = np.linspace(1, 3, 8) * np.exp(random.normal(0, 0.05, 8))
        columns[name] = pa.array([f"v{k}" for k in random.choice(8, rows, p=shares / shares.sum())])
    return columns


def days(
    seed: int,
    first: int,
    count: int,
    rows: Callable[[int], int] = lambda _: ROWS,
    change: Change | None = None,
) -> Iterator[tuple[date, Profile]]:
    for day in range(first, first + count):
        columns = day_columns(seed, day, rows(day))
        if change is not None:
            change(columns, np.random.default_rng([seed, day, 1]))
        yield START + timedelta(days=day), profile_table(pa.table(columns))


@cache
def reference(seed: int, count: int) -> list[tuple[date, Profile]]:
    return list(days(seed, 0, count))


def fitted(seed: int = 0, count: int = REFERENCE_DAYS) -> DriftMonitor:
    return DriftMonitor.fit(reference(seed, count))


def judged(change: Change, seed: int = 0, count: int = 3) -> list[Verdict]:
    monitor = fitted(seed)
    return [monitor.judge(*day) for day in days(seed, REFERENCE_DAYS, count, change=change)]


def found(verdicts: list[Verdict]) -> set[tuple[str, str, str]]:
    return {(f.column, f.statistic, f.direction) for verdict in verdicts for f in verdict.findings}


def shift(columns: dict[str, pa.Array], random: np.random.Generator) -> None:
    columns["n3"] = pa.array(random.normal(0.5, 1, len(columns["n3"])))


def lose_a_tenth(columns: dict[str, pa.Array], random: np.random.Generator) -> None:
    column = columns["n3"]
    columns["n3"] = pa.array(column.to_numpy(zero_copy_only=False), mask=random.random(len(column)) < 0.1)


@pytest.mark.parametrize("thin", [False, True], ids=["even days", "thin days"])
def test_quiet_streams_raise_few_alarms(thin: bool) -> None:
    """Three quarters of each: at most one episode a quarter is promised; the bound leaves room for three seeds."""
    size = (lambda day: ROWS // 20 if day % 9 == 4 else ROWS) if thin else (lambda _: ROWS)
    alarms = 0
    for seed in range(3):
        monitor = DriftMonitor.fit(list(days(seed, 0, REFERENCE_DAYS, size)))
        alarms += sum(monitor.judge(*day).alert for day in days(seed, REFERENCE_DAYS, 91, size))
    assert alarms <= 3


@pytest.mark.parametrize(
    ("change", "finding"),
    [(shift, ("n3", "mean rank", "up")), (lose_a_tenth, ("n3", "null rate", "up"))],
    ids=["half a standard deviation", "nulls from 1 to 10 %"],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_change_is_found_and_named_within_three_days(
    change: Change, finding: tuple[str, str, str], seed: int
) -> None:
    assert finding in found(judged(change, seed))


def test_a_new_category_is_found() -> None:
    def arrive(columns: dict[str, pa.Array], random: np.random.Generator) -> None:
        values = columns["c0"].to_pylist()
        columns["c0"] = pa.array(["new" if random.random() < 0.1 else value for value in values])

    assert ("c0", "share of other values", "up") in found(judged(arrive))


SHORT = 20  # reference days: too few for weekdays, so that the same profile weighs the same on every day


def pushed(shift: float, day: int = 0) -> Profile:
    """A quiet day whose first column is moved by `shift`, (500 rows)."""
    columns = day_columns(0, SHORT + day, ROWS)
    columns["n3"] = pa.array(np.random.default_rng(day).normal(shift, 1, ROWS))
    return profile_table(pa.table(columns))


def alerts(*profiles: Profile) -> list[set[str]]:
    """In which directions the mean rank of `n3` alarms, on consecutive days after the reference."""
    monitor = fitted(count=SHORT)
    verdicts = [monitor.judge(START + timedelta(days=SHORT + day), p) for day, p in enumerate(profiles)]
    return [
        {f.direction for f in verdict.findings if (f.column, f.statistic) == ("n3", "mean rank")}
        for verdict in verdicts
    ]


@cache
def weak_shift(sign: int) -> Profile:
    """The smallest shift that alarms when the same day comes twice."""
    shifts = [pushed(sign * shift) for shift in np.arange(0.2, 1.0, 0.03)]
    return next(profile for profile in shifts if any(alerts(profile, profile)))


def test_what_is_too_weak_for_one_day_is_an_alert_when_it_comes_again() -> None:
    weak = weak_shift(1)
    assert alerts(weak, weak) == [set(), {"up"}]
    assert alerts(weak_shift(-1), weak_shift(-1)) == [set(), {"down"}]


def test_a_weak_day_is_forgotten_after_a_week_and_opposite_ones_do_not_add_up() -> None:
    weak, quiet = weak_shift(1), pushed(0.0)
    assert not any(alerts(weak, *[quiet] * 7, weak))
    assert not any(alerts(weak, weak_shift(-1)))


def test_one_odd_day_is_no_alert_on_the_days_after_it() -> None:
    quiet = pushed(0.0)
    assert alerts(pushed(1.5), *[quiet] * 7) == [{"up"}, *[set()] * 7]


def test_a_change_too_small_for_any_day_is_found_by_the_week() -> None:
    """A fifth of a standard deviation on 500 rows: two and a half standard errors a day."""
    monitor = DriftMonitor.fit([(START + timedelta(days=day), bell(day, 500)) for day in range(56)])
    verdicts = [
        monitor.judge(START + timedelta(days=56 + day), bell(900 + day, 500, 0.22)) for day in range(7)
    ]
    found_at = [day for day, verdict in enumerate(verdicts) if verdict.alert]
    assert found_at
    assert found_at[0] > 0
    finding = verdicts[found_at[-1]].findings[0]
    assert (finding.statistic, finding.direction, finding.partitions) == ("mean rank", "up", 7)


def test_a_thin_day_does_not_alarm_by_its_few_rows() -> None:
    monitor = fitted()
    assert all(not monitor.judge(*day).alert for day in days(0, REFERENCE_DAYS, 5, lambda _: 3))


def gone(columns: dict[str, pa.Array], _: np.random.Generator) -> None:
    del columns["n3"]


def new(columns: dict[str, pa.Array], _: np.random.Generator) -> None:
    columns["added"] = columns["n3"]


def other_kind(columns: dict[str, pa.Array], _: np.random.Generator) -> None:
    columns["n3"] = columns["n3"].cast(pa.string())


@pytest.mark.parametrize(("change", "column"), [(gone, "n3"), (new, "added"), (other_kind, "n3")])
def test_a_column_that_came_went_or_changed_its_kind_is_a_finding(change: Change, column: str) -> None:
    assert (column, "schema", "changed") in found(judged(change, count=1))


def test_a_column_without_any_value_is_a_finding() -> None:
    def empty(columns: dict[str, pa.Array], _: np.random.Generator) -> None:
        columns["n3"] = pa.nulls(len(columns["n3"]), pa.float64())

    assert ("n3", "null rate", "up") in found(judged(empty, count=1))


def test_columns_that_never_vary_are_quiet_until_they_move() -> None:
    def still(value: float) -> Profile:
        return profile_table(pa.table({"x": np.full(200, value), "none": pa.nulls(200, pa.float64())}))

    monitor = DriftMonitor.fit([(START + timedelta(days=day), still(1.0)) for day in range(10)])
    assert monitor.judge(START + timedelta(days=10), still(1.0)).status == "ok"
    moved = monitor.judge(START + timedelta(days=11), still(2.0))
    assert {finding.column for finding in moved.findings} == {"x"}


def test_a_day_without_rows_is_not_judged() -> None:
    verdict = fitted().judge(START + timedelta(days=REFERENCE_DAYS), next(days(0, 0, 1, lambda _: 0))[1])
    assert (verdict.status, verdict.alert, verdict.message) == ("no rows", False, "no rows to judge")


def test_columns_that_vary_too_much_to_be_judged_are_named_with_the_all_clear() -> None:
    def restless(columns: dict[str, pa.Array], random: np.random.Generator) -> None:
        columns["n3"] = pa.array(columns["n3"].to_numpy(zero_copy_only=False) + random.normal(0, 20))

    monitor = DriftMonitor.fit(list(days(0, 0, REFERENCE_DAYS, change=restless)))
    verdict = monitor.judge(*next(days(0, REFERENCE_DAYS, 1, change=restless)))
    assert not verdict.alert
    assert verdict.message.endswith("these vary too much for any change to show: n3")
    assert "vary" not in fitted().judge(*next(days(0, REFERENCE_DAYS, 1))).message


def test_too_little_history_says_so_and_is_no_all_clear() -> None:
    monitor = DriftMonitor.fit(list(days(0, 0, 2)) + list(days(0, 2, 5, lambda _: 0)))
    verdict = monitor.judge(*next(days(0, 7, 1, change=shift)))
    assert (verdict.status, verdict.alert) == ("not enough history", False)
    assert "2 reference days, 3 are needed" in verdict.message


def test_a_back_test_puts_changes_into_whole_weeks_since_the_reference_where_there_are_any() -> None:
    later = list(days(0, REFERENCE_DAYS, 15))
    for since, tries, found in (
        ([], 2 * 10, 0.5),
        (later[:6], 2 * 10, 0.5),
        (later, 2 * 10, 1.0),
        (later[:8], 10, 1.0),
    ):
        half = next(each for each in fitted().back_test(since)[1] if each.change == "mean + 0.5 sd")
        assert half.tries == tries
        assert (half.found >= 0.9) == (found == 1.0)


@pytest.mark.parametrize("seed", [0, 59, 109])  # the last two made a variance without end
def test_references_of_thin_days_are_judged_without_overflow(seed: int) -> None:
    random = np.random.default_rng(seed)

    def day(place: int) -> tuple[date, Profile]:
        rows = int(random.choice([0, 1, 2, 5, 50, 300]))
        columns = {
            "texts": pa.array(["word " * int(words) for words in random.integers(1, 30, rows)], pa.string()),
            "rare": pa.array((random.random(rows) < 0.01).astype(float)),
            "flags": pa.array(random.random(rows) < 0.5),
            "vectors": pa.FixedSizeListArray.from_arrays(
                pa.array(random.normal(size=8 * rows).astype(np.float32)), 8
            ),
            "constant": pa.array(["x"] * rows, pa.string()),
        }
        return START + timedelta(days=place), profile_table(pa.table(columns))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = DriftMonitor.fit([day(place) for place in range(24)])
        verdict = monitor.judge(*next(found for place in range(24, 99) if (found := day(place))[1].rows))
    assert verdict.status in ("ok", "alert")


def test_a_smaller_budget_is_stricter() -> None:
    shifts = [bell(900, 200, shift) for shift in np.arange(0.3, 1.2, 0.02)]

    def alarms(budget: float) -> int:
        monitor = DriftMonitor.fit(plain_days(200), budget)
        return sum(monitor.restarted().judge(NEXT, shift).alert for shift in shifts)

    assert alarms(0.001) < alarms(0.1) < alarms(10.0)


def test_many_columns_at_once_are_not_all_named() -> None:
    def all_move(columns: dict[str, pa.Array], random: np.random.Generator) -> None:
        for name in [name for name in columns if name.startswith("n")]:
            columns[name] = pa.array(random.normal(3, 1, len(columns[name])))

    verdict = judged(all_move, count=1)[0]
    assert len({finding.column for finding in verdict.findings}) == 10
    assert verdict.message.endswith("and 5 more columns")


def test_findings_come_strongest_first() -> None:
    def two(columns: dict[str, pa.Array], random: np.random.Generator) -> None:
        rows = len(columns["n3"])
        columns["n1"], columns["n3"] = random.normal(0.8, 1, rows), random.normal(3, 1, rows)

    findings = judged(two, count=1)[0].findings
    assert findings[0].column == "n3"
    assert [f.p for f in findings] == sorted(f.p for f in findings)


def embeddings(seed: int, rows: int, mean: float) -> Profile:
    matrix = np.random.default_rng(seed).normal(size=(rows, 16)) + 1
    matrix[:, 0] += mean
    return profile_table(pa.table({"embedding": pa.array(list(matrix.astype("f4")), pa.list_(pa.float32()))}))


def test_embeddings_that_turn_away_are_found_and_thin_days_are_not() -> None:
    quiet = [(START + timedelta(days=day), embeddings(day, 200, 0)) for day in range(REFERENCE_DAYS)]
    monitor = DriftMonitor.fit(quiet)
    day = START + timedelta(days=REFERENCE_DAYS)
    assert monitor.judge(day, embeddings(900, 200, 0)).status == "ok"
    assert monitor.judge(day + timedelta(days=1), embeddings(901, 5, 0)).status == "ok"
    turned = monitor.judge(day + timedelta(days=2), embeddings(902, 200, 3))
    assert "mean vector" in {finding.statistic for finding in turned.findings}


def bell(seed: int, rows: int = 2000, mean: float = 0.0, offset: float = 0.0) -> Profile:
    return profile_table(pa.table({"x": np.random.default_rng(seed).normal(mean, 1, rows) + offset}))


def plain_days(rows: int = 2000, offset: float = 0.0) -> list[tuple[date, Profile]]:
    return [(START + timedelta(days=day), bell(day, rows, offset=offset)) for day in range(REFERENCE_DAYS)]


NEXT = START + timedelta(days=REFERENCE_DAYS)


def test_a_finding_says_how_far_and_how_sure() -> None:
    verdict = DriftMonitor.fit(plain_days()).judge(NEXT, bell(900, mean=-0.7))
    finding = next(f for f in verdict.findings if f.statistic == "mean rank")
    assert isinstance(finding, Finding)
    # A shift of 0.7 standard deviations moves the mean rank by Phi(0.7/sqrt(2)) - 1/2 = 0.190.
    assert finding.effect == pytest.approx(-0.190, abs=0.02)
    assert (finding.column, finding.direction, finding.z < -5) == ("x", "down", True)
    assert 0 < finding.p < 1e-6
    assert verdict.message == "drift in x (mean rank down)"


def test_a_large_offset_does_not_hide_a_shift() -> None:
    monitor = DriftMonitor.fit(plain_days(offset=1e6))
    assert monitor.judge(NEXT, bell(900, offset=1e6)).status == "ok"
    assert monitor.judge(NEXT, bell(900, mean=0.7, offset=1e6)).alert


@pytest.mark.parametrize(("rows", "days"), [(200, 3), (2000, 2)])
def test_half_a_standard_deviation_is_found_with_few_rows_and_with_many(rows: int, days: int) -> None:
    monitor = DriftMonitor.fit(plain_days(rows))
    verdicts = [monitor.judge(NEXT + timedelta(days=d), bell(900 + d, rows, 0.5)) for d in range(days)]
    assert any(verdict.alert for verdict in verdicts)


def test_a_holiday_with_a_twentieth_of_the_rows_is_quiet_and_a_real_change_on_it_is_seen() -> None:
    monitor = DriftMonitor.fit(plain_days())
    quiet = [monitor.judge(NEXT + timedelta(days=d), bell(900 + d, 100)) for d in range(20)]
    assert sum(verdict.alert for verdict in quiet) == 0
    assert monitor.judge(NEXT + timedelta(days=20), bell(950, 100, 1.0)).alert


def test_a_weekday_that_the_reference_does_not_know_is_judged_by_all_days() -> None:
    """Business days with strong weekday effects: a Saturday is as far off as they are from one another."""
    effects = [-0.8, -0.4, 0.0, 0.4, 0.8, 0.9, 0.9]
    stream = [(START + timedelta(days=day), bell(day, mean=effects[day % 7])) for day in range(56)]
    monitor = DriftMonitor.fit([pair for pair in stream if pair[0].weekday() < 5])
    saturday, monday = START + timedelta(days=61), START + timedelta(days=63)
    assert monitor.judge(saturday, bell(900, mean=0.9)).status == "ok"
    assert monitor.judge(monday, bell(901, mean=-0.8)).status == "ok"
    # By weekday a Monday like a Friday is far out, though such days are common.
    assert monitor.judge(monday, bell(902, mean=0.8)).alert


@pytest.mark.parametrize(
    ("hours", "judged_a_day"), [(1, 24), (24, 1), (7 * 24, 1 / 7)], ids=["hourly", "daily", "weekly"]
)
def test_the_budget_is_for_a_quarter_whatever_the_cadence(hours: int, judged_a_day: float) -> None:
    moments = [datetime(2026, 1, 5) + timedelta(hours=hours) * place for place in range(REFERENCE_DAYS)]
    for reference in (moments, [moment.date() for moment in moments]):
        monitor = DriftMonitor.fit([(day, bell(place, 50)) for place, day in enumerate(reference)], 2.0)
        assert monitor.calibration.judgements_per_quarter == pytest.approx(91 * judged_a_day, rel=0.01)
        assert monitor.calibration.budget == 2.0


def test_a_column_that_only_grows_is_not_judged_by_its_numbers_and_this_is_said() -> None:
    def day(place: int) -> Profile:
        ids = np.arange(place * 500, (place + 1) * 500)
        wave = np.random.default_rng(place).normal(size=500)
        return profile_table(pa.table({"order_id": ids, "x": wave}))

    monitor = DriftMonitor.fit(
        [(START + timedelta(days=place), day(place)) for place in range(REFERENCE_DAYS)]
    )
    verdict = monitor.judge(NEXT, day(REFERENCE_DAYS))
    assert (verdict.status, verdict.not_judged) == ("ok", ("order_id",))
    assert "not judged, as they only grow: order_id" in verdict.message
    lost = pa.table({"order_id": pa.nulls(500, pa.int64()), "x": np.random.default_rng(1).normal(size=500)})
    assert monitor.judge(NEXT, profile_table(lost)).findings[0].column == "order_id"


def texts(seed: int, words: int, rows: int = 300) -> Profile:
    random = np.random.default_rng(seed)
    values = [f"{random.random()} {'word ' * count}" for count in random.poisson(words, rows)]
    return profile_table(pa.table({"body": values}))


def test_of_texts_the_lengths_are_judged() -> None:
    monitor = DriftMonitor.fit([(START + timedelta(days=day), texts(day, 20)) for day in range(10)])
    assert monitor.judge(NEXT, texts(900, 20)).status == "ok"
    monitor.judge(NEXT, texts(901, 40))
    longer = monitor.judge(NEXT, texts(902, 40))
    assert ("body", "mean rank of lengths", "up") in found([longer])


def test_categories_that_begin_alike_are_told_apart() -> None:
    def day(seed: int, share: float) -> Profile:
        draw = np.random.default_rng(seed).random(500) < share
        return profile_table(pa.table({"url": [("x" * 80) + ("/a" if one else "/b") for one in draw]}))

    monitor = DriftMonitor.fit([(START + timedelta(days=place), day(place, 0.5)) for place in range(20)])
    assert monitor.judge(NEXT, day(900, 0.5)).status == "ok"
    assert {f.direction for f in monitor.judge(NEXT, day(901, 0.9)).findings} == {"up", "down"}


def test_categories_that_became_thousands_of_values_are_found() -> None:
    def day(seed: int) -> Profile:
        values = np.random.default_rng(seed).choice(["a", "b", "c"], 3000)
        return profile_table(pa.table({"plan": values}))

    monitor = DriftMonitor.fit([(START + timedelta(days=place), day(place)) for place in range(10)])
    ids = profile_table(pa.table({"plan": [f"id {place}" for place in range(3000)]}))
    assert {f.column for f in monitor.judge(NEXT, ids).findings} == {"plan"}


def test_a_frequent_value_keeps_its_share_among_thousands_of_others() -> None:
    def day(seed: int, others: list[str]) -> Profile:
        random = np.random.default_rng(seed)
        values = np.where(random.random(4000) < 0.5, "main", random.choice(others, 4000))
        return profile_table(pa.table({"plan": values}))

    few, many = ["x", "y", "z"], [f"id {place}" for place in range(100_000)]
    monitor = DriftMonitor.fit([(START + timedelta(days=place), day(place, few)) for place in range(10)])
    named = {finding.statistic for finding in monitor.judge(NEXT, day(900, many)).findings}
    assert "share of other values" in named
    assert "share of 'main'" not in named


def test_a_column_that_few_reference_days_had_is_neither_missed_nor_new() -> None:
    def day(place: int, tried: bool) -> tuple[date, Profile]:
        columns = {"x": np.random.default_rng(place).normal(size=200)}
        return START + timedelta(days=place), profile_table(
            pa.table(columns | ({"trial": [1.0] * 200} if tried else {}))
        )

    monitor = DriftMonitor.fit([day(place, place < 4) for place in range(REFERENCE_DAYS)])
    assert monitor.judge(*day(REFERENCE_DAYS, False)).status == "ok"
    assert monitor.judge(*day(REFERENCE_DAYS + 1, True)).status == "ok"


def test_one_reference_day_of_another_kind_does_not_decide() -> None:
    odd = profile_table(pa.table({"x": ["text"] * 50}))
    monitor = DriftMonitor.fit([(START, odd), *((day + timedelta(days=1), p) for day, p in plain_days())])
    assert monitor.judge(NEXT + timedelta(days=1), bell(900)).status == "ok"
    assert found([monitor.judge(NEXT + timedelta(days=2), odd)]) == {("x", "schema", "changed")}


def small_topics(seed: int, rows: int, share: float = 0.2) -> Profile:
    """Vectors around two topics whose mean is small beside their scatter, as embeddings are, (rows, 24)."""
    random = np.random.default_rng(seed)
    topics = np.random.default_rng(7).normal(0, 0.6, (2, 24))
    vectors = random.normal(size=(rows, 24)) + topics[(random.random(rows) < share).astype(int)]
    return profile_table(pa.table({"v": pa.FixedSizeListArray.from_arrays(vectors.astype("f4").ravel(), 24)}))


def test_a_day_of_few_vectors_is_no_change_of_topic() -> None:
    quiet = [(START + timedelta(days=day), small_topics(day, 400)) for day in range(REFERENCE_DAYS)]
    monitor = DriftMonitor.fit(quiet)
    assert not any(monitor.restarted().judge(NEXT, small_topics(900 + seed, 20)).alert for seed in range(20))
    assert monitor.judge(NEXT, small_topics(950, 400, share=0.5)).alert


def topics(seed: int, moved: float = 0.0, rows: int = 200) -> Profile:
    """Unit vectors about six topics, a share of them about one that is new, (rows, 96)."""
    random = np.random.default_rng([seed, 5])
    centres = np.random.default_rng(8).normal(0, 0.25, (7, 96))
    of = np.where(random.random(rows) < moved, 6, random.integers(0, 6, rows))
    vectors = 0.3 + centres[of] + random.normal(0, 0.2, (rows, 96))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return profile_table(pa.table({"v": pa.FixedSizeListArray.from_arrays(vectors.astype("f4").ravel(), 96)}))


def test_a_tenth_of_the_rows_about_a_new_topic_is_found_within_a_week() -> None:
    monitor = DriftMonitor.fit([(START + timedelta(days=day), topics(day)) for day in range(REFERENCE_DAYS)])
    quiet = [monitor.judge(NEXT + timedelta(days=day), topics(100 + day)) for day in range(21)]
    assert not any(verdict.alert for verdict in quiet)
    later = [monitor.judge(NEXT + timedelta(days=21 + day), topics(200 + day, 0.1)) for day in range(7)]
    assert {f.statistic for verdict in later for f in verdict.findings if f.direction == "up"} & {
        "share far from every cluster",
        *(f"share of cluster {number}" for number in range(1, 13)),
    }


def test_days_that_clusters_are_fitted_to_do_not_tell_what_is_usual_of_them() -> None:
    yardstick = Yardstick([topics(day) for day in range(REFERENCE_DAYS)])
    names = {name for (_, name), _ in yardstick.statistics(topics(900))}
    assert list(yardstick.spent) == list(range(1, REFERENCE_DAYS, 3))
    assert {name for name in names if yardstick.is_spent_on("v", name)} >= {
        "mean vector",
        "share of cluster 1",
    }
    assert not yardstick.is_spent_on("v", "null rate")


def test_a_restarted_monitor_has_forgotten_the_days_before() -> None:
    weak = weak_shift(1)
    monitor = fitted(count=SHORT)
    monitor.judge(START + timedelta(days=SHORT), weak)
    fresh = monitor.restarted()
    assert not fresh.judge(START + timedelta(days=SHORT + 1), weak).alert
    assert monitor.judge(START + timedelta(days=SHORT + 1), weak).alert


def test_the_package_offers_the_interface_without_importing_evidently_or_scipy() -> None:
    code = (
        "import sys; from batch_platform.core.monitoring import DriftMonitor, Profile, Verdict, profile_table; "
        "print({'evidently', 'scipy', 'pandas', 'sklearn', 'dagster'} & sys.modules.keys())"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "set()\n"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_no_numbers_count_as_missing(value: float) -> None:
    def spoil(columns: dict[str, pa.Array], _: np.random.Generator) -> None:
        columns["n3"] = pa.array(np.full(len(columns["n3"]), value))

    assert ("n3", "null rate", "up") in found(judged(spoil, count=1))


def test_vectors_of_another_length_are_a_finding() -> None:
    def vectors(width: int) -> Profile:
        return profile_table(pa.table({"v": pa.array([[1.0] * width] * 50, pa.list_(pa.float32()))}))

    monitor = DriftMonitor.fit([(START + timedelta(days=day), vectors(4)) for day in range(5)])
    assert monitor.judge(START + timedelta(days=5), vectors(4)).status == "ok"
    longer = monitor.judge(START + timedelta(days=6), vectors(8))
    assert [(f.column, f.statistic) for f in longer.findings] == [("v", "schema")]


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_a_budget_must_be_above_nothing(budget: float) -> None:
    with pytest.raises(MonitoringError, match="above 0"):
        DriftMonitor.fit(reference(0, 3), budget)
