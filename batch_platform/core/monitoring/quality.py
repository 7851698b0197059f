"""Data quality learned from the pipeline's own history: volume, freshness, nulls, ranges, values never seen before.

Decides which numbers of a partition are watched, on which scale, and what is said of them. `unusual` decides what is
too far from usual; the partitions are known by their `Facts`, so that nothing is read a second time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

import numpy as np

from batch_platform.core.monitoring.facts import ColumnFacts, Facts
from batch_platform.core.monitoring.season import Season
from batch_platform.core.monitoring.unusual import FEWEST_PARTITIONS, Judged, Series, judge

Status = Literal["ok", "alert", "not enough history", "no rows"]
Direction = Literal["up", "down", "changed"]

VOLUME, FRESHNESS, NULLS = "usual_volume", "freshness", "usual_nulls"
RANGES, VALUES = "usual_ranges", "known_values"

# What is smaller is not worth a look: rows by a third; rows without a value, or with a new one, on the scale arcsine
# of the root (from nothing to 0.25 % and 0.5 %); ends of ranges by half of the range; freshness by 5 % of a partition.
_VOLUME_FLOOR = float(np.log(4 / 3))
_NULLS_FLOOR = 0.05
_VALUES_FLOOR = 0.07
_RANGE_FLOOR = 0.5
_FRESHNESS_FLOOR = 0.05
# Moments that usually are so many partitions away from the end tell how fresh it is.
_FRESH = 10
# On the logarithmic scale of ends and delays: ends this close are the same.
_SAME = 0.02
# Of the budget: what is spent if all assumptions hold.
_SPENT = 0.5
_NAMED_FINDINGS = 5
_NAMED_VALUES = 5
_NAME_CHARACTERS = 60
# A column of which at most this share had one value is not constant by chance; ln of how unlikely that has to be.
_SURELY = 12.0


@dataclass(frozen=True)
class Observed:
    """One partition.

    Attributes:
        moment: its beginning.
        ends: its end, microseconds since 1970.
        microseconds: its length.
        facts: of its table.
    """

    moment: date
    ends: float
    microseconds: float
    facts: Facts

    @classmethod
    def of(cls, start: datetime, end: datetime, facts: Facts) -> "Observed":
        """Of a window of time, both ends aware."""
        seconds = end.astimezone(UTC).timestamp()
        length = seconds - start.astimezone(UTC).timestamp()
        return cls(start.replace(tzinfo=None), 1e6 * seconds, 1e6 * length, facts)


@dataclass(frozen=True)
class QualityFinding:
    """One thing that is not as usual.

    Attributes:
        column: the column; empty for the table.
        statistic: what of it.
        words: the number, and what is usual.
        z: how far from usual, in spreads; infinite where no spread is needed.
        direction: up or down; changed where there are no more and less.
        size: how far from usual, without a sign; None where there is no more and less.
        values: where values are new, which.
    """

    column: str
    statistic: str
    words: str
    z: float
    direction: Direction = "changed"
    size: float | None = None
    values: str = ""


@dataclass(frozen=True)
class QualityVerdict:
    """What one check says.

    Attributes:
        status: `alert` where something is unusual.
        findings: the furthest from usual first.
        message: one plain sentence.
        partitions: how many were compared with.
        statistics: how many numbers were judged.
        season: by what partitions are grouped.
    """

    status: Status
    findings: tuple[QualityFinding, ...] = ()
    message: str = ""
    partitions: int = 0
    statistics: int = 0
    season: str = "none"


@dataclass(frozen=True)
class _Watched:
    """A series with its words: `told` says a number in its unit, `now` the judged one, `values` which values it is about."""

    column: str
    statistic: str
    series: Series
    told: Callable[[float], str]
    now: str = ""
    values: str = ""
    # Where it lies beyond everything that was seen by enough; None: the series' floor decides.
    is_beyond: bool | None = None


def judge_quality(
    past: Sequence[Observed], now: Observed, checks: Sequence[str], false_alarms_per_quarter: float
) -> dict[str, QualityVerdict]:
    """Judge a partition by the ones before it.

    Args:
        past: oldest first; all of one cadence.
        checks: which of volume, freshness, nulls, ranges and values; they share the budget.
        false_alarms_per_quarter: budget of these checks together.

    Returns:
        A verdict for each check.
    """
    if len(past) < FEWEST_PARTITIONS:
        words = f"not enough history: {len(past)} of {FEWEST_PARTITIONS} partitions before this one"
        return {check: QualityVerdict("not enough history", (), words, len(past)) for check in checks}
    a_quarter = 91 * 86_400e6 / now.microseconds
    rate = _SPENT * false_alarms_per_quarter / a_quarter / len(checks)
    season = Season.of([each.moment for each in past])
    group = season.group(now.moment)
    groups = [season.group(each.moment) if group is not None else 0 for each in past]
    places = np.array([0 if each is None else each for each in groups])
    name = season.name if group is not None else "none"
    verdicts = {}
    for check in checks:
        if not now.facts.rows and check != VOLUME:
            verdicts[check] = QualityVerdict("no rows", (), "no rows to judge", len(past))
            continue
        watched = [each for each in _WATCHED[check](past, now) if np.isfinite(each.series.now)]
        judged = judge([each.series for each in watched], places, group or 0, rate) if watched else None
        verdicts[check] = _verdict(check, past, now, watched, judged, name)
    return verdicts


def _verdict(
    check: str,
    past: Sequence[Observed],
    now: Observed,
    watched: Sequence[_Watched],
    judged: Judged | None,
    season: str,
) -> QualityVerdict:
    findings = list(_constants(past, now)) if check == RANGES else []
    count = 0
    if judged is not None:
        count = int(judged.enough.sum())
        for place in np.flatnonzero(judged.unusual).tolist():
            if watched[place].is_beyond is not False:
                findings.append(_finding(watched[place], judged, place))
    findings.sort(key=lambda found: (-abs(found.z), found.column, found.statistic))
    if not count and not findings:
        nothing = not watched
        words = _NOTHING[check] if nothing else "not enough history: too few partitions with such values"
        return QualityVerdict("ok" if nothing else "not enough history", (), words, len(past), 0, season)
    if findings:
        more = len(findings) - _NAMED_FINDINGS
        words = "; ".join(found.words for found in findings[:_NAMED_FINDINGS])
        words += f"; and {more} more" if more > 0 else ""
    else:
        by = "" if season == "none" else f", by {season}"
        words = f"as usual: {_counted(count, 'statistic')} against {len(past)} partitions{by}"
    return QualityVerdict("alert" if findings else "ok", tuple(findings), words, len(past), count, season)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _finding(each: _Watched, judged: Judged, place: int) -> QualityFinding:
    centre, spread = float(judged.centre[place]), float(judged.spread[place])
    low, high = each.told(centre - 2 * spread), each.told(centre + 2 * spread)
    usual = low if low == high else f"{low} to {high}"
    name = f"{each.column}: " if each.column else ""
    words = f"{name}{each.statistic} {each.now or each.told(each.series.now)}, usual {usual}"
    # Twice as far is said of the numbers themselves, not of the logarithms of ends and delays.
    scale = _undone if each.series.is_extreme else float
    away = scale(each.series.now) - scale(centre)
    direction: Direction = "up" if away > 0 else "down"
    return QualityFinding(
        each.column, each.statistic, words, float(judged.z[place]), direction, abs(away), each.values
    )


# -- volume -----------------------------------------------------------------------------------------------


def _volume(past: Sequence[Observed], now: Observed) -> Iterator[_Watched]:
    rows = np.array([each.facts.rows for each in past], float)
    # What sampling explains is that of as many rows as there were before: a fall to nothing does not excuse itself.
    least = max(now.facts.rows, float(rows.min()))
    series = Series(
        np.log(rows + 0.5), 1 / (rows + 0.5), _log(now.facts.rows), 1 / (least + 0.5), _VOLUME_FLOOR
    )
    yield _Watched("", "rows", series, lambda value: f"{max(0.0, np.exp(value) - 0.5):,.0f}")


def _log(rows: int) -> float:
    return float(np.log(rows + 0.5))


# -- freshness --------------------------------------------------------------------------------------------


def _freshness(past: Sequence[Observed], now: Observed) -> Iterator[_Watched]:
    """How long before the end of its partition the newest moment of a column is."""
    unit = now.microseconds / 100

    def age(each: Observed, column: ColumnFacts | None) -> float:
        return np.nan if column is None or column.high is None else (each.ends - column.high) / unit

    for name, column in now.facts.columns.items():
        if column.kind != "time":
            continue
        ages = np.array([age(each, each.facts.columns.get(name)) for each in past])
        newest = age(now, column)
        series = Series(
            _signed_log(ages), np.zeros(len(past)), float(_signed_log(newest)), 0.0, 0.0, (1,), _SAME, True
        )
        known = ages[np.isfinite(ages)]
        if not len(known) or abs(np.median(known)) > 100 * _FRESH:
            continue  # a birthday, say, which tells nothing about the partition
        late = newest - known.max() >= 100 * _FRESHNESS_FLOOR
        yield _Watched(
            name, "newest moment", series, lambda value: _ago(_undone(value) * unit), is_beyond=bool(late)
        )


def _signed_log(values: np.ndarray | float) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))


def _undone(value: float) -> float:
    return float(np.sign(value) * np.expm1(min(abs(value), 50.0)))


def _ago(microseconds: float) -> str:
    seconds = abs(microseconds) / 1e6
    units = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
    size, name = next((pair for pair in units if seconds >= 2 * pair[0]), (1.0, "seconds"))
    return f"{seconds / size:.1f} {name} {'before' if microseconds >= 0 else 'after'} the end"


# -- shares -----------------------------------------------------------------------------------------------


def _nulls(past: Sequence[Observed], now: Observed) -> Iterator[_Watched]:
    for name, column in now.facts.columns.items():
        before = [_column(each, name) for each in past]
        yield _share(name, "without a value", column, before, lambda found: found.missing)
        if column.kind == "string" and (column.empty or any(found and found.empty for found in before)):
            yield _share(name, "empty", column, before, lambda found: found.empty)


def _values(past: Sequence[Observed], now: Observed) -> Iterator[_Watched]:
    """The share of values that no partition before has; of each of those, that no other one has."""
    for name, column in now.facts.columns.items():
        if not column.values:
            continue
        own = column.values
        before = [_column(each, name) for each in past]
        sets = [found.values if found is not None and found.values else None for found in before]
        seen = Counter(value for each in sets if each is not None for value in each)
        new = [value for value, _ in Counter(own).most_common() if value not in seen]
        total = sum(own.values())
        share = sum(own[value] for value in new) / total
        shares = [
            np.nan
            if each is None
            else sum(n for value, n in each.items() if seen[value] == 1) / sum(each.values())
            for each in sets
        ]
        rows = np.array([sum(each.values()) if each else 0 for each in sets], float)
        series = Series(
            _angle(np.array(shares), total),
            _angle_noise(rows),
            float(_angle(share, total)),
            1 / (4 * total + 2),
            _VALUES_FLOOR,
            (1,),
        )
        names = [_short(column.names.get(value, "?")) for value in new]
        told = f"{100 * share:.1f} % ({_few(names)})"
        yield _Watched(name, "never seen before", series, _percent, told, _few(sorted(names)))


def _share(
    name: str,
    statistic: str,
    column: ColumnFacts,
    before: Sequence[ColumnFacts | None],
    share: Callable[[ColumnFacts], float],
) -> _Watched:
    past = np.array([np.nan if found is None else share(found) for found in before])
    rows = np.array([0 if found is None else found.rows for found in before], float)
    series = Series(
        _angle(past, column.rows),
        _angle_noise(rows),
        float(_angle(share(column), column.rows)),
        1 / (4 * column.rows + 2),
        _NULLS_FLOOR,
    )
    return _Watched(name, statistic, series, _percent, f"{100 * share(column):.1f} %")


def _angle(share: np.ndarray | float, rows: float) -> np.ndarray:
    """Arcsine of the root, with Anscombe's correction (Biometrika 35, 1948): its variance is 1 / (4 rows + 2).

    Shares of all partitions are put on the scale of the judged one's rows: the correction moves those of few rows.
    """
    return np.arcsin(np.sqrt((share * rows + 0.375) / (rows + 0.75)))


def _angle_noise(rows: np.ndarray) -> np.ndarray:
    return 1 / (4 * rows + 2)


def _percent(angle: float) -> str:
    return f"{100 * np.sin(np.clip(angle, 0.0, np.pi / 2)) ** 2:.1f} %"


# -- ranges -----------------------------------------------------------------------------------------------


def _ranges(past: Sequence[Observed], now: Observed) -> Iterator[_Watched]:
    """Smallest and largest number of each column; oldest and newest moment, by the end of the partition."""
    for name, column in now.facts.columns.items():
        before = [_column(each, name) for each in past]
        if column.kind not in ("number", "time") or column.low is None or column.high is None:
            continue
        is_time = column.kind == "time"
        known = [found for found in before if found is not None and found.low is not None]
        if not known:
            continue
        # Moments are told in partitions, numbers in what is typical of them.
        typical = float(np.median([found.typical for found in known])) or 1.0
        unit = now.microseconds if is_time else typical
        lows, highs = (
            np.array(
                [
                    _end(found, end, each.ends if is_time else 0.0)
                    for found, each in zip(before, past, strict=True)
                ]
            )
            for end in ("low", "high")
        )
        base = now.ends if is_time else 0.0
        width = float(np.nanmax(highs) - np.nanmin(lows))
        if not width:
            continue  # a constant: `_constants` tells
        told = _moment_told(base, unit) if is_time else _number_told(unit)
        for side, ends, value, statistic in (
            (-1, lows, column.low - base, "oldest moment" if is_time else "smallest value"),
            (1, highs, column.high - base, "newest moment" if is_time else "largest value"),
        ):
            extreme = float(np.nanmax(side * ends))
            series = Series(
                _signed_log(ends / unit),
                np.zeros(len(past)),
                float(_signed_log(value / unit)),
                0.0,
                0.0,
                (side,),
                _SAME,
                True,
            )
            beyond = side * value - extreme >= _RANGE_FLOOR * width
            yield _Watched(name, statistic, series, told, is_beyond=beyond)


def _end(found: ColumnFacts | None, end: str, base: float) -> float:
    value = None if found is None else getattr(found, end)
    return np.nan if value is None else value - base


def _number_told(unit: float) -> Callable[[float], str]:
    return lambda value: f"{_undone(value) * unit:.4g}"


def _moment_told(base: float, unit: float) -> Callable[[float], str]:
    def told(value: float) -> str:
        seconds = (base + _undone(value) * unit) / 1e6
        if not -62_000_000_000 < seconds < 253_000_000_000:
            return "beyond the calendar"
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")

    return told


def _constants(past: Sequence[Observed], now: Observed) -> Iterator[QualityFinding]:
    """Columns with one value alone that never had so before, and those that have others for the first time."""
    for name, column in now.facts.columns.items():
        before = [found for each in past if (found := _column(each, name)) is not None and found.top_share]
        if len(before) < FEWEST_PARTITIONS or column.kind not in ("number", "string", "boolean"):
            continue
        most = max(found.top_share for found in before)
        values = column.rows * (1 - column.missing)
        if column.is_constant and most < 1 and -values * np.log(most) >= _SURELY:
            words = f"{name}: all values are the same, never so before"
            yield QualityFinding(name, "constant", words, float("inf"))
        # Strings with a new value are told as such.
        if column.kind == "number" and all(found.is_constant for found in before):
            others = 1 - column.top_share
            if not column.is_constant and float(_angle(others, values)) >= _VALUES_FLOOR:
                words = f"{name}: {100 * others:.1f} % of the values are others, always constant before"
                yield QualityFinding(name, "not constant", words, float("inf"))


# -- helpers ----------------------------------------------------------------------------------------------


def _column(each: Observed, name: str) -> ColumnFacts | None:
    """The column of a partition with rows; None where there is none."""
    column = each.facts.columns.get(name)
    return column if column is not None and column.rows else None


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_VALUES} more" if len(names) > _NAMED_VALUES else ""
    return ", ".join(names[:_NAMED_VALUES]) + more


def _short(name: str) -> str:
    return repr(name if len(name) <= _NAME_CHARACTERS else name[: _NAME_CHARACTERS - 1] + "…")


_WATCHED: Mapping[str, Callable[[Sequence[Observed], Observed], Iterator[_Watched]]] = {
    VOLUME: _volume,
    FRESHNESS: _freshness,
    NULLS: _nulls,
    RANGES: _ranges,
    VALUES: _values,
}
_NOTHING = {
    VOLUME: "nothing to judge",
    FRESHNESS: "no column of moments to judge by",
    NULLS: "no column to judge",
    RANGES: "no column of numbers or moments to judge",
    VALUES: "no column with a set of values to judge",
}
