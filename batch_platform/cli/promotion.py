"""`batch-platform models compare`, `promote` and `rollback`: who is champion, by what evidence.

Asks the pipelines of the project that the working directory is in; a registry without a project has none to ask.
"""

import json
from typing import TYPE_CHECKING

import click

from batch_platform.core.pipelines import defs_folder, load_pipelines
from batch_platform.errors import ModelError, SettingsError
from batch_platform.settings import Settings

if TYPE_CHECKING:
    from batch_platform.core.promoting import Evidence
    from batch_platform.core.spec import PipelineSpec

_SHOWN = 10
_BY = click.option("--by", required=True, help="Who decides it.")
_WHY = click.option("--why", required=True, help="The reason, kept in the history.")


@click.command()
@click.argument("name")
@click.argument("version", required=False)
@click.option("--alias", default="champion", show_default=True, help="The alias that is to be moved.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a list, an entry for each pipeline.")
def compare(name: str, version: str | None, alias: str, as_json: bool) -> None:
    """Hold a challenger of NAME against the champion, on the partitions that both have scored.

    VERSION is by default the one that the pipeline's challenger is now. Exit code 1 where `models promote` would refuse
    it.
    """
    from batch_platform.core.promoting import evidence

    found = evidence(_pipelines(), Settings.from_env(), name, alias, version)
    if as_json:
        click.echo(json.dumps([each.describe() for each in found], indent=1))
    else:
        click.echo("\n".join(line for each in found for line in _lines(each)) or "nothing to compare")
    if any(each.refusal for each in found):
        raise SystemExit(1)


@click.command()
@click.argument("name")
@click.argument("version")
@click.option("--alias", required=True, help="The alias to move, e.g. champion.")
@_BY
@_WHY
@click.option(
    "--despite-gate",
    is_flag=True,
    help="Promote although the gate refuses; the history keeps who did it, why, and what spoke against it.",
)
def promote(name: str, version: str, alias: str, by: str, why: str, despite_gate: bool) -> None:
    """Point an alias of NAME to VERSION.

    Where a pipeline scores by that alias and has a challenger beside it, VERSION is held against the champion first, as
    `models compare` does, and refused (exit code 1) where it is worse on labels or was never compared.
    """
    from batch_platform.core.models.registry import Registry
    from batch_platform.core.promoting import evidence

    settings = Settings.from_env()
    found = evidence(_pipelines(), settings, name, alias, version)
    refusals = [each.refusal for each in found if each.refusal is not None]
    for each in found:
        click.echo(each.words)
    if refusals and not despite_gate:
        for line in refusals:
            click.echo(f"refused: {line}", err=True)
        click.echo("nothing was changed; --despite-gate promotes it nevertheless", err=True)
        raise SystemExit(1)
    compared = "; ".join(each.words for each in found)
    Registry(settings.root).promote(name, version, alias, by, why, compared, "; ".join(refusals))
    for line in refusals:
        click.echo(f"despite the gate: {line}")
    click.echo(f"{name}: {alias} -> {version}")


@click.command()
@click.argument("name")
@click.option("--alias", required=True, help="The alias to move back, e.g. champion.")
@_BY
@_WHY
def rollback(name: str, alias: str, by: str, why: str) -> None:
    """Point an alias of NAME to the version that it pointed to before; no gate is asked."""
    from batch_platform.core.models.registry import Registry

    version = Registry(Settings.from_env().root).roll_back(name, alias, by, why).version
    click.echo(f"{name}: {alias} -> {version}")


def refuse_behind_gate(name: str, alias: str) -> None:
    """Refuse to point an alias past the promotion gate.

    Raises:
        ModelError: a pipeline scores by the alias, which points to a version, and has a challenger beside it.
    """
    from batch_platform.core.models.registry import Registry
    from batch_platform.core.promoting import guarding

    for spec in guarding(_pipelines(), name, alias):
        registry = Registry(Settings.from_env().root)
        if alias in registry.aliases(name):
            raise ModelError(
                f"pipeline {spec.name} has a challenger, so that a version becomes {alias} by models promote alone: "
                f"register it with --alias {spec.model.challenger}"
            )


def _pipelines() -> list["PipelineSpec"]:
    try:
        folder = defs_folder()
    except SettingsError:
        click.echo("no project here: no pipeline is asked about challengers", err=True)
        return []
    return [*load_pipelines(folder).values()]


def _lines(found: "Evidence") -> list[str]:
    from batch_platform.core.challenging import words_of

    lines = [found.words]
    total = found.total
    lines += [f"  flips {flip}: {rows}" for flip, rows in sorted(total.flips.items())]
    shown = list(found.partitions.items())[-_SHOWN:]
    if len(found.partitions) > len(shown):
        lines.append(f"  and {len(found.partitions) - len(shown)} partitions before")
    lines += [f"  {key}: {words_of(one)}" for key, one in shown]
    return [*lines, f"  the gate {'refuses: ' + found.refusal if found.refusal else 'lets it pass'}"]
