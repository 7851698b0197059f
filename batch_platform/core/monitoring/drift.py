"""The drift decision: a day is judged by how much days differ from one another.

The unit of replication is the day, not the row: with many rows every rule that tests rows finds every quiet
day significant. Each column gives signed day statistics; each is centred (by weekday where the history allows),
divided by the spread expected of it (between days, and the day's own sampling), and read against Student's t. An
alert needs a false-discovery-controlled finding on one day, or a strong one in the same direction on two of three
days, and an effect that is worth a look. `docs/monitoring.md` has what was measured of this rule.

It decides from profiles alone; it knows neither files nor pipelines.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, Self

import numpy as np

from batch_platform.core.monitoring.profile import BUCKETS, ColumnProfile, Profile
from batch_platform.errors import MonitoringError

# With fewer days the spread between days cannot be estimated at all.
MINIMUM_REFERENCE_DAYS = 3
DAYS_PER_QUARTER = 91

_FALSE_DISCOVERY_RATE = 0.005
_REPEATED_P = 0.002
_MEMORY_DAYS = 3
_TOP_CATEGORIES = 20
_DAYS_PER_WEEKDAY = 4
# Effects below these are not worth anybody's time, however sure.
_FLOORS = {"mean rank": 0.04, "spread of ranks": 0.02, "null rate": 0.05, "share": 0.04, "mean vector": 0.02}
# A string column with more distinct values than this share of its rows is text or a key: only lengths count.
_TEXT_SHARE = 0.5
_NAMED_FINDINGS = 5

Direction = Literal["up", "down", "changed"]
Status = Literal["ok", "alert", "not enough history", "no rows"]


@dataclass(frozen=True)
class Finding:
    """One way in which a day differs from the reference.

    Attributes:
        column: the column's name.
        statistic: mean rank, spread of ranks, null rate, share of VALUE, mean vector, or schema.
        direction: up or down against the reference.
        effect: in the statistic's unit: ranks 0..1, asin-sqrt of a share, cosine distance.
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
    """

    status: Status
    findings: tuple[Finding, ...] = ()
    rows: int = 0
    reference_days: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    message: str = ""

    @property
    def alert(self) -> bool:
        return self.status == "alert"


@dataclass(frozen=True)
class _Value:
    """A statistic of one day: its value, and the variance that sampling so many rows gives it."""

    value: float
    sampling: float


@dataclass(frozen=True)
class _Expected:
    """A statistic's distribution over the reference days."""

    centres: Mapping[int, float]  # by weekday; -1: all days
    between: float  # variance between days
    days: int

    def z(self, day: date, seen: _Value) -> tuple[float, float]:
        """Effect, and effect over its expected spread."""
        centre = self.centres.get(day.weekday(), self.centres[-1])
        effect = seen.value - centre
        spread = np.sqrt(self.between * (1 + 1 / self.days) + seen.sampling)
        return effect, float(effect / spread) if spread else float(np.sign(effect)) * np.inf


class DriftMonitor:
    """Judges days, in date order, against a frozen reference; made by `fit`."""

    def __init__(
        self, pooled: Profile, expected: Mapping[tuple[str, str], _Expected], days: int, kappa: float
    ) -> None:
        self._pooled = pooled
        self._expected = expected
        self._days = days
        self._kappa = kappa
        self._recent: deque[set[tuple[str, str, Direction]]] = deque(maxlen=_MEMORY_DAYS - 1)

    @classmethod
    def fit(cls, reference: Sequence[tuple[date, Profile]], false_alarms_per_quarter: float = 1.0) -> Self:
        """Learn what is normal.

        Args:
            reference: day and profile of each reference partition; days without rows are left out.
            false_alarms_per_quarter: budget of false alarms; a smaller one divides every z by more.

        Raises:
            MonitoringError: the budget is not above 0.
        """
        days = [(day, profile) for day, profile in reference if profile.rows]
        pooled = Profile()
        for _, profile in days:
            pooled = _merged(pooled, profile)
        seen: dict[tuple[str, str], list[tuple[date, _Value]]] = {}
        for day, profile in days:
            for key, value in _statistics(pooled, profile):
                seen.setdefault(key, []).append((day, value))
        enough = {key: values for key, values in seen.items() if len(values) >= MINIMUM_REFERENCE_DAYS}
        expected = {key: _expect(values) for key, values in enough.items()}
        return cls(pooled, expected, len(days), _kappa(false_alarms_per_quarter))

    def restarted(self) -> "DriftMonitor":
        """The same monitor without memory of days judged."""
        return DriftMonitor(self._pooled, self._expected, self._days, self._kappa)

    def judge(self, day: date, profile: Profile) -> Verdict:
        """Decide on a day; call in date order, as the two-of-three rule remembers the days before."""
        if self._days < MINIMUM_REFERENCE_DAYS:
            words = f"not enough history: {self._days} reference days, {MINIMUM_REFERENCE_DAYS} are needed at least"
            return Verdict("not enough history", (), profile.rows, self._days, {}, words)
        if not profile.rows:
            return Verdict("no rows", (), 0, self._days, {}, "no rows to judge")
        candidates = list(self._candidates(day, profile))
        strong = [finding for finding in candidates if finding.p < _REPEATED_P and _worth_a_look(finding)]
        alarming = {
            *(finding for finding in _discoveries(candidates) if _worth_a_look(finding)),
            *(finding for finding in strong if any(_key(finding) in earlier for earlier in self._recent)),
            *self._schema_changes(profile),
        }
        self._recent.append({_key(finding) for finding in strong})
        findings = tuple(sorted(alarming, key=lambda finding: (finding.p, -abs(finding.z), finding.column)))
        scores = {finding.column: 0.0 for finding in candidates}
        for finding in candidates:
            scores[finding.column] = max(scores[finding.column], min(abs(finding.z), 99.0))
        words = _sentence(findings) if findings else f"no drift found against {self._days} reference days"
        return Verdict("alert" if findings else "ok", findings, profile.rows, self._days, scores, words)

    def _candidates(self, day: date, profile: Profile) -> Iterator[Finding]:
        from scipy.stats import t

        for (column, statistic), seen in _statistics(self._pooled, profile):
            expected = self._expected.get((column, statistic))
            if expected is None:
                continue
            effect, raw = expected.z(day, seen)
            z = raw / self._kappa
            degrees = expected.days - len(expected.centres)
            p = float(2 * t.sf(abs(z), max(1, degrees)))
            yield Finding(column, statistic, "up" if effect > 0 else "down", float(effect), z, p)

    def _schema_changes(self, profile: Profile) -> Iterator[Finding]:
        known, seen = self._pooled.columns, profile.columns
        for column in known.keys() | seen.keys():
            if column not in seen or column not in known or not _same_form(known[column], seen[column]):
                yield Finding(column, "schema", "changed", 1.0, np.inf, 0.0)


# -- statistics of a day ----------------------------------------------------------------------------------


def _statistics(pooled: Profile, profile: Profile) -> Iterator[tuple[tuple[str, str], _Value]]:
    for name, column in profile.columns.items():
        reference = pooled.columns.get(name)
        if reference is None or reference.kind != column.kind or not column.rows:
            continue
        # NaN and infinity carry no value either; they are in no bin, so nothing else would see them.
        missing = column.nulls + column.bad
        yield (name, "null rate"), _share(missing, column.rows)
        if column.rows == missing:
            continue
        if column.kind == "number" or (column.kind == "string" and _is_text(reference)):
            suffix = "" if column.kind == "number" else " of lengths"
            for statistic, value in _ranks(reference.bins, column.bins):
                yield (name, statistic + suffix), value
        elif column.kind in ("string", "boolean"):
            for statistic, value in _shares(reference, column):
                yield (name, statistic), value
        elif column.kind == "vector" and len(column.sums) == len(reference.sums) and column.sums:
            yield (name, "mean vector"), _distance(reference, column)


def _same_form(known: ColumnProfile, seen: ColumnProfile) -> bool:
    """Whether two columns hold the same kind of values; of vectors also the same length."""
    if known.kind != seen.kind or (seen.mixed and not known.mixed):
        return False
    return known.mixed or not known.sums or not seen.sums or len(known.sums) == len(seen.sums)


def _is_text(column: ColumnProfile) -> bool:
    values = column.rows - column.nulls
    # Buckets saturate: so many in use means too many distinct values to be categories.
    return len(column.buckets) > min(BUCKETS * 0.6, max(_TOP_CATEGORIES, _TEXT_SHARE * values))


def _ranks(reference: Mapping[int, int], day: Mapping[int, int]) -> Iterator[tuple[str, _Value]]:
    """Mean rank of the day's values among the reference's, and the mean distance of the ranks from 1/2."""
    places = np.array(sorted(reference))
    counts = np.array([reference[place] for place in places.tolist()], float)
    if not day or not len(places):
        return
    below = np.concatenate([[0.0], np.cumsum(counts)])
    own, weights = np.array(list(day)), np.array(list(day.values()), float)
    left, right = np.searchsorted(places, own), np.searchsorted(places, own, side="right")
    ranks = (below[left] + below[right]) / 2 / below[-1]
    rows = weights.sum()
    for name, values in (("mean rank", ranks), ("spread of ranks", np.abs(ranks - 0.5))):
        mean = float((values * weights).sum() / rows)
        # At least the variance of one row in the reference, so that a day of equal values is not taken for sure.
        variance = max(float(((values - mean) ** 2 * weights).sum() / rows), 1 / 48)
        yield name, _Value(mean, variance / rows)


def _shares(reference: ColumnProfile, column: ColumnProfile) -> Iterator[tuple[str, _Value]]:
    ranked = sorted(reference.buckets.items(), key=lambda item: (-item[1], item[0]))
    top = [place for place, _ in ranked[:_TOP_CATEGORIES]]
    values = column.rows - column.nulls
    for place in top:
        yield f"share of {reference.names[place]!r}", _share(column.buckets.get(place, 0), values)
    rest = values - sum(column.buckets.get(place, 0) for place in top)
    yield "share of other values", _share(rest, values)


def _share(count: int, rows: int) -> _Value:
    """A share on the arcsine scale, where its sampling variance is 1/(4 rows) whatever the share."""
    return _Value(float(np.arcsin(np.sqrt(count / rows))), 1 / (4 * rows))


def _distance(reference: ColumnProfile, column: ColumnProfile) -> _Value:
    """Cosine distance between the mean vectors."""
    one, other = np.array(reference.sums), np.array(column.sums)
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    distance = 1 - float(one @ other / norms) if norms else 1.0
    return _Value(distance, 1 / (column.rows * max(1, len(one))))


# -- what is normal ---------------------------------------------------------------------------------------


def _expect(values: list[tuple[date, _Value]]) -> _Expected:
    all_days = float(np.mean([value.value for _, value in values]))
    centres = {-1: all_days}
    by_weekday: dict[int, list[float]] = {}
    for day, value in values:
        by_weekday.setdefault(day.weekday(), []).append(value.value)
    if all(len(by_weekday.get(weekday, ())) >= _DAYS_PER_WEEKDAY for weekday in range(7)):
        centres |= {weekday: float(np.mean(found)) for weekday, found in by_weekday.items()}
    residuals = np.array([value.value - centres.get(day.weekday(), all_days) for day, value in values])
    freedom = max(1, len(values) - max(1, len(centres) - 1))
    total = float((residuals**2).sum() / freedom)
    sampling = float(np.mean([value.sampling for _, value in values]))
    return _Expected(centres, max(0.0, total - sampling), len(values))


def _merged(pooled: Profile, profile: Profile) -> Profile:
    """Merge, leaving out a column that changed its kind within the reference: the first kind stands."""
    fitting = {
        name: column
        for name, column in profile.columns.items()
        if name not in pooled.columns or pooled.columns[name].kind == column.kind
    }
    return pooled.merge(Profile(fitting, profile.rows))


def _kappa(false_alarms_per_quarter: float) -> float:
    """Divisor of every z: 1.25 for one false alarm a quarter, larger for fewer.

    On a normal tail the rate of exceedances falls by e for each 1/z in z; around z = 4.5 a factor of ten in the
    budget is worth about 0.1 in kappa.
    """
    if not false_alarms_per_quarter > 0:
        raise MonitoringError(
            f"drift.false_alarms_per_quarter is {false_alarms_per_quarter}: it must be above 0; 1 is usual"
        )
    return float(np.clip(1.25 - 0.1 * np.log10(false_alarms_per_quarter), 1.0, 2.0))


# -- deciding ---------------------------------------------------------------------------------------------


def _discoveries(candidates: Iterable[Finding]) -> list[Finding]:
    """Benjamini and Hochberg's step-up rule (J. R. Statist. Soc. B 57, 1995)."""
    ranked = sorted(candidates, key=lambda finding: finding.p)
    passed = 0
    for rank, finding in enumerate(ranked, start=1):
        if finding.p <= _FALSE_DISCOVERY_RATE * rank / len(ranked):
            passed = rank
    return ranked[:passed]


def _worth_a_look(finding: Finding) -> bool:
    floor = next(value for name, value in _FLOORS.items() if finding.statistic.startswith(name))
    return abs(finding.effect) >= floor


def _key(finding: Finding) -> tuple[str, str, Direction]:
    return finding.column, finding.statistic, finding.direction


def _sentence(findings: Sequence[Finding]) -> str:
    columns = list(dict.fromkeys(finding.column for finding in findings))
    named = ", ".join(
        f"{finding.column} ({finding.statistic} {finding.direction})"
        for finding in [
            next(f for f in findings if f.column == column) for column in columns[:_NAMED_FINDINGS]
        ]
    )
    more = f" and {len(columns) - _NAMED_FINDINGS} more columns" if len(columns) > _NAMED_FINDINGS else ""
    return f"drift in {named}{more}"
