"""Partition keys and windows: character for character those of Dagster."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise, product
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from batch_platform.core.data.partitions import PartitionCalendar
from batch_platform.errors import PartitionKeyError

DAGSTER: dict[str, Any] = {
    "hourly": dg.HourlyPartitionsDefinition,
    "daily": dg.DailyPartitionsDefinition,
    "weekly": dg.WeeklyPartitionsDefinition,
    "monthly": dg.MonthlyPartitionsDefinition,
}
# Both changes of clocks, at midnight too (Havana, Beirut), by half an hour (Lord Howe), and none.
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "Asia/Beirut",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Pacific/Auckland",
]
SPANS = {
    "hourly": [
        ("2026-03-07-00:00", "2026-03-10-00:00"),
        ("2026-03-28-12:00", "2026-03-30-12:00"),
        ("2026-04-04-00:00", "2026-04-06-00:00"),
        ("2026-10-24-00:00", "2026-10-26-00:00"),
        ("2026-10-31-12:00", "2026-11-02-00:00"),
    ],
    "daily": [("2025-12-30", "2027-01-02")],
    "weekly": [("2025-12-30", "2027-01-02")],
    "monthly": [("2024-12-15", "2027-01-02")],
}
# Hours of the one zone that moves its clocks by half an hour are left out: Dagster then begins them at :30.
CASES = [case for case in product(DAGSTER, ZONES) if case != ("hourly", "Australia/Lord_Howe")]


def both(cadence: Any, start: str, end: str, zone: str) -> tuple[Any, PartitionCalendar]:
    theirs = DAGSTER[cadence](start_date=start, end_date=end, timezone=zone)
    return theirs, PartitionCalendar.of(cadence, start, end, zone)


@pytest.mark.parametrize(("cadence", "zone"), CASES)
def test_keys_and_windows_are_those_of_dagster(cadence: str, zone: str) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    for start, end in SPANS[cadence]:
        theirs, ours = both(cadence, start, end, zone)
        partitions = list(ours.partitions(now))
        assert [partition.key for partition in partitions] == theirs.get_partition_keys(current_time=now)
        for partition in partitions:
            window = theirs.time_window_for_partition_key(partition.key)
            assert partition.start.timestamp() == window.start.timestamp()
            assert partition.end.timestamp() == window.end.timestamp()
            assert ours.partition(partition.key) == partition


@pytest.mark.parametrize(("cadence", "zone"), CASES)
def test_the_newest_are_the_last_of_all(cadence: str, zone: str) -> None:
    for start, end in SPANS[cadence]:
        _, calendar = both(cadence, start, end, zone)
        for now in (datetime(2030, 1, 1, tzinfo=UTC), datetime(2026, 10, 25, 3, 10, tzinfo=UTC)):
            ended = list(calendar.partitions(now))
            for count in (0, 1, 10, 10_000):
                assert calendar.newest(now, count) == ended[len(ended) - min(count, len(ended)) :]


@pytest.mark.parametrize("cadence", list(DAGSTER))
def test_windows_join_without_gap(cadence: Any) -> None:
    calendar = PartitionCalendar.of(cadence, "2026-03-01", "2026-06-01", "Europe/Berlin")
    found = list(calendar.partitions(datetime(2030, 1, 1, tzinfo=UTC)))
    assert all(a.end.timestamp() == b.start.timestamp() for a, b in pairwise(found))


def test_only_windows_that_have_ended() -> None:
    calendar = PartitionCalendar.of("daily", "2026-01-01", None, "America/New_York")
    ended = datetime(2026, 1, 3, 5, tzinfo=UTC)
    assert [p.key for p in calendar.partitions(ended)] == ["2026-01-01", "2026-01-02"]
    assert [p.key for p in calendar.partitions(ended - timedelta(seconds=1))] == ["2026-01-01"]


def test_the_day_of_a_partition_is_the_zones() -> None:
    calendar = PartitionCalendar.of("daily", "2026-01-01", None, "Pacific/Auckland")
    assert calendar.partition("2026-01-05").day == date(2026, 1, 5)
    assert calendar.partition("2026-01-05").start == datetime(2026, 1, 5, tzinfo=ZoneInfo("Pacific/Auckland"))


@pytest.mark.parametrize(
    ("cadence", "key", "words"),
    [
        ("daily", "2026-1-5", "is not a daily partition key: expected e.g. 2026-01-31"),
        ("daily", "2026-02-30", "is not a daily partition key"),
        ("daily", "2026-01-05-00:00", "is not a daily partition key"),
        ("daily", "../../etc", "is not a daily partition key"),
        ("daily", "2026-01-05\n", "is not a daily partition key"),
        ("daily", "٢٠٢٦-01-05", "is not a daily partition key"),
        ("hourly", "2026-01-05", "expected e.g. 2026-01-31-23:00"),
        ("hourly", "2026-01-05-10:30", "does not start a hourly window"),
        ("weekly", "2026-01-05", "does not start a weekly window"),
        ("monthly", "2026-02-02", "does not start a monthly window"),
        ("daily", "2025-12-31", r"lies outside .*2026-01-01 to 2026-04-01"),
        ("daily", "2026-04-01", "lies outside"),
    ],
)
def test_keys_that_are_refused(cadence: Any, key: str, words: str) -> None:
    calendar = PartitionCalendar.of(cadence, "2026-01-01", "2026-04-01", "UTC")
    with pytest.raises(PartitionKeyError, match=words):
        calendar.partition(key)


@pytest.mark.parametrize(
    "key",
    [
        "2026-03-29-02:00",  # clocks jump over it
        "2026-10-25-02:00+0200",  # the first of the two has no offset
        "2026-10-25-03:00+0100",  # comes once
        "2026-10-25-02:00+0300",
    ],
)
def test_hours_that_are_no_keys_where_clocks_change(key: str) -> None:
    calendar = PartitionCalendar.of("hourly", "2026-01-01", None, "Europe/Berlin")
    with pytest.raises(PartitionKeyError, match="does not start a hourly window"):
        calendar.partition(key)


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ("2026-01-02", "2026-01-02", "is not after"),
        ("2026-01-02", "2026-01-01", "is not after"),
        ("02.01.2026", None, "is not a date: write YYYY-MM-DD"),
    ],
)
def test_calendars_that_cannot_be(start: str, end: str | None, words: str) -> None:
    with pytest.raises(PartitionKeyError, match=words):
        PartitionCalendar.of("daily", start, end, "UTC")


def test_between_takes_both_ends() -> None:
    calendar = PartitionCalendar.of("monthly", "2025-11-01", None, "Europe/Berlin")
    found = calendar.between("2025-12-01", "2026-02-01")
    assert [partition.key for partition in found] == ["2025-12-01", "2026-01-01", "2026-02-01"]
    assert found[1] == calendar.partition("2026-01-01")
    with pytest.raises(PartitionKeyError, match="is empty"):
        calendar.between("2026-02-01", "2025-12-01")
