"""What monitoring costs on a large day: `python benchmarks/drift_cost.py`.

A day of a million rows and 50 columns (24 numbers, 20 categories of 3 to 320 values, 2 of 100,000, 2 flags, 2 moments) and
its scores, in a lake of 28 reference days. Profile and decision are those of the features stage and the drift report, the
report is the whole stage with its page. CPU seconds of all threads; each part runs in a process of its own, so that its
peak of memory is its own.
"""

import argparse
import resource
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import date, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core.data.lake import Slot
from batch_platform.core.data.staging import stage
from batch_platform.core.drift_reporting import report_drift
from batch_platform.core.monitoring.evidently_report import RenderRequest
from batch_platform.core.monitoring.rendering import Renderer
from batch_platform.core.slice import Run, Slice
from batch_platform.core.spec import parse_spec
from batch_platform.core.watching import Watch
from batch_platform.settings import Settings

REFERENCE_DAYS, REFERENCE_ROWS = 28, 5000
START = date(2026, 1, 1)
ATTRIBUTES: dict[str, Any] = {
    "partitions": {"start": str(START), "end": "2026-03-01"},
    "source": {
        "uri": "data/{partition}.parquet",
        "row_key": "id",
        "columns": {"id": {"type": "string", "required": True}},
    },
    "model": {"name": "churn"},
    "drift": {"reference_partitions": REFERENCE_DAYS},
}


class NoPages:
    """Stands for the renderer while the reference is made."""

    def submit(self, request: RenderRequest) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(request.out)
        return done


def slice_of(root: Path, day: int) -> Slice:
    spec = parse_spec(ATTRIBUTES, "large")
    key = str(START + timedelta(days=day))
    return Slice(spec, spec.partitions.calendar().partition(key), Settings(root=root), root, Run("run"))


def columns_of(random: np.random.Generator, day: int, rows: int, columns: int) -> pa.Table:
    """A day's features."""
    made: dict[str, Any] = {"row_key": np.char.add(f"{day}-", np.arange(rows).astype(str))}
    for place in range(columns):
        kind = place % 25
        if kind < 12:
            values = random.normal(size=rows) if kind % 3 else np.exp(random.normal(size=rows))
            values[random.random(rows) < 0.01] = np.nan
            made[f"number_{place}"] = pa.array(values, from_pandas=True)
        elif kind < 22:
            levels = pa.array([f"value {level}" for level in range(int(3 * 1.68 ** (kind - 12)))])
            codes = pa.array(random.integers(0, len(levels), rows).astype(np.int32))
            made[f"category_{place}"] = pa.DictionaryArray.from_arrays(codes, levels).cast(pa.string())
        elif kind == 22:
            made[f"many_{place}"] = np.char.add("id-", (random.zipf(1.3, rows) % 100_000).astype(str))
        elif kind == 23:
            made[f"flag_{place}"] = random.random(rows) < 0.3
        else:
            moments = (1.767e15 + day * 86.4e9 + random.uniform(0, 86.4e9, rows)).astype(np.int64)
            made[f"moment_{place}"] = pa.array(moments).cast(pa.timestamp("us", "UTC"))
    return pa.table(made)


def commit(slice_: Slice, table: str, rows: pa.Table, **receipt: Any) -> None:
    slot = Slot(table, slice_.key)
    attempt = slice_.lake.begin(slot)
    with slice_.workspace(table, attempt) as folder:
        staged = stage(
            rows.to_batches(max_chunksize=16_384), rows.schema, folder, table
        )  # as stages give them
        made = slice_.receipt(f"{table}_{attempt}", **receipt)
        slice_.lake.commit(slot, staged, rows.schema, made, attempt)


def prepare(root: Path, rows: int, columns: int, seed: int) -> None:
    """Reference days, and the large one with the profile that its features left."""
    random = np.random.default_rng(seed)
    for day in range(REFERENCE_DAYS + 1):
        slice_ = slice_of(root, day)
        count = rows if day == REFERENCE_DAYS else REFERENCE_ROWS
        features = columns_of(random, day, count, columns)
        watch = Watch.of_features(slice_, features.column_names)
        for _ in watch.passing(features.to_batches(max_chunksize=100_000)):
            pass
        commit(slice_, "features", features, profile=watch.digest)
        watch.keep()
        score = random.beta(2, 5, count)
        label = pa.array(np.where(score > 0.5, "yes", "no"))
        commit(
            slice_, "predictions", pa.table({"row_key": features["row_key"], "label": label, "score": score})
        )
        if day < REFERENCE_DAYS:
            report_drift(slice_, NoPages())  # type: ignore[arg-type]


def measure_profile(root: Path) -> dict[str, float]:
    """Profile and both decisions; what reading the rows costs, which the gate does anyway, is taken off."""
    slice_ = slice_of(root, REFERENCE_DAYS)
    schema = slice_.lake.schema("features")
    assert schema is not None
    read = _cpu()
    for _ in slice_.lake.batches("features", slice_.key):
        pass
    read = _cpu() - read
    watch = Watch.of_features(slice_, schema.names)
    profiled = _cpu()
    for _ in watch.passing(slice_.lake.batches("features", slice_.key)):
        pass
    size = len(watch.content)
    profiled = _cpu() - profiled - read
    quality = _cpu()
    checks = watch.checks()
    quality = _cpu() - quality
    assert all(check.passed for check in checks), [check.description for check in checks]
    return {
        "profile of the features, CPU-s": profiled,
        "profile, kB": size / 1000,
        "data quality against 28 days, first in a process, CPU-s": quality,
        "profile, peak MB": _peak_mb(resource.RUSAGE_SELF),
    }


def measure_report(root: Path) -> dict[str, float]:
    """The stage as in a run, with the process that makes the page."""
    renderer = Renderer()
    slice_ = slice_of(root, REFERENCE_DAYS)
    started = _cpu()
    result = report_drift(slice_, renderer)
    verdict = _cpu() - started
    again = _cpu()
    report_drift(slice_, NoPages())  # type: ignore[arg-type]
    again = _cpu() - again
    assert result.rendering is not None
    assert result.report is not None
    page = result.rendering.result()
    renderer.close()
    return {
        "drift: predictions' profile, fit, verdict, samples, commit, CPU-s": verdict,
        "the same for a next date (reference is fitted), CPU-s": again,
        "the page in its own process, with imports, CPU-s": _cpu(resource.RUSAGE_CHILDREN),
        "report, peak MB": _peak_mb(resource.RUSAGE_SELF),
        "page, peak MB": _peak_mb(resource.RUSAGE_CHILDREN),
        "HTML, MB": page.stat().st_size / 1e6,
    }


def _cpu(who: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _peak_mb(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1000


def _apart(work: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    print(
        f"{asked.rows:,} rows, {asked.columns} columns, seed {asked.seed}\n\n"
        "| what | measured | asked |\n| --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _apart(prepare, root, asked.rows, asked.columns, asked.seed)
        profile = _apart(measure_profile, root)
        _show({name: (value, "") for name, value in profile.items()})
        report = _apart(measure_report, root)
        _show({name: (value, "") for name, value in report.items()})
    features, quality = (value for name, value in profile.items() if name.endswith("CPU-s"))
    stage_, later, page = (value for name, value in report.items() if name.endswith("CPU-s"))
    totals = {
        "profile and decision, later date, CPU-s": (features + quality + later, "5"),
        "profile, kB a day": (profile["profile, kB"], "50"),
        "whole report, first in a process, CPU-s": (features + quality + stage_ + page, "20"),
        "whole report, peak MB": (
            max(report["report, peak MB"], report["page, peak MB"], profile["profile, peak MB"]),
            "600",
        ),
        "whole report, HTML, MB": (report["HTML, MB"], "8"),
    }
    _show(totals)


def _show(figures: dict[str, tuple[float, str]]) -> None:
    for name, (value, most) in figures.items():
        print(f"| {name} | {value:.1f} | {most and f'<= {most}'} |", flush=True)


if __name__ == "__main__":
    main()
