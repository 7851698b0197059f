"""False alarms and power of the drift decision on simulated days: `python benchmarks/drift_simulation.py --seed N`.

The streams have 30 columns with weekday and day-to-day effects. Prints markdown tables; `docs/monitoring.md` has
those of one run. Whoever changes the rule should use a seed that was not looked at before.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa

from batch_platform.core.monitoring import DriftMonitor, Profile, profile_table

START = date(2026, 1, 5)
REFERENCE_DAYS = 56
QUARTER = 91
NUMBERS, CATEGORIES, LEVELS = 20, 8, 12
Columns = dict[str, np.ndarray]
Change = Callable[[Columns, np.random.Generator], None]


@dataclass(frozen=True)
class Stream:
    """How quiet days differ from one another.

    Attributes:
        memory: of the day effects: 0 independent days, 0.9 a slow wander.
        thin: share of days with a twentieth of the rows.
        weekends: whether there are any.
        weekday_effect: standard deviation between weekdays, in standard deviations of a row.
    """

    memory: float = 0.0
    thin: float = 0.0
    weekends: bool = True
    weekday_effect: float = 0.15

    def days(
        self, seed: int, rows: int, count: int, change: Change | None = None
    ) -> Iterator[tuple[date, Profile]]:
        """`count` days; `change` acts on those after the reference."""
        random = np.random.default_rng(seed)
        weekday = random.normal(0, self.weekday_effect, (7, NUMBERS))
        shares = random.dirichlet(np.full(LEVELS, 3.0), CATEGORIES)
        wander = np.zeros(NUMBERS + CATEGORIES)
        fresh = np.sqrt(1 - self.memory**2)
        made, day = 0, START - timedelta(days=1)
        while made < count:
            day += timedelta(days=1)
            if day.weekday() >= 5 and not self.weekends:
                continue
            wander = self.memory * wander + fresh * random.normal(0, 0.05, len(wander))
            today = max(1, rows // 20) if random.random() < self.thin else rows
            columns = _day(random, today, weekday[day.weekday()] + wander[:NUMBERS], shares, wander[NUMBERS:])
            if change is not None and made >= REFERENCE_DAYS:
                change(columns, random)
            made += 1
            yield day, profile_table(pa.table({name: pa.array(values) for name, values in columns.items()}))


def _day(
    random: np.random.Generator, rows: int, means: np.ndarray, shares: np.ndarray, tilt: np.ndarray
) -> Columns:
    columns: Columns = {}
    for place, mean in enumerate(means):
        values = random.normal(mean, 1, rows)
        if place % 4 == 1:
            values = np.exp(values)  # skewed
        elif place % 4 == 2:
            values = 1000 + values  # a large offset
        elif place % 4 == 3:
            values = np.round(values * 2)  # a few distinct values
        values[random.random(rows) < 0.01] = np.nan
        columns[f"n{place}"] = values
    for place, base in enumerate(shares):
        weights = base * np.exp(tilt[place] * np.linspace(-2, 2, LEVELS))
        columns[f"c{place}"] = np.array(
            [f"v{k}" for k in random.choice(LEVELS, rows, p=weights / weights.sum())]
        )
    logit = means[0] * 0.5 + random.normal(-1, 1.5, rows)
    columns["score"] = 1 / (1 + np.exp(-logit))
    columns["decision"] = np.where(logit > 0, "yes", "no")
    return columns


def shift(size: float) -> Change:
    def change(columns: Columns, _: np.random.Generator) -> None:
        columns["n0"] = columns["n0"] + size

    return change


def nulls(share: float) -> Change:
    def change(columns: Columns, random: np.random.Generator) -> None:
        columns["n0"][random.random(len(columns["n0"])) < share - 0.01] = np.nan

    return change


def move_category(share: float) -> Change:
    def change(columns: Columns, random: np.random.Generator) -> None:
        columns["c0"][random.random(len(columns["c0"])) < share] = "v0"

    return change


def wider(factor: float) -> Change:
    def change(columns: Columns, _: np.random.Generator) -> None:
        columns["n0"] = columns["n0"] * factor

    return change


STREAMS = {
    "weekday and day effects": Stream(),
    "no weekday effect": Stream(weekday_effect=0.0),
    "thin days (1 in 12 has a twentieth of the rows)": Stream(thin=1 / 12),
    "business days only": Stream(weekends=False),
    "slow wander (AR 0.9)": Stream(memory=0.9),
}
CHANGES: dict[str, tuple[str, Change]] = {
    "mean + 0.25 sd": ("n0", shift(0.25)),
    "mean + 0.5 sd": ("n0", shift(0.5)),
    "spread x 1.25": ("n0", wider(1.25)),
    "nulls 1 -> 3 %": ("n0", nulls(0.03)),
    "nulls 1 -> 10 %": ("n0", nulls(0.10)),
    "5 % of rows to one category": ("c0", move_category(0.05)),
    "15 % of rows to one category": ("c0", move_category(0.15)),
}


def false_alarms(stream: Stream, seeds: range, rows: int) -> tuple[float, float]:
    """Episodes (alarms in a row count once) and days of alarm, a quarter."""
    episodes = alarms = 0
    for seed in seeds:
        days = list(stream.days(seed, rows, REFERENCE_DAYS + QUARTER))
        monitor, before = DriftMonitor.fit(days[:REFERENCE_DAYS]), False
        for day in days[REFERENCE_DAYS:]:
            now = monitor.judge(*day).alert
            episodes, alarms, before = episodes + (now and not before), alarms + now, now
    return episodes / len(seeds), alarms / len(seeds)


def power(column: str, change: Change, seeds: range, rows: int) -> float:
    """Share of streams in which the changed column is named within seven days of the change."""
    found = 0
    for seed in seeds:
        days = list(Stream().days(seed, rows, REFERENCE_DAYS + 7, change))
        monitor = DriftMonitor.fit(days[:REFERENCE_DAYS])
        verdicts = [monitor.judge(*day) for day in days[REFERENCE_DAYS:]]
        found += any(finding.column == column for verdict in verdicts for finding in verdict.findings)
    return found / len(seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1000, help="first seed")
    parser.add_argument("--streams", type=int, default=20, help="streams for each number")
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 2000], help="rows a day")
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.streams)
    heads = "".join(f" n={rows} |" for rows in arguments.rows)
    print(f"| false alarms a quarter, episodes (days) |{heads}\n|---|{'---|' * len(arguments.rows)}")
    for name, stream in STREAMS.items():
        found = (false_alarms(stream, seeds, rows) for rows in arguments.rows)
        print(f"| {name} |" + "".join(f" {few:.2f} ({days:.2f}) |" for few, days in found), flush=True)
    print(f"\n| named within 7 days |{heads}\n|---|{'---|' * len(arguments.rows)}")
    for name, (column, change) in CHANGES.items():
        shares = (power(column, change, seeds, rows) for rows in arguments.rows)
        print(f"| {name} |" + "".join(f" {share:.2f} |" for share in shares), flush=True)


if __name__ == "__main__":
    main()
