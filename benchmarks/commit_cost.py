"""What exactly-once costs: ledger, gate and commit beside the scoring; memory of a large commit; commits after many.

python -m benchmarks.commit_cost overhead    # the stage `predictions` beside the bare engine: 1,000 to 100,000 rows
python -m benchmarks.commit_cost memory      # peak memory of 10 million rows, from the source to the commit, and again
                                             # where one row in a hundred has changed
python -m benchmarks.commit_cost history     # a commit after 1,000 earlier ones, against the first
"""

import argparse
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core import featurizing, landing, scoring
from batch_platform.core.data.lake import Lake, Slot
from batch_platform.core.data.staging import stage
from batch_platform.core.inference.engine import Engine
from batch_platform.core.layout import Layout
from batch_platform.core.models.registry import RegisteredVersion, Registry
from batch_platform.core.slice import Run, Slice
from batch_platform.core.spec import PipelineSpec, parse_spec
from batch_platform.settings import Settings
from batch_platform_tests import tiny_models

DAY = "2026-01-01"
_SAMPLE = 300  # texts through MiniLM
MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}


# Makes a source of so many rows in a folder, and a model for it.
Make = Callable[[Path, int], tuple[PipelineSpec, RegisteredVersion]]


# -- the pipelines ----------------------------------------------------------------------------------------


def numbers(folder: Path, rows: int) -> tuple[PipelineSpec, RegisteredVersion]:
    """Rows of three features for the tests' tabular network."""
    columns = {
        "id": {"type": "string", "required": True},
        "amount": {"type": "float64"},
        "age": {"type": "int64"},
        "plan": {"type": "string"},
    }
    write_numbers(folder, rows)
    model = tiny_models.tabular_model(folder / "model")
    version = register(folder, model, "torch", tiny_models.TABULAR_CONFIG.signature())
    return spec_of(columns), version


def write_numbers(folder: Path, rows: int, changed: bool = False) -> None:
    """Write the source; where `changed`, with another amount in one row of a hundred."""
    writer = None
    for first in range(0, rows, 1_000_000):
        count = min(1_000_000, rows - first)
        random = np.random.default_rng(first)
        amounts = random.gamma(2.0, 50.0, count)
        if changed:
            amounts[::100] += 1.0
        table = pa.table(
            {
                "id": [f"row-{number:09d}" for number in range(first, first + count)],
                "amount": amounts,
                "age": random.integers(18, 90, count),
                "plan": np.array(["basic", "pro", "gold"])[random.integers(0, 3, count)].tolist(),
            }
        )
        writer = writer or pq.ParquetWriter(folder / f"{DAY}.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def texts(folder: Path, rows: int) -> tuple[PipelineSpec, RegisteredVersion]:
    """Rows of text of about 90 tokens for a classifier of MiniLM's shape (6 layers, 384 wide)."""
    return _texts(folder, rows, MINILM)


def tiny_texts(folder: Path, rows: int) -> tuple[PipelineSpec, RegisteredVersion]:
    """The same rows for the tests' smallest classifier."""
    return _texts(folder, rows, {"max_position_embeddings": 512})


def _texts(folder: Path, rows: int, shape: dict[str, int]) -> tuple[PipelineSpec, RegisteredVersion]:
    random = np.random.default_rng(0)
    words = np.array(tiny_models.WORDS)
    lengths = np.clip(random.lognormal(4.2, 0.8, rows).astype(int), 3, 400)
    table = pa.table(
        {
            "id": [f"row-{number:09d}" for number in range(rows)],
            "text": [" ".join(words[random.integers(0, len(words), length)]) for length in lengths],
        }
    )
    pq.write_table(table, folder / f"{DAY}.parquet")
    model = tiny_models.text_classifier(folder / "model", **shape)
    signature = replace(tiny_models.TEXT_SIGNATURE, max_tokens=512)
    columns = {"id": {"type": "string", "required": True}, "text": {"type": "string", "required": True}}
    return spec_of(columns), register(folder, model, "transformers", signature)


def spec_of(columns: dict[str, Any]) -> PipelineSpec:
    return parse_spec(
        {
            "partitions": {"start": DAY},
            "source": {"uri": "{partition}.parquet", "row_key": "id", "columns": columns},
            "model": {"name": "bench"},
        },
        "bench",
    )


def register(folder: Path, model: Path, flavor: str, signature: Any) -> RegisteredVersion:
    registry = Registry(folder / "root")
    return registry.register(
        "bench", model, flavor, signature, card=tiny_models.CARD, by="bench", why="bench", alias="champion"
    )


def prepared(folder: Path, spec: PipelineSpec) -> Slice:
    slice_ = Slice(
        spec, spec.partitions.calendar().partition(DAY), Settings(folder / "root"), folder, Run("r")
    )
    landing.land_partition(slice_)
    featurizing.featurize_partition(slice_)
    return slice_


# -- overhead ---------------------------------------------------------------------------------------------


class Timed:
    """An engine that adds up the CPU seconds of all threads while it scores."""

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        stream = engine.score_stream

        def timed(shards: Iterator[pa.Table], tolerated: int) -> Iterator[Any]:
            results = stream(shards, tolerated)
            while True:
                started = time.process_time()
                result = next(results, None)
                self.seconds += time.process_time() - started
                if result is None:
                    return
                yield result

        engine.score_stream = timed  # type: ignore[method-assign]


def overhead(rows: int) -> None:
    """MiniLM's own seconds are those of a sample, times the rows: the rest does not depend on the model."""
    row_seconds = _seconds_of_a_row()
    print("| model | rows | the engine, CPU s | all else of the stage, CPU s | share |", flush=True)
    print("| --- | ---: | ---: | ---: | ---: |")
    for count in (rows // 10, rows, rows * 10):
        for name, make in (("text", tiny_texts), ("numbers", numbers)):
            with tempfile.TemporaryDirectory() as place:
                engine_seconds, rest = _scored(Path(place), count, make)
            if name == "text":
                engine_seconds = row_seconds * count
            share = rest / engine_seconds
            print(f"| {name} | {count:,} | {engine_seconds:.2f} | {rest:.2f} | {share:.2%} |", flush=True)


def _seconds_of_a_row() -> float:
    with tempfile.TemporaryDirectory() as place:
        return _scored(Path(place), _SAMPLE, texts)[0] / _SAMPLE


def _scored(folder: Path, rows: int, make: Make) -> tuple[float, float]:
    """CPU seconds of the engine, and of all else that the stage does."""
    spec, version = make(folder, rows)
    slice_ = prepared(folder, spec)
    engine = scoring.load_engine(version, spec, folder / "root")
    timed = Timed(engine)
    started = time.process_time()
    scoring.score_partition(slice_, version, engine, lambda line: None)
    return timed.seconds, time.process_time() - started - timed.seconds


# -- memory -----------------------------------------------------------------------------------------------


def memory(rows: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        spec, version = numbers(folder, rows)
        engine = scoring.load_engine(version, spec, folder / "root")
        print(f"{rows} rows, {resident() / 2**20:.0f} MiB with the model loaded", flush=True)
        _watched("all new", folder, spec, version, engine)
        write_numbers(folder, rows, changed=True)
        _watched("one in a hundred changed", folder, spec, version, engine)


def _watched(name: str, folder: Path, spec: PipelineSpec, version: RegisteredVersion, engine: Engine) -> None:
    whole, committing = Watch(), Watch()
    whole.begin()
    slice_ = prepared(folder, spec)
    prepared_peak = whole.peak

    def progress(line: str) -> None:
        committing.begin()

    result = scoring.score_partition(slice_, version, engine, progress)
    committing.end()
    whole.end()
    print(
        f"{name}: {result.metadata['rows_scored']} scored, {result.metadata['rows_reused']} reused: at most "
        f"{(whole.peak - whole.start) / 2**20:.0f} MiB above the start from the source to the commit "
        f"({(prepared_peak - whole.start) / 2**20:.0f} until the features stood); of these at most "
        f"{(committing.peak - committing.start) / 2**20:.0f} MiB more while committing than at the end of scoring",
        flush=True,
    )


class Watch:
    """The process's resident memory from one moment to another, ten times a second."""

    def __init__(self) -> None:
        self.start = self.peak = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start, or start anew."""
        self.start = self.peak = resident()
        if self._thread is None:
            self._thread = threading.Thread(target=self._look)
            self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.peak = max(self.peak, resident())

    def end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# -- history ----------------------------------------------------------------------------------------------


def history(commits: int) -> None:
    schema = pa.schema([("row_key", pa.string()), ("score", pa.float64())])
    rows = pa.record_batch([[f"row-{n}" for n in range(1000)], np.zeros(1000)], schema=schema)
    with tempfile.TemporaryDirectory() as place:
        lake = Lake(Layout(Path(place), "bench"))
        seconds = []
        for number in range(commits + 20):
            slot = Slot("predictions", f"2026-01-{1 + number % 30:02d}")
            attempt = lake.begin(slot)
            staged = stage([rows], schema, Path(place) / "scratch", f"f{number}")
            started = time.perf_counter()
            lake.commit(slot, staged, schema, {"fingerprint": f"f{number}"}, attempt)
            seconds.append(time.perf_counter() - started)
        first, last = median(seconds[1:21]), median(seconds[-20:])
        fresh = Lake(lake.layout)
        started = time.perf_counter()
        fresh.head(Slot("predictions", "2026-01-01"))
        opening = time.perf_counter() - started
        print(
            f"median of 20 commits: {first * 1000:.1f} ms at first, {last * 1000:.1f} ms after {commits}: "
            f"{last / first:.2f} times; the very first, with its table: {seconds[0] * 1000:.1f} ms; opening the table "
            f"in a new process then: {opening * 1000:.1f} ms"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["overhead", "memory", "history"])
    parser.add_argument(
        "--rows", type=int, help="rows (overhead: 10,000; memory: 10 million), or commits (1,000)"
    )
    arguments = parser.parse_args()
    if arguments.what == "overhead":
        overhead(arguments.rows or 10_000)
    elif arguments.what == "memory":
        memory(arguments.rows or 10_000_000)
    else:
        history(arguments.rows or 1_000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
