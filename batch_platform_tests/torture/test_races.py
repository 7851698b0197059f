"""Many processes at once: on different partitions, on one partition, and one that wakes up after a newer one."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batch_platform.core.data import files
from batch_platform_tests.torture.bench import Bench, Running, day, record

_PROCESSES = 8
_READER = """
import sys, time
from pathlib import Path
import polars as pl
table, rows, stop = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
reads, versions = 0, set()
while not stop.exists():
    frame = pl.read_delta(table)
    found = frame["model_version"].unique().to_list()
    if frame.height != rows or len(found) != 1 or frame["row_key"].n_unique() != rows:
        print("partial", frame.height, found, flush=True)
        sys.exit(1)
    reads += 1
    versions.update(found)
print(reads, len(versions), flush=True)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


def few_many(few: int, many: int) -> pytest.MarkDecorator:
    runs = [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.torture)]
    return pytest.mark.parametrize("runs", runs)


@few_many(1, 50)
@pytest.mark.timeout(3600)
def test_processes_on_different_partitions(bench: Bench, runs: int) -> None:
    keys = [day(number) for number in range(_PROCESSES * runs)]
    for key in keys:
        bench.write(key)
    waiting, running = list(keys), list[Running]()
    while waiting or running:
        while waiting and len(running) < _PROCESSES:
            running.append(bench.start(waiting.pop()))
        time.sleep(0.02)
        for one in [one for one in running if not one.process.is_alive()]:
            made = one.wait()
            assert (made.code, made.lines[-1]) == (0, "done 160 False"), made.lines
            running.remove(one)
    frame = bench.table("predictions")
    assert frame.height == len(keys) * bench.rows
    found = bench.verify()
    assert (found.problems, found.partitions) == ((), len(keys))
    record(
        f"{_PROCESSES} processes on different partitions",
        len(keys),
        "all committed, one chain, 0 rows lost or doubled",
    )


@few_many(2, 50)
@pytest.mark.timeout(3600)
def test_two_runs_on_one_partition(bench: Bench, runs: int) -> None:
    for number in range(runs):
        key = day(number)
        bench.write(key)
        twins = [bench.start(key), bench.start(key)]
        for twin in twins:
            made = twin.wait()
            assert made.code == 0 and made.lines[-1].startswith("done 160"), made.lines
        assert bench.values(key).equals(bench.values(day(0)))
        assert bench.shards(key) == 0
    assert bench.table("predictions").height == runs * bench.rows
    assert bench.verify().problems == ()
    record("two runs on one partition", runs, "one result each; both runs ended well")


@few_many(2, 50)
@pytest.mark.timeout(3600)
def test_an_old_attempt_wakes_up_after_a_newer_one(bench: Bench, runs: int) -> None:
    newer = bench.register("newer", seed=1)
    for number in range(runs):
        key = day(number)
        bench.write(key)
        old = bench.start(key, hold=True)
        old.wait_until_held()
        made = bench.make(key, alias="newer")
        assert made.lines[-1] == "done 160 False", made.lines
        old.release()
        late = old.wait()
        assert (late.code, late.lines[-1].split(":")[0]) == (0, "superseded"), late.lines
        assert set(bench.table("predictions", key)["model_version"]) == {newer}
        assert bench.values(key).equals(bench.values(day(0)))
    assert bench.verify().problems == ()
    record(
        "an older attempt wakes up after a newer one committed",
        runs,
        "the newer stands; the older says so, exit code 0",
    )


@few_many(10, 200)
@pytest.mark.timeout(3600)
def test_a_reader_sees_whole_snapshots_alone(bench: Bench, runs: int) -> None:
    bench.register("newer", seed=1)
    bench.write(day(0))
    bench.make(day(0))
    stop = bench.folder / "stop"
    words = [
        sys.executable,
        "-c",
        _READER,
        str(bench.layout.table("predictions")),
        str(bench.rows),
        str(stop),
    ]
    reader = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        for number in range(runs):
            made = bench.make(day(0), alias=("newer", "champion")[number % 2])
            assert made.code == 0, made.lines
    finally:
        stop.touch()
    said, _ = reader.communicate(timeout=60)
    assert reader.returncode == 0, said
    reads, versions = map(int, said.split())
    assert reads > runs
    assert versions == 2
    record("a reader through re-scores", runs, "{reads} reads, each of one whole snapshot", reads=reads)


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")
def test_a_dead_process_leaves_no_lock(tmp_path: Path) -> None:
    holder = (
        "import os, sys, time; from pathlib import Path; from batch_platform.core.data import files\n"
        "with files.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    lock = tmp_path / "locks" / "mini-predictions"
    process = subprocess.Popen([sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with files.locked(lock):
        pass
