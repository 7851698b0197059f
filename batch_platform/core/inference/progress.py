"""How far a run is: rows, speed, time left, as one line for people.

It counts; who shows the line, and when, is decided elsewhere.
"""

import time
from collections.abc import Callable

from batch_platform.core.inference.stats import RunStats

Clock = Callable[[], float]


class ProgressMeter:
    """Rows done of all rows. The speed is of the rows scored here: those found finished took no time.

    Args:
        total: rows to score.
        clock: seconds from any fixed moment.
    """

    def __init__(self, total: int, clock: Clock = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._started = clock()
        self._done = self._scored = self._tokens = 0

    def found(self, rows: int) -> None:
        """Rows that an earlier run had finished."""
        self._done += rows

    def scored(self, stats: RunStats) -> None:
        """A shard that was scored now."""
        self._done += stats.rows
        self._scored += stats.rows
        self._tokens += stats.tokens

    def line(self) -> str:
        """Such as `4096 of 20000 rows scored, 512 rows/s, 46592 tokens/s, 31 s left`."""
        seconds = self._clock() - self._started
        line = f"{self._done} of {self._total} rows scored"
        if seconds <= 0 or not self._scored:
            return line
        speed = self._scored / seconds
        line += f", {speed:.0f} rows/s"
        if self._tokens > self._scored:  # a tabular row counts as one token
            line += f", {self._tokens / seconds:.0f} tokens/s"
        left = max(0, self._total - self._done) / speed
        return f"{line}, {_duration(left)} left" if left else line


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
