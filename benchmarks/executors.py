"""The same shards by one engine, by several processes, and by actors of a Ray cluster of this machine.

BATCH_PLATFORM_ROOT=.batch_platform python -m benchmarks.executors              # text model email_triage, alias champion
python -m benchmarks.executors --model flight_delays --shards 200 --rows 1000   # a tabular one: hardly any computing

Start is the time until the first engine is loaded, stream that of all shards after a first one, both on the clock: the
CPU-seconds of Ray's processes cannot be asked for. Outputs are compared bit for bit.
"""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa

from batch_platform.core import scoring
from batch_platform.core.models.registry import Registry
from batch_platform.core.spec import parse_spec
from batch_platform.settings import Settings
from batch_platform_tests import tiny_models

EXECUTORS = {
    "local": {},
    "local, devices: 2": {"devices": 2},
    "ray, devices: 1": {"executor": "ray", "devices": 1},
    "ray, devices: 2": {"executor": "ray", "devices": 2},
}
PIPELINE = {
    "partitions": {"start": "2026-01-01"},
    "source": {
        "uri": "none-{partition}.csv",
        "format": "csv",
        "row_key": "id",
        "columns": {"id": {"type": "string"}},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="email_triage")
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--rows", type=int, default=256, help="Of each shard.")
    asked = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)
    root = Settings.from_env().root
    model = Registry(root).resolve(asked.model, "champion")
    shards = [_shard(model.signature.inputs, asked.rows, number) for number in range(asked.shards + 1)]
    first = None
    print(f"{asked.shards} shards of {asked.rows} rows, {asked.model}:")
    for name, inference in EXECUTORS.items():
        spec = parse_spec({**PIPELINE, "model": {"name": asked.model}, "inference": inference}, "bench")
        begun = time.monotonic()
        with closing(scoring.load_engine(model, spec, root)) as engine:
            started = time.monotonic()
            list(engine.score_stream(iter(shards[:1])))
            warm = time.monotonic()
            found = [result.outputs for result in engine.score_stream(iter(shards[1:]))]
            ended = time.monotonic()
        first = first or found
        same = "the same bits" if found == first else "OTHER BITS"
        print(f"{name:18} start {started - begun:5.1f} s, stream {ended - warm:5.1f} s, {same}", flush=True)


def _shard(inputs: tuple, rows: int, seed: int) -> pa.Table:
    chance = np.random.default_rng(seed)
    columns = {"row_key": pa.array([f"{seed}-{row}" for row in range(rows)])}
    for column in inputs:
        texts = iter(tiny_models.texts(rows, seed)) if column.type == "string" else iter(())
        columns[column.name] = _values(column.type, rows, chance, texts)
    return pa.table(columns)


def _values(kind: str, rows: int, chance: np.random.Generator, texts: Iterator[str]) -> pa.Array:
    if kind == "string":
        return pa.array(list(texts))
    return pa.array(chance.integers(0, 50, rows)).cast(kind)


if __name__ == "__main__":
    main()
