"""`batch-platform chain`: the anchor of a pipeline's history of commits."""

from pathlib import Path

import click

from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.provenance import chain as chains
from batch_platform.settings import Settings


@click.group()
def chain() -> None:
    """The chains of commits: export their heads, and hold an exported head against them later."""


@chain.command()
@click.argument("pipeline")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: printed.")
def export(pipeline: str, output: Path | None) -> None:
    """Write the head of each table's chain as JSON: to be kept where the lake's writers cannot change it.

    A ticket, a signed commit, a bucket with object lock. Exit code 1 where nothing was ever committed.
    """
    find_pipeline(defs_folder(), pipeline)
    value = chains.export(pipeline, Settings.from_env())
    if output is None:
        click.echo(chains.write(value).decode(), nl=False)
    else:
        output.write_bytes(chains.write(value))
        click.echo(f"{output}: heads of {len(value['heads'])} tables")
    if not value["heads"]:
        raise SystemExit(1)


@chain.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def check(file: Path) -> None:
    """Look whether the heads in FILE are still part of their chains; exit code 1 where history was rewritten."""
    pipeline, anchor = chains.read_anchor(file.read_bytes())
    find_pipeline(defs_folder(), pipeline)
    problems = chains.check(pipeline, anchor, Settings.from_env())
    for problem in problems:
        click.echo(f"{pipeline}: {problem}")
    if problems:
        raise SystemExit(1)
    click.echo(f"{pipeline}: the heads of {len(anchor)} tables are part of their chains")
