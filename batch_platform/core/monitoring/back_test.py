"""Walking through a pipeline's own history: what each strictness would have done on days it had not seen.

Decides the folds, and which strictness meets a budget. The later half is judged by the days before each fold alone
(walk-forward), the earlier half by the days after it: so every day tells what quiet days do, and a rule that is
kept for having raised no alarm on m days raises few on days like them, whatever they are like (at rate r a day, r times
the chance e^-rm to be kept is at most 1 / em). What was alarmed on in a reference is counted as false: its owner has
called these days normal.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from math import erf
from typing import Self

import numpy as np
import numpy.typing as npt

from batch_platform.core.monitoring.decision import ALONE, STRICTNESS, Rule
from batch_platform.core.monitoring.evidence import (
    LONGEST_WINDOW,
    Deviations,
    Evidence,
    Precedents,
    precedents,
)
from batch_platform.core.monitoring.normal import DayValues, Normal, Statistic

# With fewer days half of them tell too little to judge the others by.
FEWEST_DAYS = 14
_FOLDS = 2
# A change is found in time within so many partitions.
IN_TIME = 7

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
_Change = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Trial:
    """What one strictness would have done.

    Attributes:
        strictness: how often the spread between days is taken.
        days: partitions judged.
        alarms: partitions with an alert.
        episodes: alerts in a row counted once.
        odd: episodes in which each partition alarms by itself alone: odder than any that the rule had seen then. No
            strictness prevents such a one, and now that it is known it is no alarm again.
        per_quarter: episodes a quarter.
        at_most: a quarter has fewer false episodes than this, with 95 % confidence (Garwood's exact interval).
    """

    strictness: float
    days: int
    alarms: int
    episodes: int
    odd: int
    per_quarter: float
    at_most: float

    @property
    def lasting_per_quarter(self) -> float:
        """Episodes a quarter that rest on several partitions: those that strictness is for."""
        return self.per_quarter * (1 - self.odd / self.episodes) if self.episodes else 0.0


@dataclass(frozen=True)
class Fold:
    """Days that are judged by others.

    Attributes:
        normal: fitted to the days before the fold, or to those after it.
        held_against: deviations of the days that it was fitted to.
        places: of the judged days.
        is_later: whether the days before it judge.
    """

    normal: Normal
    held_against: Precedents
    places: range
    is_later: bool

    def deviations(self, moments: Sequence[date], days: Sequence[DayValues], last: int) -> Deviations:
        """Of the fold's first day to the one before `last`."""
        start = max(0, self.places.start + 1 - LONGEST_WINDOW)
        return Deviations.of(self.normal, moments[start:last], days[start:last], last - self.places.start)


@dataclass(frozen=True)
class WalkForward:
    """A history whose days are judged by the other half of it, in the order of time."""

    moments: Sequence[date]
    days: Sequence[DayValues]
    folds: tuple[Fold, ...]

    @classmethod
    def of(
        cls,
        moments: Sequence[date],
        days: Sequence[DayValues],
        statistics: Sequence[Statistic],
        known: Precedents,
    ) -> Self:
        """Two folds over each half; none for a history too short for that.

        Args:
            moments: of the reference days.
            days: their statistics.
            statistics: whose and of which kind.
            known: what all these days have had. What a column has again and again is known of it in each fold:
                half of the days may lack it, and all other columns would pay for that.
        """
        if len(days) < FEWEST_DAYS:
            return cls(moments, days, ())
        bounds = np.linspace(0, len(days), 2 * _FOLDS + 1).round().astype(int).tolist()
        folds = []
        for number, (first, end) in enumerate(pairwise(bounds)):
            is_later = number >= _FOLDS
            others = slice(0, first) if is_later else slice(end, None)
            normal = Normal.of(moments[others], days[others], [each.kind for each in statistics])
            had = precedents(normal, moments[others], days[others], statistics).with_own_of(known)
            folds.append(Fold(normal, had, range(first, end), is_later))
        return cls(moments, days, tuple(folds))

    @classmethod
    def since(
        cls,
        known: tuple[Normal, Precedents],
        moments: Sequence[date],
        days: Sequence[DayValues],
        first: int,
    ) -> Self:
        """Whole weeks of partitions from place `first` on, each judged by what is `known` of the reference before."""
        weeks = range(first, len(days) - IN_TIME + 1, IN_TIME)
        return cls(moments, days, tuple(Fold(*known, range(week, week + IN_TIME), True) for week in weeks))

    @cached_property
    def _deviations(self) -> list[Deviations]:
        return [fold.deviations(self.moments, self.days, fold.places.stop) for fold in self.folds]

    def alarms(self, rule: Rule, strictness: float) -> Booleans:
        """Whether each day alarms by several days, and whether by itself, (days, 2)."""
        found = []
        for fold, deviations in zip(self.folds, self._deviations, strict=True):
            alarms = rule.alarms(deviations.evidence(strictness, fold.held_against))
            found.append(np.stack([alarms[:, kind].any(axis=(1, 2)) for kind in (~ALONE, ALONE)], axis=1))
        return np.concatenate(found)


def tried(history: WalkForward, rule: Rule, judgements_per_quarter: float) -> Iterator[Trial]:
    """Every strictness on the same days, the least first; none where the history is too short."""
    if history.folds:
        for strictness in STRICTNESS:
            lasting, alone = history.alarms(rule, strictness).T
            alarms = np.logical_or(lasting, alone).tolist()
            yield trial_of(strictness, alarms, judgements_per_quarter, lasting.tolist())


def chosen(trials: Iterable[Trial], false_alarms_per_quarter: float) -> Trial | None:
    """The least strict that keeps the budget, single odd days aside; the strictest where none does; None of none."""
    trial = None
    for trial in trials:
        if trial.lasting_per_quarter <= false_alarms_per_quarter:
            break
    return trial


@dataclass(frozen=True)
class Detection:
    """How soon one strictness would have found a lasting change.

    Attributes:
        strictness: how often the spread between days is taken.
        change: in words.
        tries: columns times beginnings that were tried.
        found: share of them that is found within seven partitions.
        delay: median number of partitions until then, the first counted; None where none is found.
    """

    strictness: float
    change: str
    tries: int
    found: float
    delay: float | None


def detections(history: WalkForward, kinds: Sequence[str], rule: Rule) -> Iterator[Detection]:
    """Each change put into each column that can have it, at the beginning of each fold, at every strictness.

    All columns are changed at once, and each is judged as if it alone were: by the p that one among so many needs.
    """
    names = np.array(kinds)
    folds = [fold for fold in history.folds if fold.is_later]
    changed = {
        change: [_after(history, fold, applied) for fold in folds]
        for change, (_, applied) in _CHANGES.items()
    }
    for strictness in STRICTNESS if folds else ():
        for change, (kind, _) in _CHANGES.items():
            delays = [
                _delays(rule, deviations.evidence(strictness, fold.held_against))[names == kind]
                for fold, deviations in zip(folds, changed[change], strict=True)
            ]
            every = np.concatenate(delays)
            if len(every):
                found = every[np.isfinite(every)]
                delay = float(np.median(found)) if len(found) else None
                yield Detection(strictness, change, len(every), len(found) / len(every), delay)


def _after(history: WalkForward, fold: Fold, change: _Change) -> Deviations:
    """The fold's first days, all changed."""
    days, last = list(history.days), min(fold.places.start + IN_TIME, len(history.days))
    for place in range(fold.places.start, last):
        days[place] = DayValues(change(days[place].values), days[place].sampling)
    return fold.deviations(history.moments, days, last)


def _delays(rule: Rule, evidence: Evidence) -> Floats:
    """Partitions from the first judged one until a change of each statistic is found, (statistics,)."""
    found = rule.single_alarms(evidence).any(axis=1)
    return np.where(found.any(axis=0), found.argmax(axis=0) + 1.0, np.inf)


def _shifted(sigmas: float) -> _Change:
    """Mean ranks after a shift of the values, if they lie on a bell curve."""
    return lambda ranks: ranks + 0.5 * erf(sigmas / 2)


def _more(share: float) -> _Change:
    """Shares, on their scale, after so much more."""
    return lambda angles: np.arcsin(np.sqrt(np.minimum(1.0, np.sin(angles) ** 2 + share)))


_CHANGES: Mapping[str, tuple[str, _Change]] = {
    "mean + 0.25 sd": ("mean rank", _shifted(0.25)),
    "mean + 0.5 sd": ("mean rank", _shifted(0.5)),
    "mean + 1 sd": ("mean rank", _shifted(1.0)),
    "2 % more missing": ("null rate", _more(0.02)),
    "9 % more missing": ("null rate", _more(0.09)),
    "5 % more of a value": ("share", _more(0.05)),
}


def episodes(alarms: Sequence[bool]) -> int:
    """Runs of alarms."""
    return sum(now and not before for before, now in zip([False, *alarms], alarms, strict=False))


def trial_of(
    strictness: float,
    alarms: Sequence[bool],
    judgements_per_quarter: float,
    lasting: Sequence[bool] | None = None,
) -> Trial:
    """What alarms of days amount to; `lasting` are those by several days, None: all."""
    from scipy.special import gammaincinv

    days, runs = len(alarms), episodes(alarms)
    odd = 0 if lasting is None else runs - _runs_with(np.array(alarms, bool), np.array(lasting, bool))
    quarters = days / judgements_per_quarter
    at_most = float(gammaincinv(runs + 1, 0.95) / quarters) if days else float("inf")
    return Trial(strictness, days, sum(alarms), runs, odd, runs / quarters if days else 0.0, at_most)


def _runs_with(alarms: Booleans, wanted: Booleans) -> int:
    """Runs of alarms that have a wanted day."""
    begins: Booleans = np.diff(alarms.astype(int), prepend=0) > 0
    return len(set(np.cumsum(begins)[alarms & wanted].tolist()))
