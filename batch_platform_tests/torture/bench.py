"""A folder with a small pipeline whose partitions hold equal rows, processes that make them, and what must hold after.

Every partition has the same source rows, so that one undisturbed partition says what all others must hold.
"""

import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import Lake, Slot
from batch_platform.core.data.objects import object_root
from batch_platform.core.layout import Layout
from batch_platform.core.models.registry import Registry
from batch_platform.core.slice import Run, Slice
from batch_platform.core.verifying import Verification, verify
from batch_platform.settings import ROOT_VARIABLE, Settings
from batch_platform_tests import tiny_models
from batch_platform_tests.mini import ATTRIBUTES, COLUMNS, good_row
from batch_platform_tests.tables import scan_delta
from batch_platform_tests.torture import worker

START = date(2000, 1, 1)
REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS_VARIABLE = "TORTURE_RESULTS"
# They differ from run to run by their nature.
_NOT_VALUES = ("run_id", "scored_at", "partition_key")


def day(number: int) -> str:
    """The key of the n-th partition."""
    return str(START + timedelta(days=number))


def record(fault: str, runs: int, outcome: str, **counts: int) -> None:
    """Add a line to the torture table, where one is being made.

    Args:
        fault: what was done.
        runs: how many times.
        outcome: what came of it, with the names of counts in braces.
        counts: by name; those of equal lines are added up.
    """
    path = os.environ.get(RESULTS_VARIABLE)
    if path:
        line = {"fault": fault, "runs": runs, "outcome": outcome, "counts": counts}
        with Path(path).open("a") as stream:
            stream.write(json.dumps(line) + "\n")


@dataclass
class Made:
    """A process that ended."""

    code: int
    lines: list[str]

    @property
    def scored(self) -> int:
        """Shards that it scored and wrote."""
        return self.lines.count("scored")


class Bench:
    """The folder and its processes.

    Args:
        folder: an empty one.
        rows: of every partition.
        root: where the platform keeps its data; below the folder by default.
        attributes: of the pipeline file, merged into the tests' small pipeline.
        environment: what its processes find in the environment beside the root.
    """

    def __init__(
        self,
        folder: Path,
        rows: int = 160,
        root: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.rows = rows
        self.root = root or str(folder / "root")
        (folder / "data").mkdir(parents=True)
        (folder / "out").mkdir()
        (folder / "workspace.yaml").write_text("load_from: []\n")
        document = {**ATTRIBUTES, "partitions": {"start": str(START)}, "drift": {}, **(attributes or {})}
        (folder / worker.PIPELINE_FILE).write_text(yaml.safe_dump(document))
        self.spec = worker.read_spec(folder)
        location: Location = object_root(self.root) if "://" in self.root else Path(self.root)
        self.settings = Settings(location)
        self.layout = Layout.of(self.settings, "mini")
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload([worker.__name__])
        self._started = 0
        self._environment = environment or {}
        self.register("champion")

    # -- inputs -------------------------------------------------------------------------------------------

    def register(self, alias: str, seed: int = 0) -> str:
        """Register a tiny model; returns its version."""
        model = tiny_models.tabular_model(self.folder / f"model-{seed}", seed=seed)
        registry = Registry(self.settings.root)
        signature = tiny_models.TABULAR_CONFIG.signature()
        card = tiny_models.CARD
        made = registry.register("churn", model, "torch", signature, card=card, alias=alias, by="t", why="t")
        return made.version

    def write(self, key: str, rows: Sequence[Mapping[str, Any]] | int | None = None) -> None:
        """Write a partition's source; by default the rows that all have."""
        if rows is None or isinstance(rows, int):
            rows = [good_row("row", number) for number in range(self.rows if rows is None else rows)]
        with (self.folder / "data" / f"{key}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    # -- processes ----------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        fixed = {ROOT_VARIABLE: self.root, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        return {**self._environment, **fixed}

    def start(self, key: str, hold: bool = False, alias: str = "champion", **environment: str) -> "Running":
        """Start a process that makes a partition."""
        self._started += 1
        output = self.folder / "out" / f"{self._started}.txt"
        output.touch()
        process = self._processes.Process(
            target=worker.forked,
            args=(
                str(self.folder),
                key,
                f"run-{self._started}",
                str(output),
                hold,
                alias,
                self.environment | environment,
            ),
        )
        process.start()
        return Running(process, output)

    def make(self, key: str, **options: Any) -> Made:
        """Make a partition in a process, to its end."""
        return self.start(key, **options).wait()

    def traced(self, key: str, *strace: str) -> Made:
        """Make a partition under strace, attached when the process has loaded everything."""
        running = self.start(key, **{worker.WAIT_VARIABLE: "1"})
        running.wait_until_held()
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(running.process.pid), *strace],
            stderr=subprocess.DEVNULL,
        )
        try:
            running.wait_until_traced()
            running.release()
            return running.wait()
        finally:
            tracer.kill()
            tracer.wait()

    # -- what is there ------------------------------------------------------------------------------------

    def slice(self, key: str) -> Slice:
        partition = self.spec.partitions.calendar().partition(key)
        return Slice(self.spec, partition, self.settings, self.folder, Run("look"))

    def shards(self, key: str) -> int:
        """Entries in the ledgers of a partition's unfinished work."""
        found = files.walk(self.layout.staging(key))
        return sum(1 for file in found if fnmatch(file.location.name, "shard-*.json"))

    def values(self, key: str) -> pl.DataFrame:
        """The partition's predictions as a Delta reader sees them, without what differs from run to run."""
        return self.table("predictions", key).drop(*_NOT_VALUES)

    def table(self, name: str, key: str | None = None) -> pl.DataFrame:
        """A table, or a partition of it, as a Delta reader sees it."""
        folder = self.layout.table(name)
        if not files.entries(folder / "_delta_log"):
            return pl.DataFrame(schema=dict.fromkeys(_NOT_VALUES, pl.String))
        frame = scan_delta(folder)
        return (frame if key is None else frame.filter(pl.col("partition_key") == key)).collect()

    def verify(self, key: str | None = None) -> Verification:
        return verify(self.spec, self.settings, self.folder, key)

    def head(self, key: str) -> Any:
        return Lake(self.layout).head(Slot("predictions", key))

    # -- what must hold -----------------------------------------------------------------------------------

    def make_undisturbed(self) -> None:
        """Make day 0, to which `finish` and `check_all` compare the others."""
        self.write(day(0))
        made = self.make(day(0))
        assert made.lines == ["scored"] * self.total_shards + [f"done {self.rows} False"], made.lines

    def seconds_of(self, key: str, **options: str) -> float:
        """How long making a partition takes."""
        self.write(key)
        started = time.monotonic()
        self.make(key, **options)
        return time.monotonic() - started

    @property
    def total_shards(self) -> int:
        """Of every partition."""
        return -(-self.rows // self.spec.inference.shard_rows)

    def finish(self, key: str, killed: Made) -> bool:
        """Make a partition again after its run was killed; returns whether the run went on from finished shards."""
        kept = self.shards(key)
        committed = self.head(key) is not None
        assert self.values(key).height in (0, self.rows)  # whole, or not there
        again = self.make(key)
        assert again.code == 0, again.lines
        assert again.lines[-1].startswith(f"done {self.rows}"), again.lines
        # What was in the ledger, or committed, is not scored again.
        assert again.scored == (0 if committed else self.total_shards - kept)
        assert self.values(key).equals(self.values(day(0)))
        # A shard that was scored is never repeated; the killed process may have computed one more, whose entry it did not
        # write any more.
        assert killed.scored + again.scored <= self.total_shards
        return kept > 0

    def check_all(self, partitions: int) -> None:
        """So many partitions are there, whole, and nothing else."""
        frame = self.table("predictions")
        assert frame.height == partitions * self.rows
        assert frame.select("partition_key", "row_key").n_unique() == frame.height
        found = self.verify()
        assert (found.problems, found.partitions) == ((), partitions)


@dataclass
class Running:
    """A process that makes a partition."""

    process: Any
    output: Path

    @property
    def lines(self) -> list[str]:
        return self.output.read_text().splitlines()

    def kill(self) -> None:
        self.process.kill()

    def wait(self, seconds: float = 120) -> Made:
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s: {self.lines[-3:]}"
        return Made(self.process.exitcode, self.lines)

    def wait_until_held(self) -> None:
        """Wait until the process has stopped itself."""
        status = Path(f"/proc/{self.process.pid}/stat")
        for _ in range(1200):
            if not self.process.is_alive():
                raise AssertionError(f"it ended: {self.lines}")
            if status.read_text().rpartition(")")[2].split()[0] == "T":
                return
            time.sleep(0.02)
        raise AssertionError("it never stopped")

    def wait_until_traced(self) -> None:
        status = Path(f"/proc/{self.process.pid}/status")
        for _ in range(1200):
            if "TracerPid:\t0\n" not in status.read_text():
                return
            time.sleep(0.02)
        raise AssertionError("strace did not attach")

    def release(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def killed_after(running: Running, seconds: float) -> Iterator[Made]:
    """The process after a kill -9 so many seconds from now, or after its end if that came first."""
    running.process.join(seconds)
    running.kill()
    yield running.wait()


def random_of(seed: int) -> random.Random:
    return random.Random(seed)
