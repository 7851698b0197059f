"""False alarms and power of the drift decision on simulated pipelines: `python benchmarks/drift_simulation.py`.

Every run draws fresh seeds and prints the one to repeat it with. A pipeline has 30 columns (20 numbers, 9
categories of 30 values, a score), 56 reference days and a quarter to judge. The first tables draw the statistics of
a day (counts from their multinomials, mean ranks from their normal limit), so that many pipelines are cheap; the
last one makes tables of rows, profiles them, and puts other rules beside ours: Kolmogorov-Smirnov and chi-square
with Benjamini-Hochberg at 0.05, PSI > 0.2, the mean beyond 3 standard deviations of the reference days, and the
tests and limits that Evidently documents as its defaults. Whoever changes the rule should not look at one seed twice.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
from scipy.special import ndtr
from scipy.stats import chi2_contingency, ks_2samp, wasserstein_distance

from batch_platform.core.monitoring import DriftMonitor, profile_table
from batch_platform.core.monitoring.back_test import WalkForward, chosen, episodes, tried
from batch_platform.core.monitoring.decision import STRICTNESS, Rule
from batch_platform.core.monitoring.evidence import LONGEST_WINDOW, Evidence
from batch_platform.core.monitoring.normal import DayValues, Normal

START = date(2026, 1, 5)
REFERENCE_DAYS, QUARTER = 56, 91
NUMBERS, CATEGORIES, LEVELS = 20, 9, 30
COLUMNS = NUMBERS + CATEGORIES + 1  # the last one is the score
TOP = 20
NULLS = 0.01
KINDS = [
    *["null rate", "mean rank", "spread of ranks"] * (NUMBERS + 1),
    *["null rate", *["share"] * (TOP + 1)] * CATEGORIES,
]


@dataclass(frozen=True)
class Stream:
    """How quiet days differ from one another.

    Attributes:
        memory: of the day effects: 0 independent days, 0.9 a slow wander.
        mixed: only half of the columns have that memory, and the size of the effects differs between columns.
        tails: the effects have Student's t with 3 degrees of freedom.
        weekday: standard deviation between weekdays, in standard deviations of a row.
        thin: share of days with a twentieth of the rows.
        missing: share of days that are not there.
        bursts: chance of a burst of 0.4 standard deviations for each column and day.
        burst_days: how long a burst lasts.
        trend: standard deviations that every column moves by over all days.
    """

    memory: float = 0.0
    mixed: bool = False
    tails: bool = False
    weekday: float = 0.15
    thin: float = 0.0
    missing: float = 0.0
    bursts: float = 0.0
    burst_days: int = 1
    trend: float = 0.0

    def days(
        self, random: np.random.Generator, rows: int, count: int
    ) -> tuple[list[date], np.ndarray, np.ndarray]:
        """Moments, rows, and the shift of each column in standard deviations of a row, (days, columns)."""
        before = 200
        memory = np.full(COLUMNS, self.memory) * (random.random(COLUMNS) < 0.5 if self.mixed else 1)
        size = 0.05 * (np.exp(random.normal(0, 0.7, COLUMNS)) if self.mixed else 1)
        shape = (before + 2 * count, COLUMNS)
        noise = random.standard_t(3, shape) / np.sqrt(3) if self.tails else random.normal(size=shape)
        effects = np.zeros(shape)
        for day in range(1, len(effects)):
            effects[day] = memory * effects[day - 1] + np.sqrt(1 - memory**2) * noise[day]
        burst = random.random(shape) < self.bursts
        for day in range(1, self.burst_days):
            burst[day:] |= burst[:-day]
        weekdays = random.normal(0, self.weekday, (7, COLUMNS))
        there = np.flatnonzero(random.random(2 * count) >= self.missing)[:count]
        moments = [START + timedelta(days=int(day)) for day in there]
        shifts = (size * effects + burst * random.choice([-0.4, 0.4], COLUMNS))[before + there]
        shifts += weekdays[there % 7] + self.trend * (np.arange(count) / count)[:, None]
        return moments, np.where(random.random(count) < self.thin, max(1, rows // 20), rows), shifts


@dataclass(frozen=True)
class Change:
    """A lasting change after the reference: of number 0, category 0 or the score."""

    shift: float = 0.0
    nulls: float = NULLS
    moved: float = 0.0
    sharper: float = 1.0


STREAMS = {
    "weekday and day effects": Stream(),
    "no weekday effect": Stream(weekday=0.0),
    "AR 0.5": Stream(memory=0.5),
    "slow wander, AR 0.9": Stream(memory=0.9),
    "slow wander, AR 0.95": Stream(memory=0.95),
    "half of the columns AR 0.9, unequal effects": Stream(memory=0.9, mixed=True),
    "thin days: 1 in 12 has a twentieth of the rows": Stream(thin=1 / 12),
    "1 in 8 days missing": Stream(missing=1 / 8),
    "heavy tails: day effects of Student's t(3)": Stream(tails=True),
    "bursts of a day in 1 of 1,000 columns and days": Stream(bursts=0.001),
    "bursts of a day in 1 of 100": Stream(bursts=0.01),
    "bursts of three days in 1 of 500": Stream(bursts=0.002, burst_days=3),
    "trend: 0.1 sd over the 147 days in all columns": Stream(trend=0.1),
}
CHANGES = {
    "mean + 0.25 sd in one of 30 columns": Change(shift=0.25),
    "mean + 0.5 sd": Change(shift=0.5),
    "nulls 1 to 3 %": Change(nulls=0.03),
    "nulls 1 to 10 %": Change(nulls=0.10),
    "5 % of a 30-level categorical moved": Change(moved=0.05),
    "score logit x 1.25": Change(sharper=1.25),
}


def day_values(
    random: np.random.Generator, rows: int, shifts: np.ndarray, bases: np.ndarray, change: Change
) -> DayValues:
    """Statistics of one day, in the order of `KINDS`."""
    values, sampling = [], []

    def share(count: float, of: int) -> None:
        values.append(np.arcsin(np.sqrt((count + 0.375) / (of + 0.75))))
        sampling.append(1 / (4 * of + 2))

    for column in [*range(NUMBERS), COLUMNS - 1]:
        first, score = column == 0, column == COLUMNS - 1
        nulls = random.binomial(rows, change.nulls if first else NULLS)
        share(nulls, rows)
        here = max(1, rows - nulls)
        factor = change.sharper if score else 1.0
        # The score's logits have mean -1 and deviation 1.5: times f they move and widen.
        shift = shifts[column] + (change.shift if first else 0.0) - (factor - 1) * (1 / 1.5 if score else 0)
        rank = ndtr(shift / np.sqrt(1 + factor**2)) + random.normal() * np.sqrt(1 / 12 / here)
        spread = np.arctan(factor) / np.pi + random.normal() * np.sqrt(1 / 48 / here)
        values += [rank, spread]
        sampling += [1 / 12 / here, 1 / 48 / here]
    for place, base in enumerate(bases):
        shares = _tilted(base, shifts[NUMBERS + place])
        if place == 0:
            shares = (1 - change.moved) * shares
            shares[-1] += change.moved
        counts = random.multinomial(rows, shares)
        top = np.argsort(-base)[:TOP]
        share(random.binomial(rows, NULLS), rows)
        for level in top:
            share(counts[level], rows)
        share(rows - counts[top].sum(), rows)
    return DayValues(np.array(values), np.array(sampling))


def _tilted(base: np.ndarray, shift: float) -> np.ndarray:
    shares = base * np.exp(shift * np.linspace(-2, 2, len(base)))
    return shares / shares.sum()


def by_statistics(
    stream: Stream, seed: list[int], rows: int, change: Change | None
) -> tuple[np.ndarray, float]:
    """Alarms by day and statistic after the reference, and the strictness that the back-test chose."""
    random = np.random.default_rng(seed)
    count = REFERENCE_DAYS + (QUARTER if change is None else LONGEST_WINDOW)
    moments, sizes, shifts = stream.days(random, rows, count)
    bases = np.array([random.dirichlet(np.full(LEVELS, 5.0)) for _ in range(CATEGORIES)])
    quiet = Change()
    days = [
        day_values(random, int(sizes[d]), shifts[d], bases, quiet if d < REFERENCE_DAYS else change or quiet)
        for d in range(count)
    ]
    first = REFERENCE_DAYS
    rule = Rule.of(KINDS, 1.0, 91.0)
    normal = Normal.of(moments[:first], days[:first], KINDS)
    trial = chosen(tried(WalkForward.of(moments[:first], days[:first], KINDS), rule, 91.0), 1.0)
    strictness = trial.strictness if trial else STRICTNESS[0]
    alarms = []
    for day in range(first, count):
        window = slice(max(first, day + 1 - LONGEST_WINDOW), day + 1)
        evidence = Evidence.of(normal, moments[window], days[window], strictness)
        alarms.append(rule.alarms(evidence).any(axis=0))
    return np.array(alarms), strictness


def _shown(change: Change) -> list[int]:
    """Statistics of the changed column."""
    if change.sharper != 1.0:
        return [3 * NUMBERS, 3 * NUMBERS + 1, 3 * NUMBERS + 2]
    if change.moved:
        return list(range(3 * (NUMBERS + 1), 3 * (NUMBERS + 1) + TOP + 2))
    return [0, 1, 2]


# -- tables of rows, and what other rules make of them ------------------------------------------------------


Table = Mapping[str, np.ndarray]


def tables(
    stream: Stream, seed: list[int], rows: int, count: int, change: Change
) -> Iterator[tuple[date, Table]]:
    """Tables of rows of the same kind of pipeline."""
    random = np.random.default_rng(seed)
    moments, sizes, shifts = stream.days(random, rows, count)
    bases = [random.dirichlet(np.full(LEVELS, 5.0)) for _ in range(CATEGORIES)]
    for day in range(count):
        size, acting = int(sizes[day]), change if day >= REFERENCE_DAYS else Change()
        table: dict[str, np.ndarray] = {}
        for column in range(NUMBERS):
            first = column == 0
            values = random.normal(shifts[day, column] + (acting.shift if first else 0), 1, size)
            values[random.random(size) < (acting.nulls if first else NULLS)] = np.nan
            table[f"n{column}"] = np.exp(values) if column % 4 == 1 else values
        for place, base in enumerate(bases):
            codes = random.choice(LEVELS, size, p=_tilted(base, shifts[day, NUMBERS + place]))
            if place == 0:
                codes[random.random(size) < acting.moved] = LEVELS - 1
            table[f"c{place}"] = codes
        logits = random.normal(-1 + 1.5 * shifts[day, -1], 1.5, size) * acting.sharper
        table["score"] = 1 / (1 + np.exp(-logits))
        yield moments[day], table


def ours(reference: list[tuple[date, Table]], days: list[tuple[date, Table]]) -> list[bool]:
    def profiled(table: Table) -> object:
        return profile_table(
            pa.table(
                {name: pa.array(v).cast(pa.string()) if name[0] == "c" else v for name, v in table.items()}
            )
        )

    monitor = DriftMonitor.fit([(day, profiled(table)) for day, table in reference])
    return [monitor.judge(day, profiled(table)).alert for day, table in days]


def others(reference: list[tuple[date, Table]], days: list[tuple[date, Table]]) -> dict[str, list[bool]]:
    """Alarms of each rule by day; the pooled reference is sampled down to 5,000 rows, as people do."""
    random = np.random.default_rng(0)
    pooled = {name: np.concatenate([table[name] for _, table in reference]) for name in reference[0][1]}
    pooled = {
        name: random.choice(values, min(5000, len(values)), replace=False) for name, values in pooled.items()
    }
    means = {name: np.array([np.nanmean(table[name]) for _, table in reference]) for name in pooled}
    found: dict[str, list[bool]] = {name: [] for name in _OTHERS}
    for _, table in days:
        p, psi, large, drifted = [], [], [], []
        for name, sample in pooled.items():
            large_day = len(table[name]) > 1000
            known, now = (values[np.isfinite(values)] for values in (sample, table[name]))
            if name[0] == "c":
                a, b = (np.bincount(x, minlength=LEVELS) for x in (known, now))
                p.append(chi2_contingency([a + 0.5, b + 0.5]).pvalue)
                drifted.append(_jensen_shannon(a, b) > 0.1 if large_day else p[-1] < 0.05)
            else:
                p.append(ks_2samp(known, now, method="asymp").pvalue)
                distance = wasserstein_distance(known, now) / max(known.std(), 1e-9) if large_day else 0
                drifted.append(distance > 0.1 if large_day else p[-1] < 0.05)
                edges = np.unique(np.quantile(known, np.linspace(0, 1, 11)))[1:-1]
                a, b = (
                    np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) for x in (known, now)
                )
            psi.append(_psi(a, b))
            mean = means[name]
            large.append(abs(np.nanmean(table[name]) - mean.mean()) > 3 * mean.std(ddof=1))
        ranked = np.sort(p)
        found["KS, chi2 + BH 0.05"].append(bool((ranked <= 0.05 * np.arange(1, len(p) + 1) / len(p)).any()))
        found["PSI > 0.2"].append(max(psi) > 0.2)
        found["mean + 3 sd"].append(any(large))
        found["Evidently's defaults, any column"].append(any(drifted))
        found["Evidently's defaults, half of the columns"].append(np.mean(drifted) >= 0.5)
    return found


_OTHERS = (
    "Evidently's defaults, any column",
    "Evidently's defaults, half of the columns",
    "KS, chi2 + BH 0.05",
    "PSI > 0.2",
    "mean + 3 sd",
)


def _psi(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.maximum(x / x.sum(), 1e-4) for x in (a, b))
    return float(((b - a) * np.log(b / a)).sum())


def _jensen_shannon(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a / a.sum(), b / b.sum()
    middle = (a + b) / 2

    def divergence(x: np.ndarray) -> float:
        seen = x > 0
        return float((x[seen] * np.log2(x[seen] / middle[seen])).sum())

    return float(np.sqrt((divergence(a) + divergence(b)) / 2))


# -- the tables ---------------------------------------------------------------------------------------------


def row(name: str, cells: Iterator[str]) -> None:
    print(f"| {name} |" + "".join(f" {cell} |" for cell in cells), flush=True)


def head(first: str, columns: list[str]) -> None:
    print(f"\n| {first} |" + "".join(f" {column} |" for column in columns))
    print("|---|" + "---|" * len(columns))


def compared(seed: int, streams: int, rows: int) -> None:
    """Both rates of every rule on the same tables of rows."""
    quiet = {"weekday and day effects": Stream(), "slow wander, AR 0.9": Stream(memory=0.9)}
    changes = {name: CHANGES[name] for name in list(CHANGES)[:3]}
    counted: dict[str, list[list[float]]] = {name: [] for name in ("ours", *_OTHERS)}
    cases: list[tuple[Stream, Change | None]] = [(stream, None) for stream in quiet.values()]
    cases += [(Stream(), change) for change in changes.values()]
    for place, (stream, change) in enumerate(cases):
        cells: dict[str, list[float]] = {name: [] for name in counted}
        for number in range(streams):
            count = REFERENCE_DAYS + (QUARTER if change is None else LONGEST_WINDOW)
            days = list(tables(stream, [seed, 3, place, number], rows, count, change or Change()))
            reference, later = days[:REFERENCE_DAYS], days[REFERENCE_DAYS:]
            for name, alarms in {"ours": ours(reference, later), **others(reference, later)}.items():
                cells[name].append(episodes(alarms) if change is None else any(alarms))
                if change is None:
                    cells[name][-1] = cells[name][-1] + 1j * sum(alarms) / len(alarms)
        for name, found in cells.items():
            counted[name].append(found)
    head(f"the same tables of {rows} rows a day", [*quiet, *(f"alarm after: {name}" for name in changes)])
    for name, found in counted.items():
        means = [np.mean(each) for each in found]
        row(
            name,
            (
                f"{m.real:.1f} ({m.imag:.0%} of days)" if place < len(quiet) else f"{m.real:.2f}"
                for place, m in enumerate(means)
            ),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="to repeat a run; default: a fresh one")
    parser.add_argument("--streams", type=int, default=20, help="pipelines for each number")
    parser.add_argument(
        "--compared", type=int, default=3, help="pipelines for each number beside other rules"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 2000, 50000], help="rows a day")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else int(np.random.SeedSequence().entropy % 2**32)
    print(f"seed {seed}, {arguments.streams} pipelines a number")
    columns = [f"n={rows}" for rows in arguments.rows]
    head("false alarms a quarter, episodes (strictness)", columns)
    for place, (name, stream) in enumerate(STREAMS.items()):
        cells = []
        for rows in arguments.rows:
            found = [
                by_statistics(stream, [seed, 1, place, rows, k], rows, None) for k in range(arguments.streams)
            ]
            runs = np.mean([episodes(alarms.any(axis=1).tolist()) for alarms, _ in found])
            cells.append(f"{runs:.2f} ({np.mean([strictness for _, strictness in found]):.2f})")
        row(name, iter(cells))
    head("the changed column is named within 7 days", columns)
    for place, (name, change) in enumerate(CHANGES.items()):
        cells = []
        for rows in arguments.rows:
            seeds = ([seed, 2, place, rows, k] for k in range(arguments.streams))
            found = [
                by_statistics(Stream(), each, rows, change)[0][:, _shown(change)].any() for each in seeds
            ]
            cells.append(f"{np.mean(found):.2f}")
        row(name, iter(cells))
    for rows in arguments.rows:
        if arguments.compared and rows <= 5000:
            compared(seed, arguments.compared, rows)


if __name__ == "__main__":
    main()
