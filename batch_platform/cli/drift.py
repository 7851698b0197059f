"""`batch-platform drift`: the owner's decisions on alarms."""

import json

import click

from batch_platform.core.layout import Layout
from batch_platform.core.monitoring.reviews import Decision, Review
from batch_platform.core.pipelines import defs_folder, find_pipeline, training_module
from batch_platform.core.reviewing import as_values, decide
from batch_platform.core.trending import write_trend
from batch_platform.errors import MonitoringError
from batch_platform.settings import Settings


@click.group()
def drift() -> None:
    """Drift alarms: decide on them."""


@drift.command()
@click.argument("pipeline")
@click.argument("partition", metavar="D")
@click.option("--accept", "decision", flag_value="accept", help="Expected: it does not fire again.")
@click.option("--reject", "decision", flag_value="reject", help="Not as it should be: it goes on firing.")
@click.option(
    "--new-reference", "decision", flag_value="new_reference", help="Compare with the partitions up to D."
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
    since: str | None,
    retrain: bool,
    by: str,
    why: str,
    as_json: bool,
) -> None:
    """Record the decision on the alarm of partition D.

    An accepted alarm does not fire again for the same column, statistic and direction, from D on, until there is
    another reference. The decision is kept for good, and shown on the check, the trend page and in `status`; a
    running daemon judges the alarms again that it speaks of.
    """
    if decision is None:
        raise click.UsageError("say what is decided: --accept, --reject or --new-reference")
    folder, settings = defs_folder(), Settings.from_env()
    spec = find_pipeline(folder, pipeline)
    if retrain and not training_module(folder, pipeline):
        raise MonitoringError(
            f"pipeline {pipeline}: --retrain needs a training.py beside the pipeline file; there is none"
        )
    made = decide(spec, settings, partition, decision, by, why, retrain, since)
    write_trend(Layout.of(settings, pipeline))
    click.echo(
        json.dumps(as_values(made), indent=2, ensure_ascii=False) if as_json else _text(pipeline, made)
    )


def _text(pipeline: str, made: Review) -> str:
    lines = [f"{pipeline} {made.partition_key}: {made.words} (decision {made.number})"]
    lines += [f"  {cause.group}: {cause}" for cause in made.causes]
    lines.append(
        "the daemon judges the partition again within a minute; without one: "
        f"dg launch --assets {pipeline}/drift_report --partition {made.partition_key}"
    )
    if made.retrain:
        lines.append(f"and it starts the training; without one: dg launch --assets {pipeline}/training")
    return "\n".join(lines)
