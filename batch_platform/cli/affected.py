"""`batch-platform affected`: which predictions a model, recipe, source file, code version or run made."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from batch_platform.core.data.finding import source_name
from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.provenance.carrying import Carriage, carried
from batch_platform.core.provenance.impact import Impact, Question
from batch_platform.core.provenance.impact import affected as look
from batch_platform.settings import Settings, project_root

_SHOWN = 20
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2}(-\d{2}:\d{2}([+-]\d{4})?)?)?)?")


def _date(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _DATE.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no partition key, e.g. 2026-01-31, nor the beginning of one")
    return value


@click.command()
@click.option("--model", metavar="M[:V]", help="Rows that model M made, or its version V alone.")
@click.option("--source-file", metavar="F", help="Rows that came out of this file.")
@click.option("--recipe", metavar="V", help="Rows whose features this version of a recipe made.")
@click.option("--code", metavar="V", help="Rows that this version of the platform's code made.")
@click.option("--run", metavar="R", help="Rows that this Dagster run scored.")
@click.option("--from", "first", callback=_date, help="First partition key.")
@click.option("--to", "last", callback=_date, help="Last partition key; a date covers its hours.")
@click.option("--pipeline", help="Look at this pipeline alone. Default: every one under the root.")
@click.option("--history", is_flag=True, help="Also rows that were replaced since; each row counts once.")
@click.option("--rescore", is_flag=True, help="Score exactly these rows again, with the models of now.")
@click.option(
    "--json", "as_json", is_flag=True, help="For programs: one object with `rows` and `partitions`."
)
def affected(
    first: str | None,
    last: str | None,
    pipeline: str | None,
    history: bool,
    rescore: bool,
    as_json: bool,
    **made_by: str | None,
) -> None:
    """Count the predictions that something made, by pipeline and partition: the blast radius.

    Give one of --model, --source-file, --recipe, --code and --run, or a range of partitions, or both. Told are also the
    sinks that hold such rows, by their last delivery. With --rescore these rows are scored again, all others of their
    partitions stay as they are, and what changed is told. Launch the partitions afterwards, so that Dagster sees the new
    predictions, delivers them, and makes their drift reports again.
    """
    if rescore and history:
        raise click.UsageError("--rescore and --history: rows that were replaced cannot be scored again")
    question = _question(made_by, first, last, history)
    pipelines = None if pipeline is None else [pipeline]
    found = look(Settings.from_env(), question, pipelines)
    sinks = carried(Settings.from_env(), question, pipelines)
    for note in (*found.notes, *sinks.notes):
        click.echo(f"warning: {note}", err=True)
    value: dict[str, Any] = {
        "rows": found.rows,
        "partitions": [asdict(partition) for partition in found.partitions],
        "seconds": round(found.seconds, 3),
        "deliveries": [asdict(sink) for sink in sinks.sinks],
    }
    if not as_json:
        click.echo(_text(found, sinks))
    if rescore:
        value["rescored"] = _rescore(question, found, quiet=as_json)
    if as_json:
        click.echo(json.dumps(value, indent=2))


def _rescore(question: Question, found: Impact, quiet: bool) -> list[dict[str, Any]]:
    from batch_platform.core.provenance.redoing import rescore_affected

    names = dict.fromkeys(partition.pipeline for partition in found.partitions)
    specs = [find_pipeline(defs_folder(), name) for name in names]
    told = []
    for spec in specs:
        made = rescore_affected(spec, Settings.from_env(), project_root(), question, found, _progress)
        for key, rescored in made:
            changes = rescored.comparison.describe()
            told.append({"pipeline": spec.name, "partition_key": key, "attempt": rescored.after, **changes})
            if not quiet:
                shift = changes["score_shift_mean"]
                moved = "" if shift is None else f", scores moved by {shift:+.6f} in the mean"
                click.echo(
                    f"  {spec.name} {key}: {rescored.rows} rows scored again, {rescored.comparison.changed} changed, "
                    f"{rescored.comparison.flipped} decisions flipped{moved}"
                )
    return told


def _progress(line: str) -> None:
    click.echo(line, err=True)


def _question(
    made_by: Mapping[str, str | None], first: str | None, last: str | None, history: bool
) -> Question:
    """The question of the options; `made_by` are --model, --source-file, --recipe, --code and --run."""
    given = [by for by, value in made_by.items() if value is not None]
    if len(given) > 1:
        words = [by.replace("_", "-") for by in given]
        raise click.UsageError(f"--{words[0]} and --{words[1]}: ask for one at a time")
    if not given and first is None and last is None:
        raise click.UsageError(
            "give --model, --source-file, --recipe, --code or --run, or a range: --from, --to"
        )
    if not given:
        return Question(None, first=first, last=last, history=history)
    value, version = made_by[given[0]], ""
    assert value is not None
    if given[0] == "source_file":
        value = source_name(Path(value), project_root())
    elif given[0] == "model" and _has_version(value):
        value, _, version = value.rpartition(":")
    return Question(given[0], value, version or None, first, last, history)  # type: ignore[arg-type]


def _has_version(model: str) -> bool:
    # MLflow's names have a colon of their own: models:/churn, models:/churn:3.
    return ":" in model.removeprefix("models:/")


def _text(found: Impact, sinks: Carriage) -> str:
    head = f"{found.rows} predictions in {len(found.partitions)} partitions"
    if found.rows:
        head += f"; scoring them took about {found.seconds:.1f} s the last time"
    lines = [f"  {one.pipeline} {one.partition_key}: {one.rows}" for one in found.partitions[:_SHOWN]]
    if len(found.partitions) > _SHOWN:
        lines.append(f"  and {len(found.partitions) - _SHOWN} more partitions: --json shows all")
    for sink, rows in sinks.rows.items():
        theirs = [one for one in sinks.sinks if one.sink == sink]
        old = sum(not one.stands for one in theirs)
        replaced = f", in {old} by a commit that was replaced since" if old else ""
        lines.append(f"  sink {sink}: holds {rows} of such rows, in {len(theirs)} partitions{replaced}")
    return "\n".join([head, *lines])
