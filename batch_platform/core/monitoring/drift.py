"""The drift decision: a day is judged by how much days differ from one another.

The unit of replication is the day, not the row: with many rows every rule that tests rows finds every quiet
day significant. Each column gives signed day statistics (`day_statistics`); `normal` says what is usual for each,
`evidence` how far the last days lie from it, `decision` whether that is an alert, and `back_test` how strict to be.
`docs/monitoring.md` has what was measured of this rule.

Decides what a verdict says. It works from profiles alone; it knows neither files nor pipelines.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from itertools import pairwise
from typing import Literal, Self

import numpy as np

from batch_platform.core.monitoring.back_test import (
    IN_TIME,
    Detection,
    Trial,
    WalkForward,
    chosen,
    detections,
    tried,
)
from batch_platform.core.monitoring.day_statistics import Yardstick, only_grows
from batch_platform.core.monitoring.decision import STRICTNESS, Rule, kind_of
from batch_platform.core.monitoring.detectable import Detectable, columns_not_seen, detectable
from batch_platform.core.monitoring.evidence import (
    LONGEST_WINDOW,
    WINDOWS,
    Deviations,
    Precedents,
    precedents,
)
from batch_platform.core.monitoring.normal import DayValues, Normal, Statistic
from batch_platform.core.monitoring.profile import Profile
from batch_platform.errors import MonitoringError

# With fewer days the spread between days cannot be estimated at all.
MINIMUM_REFERENCE_DAYS = 3
DAYS_PER_QUARTER = 91

# By chance so many days in a row would rise once in 5,000 columns.
_DAYS_OF_GROWTH = 7
_NAMED_FINDINGS = 5
_LARGEST_SCORE = 99.0

Direction = Literal["up", "down", "changed"]
Status = Literal["ok", "alert", "not enough history", "no rows"]


@dataclass(frozen=True)
class Finding:
    """One way in which a day differs from the reference.

    Attributes:
        column: the column's name.
        statistic: mean rank, spread of ranks, null rate, share of VALUE, mean vector, or schema.
        direction: up or down against the reference.
        effect: in the statistic's unit: ranks 0..1, arcsine of the root of a share, squared distance over the
            variance of the reference's rows.
        z: effect in units of its expected spread.
        p: two-sided, under no drift.
        partitions: how many partitions in a row it rests on, the judged one the last.
    """

    column: str
    statistic: str
    direction: Direction
    effect: float
    z: float
    p: float
    partitions: int = 1


@dataclass(frozen=True)
class Verdict:
    """The decision on one day.

    Attributes:
        status: what was decided; `alert` is True exactly for `alert`.
        findings: for an alert what it rests on, the strongest first.
        rows: rows of the day.
        reference_days: days in the reference.
        scores: column -> the largest |z| of its statistics, for plots.
        message: one plain sentence.
        not_judged: columns of which only nulls are judged, as their numbers only grow from day to day.
    """

    status: Status
    findings: tuple[Finding, ...] = ()
    rows: int = 0
    reference_days: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    not_judged: tuple[str, ...] = ()

    @property
    def alert(self) -> bool:
        return self.status == "alert"


@dataclass(frozen=True)
class Calibration:
    """How the decision is set for this pipeline, and what it is worth.

    Attributes:
        budget: false alarms a quarter that were allowed.
        judgements_per_quarter: partitions in a quarter.
        strictness: how often the spread between days is taken; chosen by back-test.
        trial: what that strictness would have done on the reference days, each half judged by days of the other;
            None where the reference is too short for that.
        season: by what partitions are grouped: weekday, hour of the week, hour of the day, or none.
        detectable: smallest change of each statistic that nine of ten times is found within seven partitions.
    """

    budget: float
    judgements_per_quarter: float
    strictness: float
    trial: Trial | None = None
    season: str = "none"
    detectable: tuple[Detectable, ...] = ()

    @property
    def meets_budget(self) -> bool:
        """Whether the back-test, single odd days aside, found no more than was allowed; True without a back-test."""
        return self.trial is None or self.trial.lasting_per_quarter <= self.budget

    def sentence(self) -> str:
        """The false-alarm rate in words, for reports."""
        if self.trial is None:
            return f"set for at most {self.budget:g} false alarms a quarter; not back-tested: the reference is too short"
        words = f"{self.trial.episodes} false alarms on {self.trial.days} back-tested partitions"
        kept = "set for" if self.meets_budget else "the history does not keep the budget of"
        odd = f"; {self.trial.odd} of them for a single odd partition, known now" if self.trial.odd else ""
        return (
            f"{kept} at most {self.budget:g} false alarms a quarter; {words} at strictness {self.strictness:g} "
            f"(95 % sure: fewer than {self.trial.at_most:.1f} a quarter){odd}"
        )


@dataclass(frozen=True)
class _Fitted:
    """What was learnt of the reference; `keys` are column and name of each statistic.

    `not_seen` are columns that vary so much between the reference days that no change of them would be found.
    """

    yardstick: Yardstick
    keys: tuple[tuple[str, str], ...]
    normal: Normal | None
    held_against: Precedents | None
    rule: Rule
    history: tuple[tuple[date, DayValues], ...]
    growing: frozenset[str]
    calibration: Calibration
    not_seen: tuple[str, ...] = ()

    def values(self, profile: Profile) -> DayValues:
        return _aligned(self.keys, self.yardstick, profile)


class DriftMonitor:
    """Judges days, in date order, against a frozen reference; made by `fit`."""

    def __init__(self, fitted: _Fitted) -> None:
        self._fitted = fitted
        self._recent: deque[tuple[date, DayValues]] = deque(maxlen=LONGEST_WINDOW)

    @classmethod
    def fit(cls, reference: Sequence[tuple[date, Profile]], false_alarms_per_quarter: float = 1.0) -> Self:
        """Learn what is normal, and how strict to be.

        Args:
            reference: day and profile of each reference partition; a datetime where there are several a day.
                Partitions without rows are left out.
            false_alarms_per_quarter: budget of false alarms.

        Raises:
            MonitoringError: the budget is not above 0.
        """
        if not false_alarms_per_quarter > 0:
            raise MonitoringError(
                f"drift.false_alarms_per_quarter is {false_alarms_per_quarter}: it must be above 0; 1 is usual"
            )
        known = sorted(
            ((day, profile) for day, profile in reference if profile.rows), key=lambda pair: pair[0]
        )
        moments, profiles = [day for day, _ in known], [profile for _, profile in known]
        yardstick, growing = Yardstick(profiles), frozenset(_growing(profiles))
        keys = tuple(_lasting(yardstick, profiles, growing))
        statistics = _statistics(keys)
        kinds = [each.kind for each in statistics]
        days = [_aligned(keys, yardstick, profile) for profile in profiles]
        spent = np.array([yardstick.is_spent_on(*key) for key in keys], bool)
        for place in yardstick.spent:
            days[place] = replace(days[place], values=np.where(spent, np.nan, days[place].values))
        a_quarter = _per_quarter(moments)
        rule = Rule.of(kinds, false_alarms_per_quarter, a_quarter)
        calibration = Calibration(false_alarms_per_quarter, a_quarter, STRICTNESS[0])
        dated = tuple(zip(moments, days, strict=True))
        if len(days) < MINIMUM_REFERENCE_DAYS or not keys:
            return cls(_Fitted(yardstick, keys, None, None, rule, dated, growing, calibration))
        normal = Normal.of(moments, days, kinds)
        had = precedents(normal, moments, days, statistics)
        history = WalkForward.of(moments, days, statistics, had)
        trial = chosen(tried(history, rule, a_quarter), false_alarms_per_quarter)
        strictness = trial.strictness if trial else STRICTNESS[0]
        smallest = tuple(detectable(keys, normal, had, rule, moments, days, strictness))
        calibration = Calibration(
            false_alarms_per_quarter, a_quarter, strictness, trial, normal.season.name, smallest
        )
        not_seen = tuple(columns_not_seen(smallest))
        return cls(_Fitted(yardstick, keys, normal, had, rule, dated, growing, calibration, not_seen))

    @property
    def calibration(self) -> Calibration:
        """How the decision is set, its false-alarm rate, and the smallest change that it finds."""
        return self._fitted.calibration

    def restarted(self) -> "DriftMonitor":
        """A monitor with the same reference that has judged no day yet."""
        return DriftMonitor(self._fitted)

    def at(self, strictness: float) -> "DriftMonitor":
        """A monitor with the same reference and another strictness that has judged no day yet."""
        calibration = replace(self.calibration, strictness=strictness)
        return DriftMonitor(replace(self._fitted, calibration=calibration))

    def back_test(self, later: Sequence[tuple[date, Profile]] = ()) -> tuple[list[Trial], list[Detection]]:
        """Every strictness on the reference by walk-forward: false alarms; and how soon changes are found.

        Changes are put into the beginning of each week since the reference, judged as this monitor judges it; before
        there is one, into the later half of the reference, judged by the days before. Both are empty where the
        reference is too short (`back_test.FEWEST_DAYS`).

        Args:
            later: day and profile of partitions since the reference, in date order.
        """
        fitted = self._fitted
        if fitted.normal is None or fitted.held_against is None:
            return [], []
        moments, days = zip(*fitted.history, strict=True)
        statistics = _statistics(fitted.keys)
        history = WalkForward.of(moments, days, statistics, fitted.held_against)
        false_alarms = list(tried(history, fitted.rule, self.calibration.judgements_per_quarter))
        if false_alarms and len(later) >= IN_TIME:
            moments += tuple(day for day, _ in later)
            days += tuple(fitted.values(profile) for _, profile in later)
            known = fitted.normal, fitted.held_against
            history = WalkForward.since(known, moments, days, len(fitted.history))
        return false_alarms, list(detections(history, [each.kind for each in statistics], fitted.rule))

    def remember(self, day: date, profile: Profile) -> None:
        """Take a day into account that was judged already; in date order, as for `judge`."""
        if self._fitted.normal is not None and profile.rows:
            self._recent.append((day, self._fitted.values(profile)))

    def judge(self, day: date, profile: Profile) -> Verdict:
        """Decide on a day; call in date order, as the days before have a say."""
        days = len(self._fitted.history)
        if days < MINIMUM_REFERENCE_DAYS:
            words = f"not enough history: {days} reference days, {MINIMUM_REFERENCE_DAYS} are needed at least"
            return Verdict("not enough history", (), profile.rows, days, {}, words)
        if not profile.rows:
            return Verdict("no rows", (), 0, days, {}, "no rows to judge")
        found, scores = self._found(day, profile)
        changed = [_schema_change(column) for column in self._fitted.yardstick.schema_changes(profile)]
        findings = tuple(sorted([*found, *changed], key=lambda f: (f.p, -abs(f.z), f.column, f.statistic)))
        scores |= {finding.column: _LARGEST_SCORE for finding in changed}
        not_judged = tuple(sorted(self._fitted.growing & profile.columns.keys()))
        words = _sentence(findings) if findings else f"no drift found against {days} reference days"
        if not findings and self._fitted.not_seen:
            words += f"; these vary too much for any change to show: {_few(self._fitted.not_seen)}"
        if not_judged:
            words += f"; not judged, as they only grow: {_few(not_judged)}"
        status: Status = "alert" if findings else "ok"
        return Verdict(status, findings, profile.rows, days, scores, words, not_judged)

    def _found(self, day: date, profile: Profile) -> tuple[list[Finding], dict[str, float]]:
        """Findings of a day, and the largest |z| of each column."""
        fitted = self._fitted
        if fitted.normal is None:
            return [], {}
        self.remember(day, profile)
        moments, values = zip(*self._recent, strict=True)
        deviations = Deviations.of(fitted.normal, moments, values)
        evidence = deviations.evidence(fitted.calibration.strictness, fitted.held_against)
        alarms, z, p = fitted.rule.alarms(evidence)[0], evidence.z[0], evidence.p[0]
        scores: dict[str, float] = {}
        judged = np.isfinite(z)
        largest = np.abs(z).max(axis=0, initial=0.0, where=judged)
        for place in np.flatnonzero(judged.any(axis=0)):
            column, score = fitted.keys[place][0], float(largest[place])
            scores[column] = max(scores.get(column, 0.0), min(score, _LARGEST_SCORE))
        findings = []
        for place in np.flatnonzero(alarms.any(axis=0)):
            window = int(np.argmin(np.where(alarms[:, place], p[:, place], np.inf)))
            effect = float(evidence.effect[0, window, place])
            findings.append(
                Finding(
                    *fitted.keys[place],
                    "up" if effect > 0 else "down",
                    effect,
                    float(z[window, place]),
                    float(p[window, place]),
                    min(WINDOWS[window], len(self._recent)),
                )
            )
        return findings, scores


# -- the reference ----------------------------------------------------------------------------------------


def _lasting(
    yardstick: Yardstick, profiles: Sequence[Profile], growing: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """Statistics that enough reference days have; of numbers that only grow the nulls alone."""
    seen = Counter(key for profile in profiles for key, _ in yardstick.statistics(profile))
    for (column, statistic), days in seen.items():
        if days >= MINIMUM_REFERENCE_DAYS and (column not in growing or statistic == "null rate"):
            yield column, statistic


def _statistics(keys: Sequence[tuple[str, str]]) -> list[Statistic]:
    return [Statistic(column, kind_of(name)) for column, name in keys]


def _aligned(keys: Sequence[tuple[str, str]], yardstick: Yardstick, profile: Profile) -> DayValues:
    found = dict(yardstick.statistics(profile))
    values = np.array([found[key].value if key in found else np.nan for key in keys])
    sampling = np.array([found[key].sampling if key in found else np.nan for key in keys])
    return DayValues(values, sampling)


def _growing(days: Sequence[Profile]) -> Iterator[str]:
    """Columns of numbers that move on with every reference day: counters, times, running ids."""
    if len(days) < _DAYS_OF_GROWTH:
        return
    shared = set.intersection(*(set(day.columns) for day in days))
    for name in shared:
        columns = [day.columns[name] for day in days]
        is_number = all(column.kind == "number" and column.numbers.places for column in columns)
        if is_number and only_grows(columns):
            yield name


def _per_quarter(moments: Sequence[date]) -> float:
    """How many partitions a quarter has, by the reference; gaps of single days do not count."""
    if len(moments) < MINIMUM_REFERENCE_DAYS:
        return DAYS_PER_QUARTER
    between = sorted(_days_between(before, after) for before, after in pairwise(moments))
    usual = between[len(between) // 2]
    return DAYS_PER_QUARTER * (1 / usual if usual else max(Counter(moments).values()))


def _days_between(before: date, after: date) -> float:
    return (_moment(after) - _moment(before)).total_seconds() / 86_400


def _moment(day: date) -> datetime:
    return day if isinstance(day, datetime) else datetime.combine(day, time())


# -- words ------------------------------------------------------------------------------------------------


def _schema_change(column: str) -> Finding:
    return Finding(column, "schema", "changed", 1.0, np.inf, 0.0)


def _sentence(findings: Sequence[Finding]) -> str:
    shown: dict[str, Finding] = {}
    for finding in findings:
        # A shift widens the ranks as well: where both are found the shift is what a reader understands.
        if finding.column not in shown or finding.statistic == "mean rank":
            shown[finding.column] = finding
    return f"drift in {_few([f'{name} ({f.statistic} {f.direction})' for name, f in shown.items()])}"


def _few(words: Sequence[str]) -> str:
    more = len(words) - _NAMED_FINDINGS
    return ", ".join(words[:_NAMED_FINDINGS]) + (
        f" and {more} more column{'s'[: more > 1]}" if more > 0 else ""
    )
