"""False alarms of the learned data quality on simulated pipelines, and what accidents it finds.

`python benchmarks/quality_simulation.py` draws fresh seeds and prints the one to repeat it with. A pipeline has 12
numbers (bell curves, lognormal, uniform, Pareto with index 1.5, counts, flags), 8 categories of 5 to 3,000 values, and
two moments; 147 days, of which those from the 57th on are judged by the 56 before them. Tables of rows are profiled as
the stages do. Each accident is put into the last day of other pipelines. Whoever changes the rule should not look at one
seed twice.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core.monitoring.facts import facts_of
from batch_platform.core.monitoring.profile import profile_table
from batch_platform.core.monitoring.quality import Observed, judge_quality
from batch_platform.core.watching import QUALITY_CHECKS

CHECKS = QUALITY_CHECKS["raw"]
START = datetime(2026, 1, 5, tzinfo=UTC)
HISTORY, QUARTER = 56, 91
NUMBERS, CATEGORIES = 12, 8
VALUES = (5, 30, 200, 3000)
Columns = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """How quiet days differ.

    Attributes:
        memory: of the day effects.
        tails: effects, also of the volume, have Student's t with 3 degrees of freedom.
        weekday: standard deviation between weekdays; at the weekend there are half as many rows.
        thin: share of days with a twentieth of the rows.
        missing: share of days that are not there.
        growth: by how much the logarithm of the rows grows over all days.
    """

    memory: float = 0.0
    tails: bool = False
    weekday: float = 0.0
    thin: float = 0.0
    missing: float = 0.0
    growth: float = 0.0


STREAMS = {
    "day effects": Stream(),
    "weekdays": Stream(weekday=0.3),
    "slow wander, AR 0.9": Stream(memory=0.9),
    "heavy tails: Student's t(3)": Stream(tails=True),
    "thin days: 1 in 12 has a twentieth of the rows": Stream(thin=1 / 12),
    "1 in 8 days missing": Stream(missing=1 / 8),
    "growth: 2.7 times the rows over the 147 days": Stream(growth=1.0),
}


class Pipeline:
    """One pipeline's days."""

    def __init__(self, random: np.random.Generator, stream: Stream, rows: int, days: int) -> None:
        self.random = random
        before = 100
        shape = (before + days, NUMBERS + 1)
        noise = random.standard_t(3, shape) / np.sqrt(3) if stream.tails else random.normal(size=shape)
        effects = np.zeros(shape)
        for day in range(1, len(effects)):
            effects[day] = stream.memory * effects[day - 1] + np.sqrt(1 - stream.memory**2) * noise[day]
        self.effects = 0.1 * effects[before:]
        weekdays = stream.weekday * random.normal(size=(7, NUMBERS))
        self.effects[:, :NUMBERS] += weekdays[np.arange(days) % 7]
        volume = np.log(rows) + self.effects[:, -1] + stream.growth * np.arange(days) / days
        volume += np.where((np.arange(days) % 7 > 4) & (stream.weekday > 0), np.log(0.5), 0.0)
        volume += np.where(random.random(days) < stream.thin, -np.log(20), 0.0)
        self.rows = np.maximum(1, np.exp(volume)).astype(int)
        self.there = np.flatnonzero(random.random(days) >= stream.missing)
        self.evenly = bool(random.random() < 0.5)

    def day(
        self, day: int, accident: Callable[[np.random.Generator, Columns], Columns] | None = None
    ) -> Observed:
        """A day as the stages see it."""
        columns = self.columns(day)
        columns = columns if accident is None else accident(self.random, columns)
        arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
        for name in ("at", "born"):
            arrays[name] = arrays[name].cast(pa.timestamp("us", "UTC"))
        start = START + timedelta(days=day)
        return Observed.of(start, start + timedelta(days=1), facts_of(profile_table(pa.table(arrays))))

    def columns(self, day: int) -> Columns:
        random, rows, effects = self.random, int(self.rows[day]), self.effects[day]
        made: Columns = {}
        for place in range(NUMBERS):
            values = self._numbers(place % 6, effects[place], rows)
            missing = np.sin(np.arcsin(0.1) + 0.1 * effects[place]) ** 2
            made[f"number_{place}"] = np.where(random.random(rows) < missing, np.nan, values)
        for place in range(CATEGORIES):
            size = VALUES[place % len(VALUES)]
            weights = np.exp(0.1 * random.normal(size=size)) / np.arange(1, size + 1)
            codes = random.choice(size, rows, p=weights / weights.sum())
            made[f"category_{place}"] = np.array([f"value {code}" for code in codes], object)
        seconds = 86_400 * (random.random(rows) if self.evenly else random.beta(5, 1.2, rows))
        start = (START + timedelta(days=day)).timestamp()
        made["at"] = ((start + seconds) * 1e6).astype(np.int64)
        made["born"] = (random.uniform(-1e9, 8e8, rows) * 1e6).astype(np.int64)
        return made

    def _numbers(self, kind: int, effect: float, rows: int) -> np.ndarray:
        random = self.random
        match kind:
            case 0:
                return random.normal(effect, 1, rows)
            case 1:
                return np.exp(random.normal(effect, 1, rows))
            case 2:
                return random.random(rows)
            case 3:
                return random.pareto(1.5, rows) * np.exp(0.3 * effect)
            case 4:
                return random.poisson(3, rows).astype(float)
            case _:
                return random.integers(0, 2, rows).astype(float)


def _fewer(_random: np.random.Generator, columns: Columns) -> Columns:
    return {name: values[: max(1, int(0.3 * len(values)))] for name, values in columns.items()}


def _nulls(random: np.random.Generator, columns: Columns) -> Columns:
    gone = random.random(len(columns["number_0"])) < 0.09
    return columns | {"number_0": np.where(gone, np.nan, columns["number_0"])}


def _unit(_random: np.random.Generator, columns: Columns) -> Columns:
    return columns | {"number_1": 1000 * columns["number_1"]}


def _new_value(random: np.random.Generator, columns: Columns) -> Columns:
    new = random.random(len(columns["category_1"])) < 0.03
    return columns | {"category_1": np.where(new, "never seen", columns["category_1"])}


def _late(_random: np.random.Generator, columns: Columns) -> Columns:
    start = (columns["at"].min() // 86_400_000_000) * 86_400_000_000
    return columns | {"at": np.minimum(columns["at"], start + 15 * 3_600_000_000)}


ACCIDENTS: dict[str, tuple[str, Callable[[np.random.Generator, Columns], Columns]]] = {
    "volume falls to 30 %": ("usual_volume", _fewer),
    "nulls 1 to 10 % in one of 12 numbers": ("usual_nulls", _nulls),
    "a lognormal column in another unit, x 1000": ("usual_ranges", _unit),
    "3 % of a 30-level category are a new value": ("known_values", _new_value),
    "nothing after 15 o'clock": ("freshness", _late),
}


def false_alarms(random: np.random.Generator, stream: Stream, rows: int) -> dict[str, int]:
    """Episodes by check over the judged days of one pipeline."""
    pipeline = Pipeline(random, stream, rows, HISTORY + QUARTER)
    past: list[Observed] = []
    was_red = dict.fromkeys(CHECKS, False)
    episodes = dict.fromkeys(CHECKS, 0)
    for day in pipeline.there.tolist():
        now = pipeline.day(day)
        if day >= HISTORY:
            for check, verdict in judge_quality(past[-HISTORY:], now, CHECKS, 0.5).items():
                is_red = verdict.status == "alert"
                episodes[check] += is_red and not was_red[check]
                was_red[check] = is_red
        past.append(now)
    return episodes


def found(random: np.random.Generator, rows: int) -> dict[str, bool]:
    """Whether the check of each accident turns red on its day."""
    pipeline = Pipeline(random, Stream(weekday=0.1), rows, HISTORY + 1)
    past = [pipeline.day(day) for day in range(HISTORY)]
    return {
        name: judge_quality(past, pipeline.day(HISTORY, accident), CHECKS, 0.5)[check].status == "alert"
        for name, (check, accident) in ACCIDENTS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipelines", type=int, default=6, help="pipelines for each number")
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--seed", type=int, default=int(np.random.SeedSequence().generate_state(1)[0]))
    asked = parser.parse_args()
    print(
        f"seed {asked.seed}, {asked.pipelines} pipelines a number, a budget of 0.5 a quarter for these checks\n"
    )
    head = " | ".join(f"n={rows}" for rows in asked.rows)
    print(f"| false alarms a quarter, episodes (by check) | {head} |\n| --- |{' --- |' * len(asked.rows)}")
    seeds = iter(np.random.SeedSequence(asked.seed).spawn(100_000))
    for name, stream in STREAMS.items():
        cells = []
        for rows in asked.rows:
            runs = [
                false_alarms(np.random.default_rng(next(seeds)), stream, rows) for _ in range(asked.pipelines)
            ]
            each = {check: sum(run[check] for run in runs) / asked.pipelines for check in CHECKS}
            told = ", ".join(f"{check} {rate:.2f}" for check, rate in each.items() if rate)
            cells.append(f"{sum(each.values()):.2f}" + (f" ({told})" if told else ""))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n| found on the day | {head} |\n| --- |{' --- |' * len(asked.rows)}")
    tries = {
        rows: [found(np.random.default_rng(next(seeds)), rows) for _ in range(asked.pipelines)]
        for rows in asked.rows
    }
    for name in ACCIDENTS:
        shares = [sum(run[name] for run in tries[rows]) / asked.pipelines for rows in asked.rows]
        print(f"| {name} | {' | '.join(f'{share:.2f}' for share in shares)} |")


if __name__ == "__main__":
    main()
