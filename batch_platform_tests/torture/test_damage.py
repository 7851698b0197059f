"""Files that are altered behind the platform's back, and clocks that jump: found, or without effect."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from batch_platform_tests.torture import worker
from batch_platform_tests.torture.bench import Bench, day, record
from batch_platform_tests.torture.requirements import fake_clock

_SHARDS = 20


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "bench")
    made.write(day(0))
    assert made.make(day(0)).code == 0
    return made


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def drop_failures(path: Path) -> None:
    """A ledger entry that is whole JSON and says something else."""
    entry = json.loads(path.read_bytes())
    entry["notes"]["failures"] = [["row-1", "Poison", "made up"]]
    path.write_text(json.dumps(entry))


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a shard file truncated": ("shard-000003-*.parquet", truncate),
    "a byte of a shard file flipped": ("shard-000003-*.parquet", flip),
    "a shard file taken away": ("shard-000003-*.parquet", Path.unlink),
    "a ledger entry truncated": ("shard-000003.json", truncate),
    "a ledger entry altered": ("shard-000003.json", drop_failures),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_staging_is_scored_again(bench: Bench, name: str) -> None:
    bench.write(day(1))
    running = bench.start(day(1), hold=True)  # all shards are in the ledger
    running.wait_until_held()
    running.kill()
    running.wait()
    pattern, damage = DAMAGE[name]
    (path,) = Path(str(bench.layout.staging(day(1)))).rglob(pattern)
    damage(path)
    found = bench.verify()
    assert [problem.partition_key for problem in found.problems] == [day(1)]
    again = bench.make(day(1))
    assert again.lines[-1] == "done 160 False"
    assert again.scored == 1
    assert bench.values(day(1)).equals(bench.values(day(0)))
    assert bench.verify().problems == ()
    record(name, 1, "`verify` names it; that shard alone is scored again")


@pytest.mark.parametrize("table", ["raw", "features", "predictions", "run_stats"])
def test_a_flipped_byte_in_a_data_file_is_found(bench: Bench, table: str) -> None:
    (path,) = Path(str(bench.layout.table(table))).rglob("*.parquet")
    flip(path)
    (problem,) = bench.verify().problems
    assert (problem.partition_key, problem.file) == (day(0), str(path))
    record(f"a flipped byte in a file of {table}", 1, "`verify` names the file, and nothing else")


def test_clocks_that_jump_backwards(bench: Bench) -> None:
    """A later attempt on a machine whose clock is a year behind is still the later one."""
    library = fake_clock()
    if library is None:
        pytest.skip("faketime is not installed")
    newer = bench.register("newer", seed=1)
    for shift in ("-400d", "-1d", "+30d"):
        bench.register("champion", seed=2 if shift == "-1d" else 0)
        assert bench.make(day(0)).code == 0
        words = [sys.executable, "-m", worker.__name__, str(bench.folder), day(0), "--alias", "newer"]
        environment = {**os.environ, **bench.environment, "LD_PRELOAD": str(library), "FAKETIME": shift}
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "done 160 False"
        assert set(bench.table("predictions", day(0))["model_version"]) == {newer}
    assert bench.verify().problems == ()
    record("clock jumps of -400, -1 and +30 days", 3, "the later attempt stands; the chain is whole")
