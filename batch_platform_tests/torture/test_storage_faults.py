"""A full disk and a disk that reports errors: the run says so, nothing wrong is committed, and the next run finishes."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batch_platform_tests.torture.bench import Bench, Made, day, record

_ENOUGH = "64m"


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of this size."""
    folder.mkdir(parents=True)
    _mount(folder, f"size={size}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(folder: Path, options: str) -> None:
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def used(folder: Path) -> int:
    return shutil.disk_usage(folder).used


def refused(made: Made) -> None:
    """It said what happened, in one line."""
    assert made.code == 3, made.lines
    assert made.lines[-1].startswith("error: StorageError: "), made.lines


@pytest.mark.parametrize(
    "sizes", [pytest.param(3, id="few"), pytest.param(20, id="many", marks=pytest.mark.torture)]
)
@pytest.mark.timeout(3600)
def test_a_full_disk(tmp_path: Path, sizes: int) -> None:
    with disk(tmp_path / "ample", _ENOUGH) as place:
        bench = Bench(tmp_path / "bench", root=str(place / "root"))
        registered = used(place)
        bench.write(day(0))
        assert bench.make(day(0)).code == 0
        undisturbed, needed = bench.values(day(0)), used(place)
    refusals = 0
    for number in range(sizes):
        size = registered + (needed - registered) * (number + 1) // (sizes + 1) // 1024 * 1024
        with disk(tmp_path / f"disk{number}", str(size + 8192)) as place:
            bench = Bench(tmp_path / f"bench{number}", root=str(place / "root"))
            bench.write(day(0))
            made = bench.make(day(0))
            if made.code:
                refused(made)
                refusals += 1
            assert bench.values(day(0)).height in (0, bench.rows)
            _mount(place, f"remount,size={_ENOUGH}")
            again = bench.make(day(0))
            assert again.lines[-1].startswith("done 160"), again.lines
            assert bench.values(day(0)).equals(undisturbed)
            assert bench.verify().problems == ()
    assert refusals >= sizes // 2
    record(
        "disk full",
        sizes,
        "{refusals} runs ended with StorageError, none committed in part; the next run finished all",
        refusals=refusals,
    )


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "every", [pytest.param(40, id="some"), pytest.param(5, id="many", marks=pytest.mark.torture)]
)
@pytest.mark.timeout(3600)
def test_a_disk_that_fails_to_sync(tmp_path: Path, every: int) -> None:
    bench = Bench(tmp_path / "bench")
    bench.write(day(0))
    assert bench.make(day(0)).code == 0
    number, when = 0, 1
    while True:
        number += 1
        key = day(number)
        bench.write(key)
        made = bench.traced(key, "-e", "trace=fsync", "-e", f"inject=fsync:error=EIO:when={when}")
        if made.code == 0:
            break
        refused(made)
        assert bench.values(key).height in (0, bench.rows)
        assert bench.make(key).lines[-1].startswith("done 160")
        assert bench.values(key).equals(bench.values(day(0)))
        when += every
    assert number > 2
    assert bench.verify().problems == ()
    record("EIO on fsync", number - 1, "StorageError each time; the next run finished all")
