"""Simulated pipelines for `drift_simulation.py`: how quiet days differ from one another, and lasting changes.

A pipeline has 30 columns (20 numbers, 9 categories, a score), 56 reference days, and days to judge. Its days can be
drawn as statistics of a day (counts from their multinomials, mean ranks from their normal limit), so that hundreds
of pipelines are cheap, or as tables of rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np
from scipy.special import ndtr

from batch_platform.core.monitoring.normal import DayValues, Statistic

START = date(2026, 1, 5)
REFERENCE_DAYS, QUARTER = 56, 91
NUMBERS, CATEGORIES = 20, 9
COLUMNS = NUMBERS + CATEGORIES + 1  # the last one is the score
CHANGED = (0, NUMBERS, COLUMNS - 1)  # columns that a change may be put into
WILD = (5, NUMBERS + 5)
TOP = 20
NULLS = 0.01
_OF_A_NUMBER = ("null rate", "mean rank", "spread of ranks")
_OF_A_CATEGORY = ("null rate", *["share"] * (TOP + 1))
STATISTICS = [
    *(
        Statistic(name, kind)
        for name in (*(f"n{k}" for k in range(NUMBERS)), "score")
        for kind in _OF_A_NUMBER
    ),
    *(Statistic(f"c{k}", kind) for k in range(CATEGORIES) for kind in _OF_A_CATEGORY),
]
KINDS = [each.kind for each in STATISTICS]


@dataclass(frozen=True)
class Stream:
    """How quiet days differ from one another; lengths in standard deviations of a row.

    Attributes:
        memory: of the day effects: 0 independent days, 0.9 a slow wander.
        mixed: only half of the columns have that memory, and the size of the effects differs between columns.
        size: standard deviation of the day effects.
        restless: a third of the columns that do not change have day effects of this size instead.
        wild: size of bursts of a day on every twentieth day in one number and one category.
        tails: degrees of freedom of the effects' Student's t; None: a bell curve.
        weekday: standard deviation between weekdays.
        thin: share of days with a twentieth of the rows.
        missing: share of days that are not there.
        bursts: chance that a burst begins, for each column and day.
        burst_days: how long a burst lasts.
        burst: size of a burst.
        trend: what every column moves by over the reference and a quarter.
        month_end: what every column moves by on the last three days of a month.
        levels: values of a category; of more than 100 the shares fall as Zipf's.
        nulls_wander: standard deviation of the logit of the null rate between days.
    """

    memory: float = 0.0
    mixed: bool = False
    size: float = 0.05
    restless: float = 0.0
    wild: float = 0.0
    tails: float | None = None
    weekday: float = 0.15
    thin: float = 0.0
    missing: float = 0.0
    bursts: float = 0.0
    burst_days: int = 1
    burst: float = 0.4
    trend: float = 0.0
    month_end: float = 0.0
    levels: int = 30
    nulls_wander: float = 0.0

    def days(
        self, random: np.random.Generator, rows: int, count: int
    ) -> tuple[list[date], np.ndarray, np.ndarray]:
        """Moments, rows, and the shift of each column, (days, columns)."""
        before = 200
        memory = np.full(COLUMNS, self.memory) * (random.random(COLUMNS) < 0.5 if self.mixed else 1)
        size = self.size * (np.exp(random.normal(0, 0.7, COLUMNS)) if self.mixed else 1)
        if self.restless:
            chosen = (random.random(COLUMNS) < 1 / 3) & ~np.isin(np.arange(COLUMNS), CHANGED)
            size = np.where(chosen, self.restless, size)
        shape = (before + 2 * count, COLUMNS)
        noise = random.normal(size=shape)
        if self.tails:
            noise = random.standard_t(self.tails, shape) / np.sqrt(self.tails / (self.tails - 2))
        effects = np.zeros(shape)
        for day in range(1, len(effects)):
            effects[day] = memory * effects[day - 1] + np.sqrt(1 - memory**2) * noise[day]
        start = random.random(shape) < self.bursts
        burst = start.copy()
        for day in range(1, self.burst_days):
            burst[day:] |= start[:-day]
        weekdays = random.normal(0, self.weekday, (7, COLUMNS))
        there = np.flatnonzero(random.random(2 * count) >= self.missing)[:count]
        moments = [START + timedelta(days=int(day)) for day in there]
        signs = random.choice([-1.0, 1.0], COLUMNS)
        shifts = (size * effects + self.burst * burst * signs)[before + there]
        shifts += weekdays[there % 7] + self.trend * (there / (REFERENCE_DAYS + QUARTER))[:, None]
        if self.wild:
            shifts[:, WILD] += self.wild * (random.random((count, len(WILD))) < 1 / 20)
        is_last = np.array([(moment + timedelta(days=3)).month != moment.month for moment in moments])
        shifts += self.month_end * is_last[:, None]
        return moments, np.where(random.random(count) < self.thin, max(1, rows // 20), rows), shifts

    def bases(self, random: np.random.Generator) -> list[np.ndarray]:
        """Shares of the values of each category, (levels,)."""
        if self.levels > 100:
            zipf = 1 / np.arange(1, self.levels + 1)
            return [random.permutation(zipf / zipf.sum()) for _ in range(CATEGORIES)]
        return [random.dirichlet(np.full(self.levels, 5.0)) for _ in range(CATEGORIES)]


@dataclass(frozen=True)
class Change:
    """A lasting change after the reference: of number 0, category 0 or the score."""

    shift: float = 0.0
    nulls: float = NULLS
    moved: float = 0.0
    sharper: float = 1.0


QUIET = Change()

# The rule was chosen on these ...
TUNED_ON = {
    "weekday and day effects": Stream(),
    "no weekday effect": Stream(weekday=0.0),
    "AR 0.5": Stream(memory=0.5),
    "slow wander, AR 0.9": Stream(memory=0.9),
    "slow wander, AR 0.95": Stream(memory=0.95),
    "half of the columns AR 0.9, unequal effects": Stream(memory=0.9, mixed=True),
    "thin days: 1 in 12 has a twentieth of the rows": Stream(thin=1 / 12),
    "1 in 8 days missing": Stream(missing=1 / 8),
    "heavy tails: day effects of Student's t(3)": Stream(tails=3),
    "bursts of a day in 1 of 1,000 columns and days": Stream(bursts=0.001),
    "bursts of a day in 1 of 100": Stream(bursts=0.01),
    "bursts of three days in 1 of 500": Stream(bursts=0.002, burst_days=3),
    "trend: 0.2 sd over the 147 days in all columns": Stream(trend=0.2),
    "categories of 5,000 values": Stream(levels=5000),
    "a third of the columns restless: day effects of 0.5 sd": Stream(restless=0.5),
    "two wild columns: bursts of 3 sd on 1 day in 20": Stream(wild=3.0),
}
# ... and not looked at on these before it stood.
HELD_OUT = {
    "AR 0.8, no weekday effect": Stream(memory=0.8, weekday=0.0),
    "day effects of 0.1 sd, weekdays of 0.3": Stream(size=0.1, weekday=0.3),
    "heavy tails: Student's t(4), AR 0.5": Stream(tails=4, memory=0.5),
    "bursts of 0.8 sd for a day in 1 of 200": Stream(bursts=0.005, burst=0.8),
    "bursts of 0.3 sd for two days in 1 of 100": Stream(bursts=0.01, burst=0.3, burst_days=2),
    "month ends: 0.2 sd for three days": Stream(month_end=0.2),
    "thin days 1 in 7, AR 0.7": Stream(thin=1 / 7, memory=0.7),
    "1 in 4 days missing, t(5)": Stream(missing=1 / 4, tails=5),
    "trend: 0.15 sd, AR 0.6": Stream(trend=0.15, memory=0.6),
    "null rates that wander": Stream(nulls_wander=0.3),
    "categories of 1,000 values, unequal effects": Stream(levels=1000, mixed=True),
    "a third of the columns restless by 1 sd, AR 0.7, t(5)": Stream(restless=1.0, memory=0.7, tails=5),
}
CHANGES = {
    "mean + 0.25 sd in one of 30 columns": Change(shift=0.25),
    "mean + 0.5 sd": Change(shift=0.5),
    "nulls 1 to 3 %": Change(nulls=0.03),
    "nulls 1 to 10 %": Change(nulls=0.10),
    "5 % of a 30-level categorical moved": Change(moved=0.05),
    "score logit x 1.25": Change(sharper=1.25),
}


# -- statistics of days -------------------------------------------------------------------------------------


def day_values(
    stream: Stream, random: np.random.Generator, rows: int, count: int, change: Change, changed_from: int
) -> tuple[list[date], list[DayValues]]:
    """Moments and statistics of days, in the order of `KINDS`; the change acts from day `changed_from` on."""
    moments, sizes, shifts = stream.days(random, rows, count)
    acting = np.arange(count) >= changed_from
    parts = [
        _numbers(stream, random, sizes, shifts[:, column], change if column == 0 else QUIET, acting)
        for column in range(NUMBERS)
    ]
    score = replace(QUIET, sharper=change.sharper)
    parts.append(_numbers(stream, random, sizes, shifts[:, -1], score, acting))
    for place, base in enumerate(stream.bases(random)):
        moved = change.moved * acting if place == 0 else np.zeros(count)
        parts.append(_categories(stream, random, sizes, shifts[:, NUMBERS + place], base, moved))
    values, sampling = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    return moments, [DayValues(*each) for each in zip(values, sampling, strict=True)]


Statistics = tuple[np.ndarray, np.ndarray]  # values and their variances by sampling, (days, statistics) each


def _numbers(
    stream: Stream,
    random: np.random.Generator,
    sizes: np.ndarray,
    shift: np.ndarray,
    change: Change,
    acting: np.ndarray,
) -> Statistics:
    nulls = random.binomial(sizes, _null_rate(stream, random, np.where(acting, change.nulls, NULLS)))
    here = np.maximum(1, sizes - nulls)
    factor = np.where(acting, change.sharper, 1.0)
    # The score's logits have mean -1 and deviation 1.5: times f they move and widen.
    moved = shift + change.shift * acting - (factor - 1) / 1.5
    noise = random.normal(size=(2, len(sizes)))
    rank = ndtr(moved / np.sqrt(1 + factor**2)) + noise[0] * np.sqrt(1 / 12 / here)
    spread = np.arctan(factor) / np.pi + noise[1] * np.sqrt(1 / 48 / here)
    null_rate, of_null_rate = _share(nulls, sizes)
    return (
        np.stack([null_rate, rank, spread], axis=1),
        np.stack([of_null_rate, 1 / 12 / here, 1 / 48 / here], axis=1),
    )


def _categories(
    stream: Stream,
    random: np.random.Generator,
    sizes: np.ndarray,
    shift: np.ndarray,
    base: np.ndarray,
    moved: np.ndarray,
) -> Statistics:
    shares = _tilted(base, shift)
    shares *= 1 - moved[:, None]
    shares[:, -1] += moved
    top = np.argsort(-base)[:TOP]
    kept = np.concatenate(
        [shares[:, top], np.maximum(0.0, 1 - shares[:, top].sum(axis=1, keepdims=True))], axis=1
    )
    counts = random.multinomial(sizes, kept / kept.sum(axis=1, keepdims=True))
    nulls = random.binomial(sizes, _null_rate(stream, random, np.full(len(sizes), NULLS)))
    value, variance = _share(np.concatenate([nulls[:, None], counts], axis=1), sizes[:, None])
    return value, np.broadcast_to(variance, value.shape)


def _null_rate(stream: Stream, random: np.random.Generator, usual: np.ndarray) -> np.ndarray:
    if not stream.nulls_wander:
        return usual
    return 1 / (1 + (1 - usual) / usual * np.exp(random.normal(0, stream.nulls_wander, len(usual))))


def _share(count: np.ndarray, of: np.ndarray) -> Statistics:
    return np.arcsin(np.sqrt((count + 0.375) / (of + 0.75))), 1 / (4 * of + 2)


def _tilted(base: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(days, levels) shares."""
    shares = base * np.exp(shift[:, None] * np.linspace(-2, 2, len(base)))
    return shares / shares.sum(axis=1, keepdims=True)


def statistics_of(change: Change) -> list[int]:
    """Statistics of the changed column."""
    if change.sharper != 1.0:
        return [3 * NUMBERS, 3 * NUMBERS + 1, 3 * NUMBERS + 2]
    if change.moved:
        return list(range(3 * (NUMBERS + 1), 3 * (NUMBERS + 1) + TOP + 2))
    return [0, 1, 2]


# -- tables of rows -----------------------------------------------------------------------------------------


Table = Mapping[str, np.ndarray]


def tables(
    stream: Stream, seed: list[int], rows: int, count: int, change: Change
) -> Iterator[tuple[date, Table]]:
    """Tables of rows of the same kind of pipeline; the change acts after the reference."""
    random = np.random.default_rng(seed)
    moments, sizes, shifts = stream.days(random, rows, count)
    bases = stream.bases(random)
    for day in range(count):
        size, acting = int(sizes[day]), change if day >= REFERENCE_DAYS else QUIET
        table: dict[str, np.ndarray] = {}
        for column in range(NUMBERS):
            first = column == 0
            values = random.normal(shifts[day, column] + (acting.shift if first else 0), 1, size)
            values[random.random(size) < (acting.nulls if first else NULLS)] = np.nan
            table[f"n{column}"] = np.exp(values) if column % 4 == 1 else values
        for place, base in enumerate(bases):
            shares = _tilted(base, shifts[[day], NUMBERS + place])[0]
            codes = random.choice(len(base), size, p=shares)
            if place == 0:
                codes[random.random(size) < acting.moved] = len(base) - 1
            table[f"c{place}"] = codes
        logits = random.normal(-1 + 1.5 * shifts[day, -1], 1.5, size) * acting.sharper
        table["score"] = 1 / (1 + np.exp(-logits))
        yield moments[day], table
