"""`batch-platform status`: what is done, what failed and why, what is missing, and what to type next."""

import json
from dataclasses import asdict
from datetime import UTC, datetime

import click

from batch_platform.core.overview import Overview, overview
from batch_platform.core.pipelines import defs_folder, find_pipeline, load_pipelines
from batch_platform.settings import Settings

_SHOWN_FAILURES = 10


@click.command()
@click.argument("pipeline", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of objects.")
def status(pipeline: str | None, as_json: bool) -> None:
    """Show each pipeline's partitions: done, failed, missing; and the next command to type.

    Exit code 1 where a partition failed.
    """
    settings = Settings.from_env()
    folder = defs_folder()
    specs = [find_pipeline(folder, pipeline)] if pipeline else list(load_pipelines(folder).values())
    found = [overview(spec, settings, datetime.now(UTC)) for spec in specs]
    if as_json:
        click.echo(json.dumps([asdict(view) for view in found], indent=2))
    else:
        click.echo("\n\n".join(_text(view) for view in found) or "no pipelines")
    if any(view.failed for view in found):
        raise SystemExit(1)


def _text(view: Overview) -> str:
    missing = view.partitions - view.done - len(view.failed)
    lines = [
        f"{view.pipeline}: {view.partitions} partitions: {view.done} done, {len(view.failed)} failed, "
        f"{missing} missing",
        "  rows: " + ", ".join(f"{count} {table}" for table, count in view.rows.items()),
    ]
    lines += [f"  failed {key}: {cause}" for key, cause in list(view.failed.items())[:_SHOWN_FAILURES]]
    if len(view.failed) > _SHOWN_FAILURES:
        lines.append(f"  and {len(view.failed) - _SHOWN_FAILURES} more failed")
    lines += [f"  missing {first} to {last}" for first, last in view.missing]
    if view.next_command:
        lines.append(f"  next: {view.next_command}")
    return "\n".join(lines)
