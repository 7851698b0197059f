"""What made one prediction: from the row key back to the source's file and row, as one answer.

Decides what is told and what is masked: values of the contract's sensitive columns, and, where there are such
columns, texts among the features, which may hold them under another name. It scores nothing.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

import pyarrow as pa

from batch_platform.core.data.contract import MASK
from batch_platform.core.data.lake import Lake
from batch_platform.core.deliveries import standing
from batch_platform.core.layout import Layout
from batch_platform.core.provenance.trail import Receipt, Row, Trail, partition_of
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import RowNotFoundError
from batch_platform.settings import Settings

# Columns of a prediction that say what made it; the others are the model's outputs.
ORIGIN = (
    "model_version",
    "model_digest",
    "recipe_version",
    "input_hash",
    "run_id",
    "scored_at",
)
# Of a receipt, what speaks of other rows too.
_NOT_OF_THE_ROW = ("files", "quarantine_files", "shards", "origins", "stats", "reasons", "counts")
_PLACE = ("row_key", "source_file", "source_row")


@dataclass(frozen=True)
class Explanation:
    """Everything known about one row of one partition; values as JSON has them, None where there is none.

    Attributes:
        status: whether the row has a prediction, is in quarantine, or has come only as far as `raw`.
        source_file: the source's file, as `raw` names it.
        source_sha256: the file's digest when it was landed.
        source_row: the number of its data row in the file, from 0.
        raw: the row as it was landed.
        features: what the model saw.
        lookups: what was joined beside the raw row: places and digests; empty where there are none.
        outputs: the model's columns, and `decision`.
        code_version: of the code that scored it, as `parameters`: device, numeric type, batch plan.
        decision: the rule by which the snapshot decided, and its version; None without one.
        run_url: the run's page in Dagster, where an address is configured.
        shard: number of the shard that it was scored in, from 0, among those of `scored_by`.
        shard_row: its number in the shard, from 0, among the rows that got an output, equal inputs counted once.
        batch: number of the forward pass in the shard, from 0; None where the receipt does not decide it: batches of texts
            are cut by tokens, and those that failed were halved.
        attempt: of `scored_by`.
        commit: the Delta commit that the row stands in: version, attempt, run, time, hash of the commit before.
        scored_by: receipt of the commit that it was scored for (alias, approver, hardware, code's commit and more);
            another one than `commit` where the row was reused.
        quarantine: its entries in quarantine, those of replaced commits too, the newest of each stage first.
        history: its predictions in commits that were replaced, the newest first.
        deliveries: what the sinks hold of the partition: sink, attempt of the predictions that it was given, time, run,
            and what it holds: this prediction, an earlier one, or not this row.
        notes: what could not be read any more.
    """

    row_key: str
    partition_key: str
    status: Literal["predicted", "quarantined", "landed"]
    source_file: str | None
    source_row: int | None
    source_sha256: str | None
    raw: Row | None
    features: Row | None
    lookups: tuple[Row, ...] = ()
    outputs: Row | None = None
    input_hash: str | None = None
    recipe_version: str | None = None
    code_version: str | None = None
    model: str | None = None
    model_version: str | None = None
    model_digest: str | None = None
    parameters: Mapping[str, Any] | None = None
    decision: Mapping[str, Any] | None = None
    run_id: str | None = None
    run_url: str | None = None
    scored_at: str | None = None
    shard: int | None = None
    shard_row: int | None = None
    batch: int | None = None
    attempt: int | None = None
    commit: Mapping[str, Any] | None = None
    scored_by: Mapping[str, Any] | None = None
    quarantine: tuple[Row, ...] = ()
    history: tuple[Row, ...] = ()
    deliveries: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


def explain(
    spec: PipelineSpec,
    settings: Settings,
    row_key: str,
    partition_key: str | None = None,
    lake: Lake | None = None,
) -> Explanation:
    """Explain one row.

    Args:
        partition_key: by default the newest partition in which the row has a prediction; else the newest with it in
            quarantine; else the newest with it in `raw`.
        lake: the pipeline's, where its tables are open already.

    Raises:
        RowNotFoundError: no partition, or not this one, has the key.
        PartitionKeyError: the pipeline has no such partition.
        StorageError: a file or receipt is missing or unreadable.
    """
    lake = lake or Lake(Layout.of(settings, spec.name))
    key = partition_of(spec, lake, row_key, partition_key)
    trail = Trail(lake, key)
    raw = _row(trail.raw_row(row_key))
    features, prediction = (
        _row(trail.row(receipt, row_key)) for receipt in (trail.features, trail.predictions)
    )
    quarantine = trail.quarantine(row_key)
    if raw is None and prediction is None and not quarantine:
        raise RowNotFoundError(
            f"{trail.about}: no row has the key {row_key!r}: check both, or leave --partition out"
        )
    source = raw or (quarantine[0] if quarantine else {})
    waits = any(entry["stands"] for entry in quarantine)
    return Explanation(
        row_key=row_key,
        partition_key=key,
        status="predicted" if prediction else "quarantined" if waits else "landed",
        source_file=source.get("source_file"),
        source_row=source.get("source_row"),
        source_sha256=_digest(trail.raw, source.get("source_file")),
        raw=raw and _masked_raw(spec, raw),
        features=features and _masked_features(spec, features),
        lookups=tuple(trail.features.get("lookups", ())) if trail.features else (),
        quarantine=tuple(_plain(entry) for entry in quarantine),
        history=tuple(_replaced(trail, row_key)),
        deliveries=tuple(_deliveries(trail, prediction, row_key, lake)),
        **(_scoring(trail, prediction, settings.dagster_url) if prediction else {}),
        notes=tuple(trail.notes),
    )


def _scoring(trail: Trail, prediction: Row, dagster: str | None) -> dict[str, Any]:
    assert trail.predictions is not None
    scored_by, shard = trail.scoring(prediction)
    shard_row = None if shard is None else trail.row_in_shard(scored_by, prediction)
    return {
        **_plain({name: prediction[name] for name in ORIGIN}),
        "outputs": _outputs(prediction),
        "code_version": scored_by["code_version"],
        "model": scored_by["model"],
        "parameters": scored_by["parameters"],
        "decision": trail.predictions.get("decision"),
        "run_url": dagster and f"{dagster}/runs/{prediction['run_id']}",
        "shard": shard,
        "shard_row": shard_row,
        "batch": None if shard_row is None else _batch(scored_by, shard_row),
        "attempt": scored_by["attempt"],
        "commit": _told(trail.predictions),
        "scored_by": _whole(scored_by),
    }


def _batch(scored_by: Receipt, shard_row: int) -> int | None:
    """Number of the row's forward pass in its shard, where the receipt decides it."""
    stats, plan = scored_by["stats"], scored_by["parameters"]
    if any(stats.get(name, 1) for name in ("failed_rows", "back_offs", "bisections", "timeouts")):
        return None
    if stats.get("batches") == len(scored_by["shards"]):  # one for each shard
        return 0
    if plan.get("batch_tokens") is None and plan.get("batch_rows"):  # tabular rows keep their order
        return shard_row // plan["batch_rows"]
    return None


def _deliveries(trail: Trail, prediction: Row | None, row_key: str, lake: Lake) -> Iterator[Row]:
    """What the sinks hold of the row."""
    for given in standing(lake, trail.partition_key):
        attempt = given["predictions_attempt"]
        if trail.predictions is not None and attempt == trail.predictions["attempt"]:
            holds = "this prediction" if prediction else "not this row"
        else:
            made = next((old for old in trail.replaced_predictions() if old["attempt"] == attempt), None)
            holds = "not this row" if trail.row(made, row_key) is None else "an earlier prediction"
        names = ("sink", "predictions_attempt", "run_id", "delivered_at")
        yield {**_plain({name: given[name] for name in names}), "holds": holds}


def _digest(raw: Receipt | None, source_file: str | None) -> str | None:
    inputs = [] if raw is None else raw.get("inputs") or []
    return next((each["sha256"] for each in inputs if each["name"] == source_file), None)


def _replaced(trail: Trail, row_key: str) -> list[Row]:
    found = []
    for receipt in trail.replaced_predictions():
        row = _row(trail.row(receipt, row_key))
        if row is not None:
            origin = _plain({name: row[name] for name in ORIGIN})
            found.append({**origin, "outputs": _outputs(row), "commit": _told(receipt)})
    return found


def _row(table: pa.Table | None) -> Row | None:
    return None if table is None else table.to_pylist()[0]


def _whole(receipt: Receipt) -> Row:
    return {name: value for name, value in receipt.items() if name not in _NOT_OF_THE_ROW}


def _told(receipt: Receipt) -> Row:
    names = ("version", "attempt", "fingerprint", "run_id", "triggered_by", "committed_at", "previous")
    return {name: receipt[name] for name in names}


def _outputs(prediction: Row) -> Row:
    return _plain({name: value for name, value in prediction.items() if name not in ("row_key", *ORIGIN)})


def _masked_raw(spec: PipelineSpec, raw: Row) -> Row:
    sensitive = spec.sensitive_columns
    return {
        name: MASK if name in sensitive and value is not None else value
        for name, value in _plain(raw).items()
        if name not in _PLACE
    }


def _masked_features(spec: PipelineSpec, features: Row) -> Row:
    sensitive = spec.sensitive_columns
    return {
        name: MASK if name in sensitive or (sensitive and isinstance(value, str)) else value
        for name, value in _plain(features).items()
        if name != "row_key"
    }


def _plain(row: Row) -> Row:
    return {name: _json_value(value) for name, value in row.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
