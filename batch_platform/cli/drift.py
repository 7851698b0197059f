"""`batch-platform drift`: the owner's decisions on alarms, and what each strictness would have alarmed on."""

import json
import math
from dataclasses import asdict
from itertools import groupby
from typing import Any

import click

from batch_platform.core.back_testing import GroupBackTest, PipelineBackTest, back_test
from batch_platform.core.data.partitions import Partition
from batch_platform.core.layout import Layout
from batch_platform.core.monitoring.back_test import Trial
from batch_platform.core.monitoring.reviews import About, Decision, Review
from batch_platform.core.pipelines import defs_folder, find_pipeline, training_module
from batch_platform.core.reviewing import as_values, decide, ranges_to_judge_again
from batch_platform.core.trending import write_trend
from batch_platform.errors import MonitoringError
from batch_platform.settings import Settings


@click.group()
def drift() -> None:
    """Alarms: decide on them; see what another strictness of the drift rule would have done."""


@drift.command()
@click.argument("pipeline")
@click.argument("partition", metavar="D")
@click.option("--accept", "decision", flag_value="accept", help="Expected: it does not fire again.")
@click.option("--reject", "decision", flag_value="reject", help="Not as it should be: it goes on firing.")
@click.option(
    "--new-reference", "decision", flag_value="new_reference", help="Compare with the partitions up to D."
)
@click.option(
    "--about",
    type=click.Choice(["drift", "quality"]),
    default="drift",
    show_default=True,
    help="quality: decide on what is unusual in the data quality of D, also where it was not published for that.",
)
@click.option("--since", help="First partition of the new reference; default: as many as the pipeline says.")
@click.option("--retrain", is_flag=True, help="With --reject: ask for a training of the pipeline's model.")
@click.option("--by", required=True, help="Who decides it.")
@click.option("--why", required=True, help="The reason, shown wherever the alarm is.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one object.")
def review(
    pipeline: str,
    partition: str,
    decision: Decision | None,
    about: About,
    since: str | None,
    retrain: bool,
    by: str,
    why: str,
    as_json: bool,
) -> None:
    """Record the decision on the alarm of partition D.

    An accepted alarm does not fire again for the same column, statistic and direction, from D on, until there is
    another reference (of data quality: while D is in the history) or it is twice as large. The decision is kept for
    good, and shown on the check, the trend page and in `status`; a running daemon judges the alarms again that it
    speaks of.
    """
    if decision is None:
        raise click.UsageError("say what is decided: --accept, --reject or --new-reference")
    folder, settings = defs_folder(), Settings.from_env()
    spec = find_pipeline(folder, pipeline)
    if retrain and not training_module(folder, pipeline):
        raise MonitoringError(
            f"pipeline {pipeline}: --retrain needs a training.py beside the pipeline file; there is none"
        )
    made = decide(spec, settings, partition, decision, by, why, retrain, since, about)
    layout = Layout.of(settings, pipeline)
    write_trend(layout)
    if as_json:
        click.echo(json.dumps(as_values(made), indent=2, ensure_ascii=False))
    else:
        click.echo(_text(pipeline, made, ranges_to_judge_again(spec, layout, made)))


def _text(pipeline: str, made: Review, again: list[tuple[Partition, Partition]]) -> str:
    lines = [f"{pipeline} {made.partition_key}: {made.words} (decision {made.number})"]
    lines += [f"  {cause.group}: {cause}" for cause in made.causes]
    what = f"--assets {pipeline}/drift_report" if made.about == "drift" else f"--job {pipeline}"
    lines.append("the daemon judges again within a minute what this speaks of; without one:")
    lines += [f"  dg launch {what} --partition-range {first.key}...{last.key}" for first, last in again]
    if made.retrain:
        lines.append(f"and it starts the training; without one: dg launch --assets {pipeline}/training")
    return "\n".join(lines)


@drift.command()
@click.argument("pipeline")
@click.option("--json", "as_json", is_flag=True, help="For programs: one object.")
def backtest(pipeline: str, as_json: bool) -> None:
    """Show what each strictness would have done: false alarms, and how soon changes are found.

    The later half of the reference is judged by the days before (walk-forward), the earlier half by the days after,
    and every alarm there counts as false. The partitions since the reference are judged as they were; their alarms may
    be true. Changes are put into those partitions to see when they are found, or, before there are seven, into the
    later half of the reference. Nothing is written. Exit code 1 where no strictness keeps the budget.
    """
    found = back_test(find_pipeline(defs_folder(), pipeline), Settings.from_env())
    if as_json:
        click.echo(json.dumps(_plain(asdict(found)), indent=2, ensure_ascii=False))
    else:
        click.echo("\n\n".join([_heading(found), *map(_table, found.groups)]))
    if not all(group.calibration.meets_budget for group in found.groups):
        raise SystemExit(1)


def _heading(found: PipelineBackTest) -> str:
    keys = found.reference.keys
    return f"{found.pipeline}: reference {found.reference.version}, {len(keys)} partitions, {keys[0]} to {keys[-1]}"


def _table(group: GroupBackTest) -> str:
    chosen = group.calibration.strictness
    lines = [f"{group.group}: {group.calibration.sentence()}"]
    if not group.reference:
        return "\n".join([*lines, "  too few reference days for a back-test"])
    lines.append(
        "  strictness | false alarms  a quarter | since the reference | change: found within 7, median delay"
    )
    detections = {key: list(each) for key, each in groupby(group.detections, lambda found: found.strictness)}
    for trial, since in zip(group.reference, group.since, strict=True):
        found = ", ".join(
            f"{each.change}: {each.found:.0%}" + (f", {each.delay:g}" if each.delay is not None else "")
            for each in detections.get(trial.strictness, [])
        )
        mark = "*" if trial.strictness == chosen else " "
        lines.append(
            f"  {mark}{trial.strictness:9g} | {_runs(trial):>12}  {trial.per_quarter:9.1f} | {_runs(since):>19} | {found}"
        )
    lines.append(f"  changes are put into {group.changed}")
    lines.append(f"  * the least that keeps the budget of {group.calibration.budget:g} a quarter; set")
    if group.alarms_since:
        lines.append(f"  alarms since the reference: {', '.join(group.alarms_since)}")
    return "\n".join(lines)


def _runs(trial: Trial) -> str:
    return f"{trial.episodes} on {trial.days}"


def _plain(value: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
