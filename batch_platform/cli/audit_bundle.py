"""`batch-platform audit-bundle`: one archive for a model-risk review."""

import json
from pathlib import Path

import click

from batch_platform.core.data.files import sha256_of
from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.provenance.bundle import audit_bundle as write
from batch_platform.settings import Settings


@click.command("audit-bundle")
@click.argument("pipeline")
@click.option("--from", "first", required=True, help="First partition key.")
@click.option("--to", "last", required=True, help="Last partition key, included.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="The archive. Default: PIPELINE-audit-FROM-TO.zip in this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs: one object.")
def audit_bundle(pipeline: str, first: str, last: str, output: Path | None, as_json: bool) -> None:
    """Write receipts, model cards, approvals, reviews, drift, performance and quarantine causes into one ZIP archive.

    It has a readable index.md and the digest of every file. The same lake gives the same bytes. Rows of the tables are
    not in it.
    """
    spec = find_pipeline(defs_folder(), pipeline)
    target = output or Path(f"{pipeline}-audit-{first}-{last}.zip".replace(":", "-"))
    names = write(spec, Settings.from_env(), first, last, target)
    digest = sha256_of(target)
    if as_json:
        click.echo(json.dumps({"archive": str(target), "sha256": digest, "files": names}, indent=2))
    else:
        click.echo(f"{target}: {len(names)} files, sha256 {digest}")
