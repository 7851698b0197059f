"""`batch-platform models`: the registry from the command line.

It reads files and options into what the registry takes, and prints its answers. Errors of the platform
go up to the main command, which makes them one line and exit code 2.
"""

import getpass
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from batch_platform.cli.promotion import compare, promote, refuse_behind_gate, rollback
from batch_platform.errors import ModelError
from batch_platform.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from batch_platform.core.models.registry import ModelEntry, Registry
    from batch_platform.core.models.signature import ModelSignature

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def models() -> None:
    """Registered models: versions, aliases, digests."""


for command in (compare, promote, rollback):
    models.add_command(command)


@models.command()
@click.argument("name")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--flavor", required=True, help="transformers, torch, lightgbm, xgboost or onnx.")
@click.option(
    "--task", type=click.Choice(["classification", "regression", "embedding", "generation", "ranking"])
)
@click.option("--labels", help="Labels in the order of the logits, separated by commas.")
@click.option("--positive-class", help="Of two labels, the one whose probability is the score.")
@click.option("--text-column", help="Feature column that a text model reads. Default: text.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Cut texts to so many tokens.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Generate at most so many. Default: 64.")
@click.option("--pooling", type=click.Choice(["mean", "cls"]), help="Default: as the folder says, else mean.")
@click.option("--signature", "signature_file", type=_FILE, help="JSON; default: signature.json in DIR.")
@click.option("--alias", help="Point this alias to the version.")
@click.option("--card", "card_file", type=_FILE, help="The model card, JSON.")
@click.option("--golden", "golden_file", type=_FILE, help="Parquet: input rows and expected outputs.")
@click.option("--by", help="Who registers it. Default: the system's user name.")
@click.option("--why", default="registered from the command line", show_default=True)
def register(
    name: str,
    folder: Path,
    flavor: str,
    signature_file: Path | None,
    alias: str | None,
    card_file: Path | None,
    golden_file: Path | None,
    by: str | None,
    why: str,
    **described: Any,
) -> None:
    """Take the model files in DIR in as a new version of NAME, and print the version.

    The signature is that of --signature, else of signature.json in DIR, else made of the options and of
    what the files say. Content that is registered already keeps its version.
    """
    from batch_platform.core.models.card import read_card

    if alias is not None:
        refuse_behind_gate(name, alias)
    signature = _signature(folder, flavor, signature_file, described)
    if card_file is None:
        click.echo(f"warning: {name} is registered without a model card; give one with --card", err=True)
    version = _registry().register(
        name,
        folder,
        flavor,
        signature,
        card=None if card_file is None else read_card(card_file),
        golden=None if golden_file is None else _read_golden(golden_file),
        alias=alias,
        by=by or _user(),
        why=why,
    )
    if not version.created:
        click.echo(
            f"{name}: this content is version {version.version} already; its card and golden rows stay",
            err=True,
        )
    click.echo(version.version)


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_models(as_json: bool) -> None:
    """Show every model with its versions and aliases, and which versions are suspended."""
    entries = _registry().list()
    if as_json:
        click.echo(json.dumps([_as_json(entry) for entry in entries], indent=1))
        return
    for entry in entries:
        for version in entry.versions:
            aliases = [alias for alias, target in sorted(entry.aliases.items()) if target == version.version]
            click.echo(
                f"{entry.name}  {version.version}  {','.join(aliases) or '-'}  {version.flavor}  "
                f"{version.signature.task}  {version.registered_at}  {version.registered_by}  {version.digest}"
                + (f"  {version.suspended}" if version.suspended else "")
            )
    if not entries:
        click.echo("no models yet; type: batch-platform models register NAME DIR --flavor F", err=True)


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def history(name: str, as_json: bool) -> None:
    """Show what happened to NAME, oldest first: who registered, promoted, suspended what, when and why."""
    events = _registry().events(name)
    if as_json:
        click.echo(json.dumps([dict(event) for event in events], indent=1))
        return
    for event in events:
        where = f" as {event['alias']}" if "alias" in event else ""
        click.echo(
            f"{event['at']}  {event['event']} version {event['version']}{where}  by {event['by']}: {event['why']}"
            + (f"  (despite: {event['despite']})" if "despite" in event else "")
        )


@models.command()
@click.argument("name")
@click.argument("version")
@click.option("--lift", is_flag=True, help="Let it score again.")
@click.option("--by", required=True, help="Who decides it.")
@click.option("--why", required=True, help="The reason, kept in the history.")
def suspend(name: str, version: str, lift: bool, by: str, why: str) -> None:
    """Forbid VERSION of NAME to score, under whatever alias, until it is lifted."""
    if lift:
        _registry().lift(name, version, by, why)
        click.echo(f"{name}: version {version} may score again")
        return
    click.echo(f"{name}: version {version} {_registry().suspend(name, version, by, why).suspended}")


@models.command()
@click.argument("name")
@click.argument("version")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
)
@click.option("--again", is_flag=True, help="In place of what is kept; rows of another size are then stale.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def calibrate(
    name: str,
    version: str,
    device: Literal["auto", "cpu", "cuda"],
    dtype: Literal["auto", "float32", "bfloat16", "float16"],
    again: bool,
    as_json: bool,
) -> None:
    """Measure how large batches of texts should be for VERSION of NAME on this machine, and keep it.

    Pipelines with `inference.batch_tokens: calibrated` use it, and measure by themselves where nothing is kept.
    """
    from batch_platform.core import calibrating
    from batch_platform.core.inference.engine import Engine
    from batch_platform.core.spec import InferenceSpec

    root = Settings.from_env().root
    model = _registry().get(name, version)
    engine = Engine.load(model, model.signature, InferenceSpec(device=device, dtype=dtype))
    found = None if again else calibrating.kept(engine, model.digest, root)
    found = found or calibrating.calibrate(engine, model.digest, root, again)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    for each in found.measured:
        rate = (
            "does not fit the memory" if each.tokens_per_second is None else f"{each.tokens_per_second:,.0f}"
        )
        click.echo(f"{each.batch_tokens:>8} tokens a batch: {rate} tokens/s")
    click.echo(
        f"kept for {name} version {version}, {engine.plan.device}, {found.dtype}: {found.batch_tokens}"
    )


@models.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def verify(context: click.Context, as_json: bool) -> None:
    """Compare every file with its digest; exit code 1 where something was altered."""
    problems = _registry().verify()
    if as_json:
        value = {"ok": not problems, "problems": [vars(problem) for problem in problems]}
        click.echo(json.dumps(value, indent=1))
    else:
        for problem in problems:
            click.echo(f"{problem.model} {problem.version or '-'} {problem.file}: {problem.problem}")
        if not problems:
            click.echo("all models are as they were registered")
    context.exit(1 if problems else 0)


def _registry() -> "Registry":
    from batch_platform.core.models.registry import Registry

    return Registry(Settings.from_env().root)


def _signature(
    folder: Path, flavor: str, signature_file: Path | None, described: dict[str, Any]
) -> "ModelSignature":
    from batch_platform.core.models.predictor import SignatureRequest, describe
    from batch_platform.core.models.signature import ModelSignature

    labels = described.pop("labels")
    names = None if labels is None else tuple(label.strip() for label in labels.split(","))
    request = SignatureRequest(labels=names, **described)
    if signature_file is None:
        return describe(folder, flavor, request)
    if request.given:
        option = request.given[0].replace("_", "-")
        raise ModelError(f"--{option} and --signature both describe the model: leave one out")
    return ModelSignature.read(signature_file)


def _read_golden(path: Path) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ModelError(f"{path}: the golden rows cannot be read as Parquet: {error}") from None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise ModelError("the system has no name for this user: say who registers with --by WHO") from None


def _as_json(entry: "ModelEntry") -> dict[str, Any]:
    return {
        "name": entry.name,
        "aliases": dict(entry.aliases),
        "versions": [
            {
                "version": version.version,
                "digest": version.digest,
                "flavor": version.flavor,
                "signature": version.signature.to_dict(),
                "card": version.card,
                "registered_at": version.registered_at,
                "registered_by": version.registered_by,
                "suspended": None if version.suspended is None else asdict(version.suspended),
                "path": str(version.path),
            }
            for version in entry.versions
        ],
    }
