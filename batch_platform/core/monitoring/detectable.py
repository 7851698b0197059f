"""The smallest change that the decision finds in this pipeline, in the units that people think in.

Decides the words. The size follows from the same spreads that judge a day.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from batch_platform.core.monitoring.back_test import IN_TIME
from batch_platform.core.monitoring.day_statistics import OTHERS
from batch_platform.core.monitoring.decision import BEYOND, Rule
from batch_platform.core.monitoring.evidence import WINDOWS, Deviations, Precedents
from batch_platform.core.monitoring.normal import DayValues, Normal

NONE = "none, however large"
_ABSENCES = ("null rate", "infinite", "empty", OTHERS)
# Found nine times of ten.
_POWER_SIGMAS = 1.2816


@dataclass(frozen=True)
class Detectable:
    """The smallest lasting change of a statistic that nine of ten times is found within seven partitions.

    Attributes:
        column: the column's name.
        statistic: as in a finding.
        effect: in the statistic's unit; None where no change would be found.
        words: the same for people: `mean + 0.21 sd`, `1.0 % to 3.1 %`.
    """

    column: str
    statistic: str
    effect: float | None
    words: str


def detectable(
    keys: Sequence[tuple[str, str]],
    normal: Normal,
    had: Precedents,
    rule: Rule,
    moments: Sequence[date],
    days: Sequence[DayValues],
    strictness: float,
) -> Iterator[Detectable]:
    """One for each statistic, at its usual number of rows.

    Args:
        keys: column and name of each statistic.
        normal: fitted to the reference.
        had: deviations of the reference itself.
        rule: the rule.
        moments: the reference's; its last ones stand for those to come.
        days: its statistics.
        strictness: the chosen one.
    """
    from scipy.special import stdtrit

    centres = normal.all_days.centres[0]
    sampling = np.nanmedian([day.sampling for day in days], axis=0)
    window = moments[-IN_TIME:]
    to_come = Deviations.of(normal, window, [DayValues(centres, sampling)] * len(window))
    place = WINDOWS.index(IN_TIME)
    judged, usual = to_come.evidence(strictness), to_come.evidence(1.0)
    spread, scatter = judged.spread[0, place], usual.spread[0, place]
    needed = -stdtrit(judged.degrees[0, place], rule.threshold(len(keys)) / 2) * spread
    needed = np.maximum(needed, BEYOND[place] * had.largest[place] * scatter)
    effects = np.maximum(rule.floors, needed) + _POWER_SIGMAS * scatter
    for (column, statistic), effect, centre in zip(keys, effects.tolist(), centres.tolist(), strict=True):
        words = _words(statistic, effect, centre)
        yield Detectable(column, statistic, None if words == NONE else effect, words)


def columns_not_seen(smallest: Iterable[Detectable]) -> list[str]:
    """Columns in whose values no change would be found.

    A change of how many have none may be, and one to values that the reference does not have.
    """
    found: dict[str, bool] = {}
    for each in smallest:
        if not each.statistic.startswith(_ABSENCES):
            found[each.column] = found.get(each.column, False) or each.effect is not None
    return [column for column, is_found in found.items() if not is_found]


def _words(statistic: str, effect: float, centre: float) -> str:
    from scipy.special import ndtri

    if statistic.startswith("mean rank"):
        # Of a bell curve, a shift of d standard deviations moves the mean rank by Phi(d / sqrt 2) - 1/2.
        return f"mean ± {np.sqrt(2) * ndtri(0.5 + effect):.2f} sd" if effect < 0.49 else NONE
    if statistic.startswith("spread of ranks"):
        # Of a bell curve, the factor f gives the mean distance atan(f) / pi from the middle rank.
        return f"spread × {np.tan(np.pi * (0.25 + effect)):.2f}" if effect < 0.24 else NONE
    if statistic == "mean vector":
        return f"squared distance of the means {effect:.3f} of the rows' variance"
    most = np.pi / 2 - centre
    if effect < most:
        return f"{_percent(centre)} to {_percent(centre + effect)}"
    return f"{_percent(centre)} to {_percent(centre - effect)}" if effect < centre else NONE


def _percent(angle: float) -> str:
    return f"{100 * np.sin(angle) ** 2:.1f} %"
