"""Stage `predictions`: one partition of features scored by one model version, exactly once.

Reads in this order: pin the work, adopt what is there, see which rows have to be scored, score the missing shards, put
them together with the rows that are reused, judge the result, publish. Killed anywhere, a later call goes on from the
last finished shard; a changed model, recipe, parameter or code has another fingerprint and starts afresh. It does not
know how a model computes.
"""

import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core import gate
from batch_platform.core.arranging import together
from batch_platform.core.calibrating import calibrated
from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import Commit, Slot
from batch_platform.core.data.ledger import FinishedShard, ShardLedger, discard_shards
from batch_platform.core.data.row_stream import RowStream
from batch_platform.core.data.staging import read_files, stage
from batch_platform.core.deciding import features_needed, rule_version, with_decisions
from batch_platform.core.forecasting import Forecaster, timed
from batch_platform.core.inference.device import device_count, resolve_device
from batch_platform.core.inference.engine import Engine, Scorer, ShardResult
from batch_platform.core.inference.fleet import Fleet
from batch_platform.core.inference.progress import ProgressMeter
from batch_platform.core.inference.ray_executor import RayExecutor
from batch_platform.core.inference.stats import RunStats
from batch_platform.core.models.registry import RegisteredVersion
from batch_platform.core.models.source import recorded_version
from batch_platform.core.provenance import receipts
from batch_platform.core.provenance.fingerprint import code_version, fingerprint
from batch_platform.core.publishing import publish, publishable, settle
from batch_platform.core.quarantine import locate, payload_of, standing_quarantine
from batch_platform.core.reusing import (
    LEFT_OUT,
    SCORED,
    TWIN_OF_SCORED,
    Numbers,
    RowPlan,
)
from batch_platform.core.slice import Slice, StageResult, commit_small
from batch_platform.core.snapshots import origins, plan_work, snapshot
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.work import Work, pin, signature_for
from batch_platform.errors import ModelError, ModelNotFoundError, StorageError

Progress = Callable[[str], None]

_SCORING_TRIES = 3


def score_partition(
    slice_: Slice,
    model: RegisteredVersion,
    engine: Scorer,
    progress: Progress,
    redrive: bool = False,
    forecaster: Forecaster | None = None,
) -> StageResult:
    """Score the rows of one partition that are new or changed, and keep the others.

    Args:
        model: the version to score with.
        engine: that model, loaded; it may have scored other partitions before.
        progress: told after every shard.
        redrive: where the same work is committed already, score its quarantined rows again.
        forecaster: says how long it will take; forecast and time go into `run_stats`.

    Raises:
        UpstreamMissingError: the partition has no features.
        SignatureError: the model does not fit the features.
        GateError: too many rows failed, or the result does not reconcile; nothing was committed.
        SupersededError: a newer attempt has committed.
        StorageError: the lake cannot be written.
    """
    work = pin(slice_, model, engine)
    standing = slice_.lake.head(Slot("predictions", slice_.key))
    if standing is not None and standing.receipt["work"] == work.identity:
        settle(slice_, "predictions", standing)
        discard_shards(_shards_of(slice_, standing.fingerprint))  # its run may have been killed before it did
        if not redrive or not standing.receipt["quarantined"]:
            return _adopt(slice_, work, standing)
    return _make(slice_, work, standing, engine, progress, forecaster)


def score_exactly(
    slice_: Slice, rows: pa.Array, model: RegisteredVersion, engine: Scorer, progress: Progress
) -> StageResult:
    """Score these rows of one partition again; all others stay as they are, whatever they were made of.

    Args:
        rows: (rows,) strings, their keys.
        model: the version to score with.
        engine: that model, loaded.
        progress: told after every shard.

    Raises:
        UpstreamMissingError: the partition has no features, or was never scored.
        RescoreError: a key is no row's, or rows have come or gone since the partition was scored.
        As `score_partition`.
    """
    standing = slice_.committed("predictions")
    settle(slice_, "predictions", standing)
    work = replace(pin(slice_, model, engine), rows=rows)
    return _make(slice_, work, standing, engine, progress)


def _make(
    slice_: Slice,
    work: Work,
    standing: Commit | None,
    engine: Scorer,
    progress: Progress,
    forecaster: Forecaster | None = None,
) -> StageResult:
    """Score what has to be scored, put the partition together, and commit it."""
    begun = time.monotonic()
    attempt = slice_.lake.begin(Slot("predictions", slice_.key))
    with slice_.workspace("predictions", attempt) as folder:
        plan = plan_work(slice_, work, standing, folder / "plan")
        if plan.reused or work.rows is not None:
            work = replace(work, reuses=standing)
        ledger = ShardLedger(_shards_of(slice_, work.fingerprint), folder)
        shards = _score(slice_, work, plan, engine, ledger, progress)
        rejected = _rejected_rows(slice_, work, plan, shards)
        runs: Counter[str] = Counter()
        rows = _decided(slice_, work, _counted(_together(slice_, work, plan, shards, folder), runs), rejected)
        staged = stage(rows, work.schema, folder, "predictions")
        checks = _judge(slice_, work, (file.path for file in staged), rejected)
        publishable(slice_, "predictions", checks, rejected)

        stats = RunStats.combine([RunStats.from_dict(shard.notes["stats"]) for shard in shards])
        forecast = None if forecaster is None else forecaster.forecast([plan.to_score])
        told = {
            **_with_cost(stats, slice_.settings.hourly_rate),
            **timed(forecast, time.monotonic() - begun),
        }
        what = {**_describe(work, plan, engine), "stats": told}
        _record_stats(slice_, work, told, receipts.followed(what))
        # The run and the time that a row keeps when it is reused lead to the shard that it was scored in.
        what["shards"] = [[shard.notes["run_id"], shard.notes["scored_at"]] for shard in shards]
        what["origins"] = origins(work, standing, runs, {run for run, _ in what["shards"]})
        commit = publish(
            slice_, "predictions", staged, work.schema, rejected, work.fingerprint, attempt, **what
        )
        discard_shards(_shards_of(slice_, work.fingerprint))
    return _result(work, commit, checks, reused=False)


def _shards_of(slice_: Slice, fingerprint: str) -> Location:
    return slice_.layout.staging(slice_.key) / fingerprint


def load_engine(model: RegisteredVersion, spec: PipelineSpec, root: Location) -> Scorer:
    """Load a version for a pipeline on the devices that it asks for, its files compared with their digests.

    Args:
        root: of the platform, where calibrations are kept.

    Raises:
        ModelError: a file is altered, or the model cannot be loaded.
        SignatureError: the pipeline's decision does not suit the model.
        InferenceError: a device asked for is not there, or the Ray cluster that is asked for cannot do the work.
        StorageError: a calibration that is asked for cannot be read or kept.
    """
    if spec.inference.executor == "ray":
        return RayExecutor(
            partial(_load_elsewhere, model.name, model.version, model.digest, spec, root),
            code_version,
            device=spec.inference.device,
            devices=spec.inference.devices,
            flavor=model.flavor,
            models=len(spec.model.aliases),
        )
    device = resolve_device(spec.inference.device, model.flavor)
    count = device_count(spec.inference.devices, device)
    load = partial(_load, model, spec, root)
    return load() if count == 1 else Fleet(load, device, count)


def _load(model: RegisteredVersion, spec: PipelineSpec, root: Location) -> Engine:
    engine = Engine.load(model, signature_for(model, spec.decision), spec.inference)
    if spec.inference.batch_tokens != "calibrated":
        return engine
    return calibrated(engine, model.digest, root)


def _load_elsewhere(
    name: str, version: str, digest: str, spec: PipelineSpec, root: Location, device: str
) -> Engine:
    """Load a version where it was not looked up, by its digest: what lies there may be something else.

    Raises:
        ModelError: the version is not there, or is another one.
        As `load_engine`.
    """
    here = socket.gethostname()
    try:
        model = recorded_version(name, version, root)
    except ModelNotFoundError as error:
        raise ModelError(
            f"Ray node {here} does not find model {name} version {version} in {root}: every node needs the same "
            f"BATCH_PLATFORM_ROOT, on a disk that all share or in object storage ({error})"
        ) from None
    if model.digest != digest:
        raise ModelError(
            f"model {name} version {version} in {root} of Ray node {here} is another one ({model.digest}, not {digest}): "
            "every node needs the same BATCH_PLATFORM_ROOT"
        )
    inference = spec.inference.model_copy(update={"device": device})
    return _load(model, spec.model_copy(update={"inference": inference}), root)


# -- receipt ----------------------------------------------------------------------------------------------


def _describe(work: Work, plan: RowPlan, engine: Scorer) -> dict[str, Any]:
    return {
        # A partition in which rows stand that this work would have made anew is not this work done.
        "work": fingerprint({"mends": work.fingerprint}) if plan.mends else work.identity,
        **work.described(engine.hardware),
        "rows_scored": plan.to_score,
        "rows_reused": plan.reused,
        "rows_equal_to_scored": plan.twins,
        "reasons": dict(plan.reasons),
    }


# -- shards -----------------------------------------------------------------------------------------------


def _score(
    slice_: Slice, work: Work, plan: RowPlan, engine: Scorer, ledger: ShardLedger, progress: Progress
) -> list[FinishedShard]:
    """All shards, with their files on this machine and every byte checked."""
    for _ in range(_SCORING_TRIES):
        count = _score_missing_shards(slice_, work, plan, engine, ledger, progress)
        shards = [ledger.fetch(index) for index in range(count)]
        whole = [shard for shard in shards if shard is not None]
        if len(whole) == count:
            return whole
        progress(
            f"{slice_.about}: {count - len(whole)} shards were altered or taken away: scoring them again"
        )
    raise StorageError(
        f"{slice_.about}: shards in {slice_.layout.staging(slice_.key)} do not stay as they were written; check "
        "the storage, then run the partition again"
    )


def _score_missing_shards(
    slice_: Slice, work: Work, plan: RowPlan, engine: Scorer, ledger: ShardLedger, progress: Progress
) -> int:
    """Score what the ledger does not have; returns the number of all shards."""
    waiting: deque[tuple[int, pa.Table, pa.Array]] = deque()
    shards = 0
    meter = ProgressMeter(plan.to_score)
    size = work.parameters["shard_rows"]

    def missing() -> Iterator[pa.Table]:
        nonlocal shards
        for index, (features, positions) in enumerate(_cut(slice_, work, plan)):
            shards += 1
            if ledger.finished(index) is not None:
                meter.found(features.num_rows)
                continue
            waiting.append((index, features, plan.hashes_of(positions)))
            yield features

    tolerated = int(slice_.spec.inference.max_error_share * work.features.rows)
    for result in engine.score_stream(missing(), tolerated):
        index, features, hashes = waiting.popleft()
        rows = _decorate(slice_, work, features, hashes, result)
        places = np.flatnonzero(_failed_rows(features, result)).tolist()
        notes = {
            "run_id": slice_.run.run_id,
            "scored_at": _scored_at(rows),
            "stats": result.stats.to_dict(),
            "failures": [
                [index * size + place, failure.error_type, failure.message]
                for place, failure in zip(places, result.failures, strict=True)
            ],
        }
        ledger.record(index, rows, notes)
        meter.scored(result.stats)
        progress(f"{slice_.about}: {meter.line()}{engine.where and f', {engine.where}'}")
    return shards


def _cut(slice_: Slice, work: Work, plan: RowPlan) -> Iterator[tuple[pa.Table, Numbers]]:
    """The features to score in their committed order, `shard_rows` at a time, and their numbers among all."""
    size = work.parameters["shard_rows"]
    held: list[tuple[pa.RecordBatch, Numbers]] = []
    rows = start = 0
    for features in slice_.lake.batches("features", slice_.key):
        chosen = plan.kind[start : start + features.num_rows] == SCORED
        numbers = start + np.flatnonzero(chosen)
        start += features.num_rows
        batch = features if chosen.all() else features.filter(pa.array(chosen))
        while rows + batch.num_rows >= size:
            missing = size - rows
            held.append((batch.slice(0, missing), numbers[:missing]))
            yield _joined(held)
            batch, numbers = batch.slice(missing), numbers[missing:]
            held, rows = [], 0
        if batch.num_rows:
            held.append((batch, numbers))
            rows += batch.num_rows
    if held:
        yield _joined(held)


def _joined(parts: list[tuple[pa.RecordBatch, Numbers]]) -> tuple[pa.Table, Numbers]:
    batches, numbers = zip(*parts, strict=True)
    return pa.Table.from_batches(batches), np.concatenate(numbers)


def _together(
    slice_: Slice, work: Work, plan: RowPlan, shards: list[FinishedShard], folder: Path
) -> Iterator[pa.RecordBatch]:
    """The rows of the result in the order of the features."""
    fresh = partial(read_files, [shard.file.path for shard in shards if shard.file is not None])
    if plan.to_score == len(plan.kind):
        return fresh()
    kept = (lambda: iter(())) if work.reuses is None else partial(snapshot, slice_, work.reuses)
    failed = np.array([place for place, *_ in _failures(shards)], np.int64)
    return together(plan, kept, fresh, failed, _feature_keys(slice_), work.scored_schema, folder)


def _counted(batches: Iterator[pa.RecordBatch], runs: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The same batches; their rows are counted by run."""
    for batch in batches:
        for count in pc.value_counts(batch["run_id"]).to_pylist():
            runs[count["values"]] += count["counts"]
        yield batch


def _failures(shards: list[FinishedShard]) -> list[tuple[int, str, str]]:
    """Of the rows that were scored and failed: number among the rows to score, cause and message, ascending."""
    return [tuple(failure) for shard in shards for failure in shard.notes["failures"]]


def _feature_keys(slice_: Slice) -> Iterator[pa.Array]:
    return (batch["row_key"] for batch in slice_.lake.batches("features", slice_.key, ["row_key"]))


def _decorate(
    slice_: Slice, work: Work, features: pa.Table, hashes: pa.Array, result: ShardResult
) -> pa.Table:
    """The outputs of a shard with everything that says what made them."""
    outputs = result.outputs
    if result.failures:
        hashes = hashes.filter(pa.array(~_failed_rows(features, result)))
    columns = {name: outputs[name] for name in outputs.column_names}
    constants = {
        "model_version": work.model.version,
        "model_digest": work.model.digest,
        "recipe_version": work.recipe_version,
        "run_id": slice_.run.run_id,
    }
    columns |= {name: pa.repeat(pa.scalar(value), outputs.num_rows) for name, value in constants.items()}
    columns["input_hash"] = hashes
    columns["scored_at"] = pa.repeat(
        pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC")), outputs.num_rows
    )
    return pa.table({name: columns[name] for name in work.scored_schema.names}, schema=work.scored_schema)


def _failed_rows(features: pa.Table, result: ShardResult) -> np.ndarray:
    """Which rows of a shard failed, (rows,) bool; the failures are in the order of the rows."""
    failed = pa.array([failure.row_key for failure in result.failures], pa.string())
    # The few are looked for among the many: the other way round, all keys would be hashed.
    found: np.ndarray = pc.is_in(features["row_key"], value_set=failed).to_numpy()
    return found


def _scored_at(rows: pa.Table) -> str:
    """The time that all rows of a shard have; empty where no row of it could be scored."""
    return rows["scored_at"][0].as_py().isoformat(timespec="microseconds") if rows.num_rows else ""


def _decided(
    slice_: Slice, work: Work, rows: Iterator[pa.RecordBatch], rejected: list[Rejected]
) -> Iterator[pa.RecordBatch]:
    """The same rows with what the pipeline's rule decides, about those that are reused too."""
    if work.decision is None:
        return rows
    needed = features_needed(work.decision, work.signature)
    features = None
    if needed:
        absent = pa.array([row.row_key for row in rejected], pa.string())
        batches = slice_.lake.batches("features", slice_.key, ["row_key", *needed])
        kept = (batch.filter(pc.invert(pc.is_in(batch["row_key"], value_set=absent))) for batch in batches)
        whole = slice_.lake.schema("features")
        assert whole is not None  # there is a commit
        features = RowStream(kept, pa.schema([whole.field(name) for name in ["row_key", *needed]]))
    return with_decisions(rows, work.decision, work.signature, features, work.schema)


def _rejected_rows(slice_: Slice, work: Work, plan: RowPlan, shards: list[FinishedShard]) -> list[Rejected]:
    """The rows that failed, with their twins, and those that stay in quarantine untried, in the order of the features."""
    causes = {place: (error_type, message) for place, error_type, message in _failures(shards)}
    tried = plan.positions(SCORED, TWIN_OF_SCORED) if causes else ()
    failed = np.concatenate(
        [np.zeros(0, np.int64), *(part[np.isin(plan.source[part], list(causes))] for part in tried)]
    )
    keys = _keys_at(slice_, failed)
    places = locate(slice_, set(keys))
    rejected = []
    for key, source in zip(keys, plan.source[failed].tolist(), strict=True):
        file, row = places[key]
        payload = payload_of(slice_, {"row_key": key})
        rejected.append(Rejected(key, *causes[source], file, row, payload))
    if work.rows is None:
        return rejected
    untried = frozenset(_keys_at(slice_, np.concatenate([*plan.positions(LEFT_OUT)])))
    return [*rejected, *(row for row in standing_quarantine(slice_, "predictions") if row.row_key in untried)]


def _keys_at(slice_: Slice, positions: Numbers) -> list[str]:
    """Keys of some rows of the features, by number, ascending."""
    found: list[str] = []
    start = 0
    for keys in _feature_keys(slice_) if len(positions) else ():
        if start > positions[-1]:
            break
        first, last = np.searchsorted(positions, [start, start + len(keys)])
        found += keys.take(pa.array(positions[first:last] - start)).to_pylist()
        start += len(keys)
    return found


# -- gate and result --------------------------------------------------------------------------------------


def _judge(
    slice_: Slice, work: Work, paths: Iterable[Location], rejected: list[Rejected]
) -> tuple[gate.CheckResult, ...]:
    quarantined = frozenset(row.row_key for row in rejected if row.row_key is not None)
    return (
        *gate.judge_predictions(_feature_keys(slice_), read_files(paths), quarantined, work.signature),
        gate.quarantined_share(rejected, work.features.rows, slice_.spec.inference.max_error_share),
    )


def _adopt(slice_: Slice, work: Work, standing: Commit) -> StageResult:
    """The same work was committed before: judge again what stands, score nothing."""
    rejected = standing_quarantine(slice_, "predictions")
    checks = _judge(slice_, work, slice_.lake.paths("predictions", slice_.key), rejected)
    publishable(slice_, "predictions", checks, rejected)
    return _result(work, standing, checks, reused=True)


def _result(work: Work, commit: Commit, checks: tuple[gate.CheckResult, ...], reused: bool) -> StageResult:
    receipt = commit.receipt
    return StageResult(
        table="predictions",
        rows=commit.rows,
        data_version=commit.fingerprint,
        reused=reused,
        checks=checks,
        metadata={
            "rows_in": receipt["rows_in"],
            "rows_scored": receipt["rows_scored"],
            "rows_reused": receipt["rows_reused"],
            "rows_equal_to_scored": receipt["rows_equal_to_scored"],
            **{f"scored {reason}": count for reason, count in receipt["reasons"].items()},
            "quarantined": receipt["quarantined"],
            "model": f"{work.model.name} version {work.model.version}",
            "model_digest": work.model.digest,
            "recipe_version": work.recipe_version,
            "code_version": receipt["code_version"],
            "decision_version": work.decision and rule_version(work.decision),
            "scored_by_run": receipt["run_id"],
            **{f"stats {name}": value for name, value in receipt["stats"].items()},
        },
    )


def _with_cost(stats: RunStats, hourly_rate: float | None) -> dict[str, int | float]:
    """The statistics, with a price where one is configured."""
    if hourly_rate is None:
        return stats.to_dict()
    return {**stats.to_dict(), "cost_per_1000_rows": round(stats.cost_per_1000_rows(hourly_rate), 6)}


def _record_stats(
    slice_: Slice, work: Work, stats: Mapping[str, int | float], what: Mapping[str, Any]
) -> None:
    names = {"fingerprint": work.fingerprint, "run_id": slice_.run.run_id}
    made_by = {"model_digest": work.model.digest, "device": work.parameters["device"]}
    batch = pa.RecordBatch.from_pylist([{**names, **made_by, **stats}])
    commit_small(slice_, "run_stats", batch, work.fingerprint, **what)
