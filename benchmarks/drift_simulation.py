"""False alarms and power of the drift decision on simulated pipelines: `python benchmarks/drift_simulation.py`.

Every run draws fresh seeds and prints the one to repeat it with. `--write docs/monitoring.md` puts the tables in the
place of those of the last run. `drift_streams.py` has the pipelines (some were used to choose the rule, some were
not), `drift_embeddings.py` those with vectors, `drift_peers.py` the rules beside ours, on the same tables of rows.
Whoever changes the rule should not look at one seed twice.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

# Each process does one pipeline after the other: threads within one only wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import drift_peers
import numpy as np
import pyarrow as pa
from drift_embeddings import QUIET_TOPICS, Topics, profiled
from drift_streams import (
    CHANGES,
    HELD_OUT,
    KINDS,
    QUARTER,
    QUIET,
    REFERENCE_DAYS,
    STATISTICS,
    TUNED_ON,
    Change,
    Stream,
    Table,
    day_values,
    statistics_of,
    tables,
)
from scipy.special import gammaincinv

from batch_platform.core.monitoring import DriftMonitor, Profile, profile_table
from batch_platform.core.monitoring.back_test import IN_TIME, WalkForward, chosen, episodes, tried
from batch_platform.core.monitoring.decision import STRICTNESS, Rule
from batch_platform.core.monitoring.evidence import Deviations, precedents
from batch_platform.core.monitoring.normal import Normal

BEGIN, END = "<!-- drift_simulation: begin -->", "<!-- drift_simulation: end -->"


# -- one pipeline -------------------------------------------------------------------------------------------


def by_statistics(stream: Stream, rows: int, change: Change | None, seed: list[int]) -> float:
    """Episodes of false alarms in a quarter; with a change 1 where its column is named in time, else 0."""
    first, judged = REFERENCE_DAYS, QUARTER if change is None else IN_TIME
    random = np.random.default_rng(seed)
    moments, days = day_values(stream, random, rows, first + judged, change or QUIET, first)
    rule = Rule.of(KINDS, 1.0, 91.0)
    normal = Normal.of(moments[:first], days[:first], KINDS)
    had = precedents(normal, moments[:first], days[:first], STATISTICS)
    history = WalkForward.of(moments[:first], days[:first], STATISTICS, had)
    trial = chosen(tried(history, rule, 91.0), 1.0)
    strictness = trial.strictness if trial else STRICTNESS[0]
    evidence = Deviations.of(normal, moments[first:], days[first:], judged).evidence(strictness, had)
    alarms = rule.alarms(evidence).any(axis=1)  # (days, statistics)
    if change is None:
        return episodes(alarms.any(axis=1).tolist())
    return float(alarms[:, statistics_of(change)].any())


def by_rows(
    stream: Stream, rows: int, change: Change | None, seed: list[int]
) -> dict[str, tuple[float, float]]:
    """For each rule episodes and share of days with an alarm, on one pipeline's tables of rows."""
    judged = QUARTER if change is None else IN_TIME
    days = list(tables(stream, seed, rows, REFERENCE_DAYS + judged, change or QUIET))
    reference, later = days[:REFERENCE_DAYS], days[REFERENCE_DAYS:]
    monitor = DriftMonitor.fit([(day, _profiled(table)) for day, table in reference])
    ours = [monitor.judge(day, _profiled(table)).alert for day, table in later]
    found = {"ours": ours, **drift_peers.alarms(reference, later)}
    return {name: (episodes(alarms), float(np.mean(alarms))) for name, alarms in found.items()}


def by_vectors(
    topics: Topics, rows: int, change: str | None, beside: bool, seed: list[int]
) -> dict[str, tuple[float, float]]:
    """The same of embeddings; Evidently's default on the first week of them, as it takes a second a day."""
    judged = QUARTER if change is None else IN_TIME
    days = list(topics.days(seed, rows, REFERENCE_DAYS + judged, change))
    reference, later = days[:REFERENCE_DAYS], days[REFERENCE_DAYS:]
    monitor = DriftMonitor.fit([(day, profiled(vectors)) for day, vectors in reference], 0.5)
    alarms = {"ours": [monitor.judge(day, profiled(vectors)).alert for day, vectors in later]}
    if beside:
        pooled = np.concatenate([vectors for _, vectors in reference])
        sample = pooled[np.random.default_rng(0).choice(len(pooled), min(len(pooled), 1500), replace=False)]
        alarms["Evidently's default"] = [
            drift_peers.evidently_of_embeddings(sample, vectors) for _, vectors in later[:IN_TIME]
        ]
    return {name: (episodes(found), float(np.mean(found))) for name, found in alarms.items()}


def schema_change(kind: str, seed: list[int]) -> float:
    """1 where a column that goes, comes or changes its kind is found on its first day and the day before is quiet."""
    days = list(tables(Stream(), seed, 200, REFERENCE_DAYS + 2, QUIET))
    monitor = DriftMonitor.fit([(day, _profiled(table)) for day, table in days[:REFERENCE_DAYS]])
    (before, quiet), (day, table) = days[-2:]
    first = monitor.judge(before, _profiled(quiet))
    changed = dict(table)
    if kind == "goes":
        del changed["n3"]
    elif kind == "comes":
        changed["n99"] = changed["n3"]
    profile = _profiled(changed, as_text="n3" if kind == "changes its kind" else None)
    verdict = monitor.judge(day, profile)
    named = {finding.column for finding in verdict.findings if finding.statistic == "schema"}
    return float(not first.alert and named == {"n99" if kind == "comes" else "n3"})


def _profiled(table: Table, as_text: str | None = None) -> Profile:
    columns = {
        name: pa.array(values).cast(pa.string()) if name[0] == "c" or name == as_text else values
        for name, values in table.items()
    }
    return profile_table(pa.table(columns))


# -- the tables ---------------------------------------------------------------------------------------------


class Page:
    """Lines of markdown, told as they are made."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str = "") -> None:
        self.lines.append(text)
        print(text, flush=True)

    def head(self, first: str, columns: Sequence[str]) -> None:
        self.line()
        self.row(first, columns)
        self.line("|---" * (len(columns) + 1) + "|")

    def row(self, name: str, cells: Sequence[str]) -> None:
        self.line(f"| {name} |" + "".join(f" {cell} |" for cell in cells))


def rate(counts: Sequence[float]) -> str:
    """Mean count of a pipeline, with the exact 95 % interval were they all Poisson's (Garwood 1936), and the most."""
    total, pipelines = sum(counts), len(counts)
    low = float(gammaincinv(total, 0.025)) if total else 0.0
    high = float(gammaincinv(total + 1, 0.975))
    return f"{total / pipelines:.2f} [{low / pipelines:.2f}, {high / pipelines:.2f}], most {max(counts):.0f}"


def share(hits: Sequence[float]) -> str:
    """Share with Wilson's 95 % interval."""
    n, p, z = len(hits), float(np.mean(hits)), 1.96
    middle, half = p + z**2 / 2 / n, z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return f"{p:.0%} [{max(0, low):.0%}, {min(1, high):.0%}]"


Results = Callable[..., list]


def by_rows_a_day(
    page: Page,
    each: Results,
    cases: dict[str, tuple[Stream, Change | None]],
    told: Callable[[Sequence[float]], str],
    pipelines: int,
    rows: Sequence[int],
    seed: list[int],
) -> None:
    """A line for each case, a column for each number of rows a day."""
    for number, (name, (stream, change)) in enumerate(cases.items()):
        found = (
            each(partial(by_statistics, stream, n, change), [[*seed, number, n, k] for k in range(pipelines)])
            for n in rows
        )
        page.row(name, [told(counts) for counts in found])


def false_alarms(page: Page, each: Results, pipelines: int, rows: Sequence[int], seed: int) -> None:
    for place, (title, streams) in enumerate(
        {"": TUNED_ON, "not looked at while the rule was chosen: ": HELD_OUT}.items()
    ):
        page.head(f"{title}false alarms a quarter, episodes", [f"n={n}" for n in rows])
        quiet: dict[str, tuple[Stream, Change | None]] = {name: (of, None) for name, of in streams.items()}
        by_rows_a_day(page, each, quiet, rate, pipelines, rows, [seed, 1, place])


def power(page: Page, each: Results, pipelines: int, rows: Sequence[int], seed: int) -> None:
    beside = {"": Stream(), ", beside restless and wild ones": Stream(restless=0.5, wild=3.0)}
    for place, (title, stream) in enumerate(beside.items()):
        page.head(f"the changed column is named within 7 days{title}", [f"n={n}" for n in rows])
        changed: dict[str, tuple[Stream, Change | None]] = {
            name: (stream, change) for name, change in CHANGES.items()
        }
        by_rows_a_day(page, each, changed, share, pipelines, rows, [seed, 2, place])


def compared(page: Page, each: Results, pipelines: int, rows: int, seed: int) -> None:
    quiet = {name: (TUNED_ON | HELD_OUT)[name] for name in _COMPARED}
    changes = {name: CHANGES[name] for name in list(CHANGES)[:5]}
    cases: list[tuple[Stream, Change | None]] = [(stream, None) for stream in quiet.values()]
    cases += [(Stream(), change) for change in changes.values()]
    found = [
        each(partial(by_rows, stream, rows, change), [[seed, 3, place, rows, k] for k in range(pipelines)])
        for place, (stream, change) in enumerate(cases)
    ]
    page.head(
        f"same tables of {rows} rows a day", [*quiet, *(f"alarm within 7 days: {name}" for name in changes)]
    )
    for name in ("ours", *drift_peers.RULES):
        cells = []
        for (_, change), results in zip(cases, found, strict=True):
            runs, days = np.transpose([result[name] for result in results])
            cells.append(
                f"{runs.mean():.1f} ({days.mean():.0%} of days)" if change is None else share(days > 0)
            )
        page.row(name, cells)


_COMPARED = (
    "weekday and day effects",
    "slow wander, AR 0.9",
    "bursts of a day in 1 of 100",
    "heavy tails: day effects of Student's t(3)",
)


def embeddings(page: Page, each: Results, pipelines: int, beside: int, rows: int, seed: int) -> None:
    changes = {"10 % of the rows of one known topic": "known", "of a new topic": "new"}
    page.head(f"embeddings, {rows} rows a day", ["false alarms a quarter, episodes", *changes])
    for place, (name, topics) in enumerate(QUIET_TOPICS.items()):
        cells = []
        for change in (None, *changes.values()):
            seeds = [[seed, 4, place, k] for k in range(pipelines)]
            found = each(partial(by_vectors, topics, rows, change, False), seeds)
            runs, days = np.transpose([result["ours"] for result in found])
            cells.append(rate(runs) if change is None else share(days > 0))
        page.row(name, cells)
    cells = []
    for change in (None, *changes.values()) if beside else ():
        seeds = [[seed, 5, k] for k in range(beside)]
        found = each(partial(by_vectors, Topics(), rows, change, True), seeds)
        _, days = np.transpose([result["Evidently's default"] for result in found])
        cells.append(f"{days.mean():.0%} of days" if change is None else share(days > 0))
    if beside:
        page.row("Evidently's default, on the first", cells)


def schema(page: Page, each: Results, pipelines: int, seed: int) -> None:
    page.head("schema change", ["named on its first day, n=200"])
    for place, kind in enumerate(("goes", "comes", "changes its kind")):
        seeds = [[seed, 6, place, k] for k in range(pipelines)]
        page.row(f"a column {kind}", [share(each(partial(schema_change, kind), seeds))])


def written(path: Path, lines: Sequence[str]) -> None:
    """Put the lines between the marks of a page."""
    text = path.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text("\n".join([before + BEGIN, *lines, "", END + after]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="to repeat a run; default: a fresh one")
    parser.add_argument("--pipelines", type=int, default=40, help="pipelines for each number")
    parser.add_argument(
        "--embeddings", type=int, default=40, help="pipelines with embeddings for each number"
    )
    parser.add_argument(
        "--compared", type=int, default=4, help="pipelines for each number beside other rules"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 2000], help="rows a day")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put the tables into this page, between its marks"
    )
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else int(np.random.SeedSequence().entropy % 2**32)
    page = Page()
    with ProcessPoolExecutor(given.workers) as pool:

        def each(run: Callable[[list[int]], object], seeds: Sequence[list[int]]) -> list:
            return list(pool.map(run, seeds))

        page.line(
            f"Seed {seed}: {given.pipelines} pipelines a number, {given.embeddings} with embeddings, "
            f"{given.compared} beside other rules."
        )
        false_alarms(page, each, given.pipelines, given.rows, seed)
        power(page, each, given.pipelines, given.rows, seed)
        if given.embeddings:
            embeddings(page, each, given.embeddings, given.compared, 200, seed)
        if given.compared:
            schema(page, each, given.compared, seed)
            for rows in given.rows:
                compared(page, each, given.compared, rows, seed)
    if given.write:
        written(given.write, page.lines)


if __name__ == "__main__":
    main()
