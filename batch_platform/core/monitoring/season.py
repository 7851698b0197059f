"""Which partitions are compared with which: by weekday and hour where the history has enough of each.

Decides the grouping alone. A group has a centre of its own only where each group that occurs was seen
`FEWEST_OF_EACH` times; otherwise a coarser grouping is used, and at last none.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime

FEWEST_OF_EACH = 4

Grouping = Callable[[date], int]


def _hour(moment: date) -> int:
    return moment.hour if isinstance(moment, datetime) else 0


# The finest first. Of daily partitions all hours are 0: theirs is the weekday.
_GROUPINGS: dict[str, Grouping] = {
    "hour of the week": lambda moment: 24 * moment.weekday() + _hour(moment),
    "hour of the day": _hour,
    "weekday": lambda moment: moment.weekday(),
}


@dataclass(frozen=True)
class Season:
    """A grouping of moments, fitted to a reference.

    Attributes:
        name: hour of the week, hour of the day, weekday, or none.
        groups: place of each group that the reference knows, counted from 0.
    """

    name: str
    groups: dict[int, int]

    @classmethod
    def of(cls, moments: Sequence[date]) -> "Season":
        """The finest grouping of which each group that occurs was seen often enough."""
        hourly = any(map(_hour, moments))
        for name, grouping in _GROUPINGS.items():
            seen = Counter(map(grouping, moments))
            if hourly == (name != "weekday") and len(seen) > 1 and min(seen.values()) >= FEWEST_OF_EACH:
                return cls(name, {group: place for place, group in enumerate(sorted(seen))})
        return cls("none", {0: 0})

    def group(self, moment: date) -> int | None:
        """Place of the moment's group; None where the reference does not know it."""
        return self.groups.get(_GROUPINGS[self.name](moment) if self.name in _GROUPINGS else 0)
