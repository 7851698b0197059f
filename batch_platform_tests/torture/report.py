"""The torture table of `docs/reliability.md`, made by running the suite. Run by `make torture`.

Each test adds its lines to a file (see `bench.record`); a fault that several tests or files speak of becomes one row. A
suite that failed leaves the table as it was.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from batch_platform_tests.torture.bench import REPOSITORY, RESULTS_VARIABLE

BEGIN, END = "<!-- torture table: begin -->", "<!-- torture table: end -->"
_DOCUMENT = REPOSITORY / "docs" / "reliability.md"
# The suite, and the tests that have a long form outside it: the storage on Ceph, interruptions at any moment.
_TESTS = [
    "batch_platform_tests/torture",
    "batch_platform_tests/core/data",
    "batch_platform_tests/core/inference/test_interruption.py",
]
_HEAD = "| fault | runs | outcome |\n| --- | ---: | --- |\n"
# Tests come in a short and a long form, by these ends of their names; the table is made of the long ones.
_SHORT = ("few]", "some]", "moto-many]")


class Line(NamedTuple):
    """A fault, how many times it was tried, and what came of it."""

    fault: str
    runs: int
    outcome: str


def read_lines(path: Path) -> list[Line]:
    """The lines that the tests wrote, in the order of the first of each fault; equal ones are added up."""
    runs: dict[tuple[str, str], Counter[str]] = {}
    for text in path.read_text().splitlines():
        found = json.loads(text)
        counts = runs.setdefault((found["fault"], found["outcome"]), Counter())
        counts.update({"runs": found["runs"], **found["counts"]})
    return [
        Line(fault, counts["runs"], outcome.format_map(counts)) for (fault, outcome), counts in runs.items()
    ]


def table(lines: Iterable[Line]) -> str:
    """The lines as Markdown."""
    return _HEAD + "".join(f"| {line.fault} | {line.runs:,} | {line.outcome} |\n" for line in lines)


def put_into(document: str, new: str) -> str:
    """The document with the table between its two marks.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"{_DOCUMENT}: needs the lines {BEGIN} and {END}, once each")
    return f"{before}{BEGIN}\n{new}{END}{after}"


def run_suite(results: Path, words: Sequence[str]) -> int:
    """Run the long form of every test; returns pytest's exit code."""
    chosen = ["-m", "torture or not torture", "-k", " and ".join(f"not {name}" for name in _SHORT)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *_TESTS, *chosen, *words],
        cwd=REPOSITORY,
        env={**os.environ, RESULTS_VARIABLE: str(results)},
        check=False,
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, help="Take this file of results; run nothing.")
    parser.add_argument("pytest", nargs="*", help="Words for pytest, after --.")
    options = parser.parse_args()
    document = _DOCUMENT.read_text()
    put_into(document, "")  # said before an hour of work, not after it
    with tempfile.TemporaryDirectory() as folder:
        results = options.results or Path(folder) / "results.jsonl"
        if options.results is None:
            results.touch()
            if code := run_suite(results, options.pytest):
                print(f"a test failed: {_DOCUMENT} stays as it was", file=sys.stderr)
                return code
        lines = read_lines(results)
    _DOCUMENT.write_text(put_into(document, table(lines)))
    print(f"{_DOCUMENT}: {len(lines)} faults, {sum(line.runs for line in lines):,} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
