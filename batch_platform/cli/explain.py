"""`batch-platform explain` and `replay`: what made one prediction, and whether it can be made again."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.provenance.explaining import Explanation
from batch_platform.core.provenance.explaining import explain as look_back
from batch_platform.core.provenance.replaying import Replay, Replayer
from batch_platform.settings import Settings

_PARTITION = click.option("--partition", help="Default: the newest partition that has the row.")
_JSON = click.option("--json", "as_json", is_flag=True, help="For programs: one object.")
_LONGEST_VALUE = 200


@click.command()
@click.argument("pipeline")
@click.argument("row_key")
@_PARTITION
@_JSON
def explain(pipeline: str, row_key: str, partition: str | None, as_json: bool) -> None:
    """What made one prediction: source file and row, features, versions, parameters, run, shard, commit, history.

    Values of sensitive columns are masked. A ROW_KEY that begins with - goes after --. Exit code 2 where no such row is
    known.
    """
    found = look_back(find_pipeline(defs_folder(), pipeline), Settings.from_env(), row_key, partition)
    click.echo(_json(asdict(found)) if as_json else _explained(pipeline, found))


@click.command()
@click.argument("pipeline")
@click.argument("row_key")
@_PARTITION
@_JSON
def replay(pipeline: str, row_key: str, partition: str | None, as_json: bool) -> None:
    """Score one row again from its recorded inputs by its recorded model version, and compare.

    Numbers may differ by 0.001, absolute and relative. Exit code 1 where anything differs by more. A ROW_KEY that
    begins with - goes after --.
    """
    replayer = Replayer(find_pipeline(defs_folder(), pipeline), Settings.from_env())
    found = replayer.replay(row_key, partition)
    if as_json:
        click.echo(_json({"equal": found.equal, **asdict(found)}))
    else:
        click.echo(_replayed(pipeline, found))
    if not found.equal:
        raise SystemExit(1)


def _explained(pipeline: str, found: Explanation) -> str:
    lines = [f"{pipeline} {found.partition_key}, row {found.row_key}: {found.status}"]
    if found.source_file is not None:
        lines.append(f"  source        {found.source_file}, data row {found.source_row} (from 0)")
    for name, values in (("raw", found.raw), ("features", found.features), ("outputs", found.outputs)):
        if values is not None:
            lines.append(f"  {name}")
            lines += [f"    {column:<22} {_short(value)}" for column, value in values.items()]
    if found.commit is not None and found.scored_by is not None:
        lines += [
            f"  model         {found.model} version {found.model_version}, {found.model_digest}",
            f"  recipe        {found.recipe_version}",
            f"  code          {found.code_version}",
            f"  input hash    {found.input_hash}",
            f"  parameters    {_short(found.parameters)}",
            *([f"  decision      {_short(found.decision)}"] if found.decision else []),
            f"  scored        {found.scored_at}, run {found.run_id}, attempt {found.attempt}, {_shard(found)}",
            *([f"  run page      {found.run_url}"] if found.run_url else []),
            f"  approved      {_short(found.scored_by.get('approved_by'))}, alias {found.scored_by.get('model_alias')}",
            f"  commit        Delta version {found.commit['version']} of predictions, {found.commit['committed_at']}, "
            f"attempt {found.commit['attempt']}, run {found.commit['run_id']}, {found.commit['triggered_by']}",
        ]
    for given in found.deliveries:
        lines.append(
            f"  sink          {given['sink']} holds {given['holds']}: attempt {given['predictions_attempt']}, delivered "
            f"{given['delivered_at']} by run {given['run_id']}"
        )
    for entry in found.quarantine:
        state = "in quarantine" if entry["stands"] else "was in quarantine"
        lines.append(
            f"  {state}, stage {entry['stage']}, {entry['quarantined_at']}: {entry['error_type']}: {entry['message']}"
        )
    for before in found.history:
        lines.append(
            f"  before        {before['scored_at']}: model version {before['model_version']}, run {before['run_id']}: "
            f"{_short(before['outputs'])}"
        )
    return "\n".join([*lines, *(f"  note: {note}" for note in found.notes)])


def _shard(found: Explanation) -> str:
    if found.shard_row is None:
        return f"shard {found.shard}"
    batch = "batch not known: cut by tokens, or halved" if found.batch is None else f"batch {found.batch}"
    return f"shard {found.shard}, row {found.shard_row} of it, {batch} (all from 0)"


def _replayed(pipeline: str, found: Replay) -> str:
    verdict = "equal" if found.equal else f"{len(found.differences)} VALUES DIFFER"
    lines = [
        f"{pipeline} {found.partition_key}, row {found.row_key}: {verdict} within {found.tolerance}",
        f"  model         {found.model} version {found.model_version}, {found.model_digest}",
        f"  device        {found.device} (recorded: {found.recorded_device})",
        f"  features      made again of the raw row: {found.remade}",
    ]
    lines += [
        f"  {one.column}: recorded {_short(one.recorded)}, now {_short(one.again)}"
        for one in found.differences
    ]
    if "failure" in found.again:
        lines.append(f"  it cannot be scored now: {found.again['failure']}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
