"""What is tortured: one process that makes one partition as the orchestration does, with the core's own stages.

Run as a module it does one partition and says what it did on its standard output, a line at a time:
`scored N` after each shard, `done ROWS REUSED` or `superseded` at the end. Errors of the platform end it with code 3 and
one line. Imported, it is what a fork server loads once, so that a thousand processes need not.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import deltalake  # noqa: F401 - loaded here for the fork server
import numpy as np  # noqa: F401
import pyarrow.compute
import pyarrow.csv
import pyarrow.dataset  # noqa: F401
import safetensors  # noqa: F401
import torch
import torch._dynamo  # building a network on the meta device imports it
import yaml

from batch_platform.core import featurizing, landing, scoring, work
from batch_platform.core.models import flavor_torch, tabular_mlp  # noqa: F401
from batch_platform.core.models.registry import Registry
from batch_platform.core.slice import Run, Slice
from batch_platform.core.spec import PipelineSpec, parse_spec
from batch_platform.errors import BatchPlatformError, SupersededError
from batch_platform.settings import Settings

PIPELINE_FILE = "pipeline.yaml"
WAIT_VARIABLE = "TORTURE_WAIT"  # stop before the work until someone sends SIGCONT


def read_spec(folder: Path) -> PipelineSpec:
    """The pipeline of a bench's folder."""
    return parse_spec(yaml.safe_load((folder / PIPELINE_FILE).read_text()), "mini")


def make_partition(folder: Path, key: str, run_id: str, hold: bool = False, alias: str = "champion") -> int:
    """Land, featurize and score one partition.

    Args:
        hold: stop this process (SIGSTOP) when all shards are scored; it goes on when someone sends SIGCONT.
        alias: of the model to score with.

    Returns:
        The exit code: 0 done or superseded, 3 an error of the platform, which is printed.
    """
    torch.set_num_threads(1)
    os.chdir(folder)
    spec = read_spec(folder)
    settings = Settings.from_env()
    slice_ = Slice(spec, spec.partitions.calendar().partition(key), settings, folder, Run(run_id))
    try:
        landing.land_partition(slice_)
        featurizing.featurize_partition(slice_)
        model = Registry(settings.root).resolve(spec.model.name, alias)
        engine = scoring.load_engine(model, spec, settings.root)
        total = -(
            -slice_.committed("features").rows // work.pin(slice_, model, engine).parameters["shard_rows"]
        )
        finished = 0

        def progress(line: str) -> None:
            nonlocal finished
            if " rows scored" not in line:
                return
            finished += 1
            print("scored", flush=True)
            if hold and finished == total:
                os.kill(os.getpid(), signal.SIGSTOP)

        result = scoring.score_partition(slice_, model, engine, progress)
    except SupersededError as error:
        print(f"superseded: {error}", flush=True)
        return 0
    except BatchPlatformError as error:
        print(f"error: {type(error).__name__}: {error}", flush=True)
        return 3
    print(f"done {result.rows} {result.reused}", flush=True)
    return 0


def forked(
    folder: str, key: str, run_id: str, output: str, hold: bool, alias: str, environment: dict
) -> None:
    """The same in a process of the fork server, its lines in a file."""
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if WAIT_VARIABLE in os.environ:
        os.kill(os.getpid(), signal.SIGSTOP)
    sys.exit(make_partition(Path(folder), key, run_id, hold, alias))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("key")
    parser.add_argument("--run-id", default="run")
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--alias", default="champion")
    options = parser.parse_args()
    return make_partition(options.folder, options.key, options.run_id, options.hold, options.alias)


if __name__ == "__main__":
    sys.exit(main())
