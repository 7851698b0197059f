"""kill -9, at random moments and at every durable step: the next run finishes, and nothing shows that it was needed."""

import shutil
from pathlib import Path

import pytest

from batch_platform_tests.torture.bench import Bench, day, killed_after, random_of, record

# A durable step -> the system calls that make it.
_CALLS = {
    "fsync": "fsync",
    "link": "link,linkat",
    "rename": "rename,renameat,renameat2",
    "unlink": "unlink,unlinkat",
    "mkdir": "mkdir,mkdirat",
}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "bench")
    made.make_undisturbed()
    return made


@pytest.mark.parametrize(
    "kills", [pytest.param(12, id="few"), pytest.param(1200, id="many", marks=pytest.mark.torture)]
)
@pytest.mark.timeout(7200)
def test_killed_at_a_random_moment(bench: Bench, kills: int) -> None:
    duration = bench.seconds_of(day(1))
    random = random_of(7)
    resumed = died = 0
    for number in range(kills):
        key = day(2 + number)
        bench.write(key)
        with killed_after(bench.start(key), random.uniform(0, duration)) as killed:
            died += killed.code != 0
            resumed += bench.finish(key, killed)
        if number % 100 == 99:
            bench.check_all(number + 3)
    bench.check_all(kills + 2)
    assert died > kills / 3
    record(
        "kill -9 at a random moment",
        died,
        "all values equal the undisturbed run's; 0 rows lost or doubled; {resumed} runs went on from finished shards, none "
        "was scored again",
        resumed=resumed,
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
            bench.finish(key, killed)
            kills += 1
            when += every
    bench.check_all(number + 1)
    assert kills >= len(_CALLS)
    record(
        f"kill -9 at every {'' if every == 1 else f'{every}th '}{', '.join(_CALLS)} of a partition",
        kills,
        "all values equal the undisturbed run's; 0 rows lost or doubled",
    )
