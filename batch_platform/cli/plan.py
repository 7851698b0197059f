"""`batch-platform plan`: what a backfill would score, why, and what it would take."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict

import click

from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.planning import PartitionPlan, Plan
from batch_platform.core.planning import plan as work_out
from batch_platform.errors import PartitionKeyError
from batch_platform.settings import HOURLY_RATE_VARIABLE, Settings, project_root

_SHOWN = 20


@click.command()
@click.argument("pipeline")
@click.option("--from", "first", required=True, help="Key of the first partition.")
@click.option("--to", "last", required=True, help="Key of the last partition.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one object.")
def plan(pipeline: str, first: str, last: str, as_json: bool) -> None:
    """Show what materializing partitions would do: rows to score and why, rows reusable, seconds and cost.

    Reads what the run would read, and loads the model; scores and commits nothing. The time is that of scoring and
    committing, by what this pipeline's own partitions took.
    """
    from batch_platform.core.models.source import model_source
    from batch_platform.core.scoring import load_engine

    spec = find_pipeline(defs_folder(), pipeline)
    settings = Settings.from_env()
    calendar = spec.partitions.calendar()
    start, end = calendar.partition(first), calendar.partition(last)
    if end.start < start.start:
        raise PartitionKeyError(f"--from {first} comes after --to {last}: exchange them")
    partitions = [p for p in calendar.partitions(end.end) if start.start <= p.start]
    model = model_source(spec.model.name, settings.root).resolve(spec.model.name, spec.model.alias)
    with closing(load_engine(model, spec, settings.root)) as engine:
        found = work_out(spec, settings, project_root(), partitions, model, engine)
    click.echo(json.dumps(_json(found), indent=2) if as_json else _text(found))


def _json(found: Plan) -> dict[str, object]:
    return {**asdict(found), "total": found.total}


def _text(found: Plan) -> str:
    total = found.total
    lines = [
        f"{found.pipeline}: {total['partitions']} partitions: {total['done']} done, {total['to do']} to do, "
        f"{total['blocked']} blocked; by {found.model} on {found.device}",
        f"  rows: {total['rows']}: {_rows(total['to_score'], total['reasons'], total['reusable'], total['twins'])}",
        *_partitions([p for p in found.partitions if p.state != "done"]),
        f"  time: {_time(found)}",
    ]
    if found.cost is not None:
        likely, low, high = found.cost
        lines.append(f"  cost: {likely:.4g} ({low:.4g} to {high:.4g}) at {HOURLY_RATE_VARIABLE}")
    if found.accuracy is not None:
        past = found.accuracy
        lines.append(
            f"  forecasts so far: {past.within_range} of {past.partitions} partitions took a time within the range; "
            f"{past.predicted_seconds:g} s forecast, {past.actual_seconds:g} s taken"
        )
    return "\n".join(lines)


def _partitions(found: list[PartitionPlan]) -> list[str]:
    lines = []
    for p in found[:_SHOWN]:
        words = p.cause or f"{p.rows} rows: {_rows(p.to_score, p.reasons or {}, p.reusable, p.twins)}"
        lines.append(f"  {p.partition_key} {p.state}: {words}")
    if len(found) > _SHOWN:
        lines.append(f"  and {len(found) - _SHOWN} more; --json has all")
    return lines


def _rows(to_score: int, reasons: Mapping[str, int], reusable: int, twins: int) -> str:
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    parts = [f"{to_score} to score" + (f" ({why})" if why else ""), f"{reusable} reusable"]
    return ", ".join([*parts, *([f"{twins} equal to one that is scored"] if twins else [])])


def _time(found: Plan) -> str:
    if found.forecast is None:
        return "unknown: fewer than 3 partitions of this pipeline have statistics"
    cast = found.forecast
    basis = "" if cast.same_model else ", of other models or devices"
    return f"{cast.seconds:g} s ({cast.low:g} to {cast.high:g}), by {cast.based_on} partitions{basis}"
