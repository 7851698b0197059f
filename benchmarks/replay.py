"""Random rows of a pipeline scored again from their recorded inputs, and compared.

python -m benchmarks.replay flight_delays --rows 1000      # in the project's folder, after `make demo`
"""

import argparse
import time
from collections import Counter

import numpy as np

from batch_platform.core.data.lake import Lake
from batch_platform.core.layout import Layout
from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.provenance.replaying import Replayer
from batch_platform.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    spec, settings = find_pipeline(defs_folder(), arguments.pipeline), Settings.from_env()
    lake = Lake(Layout.of(settings, spec.name))
    rows = [
        (partition, key)
        for partition in sorted(lake.partition_rows("predictions"))
        for batch in lake.batches("predictions", partition, ["row_key"])
        for key in batch["row_key"].to_pylist()
    ]
    chosen = np.random.default_rng(arguments.seed).choice(
        len(rows), min(arguments.rows, len(rows)), replace=False
    )
    replayer = Replayer(spec, settings)
    started, largest = time.process_time(), 0.0
    remade: Counter[str] = Counter()
    different = []
    for number in chosen.tolist():
        partition, key = rows[number]
        found = replayer.replay(key, partition)
        remade[found.remade] += 1
        different += [] if found.equal else [found]
        if found.equal and isinstance(found.recorded.get("score"), float):
            largest = max(largest, abs(found.recorded["score"] - found.again["score"]))
    used = time.process_time() - started
    print(
        f"{spec.name}: {len(chosen)} of {len(rows)} rows scored again: {len(chosen) - len(different)} equal, "
        f"{len(different)} different; largest difference of a score {largest:.2g}; features made again: {dict(remade)}; "
        f"{used / len(chosen) * 1000:.0f} CPU-ms a row"
    )
    for found in different[:5]:
        print(found)


if __name__ == "__main__":
    main()
