"""`make demo`: fetch the data, train and register the models, score real dates through Dagster, sum up.

Every step looks first at what is there, so that a second run does only what is missing.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from batch_platform.core import outcomes
from batch_platform.core.data.lake import Lake
from batch_platform.core.layout import Layout
from batch_platform.core.overview import stage_names
from batch_platform.core.pipelines import defs_folder, load_pipelines
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import BatchPlatformError
from batch_platform.settings import Settings, project_root

# First and last partition that the demo scores.
RANGES = {
    "flight_delays": ("2013-05-01", "2013-07-02"),
    "email_triage": ("2002-07-08", "2002-10-10"),
}
# What `make demo-all` scores besides.
MORE = {
    "mail_search": ("2002-08-26", "2002-09-01"),
    "recommendations": ("2017-07-01", "2017-08-04"),
}


class DemoError(BatchPlatformError):
    """A step of the demo failed; its output is above."""


def main(everything: bool = False) -> int:
    """Run the demo; 1 where a step failed.

    Args:
        everything: the pipelines of `MORE` too.
    """
    started = time.monotonic()
    ranges = {**RANGES, **(MORE if everything else {})}
    try:
        settings = Settings.from_env()
        specs = load_pipelines(defs_folder())
        fetching = [sys.executable, "-m", "batch_platform.demo.fetch", *(["--all"] if everything else [])]
        _step("real data", fetching)
        for name in ranges:
            _train(specs[name], settings)
        for name, (first, last) in ranges.items():
            _score(specs[name], settings, first, last)
    except BatchPlatformError as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 1
    for name in ranges:
        _sum_up(specs[name], settings)
    print(f"\nDone in {time.monotonic() - started:.0f} s. `make ui` opens Dagster with these results;")
    print("`.venv/bin/batch-platform status` says the same on the command line.")
    return 0


def _train(spec: PipelineSpec, settings: Settings) -> None:
    from batch_platform.core.models.registry import Registry
    from batch_platform.errors import ModelNotFoundError

    try:
        version = Registry(settings.root).resolve(spec.model.name, spec.model.alias)
    except ModelNotFoundError:
        _step(f"{spec.name}: train and register", _dg("launch", "--assets", f"{spec.name}/training"))
        return
    print(f"== {spec.name}: model {version.name} version {version.version} is registered", flush=True)


def _score(spec: PipelineSpec, settings: Settings, first: str, last: str) -> None:
    layout = Layout.of(settings, spec.name)
    wanted = spec.partitions.calendar().between(first, last)
    missing = [
        partition for partition in wanted if not outcomes.finished(layout, partition.key, stage_names(spec))
    ]
    if not missing:
        print(f"== {spec.name}: {len(wanted)} partitions are there", flush=True)
        return
    # One run over all of them: what is done between is adopted, which costs less than a run for each gap.
    start, end = missing[0].key, missing[-1].key
    _step(
        f"{spec.name}: score {start} to {end}",
        _dg("launch", "--job", spec.name, "--partition-range", f"{start}...{end}"),
    )


def _dg(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("dg")), *words]


def _step(title: str, command: list[str]) -> None:
    """Run a step, showing its progress lines; all of its output goes to a log.

    Raises:
        DemoError: it failed.
    """
    print(f"== {title}", flush=True)
    log = project_root() / ".dagster_home" / "demo.log"
    log.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    tail: list[str] = []
    with log.open("a") as file:
        file.write(f"\n== {datetime.now(UTC).isoformat(timespec='seconds')} {' '.join(command)}\n")
        try:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=project_root(),
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        except OSError as error:
            raise DemoError(
                f"{title}: {command[0]} cannot be run ({error.strerror}): make clean-venv demo"
            ) from None
        assert process.stdout is not None
        for line in _logged(process.stdout, file.write):
            tail = [*tail[-30:], line]
            if _is_progress(line):
                print(f"   {line.rstrip()}", flush=True)
        code = process.wait()
    if code:
        print("".join(tail), file=sys.stderr)
        raise DemoError(f"{title} failed with exit code {code}; everything it said is in {log}")
    print(f"   {time.monotonic() - started:.0f} s", flush=True)


def _logged(lines: Iterable[str], write: Callable[[str], object]) -> Iterator[str]:
    for line in lines:
        write(line)
        yield line


def _is_progress(line: str) -> bool:
    # Dagster's own lines begin with a time; ours with the pipeline or the data set.
    return line.startswith("[")


def _sum_up(spec: PipelineSpec, settings: Settings) -> None:
    lake = Lake(Layout.of(settings, spec.name))
    rows = {table: sum(lake.partition_rows(table).values()) for table in ("raw", "predictions", "quarantine")}
    partitions = len(lake.partition_rows("predictions"))
    print(
        f"\n{spec.name}: {partitions} partitions with rows; {rows['raw']} raw rows, {rows['predictions']} "
        f"predictions, {rows['quarantine']} in quarantine"
    )
    print(f"   tables: {lake.layout.table('predictions').parent}")


if __name__ == "__main__":
    sys.exit(main(everything="--all" in sys.argv[1:]))
