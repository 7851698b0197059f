"""kill -9, at random moments and at every durable step: the next run finishes, and nothing shows that it was needed."""

import shutil
import time
from pathlib import Path

import pytest

from batch_platform_tests.torture.bench import Bench, Made, day, killed_after, random_of, record

# A durable step -> the system calls that make it.
_CALLS = {
    "fsync": "fsync",
    "link": "link,linkat",
    "rename": "rename,renameat,renameat2",
    "unlink": "unlink,unlinkat",
    "mkdir": "mkdir,mkdirat",
}
_SHARDS = 20


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "bench")
    made.write(day(0))
    undisturbed = made.make(day(0))
    assert undisturbed.lines == ["scored"] * _SHARDS + ["done 160 False"]
    return made


def finish(bench: Bench, key: str, killed: Made) -> int:
    """Run again after a kill; returns how many shards were scored twice."""
    kept = bench.shards(key)
    committed = bench.head(key) is not None
    before = bench.values(key)
    assert before.height in (0, bench.rows)  # whole, or not there
    again = bench.make(key)
    assert again.code == 0, again.lines
    assert again.lines[-1].startswith("done 160"), again.lines
    if committed:
        assert again.scored == 0
    else:
        # What was in the ledger is not scored again.
        assert again.scored == _SHARDS - kept
    assert bench.values(key).equals(bench.values(day(0)))
    # The killed process may have computed the shard whose entry it did not write any more.
    repeated = killed.scored + again.scored - _SHARDS
    assert repeated <= 0
    return int(kept > 0)


def check_all(bench: Bench, partitions: int) -> None:
    frame = bench.table("predictions")
    assert frame.height == partitions * bench.rows
    assert frame.select("partition_key", "row_key").n_unique() == frame.height
    found = bench.verify()
    assert found.problems == ()
    assert found.partitions == partitions


@pytest.mark.parametrize(
    "kills", [pytest.param(12, id="few"), pytest.param(700, id="many", marks=pytest.mark.torture)]
)
@pytest.mark.timeout(7200)
def test_killed_at_a_random_moment(bench: Bench, kills: int) -> None:
    bench.write(day(1))
    started = time.monotonic()
    bench.make(day(1))
    duration = time.monotonic() - started
    random = random_of(7)
    resumed = died = 0
    for number in range(kills):
        key = day(2 + number)
        bench.write(key)
        with killed_after(bench.start(key), random.uniform(0, duration)) as killed:
            died += killed.code != 0
            resumed += finish(bench, key, killed)
        if number % 100 == 99:
            check_all(bench, number + 3)
    check_all(bench, kills + 2)
    assert died > kills / 3
    record(
        "kill -9 at a random moment",
        died,
        f"all values equal the undisturbed run's; 0 rows lost or doubled; {resumed} runs went on from finished shards, none "
        "was scored again",
    )


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "every", [pytest.param(23, id="some"), pytest.param(1, id="all", marks=pytest.mark.torture)]
)
@pytest.mark.timeout(7200)
def test_killed_at_every_durable_step(bench: Bench, every: int) -> None:
    """At the n-th call of each kind, for n = 1, 1 + every, ..., until a run meets no n-th call."""
    kills, number = 0, 0
    for names in _CALLS.values():
        when = 1
        while True:
            number += 1
            key = day(number)
            bench.write(key)
            injected = f"inject={names}:signal=KILL:when={when}"
            killed = bench.traced(key, "-e", f"trace={names}", "-e", injected)
            if killed.code == 0:
                break
            finish(bench, key, killed)
            kills += 1
            when += every
    check_all(bench, number + 1)
    assert kills >= len(_CALLS)
    record(
        f"kill -9 at every {'' if every == 1 else f'{every}th '}{', '.join(_CALLS)} of a partition",
        kills,
        "all values equal the undisturbed run's; 0 rows lost or doubled",
    )
