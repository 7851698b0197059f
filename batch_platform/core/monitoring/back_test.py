"""Walk-forward over a pipeline's own history: what each strictness would have done on days it had not seen.

Decides the folds, and which strictness meets a budget. Each fold is fitted to the days before it alone. What was
alarmed on in a reference is counted as false: its owner has called these days normal.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from math import erf
from typing import Self

import numpy as np
import numpy.typing as npt

from batch_platform.core.monitoring.decision import STRICTNESS, Rule
from batch_platform.core.monitoring.evidence import LONGEST_WINDOW, Evidence
from batch_platform.core.monitoring.normal import DayValues, Normal

# With fewer days half of them tell too little to judge the others by.
FEWEST_DAYS = 14
_FOLDS = 4

Floats = npt.NDArray[np.float64]
_Change = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Trial:
    """What one strictness would have done.

    Attributes:
        strictness: how often the spread between days is taken.
        days: partitions judged.
        alarms: partitions with an alert.
        episodes: alerts in a row counted once.
        per_quarter: episodes a quarter.
        at_most: a quarter has fewer false episodes than this, with 95 % confidence (Garwood's exact interval).
    """

    strictness: float
    days: int
    alarms: int
    episodes: int
    per_quarter: float
    at_most: float


@dataclass(frozen=True)
class WalkForward:
    """A history whose later days are judged by the days before their fold."""

    moments: Sequence[date]
    days: Sequence[DayValues]
    folds: tuple[tuple[Normal, range], ...]

    @classmethod
    def of(cls, moments: Sequence[date], days: Sequence[DayValues], kinds: Sequence[str]) -> Self:
        """Four folds over the second half; none for a history too short for that."""
        if len(days) < FEWEST_DAYS:
            return cls(moments, days, ())
        bounds = np.linspace(len(days) // 2, len(days), _FOLDS + 1).round().astype(int).tolist()
        folds = tuple(
            (Normal.of(moments[:first], days[:first], kinds), range(first, end))
            for first, end in pairwise(bounds)
        )
        return cls(moments, days, folds)

    def alarms(self, rule: Rule, strictness: float) -> list[bool]:
        """Whether each later day alarms."""
        found = []
        for normal, places in self.folds:
            for place in places:
                window = slice(max(0, place + 1 - LONGEST_WINDOW), place + 1)
                evidence = Evidence.of(normal, self.moments[window], self.days[window], strictness)
                found.append(bool(rule.alarms(evidence).any()))
        return found


def tried(history: WalkForward, rule: Rule, judgements_per_quarter: float) -> Iterator[Trial]:
    """Every strictness on the same days, the least first; none where the history is too short."""
    if history.folds:
        for strictness in STRICTNESS:
            yield trial_of(strictness, history.alarms(rule, strictness), judgements_per_quarter)


def chosen(trials: Iterable[Trial], false_alarms_per_quarter: float) -> Trial | None:
    """The least strict that keeps the budget; the strictest where none does; None where none was tried."""
    trial = None
    for trial in trials:
        if trial.per_quarter <= false_alarms_per_quarter:
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
    for strictness in STRICTNESS if history.folds else ():
        for change, (kind, changed) in _CHANGES.items():
            touched = names == kind
            delays = [_delays(history, fold, changed, rule, strictness)[touched] for fold in history.folds]
            every = np.concatenate(delays)
            if len(every):
                found = every[np.isfinite(every)]
                delay = float(np.median(found)) if len(found) else None
                yield Detection(strictness, change, len(every), len(found) / len(every), delay)


def _delays(
    history: WalkForward, fold: tuple[Normal, range], changed: _Change, rule: Rule, strictness: float
) -> Floats:
    """Partitions from the beginning of a fold until a change of each statistic is found, (statistics,)."""
    normal, places = fold
    days = list(history.days)
    last = min(places.start + LONGEST_WINDOW, len(days))
    delays = np.full(len(rule.floors), np.inf)
    for place in range(places.start, last):
        days[place] = DayValues(changed(days[place].values), days[place].sampling)
        window = slice(max(0, place + 1 - LONGEST_WINDOW), place + 1)
        evidence = Evidence.of(normal, history.moments[window], days[window], strictness)
        found = rule.single_alarms(evidence).any(axis=0)
        delays = np.where(found & np.isinf(delays), place - places.start + 1, delays)
    return delays


def _shifted(sigmas: float) -> _Change:
    """Mean ranks after a shift of the values, if they lie on a bell curve."""
    return lambda ranks: ranks + 0.5 * erf(sigmas / 2)


def _more(share: float) -> _Change:
    """Shares, on their scale, after so much more."""
    return lambda angles: np.arcsin(np.sqrt(np.minimum(1.0, np.sin(angles) ** 2 + share)))


_CHANGES: Mapping[str, tuple[str, _Change]] = {
    "mean + 0.25 sd": ("mean rank", _shifted(0.25)),
    "mean + 0.5 sd": ("mean rank", _shifted(0.5)),
    "2 % more missing": ("null rate", _more(0.02)),
    "9 % more missing": ("null rate", _more(0.09)),
    "5 % more of a value": ("share", _more(0.05)),
}


def episodes(alarms: Sequence[bool]) -> int:
    """Runs of alarms."""
    return sum(now and not before for before, now in zip([False, *alarms], alarms, strict=False))


def trial_of(strictness: float, alarms: Sequence[bool], judgements_per_quarter: float) -> Trial:
    """What these alarms amount to."""
    from scipy.special import gammaincinv

    days, runs = len(alarms), episodes(alarms)
    quarters = days / judgements_per_quarter
    at_most = float(gammaincinv(runs + 1, 0.95) / quarters) if days else float("inf")
    return Trial(strictness, days, sum(alarms), runs, runs / quarters if days else 0.0, at_most)
