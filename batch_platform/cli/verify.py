"""`batch-platform verify`: nothing lost, doubled or altered, from the source to the predictions."""

import json
from dataclasses import asdict

import click

from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.verifying import Verification
from batch_platform.core.verifying import verify as look
from batch_platform.settings import ROOT_VARIABLE, Settings, project_root


@click.command()
@click.argument("pipeline")
@click.option("--partition", help="Look at this partition alone; the chain of commits is read as a whole.")
@click.option("--rebuild", is_flag=True, help="Write missing or altered receipts again from the commits.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one object with `ok` and `problems`.")
def verify(pipeline: str, partition: str | None, rebuild: bool, as_json: bool) -> None:
    """Recompute everything from the files: rows from stage to stage, digests, receipts and the chain of commits.

    Every byte is read, history included. Exit code 1 where something is lost, doubled or altered, 2 where nothing is
    there to be verified.
    """
    settings = Settings.from_env()
    spec = find_pipeline(defs_folder(), pipeline)
    found = look(spec, settings, project_root(), partition, rebuild)
    click.echo(json.dumps({"ok": found.ok, **asdict(found)}, indent=2) if as_json else _text(pipeline, found))
    if not found.ok:
        raise SystemExit(1)
    if not found.partitions:
        raise SystemExit(2)


def _text(pipeline: str, found: Verification) -> str:
    rows = ", ".join(f"{count} {table}" for table, count in sorted(found.rows.items())) or "none"
    if found.ok and not found.partitions:
        return f"{pipeline}: nothing is committed here: look at {ROOT_VARIABLE} and the partition's key"
    verdict = "all is well" if found.ok else f"{len(found.problems)} PROBLEMS"
    lines = [
        f"{pipeline}: {verdict}: {found.partitions} partitions, {found.files} files read, "
        f"{len(found.chain)} chains of commits",
        f"  rows: {rows}",
    ]
    lines += [f"  {p.partition_key or 'table'}: {p.file}: {p.problem}" for p in found.problems]
    lines += [f"  written again: {place}" for place in found.rebuilt]
    lines += [f"  note: {note}" for note in found.notes]
    return "\n".join(lines)
