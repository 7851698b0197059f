"""`batch-platform status`: what is done, failed and why, missing, stale, in quarantine or drifting, whether the model may
still score, and what to type next.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

import click

from batch_platform.core.overview import Overview, overview
from batch_platform.core.pipelines import defs_folder, find_pipeline, load_pipelines
from batch_platform.settings import Settings

_SHOWN = 10


@click.command()
@click.argument("pipeline", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of objects.")
def status(pipeline: str | None, as_json: bool) -> None:
    """Show each pipeline's partitions: done, failed, missing, late, stale, quarantined, drifting; and the next command.

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
    late = f" ({len(view.late)} late)" if view.late else ""
    stale = f", {len(view.stale)} stale" if view.stale else ""
    lines = [
        f"{view.pipeline}: {view.partitions} partitions: {view.done} done, {len(view.failed)} failed, "
        f"{missing} missing{late}{stale}",
        "  rows: " + ", ".join(f"{count} {table}" for table, count in view.rows.items()),
        *([f"  model {view.model}"] if view.model else []),
        f"  drift reference: {view.reference}",
        *_some("failed", _decided(view.failed, view.quality_decisions)),
        *_some("quarantined", {key: f"{rows} rows" for key, rows in sorted(view.quarantined.items())}),
        *_some("stale", view.stale),
        *_some("drifting", _decided(view.drifting, view.decisions)),
        *_some("warning", _decided(view.warnings, view.quality_decisions)),
    ]
    lines += [f"  missing {first} to {last}" for first, last in view.missing]
    if view.next_command:
        lines.append(f"  next: {view.next_command}")
    return "\n".join(lines)


def _decided(found: Mapping[str, str], decisions: Mapping[str, str]) -> dict[str, str]:
    return {key: words + (f" [{decisions[key]}]" if key in decisions else "") for key, words in found.items()}


def _some(what: str, found: Mapping[str, str]) -> list[str]:
    """The last of these lines; the older ones are counted."""
    lines = [f"  {what} {key}: {words}" for key, words in list(found.items())[-_SHOWN:]]
    if len(found) > _SHOWN:
        lines.append(f"  and {len(found) - _SHOWN} more {what} before")
    return lines
