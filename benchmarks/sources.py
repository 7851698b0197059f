"""Memory and time of landing a large partition and making its features, from a CSV file and from PostgreSQL.

    python -m benchmarks.sources csv --rows 10000000
    python -m benchmarks.sources postgresql --rows 10000000

Data is generated. Memory is what the process's peak grows by from landing the same pipeline's partition of 1,000 rows to
having landed and featurized the large one. Of the growth 16 to 22 bytes a row are the keys, in which duplicates are found.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from batch_platform.core.featurizing import featurize_partition
from batch_platform.core.landing import land_partition
from batch_platform.core.slice import Run, Slice
from batch_platform.core.spec import parse_spec
from batch_platform.settings import Settings
from batch_platform_tests.postgres import execute, server

SMALL, LARGE = "2026-01-01", "2026-01-02"
COLUMNS = {
    "id": {"type": "int64", "required": True},
    "amount": {"type": "float64", "min": 0},
    "plan": {"type": "string", "allowed": ["basic", "pro", "gold"]},
}
QUERY = "SELECT id, amount, plan FROM sales WHERE moment >= :start AND moment < :end ORDER BY id"


def write_csv(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.write("id,amount,plan\n")
        for row in range(rows):
            file.write(f"{row},{row % 1000 / 8},{('basic', 'pro', 'gold')[row % 3]}\n")


def fill(url: str, rows: dict[str, int]) -> None:
    execute(url, "CREATE TABLE sales (id bigint, moment timestamptz, amount float8, plan text)")
    for day, count in rows.items():
        execute(
            url,
            f"INSERT INTO sales SELECT i, '{day} 12:00Z', i % 1000 / 8.0, "
            f"(ARRAY['basic', 'pro', 'gold'])[i % 3 + 1] FROM generate_series(0, {count - 1}) i",
        )
    execute(url, "CREATE INDEX ON sales (moment, id)", "ANALYZE sales")


def run(source: dict[str, Any], folder: Path, day: str) -> int:
    """Land a day and make its features; the rows."""
    attributes = {
        "name": "bench",
        "partitions": {"start": SMALL},
        "source": {"row_key": "id", "columns": COLUMNS, **source},
        "model": {"name": "none"},
    }
    spec = parse_spec(attributes, "bench")
    partition = spec.partitions.calendar().partition(day)
    slice_ = Slice(spec, partition, Settings(root=folder / "root"), folder, Run("bench", "benchmark"))
    land_partition(slice_)
    return featurize_partition(slice_).rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["csv", "postgresql"])
    parser.add_argument("--rows", type=int, default=10_000_000)
    asked = parser.parse_args()
    rows = {SMALL: 1_000, LARGE: asked.rows}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batch_platform-sources-")))
        print(f"{shutil.disk_usage(folder).free >> 30} GiB free in {folder}", flush=True)
        if asked.kind == "csv":
            for day, count in rows.items():
                write_csv(folder / f"{day}.csv", count)
            source: dict[str, Any] = {"uri": "{partition}.csv", "format": "csv"}
        else:
            url = stack.enter_context(server()).database()
            fill(url, rows)
            os.environ["BENCH_DB"] = url
            source = {"format": "sql", "connection_env": "BENCH_DB", "query": QUERY}
        run(source, folder, SMALL)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        made = run(source, folder, LARGE)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        cpu = time.process_time() - began
        print(
            f"{asked.kind}: {made} rows, peak memory +{grown} MiB on {before // 1024}, {cpu:.0f} CPU-s",
            flush=True,
        )


if __name__ == "__main__":
    main()
