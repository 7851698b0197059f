"""The drift decision: a day is judged by how much days differ from one another.

The unit of replication is the day, not the row: with many rows every rule that tests rows finds every quiet
day significant. Each column gives signed day statistics; each is centred (by weekday where the history allows),
divided by the spread expected of it (between days, and the day's own sampling), and read against Student's t. An
alert needs a false-discovery-controlled finding on one day, or a strong one in the same direction on two of three
days, and an effect that is worth a look. `docs/monitoring.md` has what was measured of this rule.

It decides from profiles alone; it knows neither files nor pipelines.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from typing import Literal, Self

import numpy as np

from batch_platform.core.monitoring.day_statistics import DayValue, Yardstick, only_grows
from batch_platform.core.monitoring.normal import Normal
from batch_platform.core.monitoring.profile import Profile
from batch_platform.errors import MonitoringError

# With fewer days the spread between days cannot be estimated at all.
MINIMUM_REFERENCE_DAYS = 3
DAYS_PER_QUARTER = 91

_FALSE_DISCOVERY_RATE = 0.005
_REPEATED_P = 0.002
_MEMORY_DAYS = 3
# Effects below these are not worth anybody's time, however sure.
_FLOORS = {"mean rank": 0.04, "spread of ranks": 0.02, "null rate": 0.05, "share": 0.04, "mean vector": 0.005}
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
    """

    column: str
    statistic: str
    direction: Direction
    effect: float
    z: float
    p: float


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
class _Fitted:
    """What was learnt of the reference."""

    yardstick: Yardstick
    normal: Mapping[tuple[str, str], Normal]
    growing: frozenset[str]
    days: int
    kappa: float


class DriftMonitor:
    """Judges days, in date order, against a frozen reference; made by `fit`."""

    def __init__(self, fitted: _Fitted) -> None:
        self._fitted = fitted
        self._recent: deque[set[tuple[str, str, Direction]]] = deque(maxlen=_MEMORY_DAYS - 1)

    @classmethod
    def fit(cls, reference: Sequence[tuple[date, Profile]], false_alarms_per_quarter: float = 1.0) -> Self:
        """Learn what is normal.

        Args:
            reference: day and profile of each reference partition; partitions without rows are left out.
            false_alarms_per_quarter: budget of false alarms; a smaller one divides every z by more.

        Raises:
            MonitoringError: the budget is not above 0.
        """
        days = sorted(
            ((day, profile) for day, profile in reference if profile.rows), key=lambda pair: pair[0]
        )
        yardstick = Yardstick([profile for _, profile in days])
        seen: dict[tuple[str, str], list[tuple[date, DayValue]]] = {}
        for day, profile in days:
            for key, value in yardstick.statistics(profile):
                seen.setdefault(key, []).append((day, value))
        normal = {
            key: Normal.of(*zip(*values, strict=True))
            for key, values in seen.items()
            if len(values) >= MINIMUM_REFERENCE_DAYS
        }
        growing = frozenset(_growing([profile for _, profile in days]))
        kappa = _kappa(false_alarms_per_quarter, _per_quarter([day for day, _ in days]))
        return cls(_Fitted(yardstick, normal, growing, len(days), kappa))

    def restarted(self) -> "DriftMonitor":
        """A monitor with the same reference that has judged no day yet."""
        return DriftMonitor(self._fitted)

    def judge(self, day: date, profile: Profile) -> Verdict:
        """Decide on a day; call in date order, as the two-of-three rule remembers the days before."""
        days = self._fitted.days
        if days < MINIMUM_REFERENCE_DAYS:
            words = f"not enough history: {days} reference days, {MINIMUM_REFERENCE_DAYS} are needed at least"
            return Verdict("not enough history", (), profile.rows, days, {}, words)
        if not profile.rows:
            return Verdict("no rows", (), 0, days, {}, "no rows to judge")
        candidates = list(self._candidates(day, profile))
        strong = [finding for finding in candidates if finding.p < _REPEATED_P and _worth_a_look(finding)]
        alarming = {
            *(finding for finding in _discoveries(candidates) if _worth_a_look(finding)),
            *(finding for finding in strong if any(_key(finding) in earlier for earlier in self._recent)),
            *(_schema_change(column) for column in self._fitted.yardstick.schema_changes(profile)),
        }
        self._recent.append({_key(finding) for finding in strong})
        findings = tuple(sorted(alarming, key=lambda f: (f.p, -abs(f.z), f.column, f.statistic)))
        not_judged = tuple(sorted(self._fitted.growing & profile.columns.keys()))
        words = _sentence(findings) if findings else f"no drift found against {days} reference days"
        if not_judged:
            words += f"; not judged, as they only grow: {_few(not_judged)}"
        status: Status = "alert" if findings else "ok"
        return Verdict(status, findings, profile.rows, days, _scores(candidates, findings), words, not_judged)

    def _candidates(self, day: date, profile: Profile) -> Iterator[Finding]:
        from scipy.special import stdtr

        for (column, statistic), seen in self._fitted.yardstick.statistics(profile):
            normal = self._fitted.normal.get((column, statistic))
            if normal is None or (column in self._fitted.growing and statistic != "null rate"):
                continue
            effect, raw, degrees = normal.deviation(day, seen)
            z = raw / self._fitted.kappa
            p = float(2 * stdtr(degrees, -abs(z)))
            yield Finding(column, statistic, "up" if effect > 0 else "down", effect, z, p)


# -- the reference ----------------------------------------------------------------------------------------


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


def _per_quarter(days: Sequence[date]) -> float:
    """How many partitions a quarter has, by the reference; gaps of single days do not count."""
    if len(days) < MINIMUM_REFERENCE_DAYS:
        return DAYS_PER_QUARTER
    between = sorted((after - before).days for before, after in pairwise(days))
    usual = between[len(between) // 2]
    a_day = 1 / usual if usual else max(Counter(days).values())
    return DAYS_PER_QUARTER * a_day


def _kappa(false_alarms_per_quarter: float, judgements_per_quarter: float) -> float:
    """Divisor of every z: 1 for one false alarm in a quarter of daily judgements, larger for fewer.

    On a normal tail the rate of exceedances falls by e for each 1/z in z; around z = 4.5 a factor of ten in the
    budget is worth about 0.1 in kappa.
    """
    if not false_alarms_per_quarter > 0:
        raise MonitoringError(
            f"drift.false_alarms_per_quarter is {false_alarms_per_quarter}: it must be above 0; 1 is usual"
        )
    per_judgement = false_alarms_per_quarter / judgements_per_quarter
    return float(np.clip(1.0 - 0.1 * np.log10(per_judgement * DAYS_PER_QUARTER), 0.8, 1.8))


# -- deciding ---------------------------------------------------------------------------------------------


def _discoveries(candidates: Iterable[Finding]) -> list[Finding]:
    """Benjamini and Hochberg's step-up rule (J. R. Statist. Soc. B 57, 1995)."""
    ranked = sorted(candidates, key=lambda finding: finding.p)
    passed = 0
    for rank, finding in enumerate(ranked, start=1):
        if finding.p <= _FALSE_DISCOVERY_RATE * rank / len(ranked):
            passed = rank
    return ranked[:passed]


def _schema_change(column: str) -> Finding:
    return Finding(column, "schema", "changed", 1.0, np.inf, 0.0)


def _worth_a_look(finding: Finding) -> bool:
    floor = next(value for name, value in _FLOORS.items() if finding.statistic.startswith(name))
    return abs(finding.effect) >= floor


def _key(finding: Finding) -> tuple[str, str, Direction]:
    return finding.column, finding.statistic, finding.direction


def _scores(candidates: Iterable[Finding], findings: Iterable[Finding]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for finding in [*candidates, *findings]:
        scores[finding.column] = max(scores.get(finding.column, 0.0), min(abs(finding.z), _LARGEST_SCORE))
    return scores


def _sentence(findings: Sequence[Finding]) -> str:
    shown: dict[str, Finding] = {}
    for finding in findings:
        # A shift widens the ranks as well: where both are found the shift is what a reader understands.
        if finding.column not in shown or finding.statistic == "mean rank":
            shown[finding.column] = finding
    return f"drift in {_few([f'{name} ({f.statistic} {f.direction})' for name, f in shown.items()])}"


def _few(words: Sequence[str]) -> str:
    more = len(words) - _NAMED_FINDINGS
    return ", ".join(words[:_NAMED_FINDINGS]) + (f" and {more} more columns" if more > 0 else "")
