"""Stage `predictions`: one partition of features scored by one model version, exactly once.

Reads in this order: pin the work, adopt what is there, score the missing shards, put them together, judge the
result, publish. Killed anywhere, a later call goes on from the last finished shard; a changed model, recipe,
parameter or code has another fingerprint and starts afresh. It does not know how a model computes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core import gate
from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import Commit, Slot
from batch_platform.core.data.ledger import FinishedShard, ShardLedger, discard_shards
from batch_platform.core.data.staging import read_files, stage
from batch_platform.core.inference.batching import shard_rows
from batch_platform.core.inference.engine import Engine, ShardResult
from batch_platform.core.inference.progress import ProgressMeter
from batch_platform.core.inference.stats import RunStats
from batch_platform.core.models.registry import RegisteredVersion
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.provenance.fingerprint import code_version, fingerprint, input_hashes
from batch_platform.core.publishing import publish, publishable, settle
from batch_platform.core.quarantine import locate, payload_of, standing_quarantine
from batch_platform.core.redriving import interleaved, only
from batch_platform.core.slice import Slice, StageResult, commit_small
from batch_platform.core.spec import DecisionSpec, PipelineSpec
from batch_platform.errors import SignatureError, StorageError

Progress = Callable[[str], None]

_SCORING_TRIES = 3


@dataclass(frozen=True)
class Work:
    """What is to be scored and by what, pinned before the first row is read.

    Attributes:
        model: the version that the alias pointed to when the run was asked for.
        signature: the model's, with the pipeline's positive class.
        parameters: all that can change an output besides data, model and code.
        redrives: the commit whose quarantined rows alone are to be scored again; None to score all rows.
    """

    features: Commit
    recipe_version: str
    model: RegisteredVersion
    signature: ModelSignature
    decision: DecisionSpec | None
    parameters: dict[str, Any]
    redrives: Commit | None = None

    @property
    def identity(self) -> str:
        """Equal for all work that gives a row the same values."""
        return fingerprint(
            {
                "features": self.features.fingerprint,
                "recipe": self.recipe_version,
                "model": [self.model.name, self.model.version, self.model.digest],
                "parameters": self.parameters,
                "code": code_version(),
            }
        )

    @property
    def fingerprint(self) -> str:
        """Identity of the work: of its shards, and of its commit."""
        if self.redrives is None:
            return self.identity
        return fingerprint({"work": self.identity, "redrives": self.redrives.attempt})

    @property
    def schema(self) -> pa.Schema:
        """Columns of the predictions table."""
        return pa.schema(
            [
                ("row_key", pa.string()),
                *self.signature.output_schema(),
                *([("decision", pa.string())] if self.decision else []),
                ("model_version", pa.string()),
                ("model_digest", pa.string()),
                ("recipe_version", pa.string()),
                ("input_hash", pa.string()),
                ("run_id", pa.string()),
                ("scored_at", pa.timestamp("us", tz="UTC")),
            ]
        )


def score_partition(
    slice_: Slice, model: RegisteredVersion, engine: Engine, progress: Progress, redrive: bool = False
) -> StageResult:
    """Score one partition of features.

    Args:
        model: the version to score with.
        engine: that model, loaded; it may have scored other partitions before.
        progress: told after every shard.
        redrive: where the same work is committed already, score its quarantined rows again.

    Raises:
        UpstreamMissingError: the partition has no features.
        SignatureError: the model does not fit the features.
        GateError: too many rows failed, or the result does not reconcile; nothing was committed.
        SupersededError: a newer attempt has committed.
        StorageError: the lake cannot be written.
    """
    work = pin(slice_, model, engine)
    slot = Slot("predictions", slice_.key)
    standing = slice_.lake.head(slot)
    if standing is not None and standing.receipt["work"] == work.identity:
        settle(slice_, "predictions", standing)
        discard_shards(_shards_of(slice_, standing.fingerprint))  # its run may have been killed before it did
        if not redrive or not standing.receipt["quarantined"]:
            return _adopt(slice_, work, standing)
        work = replace(work, redrives=standing)

    attempt = slice_.lake.begin(slot)
    with slice_.workspace("predictions", attempt) as folder:
        ledger = ShardLedger(_shards_of(slice_, work.fingerprint), folder)
        shards = _score(slice_, work, engine, ledger, progress)
        rejected = _rejected_rows(slice_, shards)
        rows = _together(slice_, work, [shard.file.path for shard in shards if shard.file is not None])
        staged = stage(rows, work.schema, folder, "predictions")
        checks = _judge(slice_, work, (file.path for file in staged), rejected)
        publishable(slice_, "predictions", checks, rejected)

        stats = RunStats.combine([RunStats.from_dict(shard.notes["stats"]) for shard in shards])
        told = _with_cost(stats, slice_.settings.hourly_rate)
        _record_stats(slice_, told, work.fingerprint)
        what = {**_describe(work), "stats": told}
        # The run and the time that a row keeps when it is reused lead to the shard that it was scored in.
        what["shards"] = [[shard.notes["run_id"], shard.notes["scored_at"]] for shard in shards]
        commit = publish(
            slice_, "predictions", staged, work.schema, rejected, work.fingerprint, attempt, **what
        )
        discard_shards(_shards_of(slice_, work.fingerprint))
    return _result(work, commit, checks, reused=False)


def _shards_of(slice_: Slice, fingerprint: str) -> Location:
    return slice_.layout.staging(slice_.key) / fingerprint


def load_engine(model: RegisteredVersion, spec: PipelineSpec) -> Engine:
    """Load a version for a pipeline, after checking its files against their digests.

    Raises:
        ModelError: a file is altered, or the model cannot be loaded.
        SignatureError: the pipeline's decision does not suit the model.
        InferenceError: the device asked for is not there.
    """
    return Engine.load(model, signature_for(model, spec.decision), spec.inference)


# -- pin --------------------------------------------------------------------------------------------------


def pin(slice_: Slice, model: RegisteredVersion, engine: Engine) -> Work:
    """Fix what the result will be made of.

    Raises:
        UpstreamMissingError: the partition has no features.
        SignatureError: model, features and decision do not fit each other.
    """
    features = slice_.committed("features")
    signature = signature_for(model, slice_.spec.decision)
    schema = slice_.lake.schema("features")
    assert schema is not None  # there is a commit
    try:
        signature.check_features(schema)
    except SignatureError as error:
        raise SignatureError(f"{slice_.about}, model {model.name} version {model.version}: {error}") from None
    decision = slice_.spec.decision
    parameters = {
        **engine.plan.to_dict(),
        "backend": engine.predictor.backend,
        "shard_rows": shard_rows(slice_.spec.inference.shard_rows, signature),
        "positive_class": signature.positive_class,
        "decision": None if decision is None else decision.model_dump(),
    }
    return Work(features, features.receipt["recipe_version"], model, signature, decision, parameters)


def signature_for(model: RegisteredVersion, decision: DecisionSpec | None) -> ModelSignature:
    """The model's signature under the pipeline's decision, which names the positive class.

    Raises:
        SignatureError: the decision does not suit the model.
    """
    signature = model.signature
    if decision is None:
        return signature
    about = f"model {model.name} version {model.version}"
    if signature.task != "classification" or len(signature.labels) != 2:
        raise SignatureError(f"{about}: `decision` needs a classifier of two classes; remove it")
    if decision.positive_class not in signature.labels:
        raise SignatureError(
            f"{about}: decision.positive_class {decision.positive_class!r} is none of {list(signature.labels)}"
        )
    return signature.with_positive_class(decision.positive_class)


def _describe(work: Work) -> dict[str, Any]:
    return {
        "work": work.identity,
        "rows_in": work.features.rows,
        "model": work.model.name,
        "model_version": work.model.version,
        "model_digest": work.model.digest,
        "recipe_version": work.recipe_version,
        "code_version": code_version(),
        "parameters": work.parameters,
        "signature": work.signature.to_dict(),
        "features_fingerprint": work.features.fingerprint,
    }


# -- shards -----------------------------------------------------------------------------------------------


def _score(
    slice_: Slice, work: Work, engine: Engine, ledger: ShardLedger, progress: Progress
) -> list[FinishedShard]:
    """All shards, with their files on this machine and every byte checked."""
    for _ in range(_SCORING_TRIES):
        count = _score_missing_shards(slice_, work, engine, ledger, progress)
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
    slice_: Slice, work: Work, engine: Engine, ledger: ShardLedger, progress: Progress
) -> int:
    """Score what the ledger does not have; returns the number of all shards."""
    waiting: deque[tuple[int, pa.Table]] = deque()
    shards = 0
    meter = ProgressMeter(_rows_to_score(work))

    def missing() -> Iterator[pa.Table]:
        nonlocal shards
        for index, features in enumerate(_cut(slice_, work)):
            shards += 1
            if ledger.finished(index) is not None:
                meter.found(features.num_rows)
                continue
            waiting.append((index, features))
            yield features

    tolerated = int(slice_.spec.inference.max_error_share * work.features.rows)
    for result in engine.score_stream(missing(), tolerated):
        index, features = waiting.popleft()
        rows = _decorate(slice_, work, features, result)
        notes = {
            "run_id": slice_.run.run_id,
            "scored_at": _scored_at(rows),
            "stats": result.stats.to_dict(),
            "failures": [[f.row_key, f.error_type, f.message] for f in result.failures],
        }
        ledger.record(index, rows, notes)
        meter.scored(result.stats)
        progress(f"{slice_.about}: {meter.line()}")
    return shards


def _rows_to_score(work: Work) -> int:
    return work.features.rows if work.redrives is None else work.redrives.receipt["quarantined"]


def _cut(slice_: Slice, work: Work) -> Iterator[pa.Table]:
    """The features to score in their committed order, `shard_rows` at a time."""
    size = work.parameters["shard_rows"]
    held: list[pa.RecordBatch] = []
    rows = 0
    batches = slice_.lake.batches("features", slice_.key)
    for batch in batches if work.redrives is None else only(batches, _quarantined_keys(slice_)):
        while rows + batch.num_rows >= size:
            held.append(batch.slice(0, size - rows))
            yield pa.Table.from_batches(held)
            batch = batch.slice(size - rows)  # noqa: PLW2901 - what is left of it
            held, rows = [], 0
        if batch.num_rows:
            held.append(batch)
            rows += batch.num_rows
    if held:
        yield pa.Table.from_batches(held)


def _quarantined_keys(slice_: Slice) -> pa.Array:
    return pa.array([row.row_key for row in standing_quarantine(slice_, "predictions")], pa.string())


def _together(slice_: Slice, work: Work, shards: list[Location]) -> Iterator[pa.RecordBatch]:
    """The rows of the result in the order of the features."""
    if work.redrives is None:
        return read_files(shards)
    slot = Slot("predictions", slice_.key)
    standing = [slice_.lake.location(slot, file["path"]) for file in work.redrives.receipt["files"]]
    fresh = pa.Table.from_batches(read_files(shards), work.schema)
    return interleaved(_feature_keys(slice_), read_files(standing), _quarantined_keys(slice_), fresh)


def _feature_keys(slice_: Slice) -> Iterator[pa.Array]:
    return (batch["row_key"] for batch in slice_.lake.batches("features", slice_.key, ["row_key"]))


def _decorate(slice_: Slice, work: Work, features: pa.Table, result: ShardResult) -> pa.Table:
    """The outputs of a shard with everything that says what made them."""
    outputs = result.outputs
    hashes = input_hashes(features, [column.name for column in work.signature.inputs])
    if result.failures:
        hashes = hashes.filter(pc.is_in(features["row_key"], value_set=outputs["row_key"].combine_chunks()))
    columns = {name: outputs[name] for name in outputs.column_names}
    if work.decision is not None:
        columns["decision"] = decide(outputs["score"], work.signature, work.decision)
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
    return pa.table({name: columns[name] for name in work.schema.names}, schema=work.schema)


def _scored_at(rows: pa.Table) -> str:
    """The time that all rows of a shard have; empty where no row of it could be scored."""
    return rows["scored_at"][0].as_py().isoformat(timespec="microseconds") if rows.num_rows else ""


def decide(score: pa.ChunkedArray, signature: ModelSignature, decision: DecisionSpec) -> pa.ChunkedArray:
    """(rows,) strings: the positive class where the score is at or above the threshold, else the other one."""
    other = next(label for label in signature.labels if label != decision.positive_class)
    return pc.if_else(pc.greater_equal(score, decision.threshold), decision.positive_class, other)


def _rejected_rows(slice_: Slice, shards: list[FinishedShard]) -> list[Rejected]:
    failures = [failure for shard in shards for failure in shard.notes["failures"]]
    places = locate(slice_, {key for key, _, _ in failures})
    rejected = []
    for key, error_type, message in failures:
        file, row = places[key]
        payload = payload_of(slice_, {"row_key": key})
        rejected.append(Rejected(key, error_type, message, file, row, payload))
    return rejected


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
            "quarantined": receipt["quarantined"],
            "model": f"{work.model.name} version {work.model.version}",
            "model_digest": work.model.digest,
            "recipe_version": work.recipe_version,
            "code_version": receipt["code_version"],
            "scored_by_run": receipt["run_id"],
            **{f"stats {name}": value for name, value in receipt["stats"].items()},
        },
    )


def _with_cost(stats: RunStats, hourly_rate: float | None) -> dict[str, int | float]:
    """The statistics, with a price where one is configured."""
    if hourly_rate is None:
        return stats.to_dict()
    return {**stats.to_dict(), "cost_per_1000_rows": round(stats.cost_per_1000_rows(hourly_rate), 6)}


def _record_stats(slice_: Slice, stats: Mapping[str, int | float], fingerprint_: str) -> None:
    batch = pa.RecordBatch.from_pylist([{"fingerprint": fingerprint_, "run_id": slice_.run.run_id, **stats}])
    commit_small(slice_, "run_stats", batch, fingerprint_)
