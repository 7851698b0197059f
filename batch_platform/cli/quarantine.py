"""`batch-platform quarantine`: which rows could not be used and why, and trying them again."""

import json
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import click

from batch_platform.core.data.lake import Lake
from batch_platform.core.layout import Layout
from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.quarantine import Cause, causes, quarantined_rows
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import SettingsError
from batch_platform.settings import Settings, project_root

_STAGES = click.Choice(["raw", "features", "predictions"])
_SHOWN_PARTITIONS = 5


@click.group()
def quarantine() -> None:
    """Rows that could not be used: list their causes, show them, try them again."""


@quarantine.command("list")
@click.argument("pipeline")
@click.option("--partition", help="Look at this partition alone.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of objects.")
def list_(pipeline: str, partition: str | None, as_json: bool) -> None:
    """The causes, the most frequent first, with the partitions they are in."""
    found = causes(_lake(_spec(pipeline, partition)), partition)
    if as_json:
        click.echo(json.dumps([asdict(cause) for cause in found], indent=2))
    else:
        click.echo("\n".join(map(_line, found)) or f"{pipeline}: nothing is in quarantine")


@quarantine.command()
@click.argument("pipeline")
@click.option("--partition", help="Look at this partition alone.")
@click.option("--stage", type=_STAGES, help="Rows that this stage set aside.")
@click.option("--error-type", help="Rows with this cause.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to show.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of objects.")
def show(
    pipeline: str,
    partition: str | None,
    stage: str | None,
    error_type: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """The rows themselves: key, cause, message, source file and row; values of sensitive columns are masked."""
    rows = quarantined_rows(_lake(_spec(pipeline, partition)), partition, stage, error_type)
    found = list(islice(rows, limit + 1))
    if as_json:
        click.echo(json.dumps(found[:limit], indent=2, default=_plain, ensure_ascii=False))
        return
    lines = [_row(row) for row in found[:limit]] or [f"{pipeline}: no such rows in quarantine"]
    if len(found) > limit:
        lines.append(f"there are more: --limit {limit * 10}")
    click.echo("\n".join(lines))


@quarantine.command()
@click.argument("pipeline")
@click.option("--partition", required=True, help="The partition whose quarantined rows are tried again.")
def redrive(pipeline: str, partition: str) -> None:
    """Try a partition's quarantined rows again, as a Dagster run, and commit a new snapshot.

    Rows set aside by the model alone are scored alone; the others keep their values, run and time. Where the source
    or the recipe was mended, the partition is landed and featurized again first, and scored anew as far as it changed.
    Exit code 1 where the run failed.
    """
    spec = _spec(pipeline, partition)
    lake = _lake(spec)
    before = sum(cause.rows for cause in causes(lake, partition))
    if not before:
        click.echo(f"{pipeline} {partition}: nothing is in quarantine")
        return
    code = _launch(spec, partition)
    after = sum(cause.rows for cause in causes(lake, partition))
    click.echo(f"{pipeline} {partition}: {before} rows were in quarantine, {after} are now")
    if code:
        raise SystemExit(1)


def _launch(spec: PipelineSpec, partition: str) -> int:
    dg = Path(sys.executable).with_name("dg")
    if not dg.is_file():
        raise SettingsError(f"{dg} is not there: redrive launches a Dagster run, and needs dagster-dg-cli")
    config = {"ops": {f"{spec.name}__pipeline": {"config": {"redrive": True}}}}
    words = ["launch", "--job", spec.name, "--partition", partition, "--config-json", json.dumps(config)]
    return subprocess.run([str(dg), *words], cwd=project_root(), check=False).returncode


def _spec(pipeline: str, partition: str | None) -> PipelineSpec:
    spec = find_pipeline(defs_folder(), pipeline)
    if partition is not None:
        spec.partitions.calendar().partition(partition)  # refuses a key that is none
    return spec


def _lake(spec: PipelineSpec) -> Lake:
    return Lake(Layout.of(Settings.from_env(), spec.name))


def _line(cause: Cause) -> str:
    shown = ", ".join(cause.partitions[:_SHOWN_PARTITIONS])
    if len(cause.partitions) > _SHOWN_PARTITIONS:
        shown += f" and {len(cause.partitions) - _SHOWN_PARTITIONS} more"
    return f"{cause.rows:>8} {cause.stage:<12} {cause.error_type:<16} {shown}\n{'':>9}e.g. {cause.example}"


def _row(row: dict[str, Any]) -> str:
    place = f"{row['source_file']} row {row['source_row']}"
    lines = [
        f"{row['partition_key']} {row['stage']} {row['row_key']}: {row['error_type']}: {row['message']}",
        f"    {place}, attempt {row['attempt']}, run {row['run_id']}, {row['quarantined_at']:%Y-%m-%d %H:%M}",
    ]
    if row["payload"] is not None:
        lines.append(f"    {row['payload']}")
    return "\n".join(lines)


def _plain(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
