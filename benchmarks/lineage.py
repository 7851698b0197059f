"""How long `explain` and `affected` take over a year of predictions.

python -m benchmarks.lineage                     # 365 partitions, 10 million rows, random keys, each in one partition only
python -m benchmarks.lineage --rows 1000000

Keys are random, so that no file's range of keys excludes any: the worst that can be asked without --partition. Tables are
committed as the stages do, without scoring. CPU-seconds are of this process and all its threads.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core.data.lake import Lake, Slot
from batch_platform.core.data.staging import stage
from batch_platform.core.layout import Layout
from batch_platform.core.provenance.explaining import explain
from batch_platform.core.provenance.impact import Question, affected
from batch_platform.core.slice import Run, Slice
from batch_platform.core.spec import PipelineSpec, parse_spec
from batch_platform.errors import RowNotFoundError
from batch_platform.settings import Settings

ATTRIBUTES: dict[str, Any] = {
    "partitions": {"start": "2025-01-01"},
    "source": {
        "uri": "data/{partition}.parquet",
        "row_key": "id",
        "columns": {"id": {"type": "string"}, "amount": {"type": "float64"}, "age": {"type": "int64"}},
    },
    "model": {"name": "churn"},
}


class Year:
    """A lake as a year of daily runs leaves it."""

    def __init__(self, root: Path, rows: int, partitions: int) -> None:
        self.spec: PipelineSpec = parse_spec(ATTRIBUTES, "year")
        self.settings = Settings(root=root)
        self.chance = np.random.default_rng(0)
        calendar = self.spec.partitions.calendar()
        self.keys: list[tuple[str, str]] = []
        days = [
            day for _, day in zip(range(partitions), calendar.partitions(datetime.now(UTC)), strict=False)
        ]
        for number, day in enumerate(days):
            self.fill(
                Slice(self.spec, day, self.settings, root, Run(f"run-{number // 7}")), rows // partitions
            )

    def fill(self, slice_: Slice, rows: int) -> None:
        digits = self.chance.integers(0, 2**63, (2, rows)).tolist()
        texts = [f"{high:016x}-{low:016x}" for high, low in zip(*digits, strict=True)]
        self.keys.append((slice_.key, texts[rows // 2]))
        keys = pa.array(texts)
        amount, age = pa.array(self.chance.random(rows)), pa.array(self.chance.integers(18, 90, rows))
        score = self.chance.random(rows)
        scored_at = datetime.now(UTC)
        raw = pa.table(
            {
                "row_key": keys,
                "id": keys,
                "amount": amount,
                "age": age,
                "source_file": pa.repeat(f"data/{slice_.key}.parquet", rows),
                "source_row": pa.array(np.arange(rows)),
            }
        )
        predictions = pa.table(
            {
                "row_key": keys,
                "label": pa.array(np.where(score > 0.5, "churned", "stays")),
                "score": pa.array(score),
                "model_version": pa.repeat("1", rows),
                "model_digest": pa.repeat("sha256:" + "0" * 64, rows),
                "recipe_version": pa.repeat("0" * 12, rows),
                "input_hash": pa.array([f"{value:032x}" for value in digits[0]]),
                "run_id": pa.repeat(slice_.run.run_id, rows),
                "scored_at": pa.repeat(pa.scalar(scored_at, pa.timestamp("us", "UTC")), rows),
            }
        )
        conditions = {
            "model": ["churn", "1", "sha256:" + "0" * 64],
            "code": "c",
            "recipe": "0" * 12,
            "parameters": {},
        }
        self.commit(slice_, "raw", raw, counts={"files": {f"data/{slice_.key}.parquet": rows}})
        features = pa.table({"row_key": keys, "amount": amount, "age": age})
        self.commit(slice_, "features", features, raw_fingerprint=f"raw-{slice_.key}")
        self.commit(
            slice_,
            "predictions",
            predictions,
            features_fingerprint=f"features-{slice_.key}",
            code_version="c",
            model="churn",
            model_version="1",
            model_digest="sha256:" + "0" * 64,
            parameters={"device": "cpu"},
            shards=[[slice_.run.run_id, scored_at.isoformat(timespec="microseconds")]],
            origins=[{"conditions": conditions, "run_ids": [slice_.run.run_id]}],
            stats={"rows": rows, "wall_seconds": 1.0},
        )

    def commit(self, slice_: Slice, table: str, rows: pa.Table, **what: Any) -> None:
        slot = Slot(table, slice_.key)
        attempt = slice_.lake.begin(slot)
        with slice_.workspace(table, attempt) as folder:
            staged = stage(rows.to_batches(), rows.schema, folder, table)
            receipt = slice_.receipt(f"{table}-{slice_.key}", **what)
            slice_.lake.commit(slot, staged, rows.schema, receipt, attempt)


def timed(name: str, work: Callable[[], Any], rounds: int) -> None:
    work()
    wall, processor = [], []
    for _ in range(rounds):
        started, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    print(f"{name:<48} {np.median(wall):8.3f} s  {np.median(processor):8.3f} CPU-s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--partitions", type=int, default=365)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        year = Year(Path(folder) / "root", arguments.rows, arguments.partitions)
        spec, settings = year.spec, year.settings
        lake = Lake(Layout.of(settings, spec.name))
        (oldest, old_key), (newest, new_key) = year.keys[0], year.keys[-1]

        def nobody() -> None:
            try:
                explain(spec, settings, f"{2**62:016x}-nobody", lake=lake)
            except RowNotFoundError:
                return
            raise AssertionError("somebody")

        print(
            f"{arguments.rows} rows in {arguments.partitions} partitions; medians of {arguments.rounds} rounds, warm"
        )
        runs: dict[str, Callable[[], Any]] = {
            "explain, partition named": lambda: explain(spec, settings, old_key, oldest, lake),
            "explain, in the newest partition": lambda: explain(spec, settings, new_key, lake=lake),
            "explain, in the oldest partition": lambda: explain(spec, settings, old_key, lake=lake),
            "explain, a key that is nowhere": nobody,
            "affected, model": lambda: affected(settings, Question("model", "churn")),
            "affected, run of 7 partitions": lambda: affected(settings, Question("run", "run-3")),
            "affected, source file": lambda: affected(
                settings, Question("source_file", f"data/{newest}.parquet")
            ),
        }
        for name, work in runs.items():
            timed(name, work, arguments.rounds)


if __name__ == "__main__":
    main()
