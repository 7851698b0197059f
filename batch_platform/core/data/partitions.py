"""Partition keys and the windows of time they stand for.

Decides which keys a pipeline has and what `[start, end)` a key means. The keys are those of Dagster's
time-window partitions, character for character, so that the core works without Dagster; a test
compares the two.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from batch_platform.errors import PartitionKeyError

Cadence = Literal["hourly", "daily", "weekly", "monthly"]

_FORMATS: dict[Cadence, str] = {
    "hourly": "%Y-%m-%d-%H:%M",
    "daily": "%Y-%m-%d",
    "weekly": "%Y-%m-%d",
    "monthly": "%Y-%m-%d",
}
_KEY_PATTERN = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(-[0-9]{2}:[0-9]{2})?")
# Where clocks go back an hour comes twice; Dagster tells the second one by its offset.
_SECOND_HOUR = re.compile(r"(.*:[0-9]{2})([+-][0-9]{4})")


@dataclass(frozen=True, order=True)
class Partition:
    """One slice of time: its key and its window, both ends aware of their zone, the end exclusive."""

    start: datetime
    end: datetime
    key: str

    @property
    def day(self) -> date:
        """The calendar day on which the window starts, in the pipeline's zone."""
        return self.start.date()


@dataclass(frozen=True)
class PartitionCalendar:
    """All partitions of a pipeline.

    Attributes:
        cadence: the length of a window. Weeks start on Sunday, months on the first, as in Dagster.
        start: first moment that may be covered; windows that began before it are left out.
        end: first moment that is not covered any more; None for a calendar that grows with time.
        timezone: IANA name of the zone in which days begin.
    """

    cadence: Cadence
    start: datetime
    end: datetime | None
    timezone: str

    @classmethod
    def of(cls, cadence: Cadence, start: str, end: str | None, timezone: str) -> "PartitionCalendar":
        """Build from the strings of a pipeline file (ISO dates, or `YYYY-MM-DD-HH:MM` for hourly).

        Raises:
            PartitionKeyError: a date cannot be read, or the end is not after the start.
        """
        zone = ZoneInfo(timezone)
        first = _moment(start, zone)
        last = None if end is None else _moment(end, zone)
        if last is not None and last <= first:
            raise PartitionKeyError(f"partitions.end {end!r} is not after partitions.start {start!r}")
        return cls(cadence, first, last, timezone)

    def partition(self, key: str) -> Partition:
        """The partition of a key.

        Raises:
            PartitionKeyError: the key is malformed, not a boundary of the cadence, or outside the calendar.
        """
        second = _SECOND_HOUR.fullmatch(key) if self.cadence == "hourly" else None
        wall_clock = second[1] if second else key
        if not _KEY_PATTERN.fullmatch(wall_clock):
            raise PartitionKeyError(f"{key!r} is not a {self.cadence} partition key: {self._expected()}")
        try:
            naive = datetime.strptime(wall_clock, _FORMATS[self.cadence])
        except ValueError:
            raise PartitionKeyError(
                f"{key!r} is not a {self.cadence} partition key: {self._expected()}"
            ) from None
        start = naive.replace(tzinfo=ZoneInfo(self.timezone), fold=1 if second else 0)
        if self._floor(start) != start or (
            self.cadence == "hourly" and self._key(_on_the_clock(start)) != key
        ):
            raise PartitionKeyError(f"{key!r} does not start a {self.cadence} window: {self._expected()}")
        end = self._next(start)
        if start < self.start or (self.end is not None and end > self.end):
            raise PartitionKeyError(
                f"partition {key!r} lies outside this pipeline's partitions "
                f"({self.start:%Y-%m-%d} to {'now' if self.end is None else f'{self.end:%Y-%m-%d}'})"
            )
        return Partition(start, end, key)

    def partitions(self, until: datetime) -> Iterator[Partition]:
        """Every partition whose window has ended by `until` (aware), oldest first."""
        limit = until if self.end is None else min(until, self.end)
        start = self._floor(self.start)
        if start < self.start:
            start = self._next(start)
        while (end := self._next(start)) <= limit:
            yield Partition(start, end, self._key(start))
            start = end

    def newest(self, now: datetime, count: int) -> list[Partition]:
        """The `count` newest partitions whose window has ended by `now` (aware), oldest first."""
        limit = now if self.end is None else min(now, self.end)
        found: list[Partition] = []
        end = self._floor(limit.astimezone(ZoneInfo(self.timezone)))
        while len(found) < count:
            # In absolute time: on the wall clock an hour that comes twice would be left out.
            start = self._floor((end.astimezone(UTC) - timedelta(microseconds=1)).astimezone(end.tzinfo))
            if start < self.start:
                break
            found.append(Partition(start, end, self._key(start)))
            end = start
        return found[::-1]

    def between(self, first: str, last: str) -> list[Partition]:
        """The partitions from one key to another, both included.

        Raises:
            PartitionKeyError: a key is not one of this calendar, or the range is empty.
        """
        low, high = self.partition(first), self.partition(last)
        if high < low:
            raise PartitionKeyError(f"the range {first!r} to {last!r} is empty")
        found = [low]
        while found[-1].key != high.key:
            start = found[-1].end
            found.append(Partition(start, self._next(start), self._key(start)))
        return found

    def _key(self, start: datetime) -> str:
        text = start.strftime(_FORMATS[self.cadence])
        repeated = (
            self.cadence == "hourly" and start.fold and start.utcoffset() != start.replace(fold=0).utcoffset()
        )
        return text + start.strftime("%z") if repeated else text

    def _expected(self) -> str:
        example = "2026-01-31-23:00" if self.cadence == "hourly" else "2026-01-31"
        return f"expected e.g. {example}"

    def _floor(self, moment: datetime) -> datetime:
        if self.cadence == "hourly":
            return moment.replace(minute=0, second=0, microsecond=0)
        midnight = datetime.combine(moment.date(), time(), tzinfo=moment.tzinfo)
        if self.cadence == "weekly":
            return midnight - timedelta(days=(midnight.weekday() + 1) % 7)
        return midnight.replace(day=1) if self.cadence == "monthly" else midnight

    def _next(self, start: datetime) -> datetime:
        if self.cadence == "hourly":
            # Hours are counted in absolute time, so that a change of clocks neither skips nor repeats one.
            return (start.astimezone(UTC) + timedelta(hours=1)).astimezone(start.tzinfo)
        if self.cadence == "daily":
            return start + timedelta(days=1)
        if self.cadence == "weekly":
            return start + timedelta(days=7)
        return (start.replace(day=28) + timedelta(days=4)).replace(day=1)


def contiguous(partitions: Sequence[Partition]) -> Iterator[tuple[Partition, Partition]]:
    """First and last of each run of partitions that follow one another without a gap."""
    start = 0
    for position, partition in enumerate(partitions):
        is_last = position + 1 == len(partitions)
        if is_last or partitions[position + 1].start != partition.end:
            yield partitions[start], partition
            start = position + 1


def _on_the_clock(moment: datetime) -> datetime:
    """The moment as its zone's clocks show it: another time where clocks jump over the one named."""
    return moment.astimezone(UTC).astimezone(moment.tzinfo)


def _moment(text: str, zone: ZoneInfo) -> datetime:
    for pattern in ("%Y-%m-%d", "%Y-%m-%d-%H:%M"):
        try:
            return datetime.strptime(text, pattern).replace(tzinfo=zone)
        except ValueError:
            continue
    raise PartitionKeyError(f"{text!r} is not a date: write YYYY-MM-DD (or YYYY-MM-DD-HH:MM)")
