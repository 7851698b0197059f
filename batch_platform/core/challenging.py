"""Stage `challenger_predictions`: another version of the model scores the same rows beside the champion, and is compared.

Nothing acts on a challenger's outputs: rows that it cannot score are left out and counted, they do not go to quarantine,
and a challenger that fails takes nothing from the champion, which was committed before. A partition that was interrupted
is scored from its beginning. Which version should be champion is decided by people, at the promotion gate (`promoting`).
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core import gate
from batch_platform.core.comparing import Comparison, compare
from batch_platform.core.data.lake import Commit, Lake, Slot
from batch_platform.core.data.row_stream import RowStream
from batch_platform.core.data.staging import read_files, stage
from batch_platform.core.deciding import features_needed, with_decisions
from batch_platform.core.gate import CheckResult
from batch_platform.core.inference.engine import Scorer, ShardResult
from batch_platform.core.inference.stats import RunStats
from batch_platform.core.models.registry import RegisteredVersion
from batch_platform.core.provenance.fingerprint import fingerprint, input_hashes
from batch_platform.core.scoring import Progress
from batch_platform.core.slice import Slice, StageResult
from batch_platform.core.work import Work, pin

TABLE = "challenger_predictions"


def score_challenger(
    slice_: Slice, model: RegisteredVersion, engine: Scorer, progress: Progress
) -> StageResult:
    """Score a partition with the challenger, and compare it with the champion's predictions.

    Args:
        model: the version that the challenger's alias points to.
        engine: that model, loaded.
        progress: told after every shard.

    Raises:
        UpstreamMissingError: the partition has no features or no predictions.
        SignatureError: the challenger does not fit the features.
        InferenceError, GateError: too many rows failed, or the result does not reconcile; nothing was committed.
        SupersededError: a newer attempt has committed.
        StorageError: the lake cannot be written.
    """
    champion = slice_.committed("predictions")
    work = pin(slice_, model, engine)
    standing = slice_.lake.head(Slot(TABLE, slice_.key))
    if standing is not None and standing.fingerprint == work.identity:
        return _adopt(slice_, work, champion, standing)
    shards = _Shards(slice_, work, engine, progress)
    attempt = slice_.lake.begin(Slot(TABLE, slice_.key))
    with slice_.workspace(TABLE, attempt) as folder:
        staged = stage(shards.rows(), work.schema, folder, TABLE)
        checks = _judge(slice_, work, read_files(file.path for file in staged), shards.failed, shards.causes)
        gate.enforce(checks, f"{slice_.about}, challenger")
        receipt = slice_.receipt(work.identity, **_describe(work, shards, engine))
        commit = slice_.lake.commit(Slot(TABLE, slice_.key), staged, work.schema, receipt, attempt)
    return _result(slice_, work, champion, commit, checks, reused=False)


def comparison_of(lake: Lake, champion: Commit, challenger: Commit) -> Comparison | None:
    """The champion's predictions of a partition against the challenger's, on the labels that have been met so far.

    Returns:
        None where one of them was not made of the features that stand.
    """
    key = Slot.of(champion.receipt).partition_key
    features = lake.head(Slot("features", key))
    made_of = {commit.receipt["features_fingerprint"] for commit in (champion, challenger)}
    if features is None or made_of != {features.fingerprint}:
        return None
    labels = {
        row["row_key"]: row["label"] for batch in lake.batches("labels", key) for row in batch.to_pylist()
    }
    keys = (batch["row_key"] for batch in lake.batches("features", key, ["row_key"]))
    by_rules = "rules" in (challenger.receipt["decision"] or {})  # which decide in words of their own
    judged = "label" if by_rules else None
    return compare(_rows_of(lake, champion), _rows_of(lake, challenger), keys, labels, judged)


def words_of(found: Comparison) -> str:
    """A comparison as one line."""
    said = found.describe()
    parts = [f"{found.rows} rows"]
    if found.flip_rate is not None:
        parts.append(f"agreement {1 - found.flip_rate:.2%}, {found.flipped} decisions flip")
    if found.moved:
        parts.append(f"scores move by {said['score_shift_mean_absolute']:g} on average")
    if found.only_before or found.only_after:
        parts.append(f"{found.only_before} only of the champion, {found.only_after} only of the challenger")
    if not found.labelled:
        return ", ".join([*parts, "no labels yet"])
    if found.right_before or found.right_after:
        parts.append(f"right alone: champion {found.right_before}, challenger {found.right_after}")
    p = "" if found.p_value is None else f", p {found.p_value:.3g}"
    return ", ".join([*parts, f"on {found.labelled} labels {found.verdict}{p}"])


def told(found: Comparison) -> dict[str, Any]:
    """A comparison as JSON values, its two sides called champion and challenger."""
    sides = {"before": "champion", "after": "challenger"}
    return {
        "_".join(sides.get(word, word) for word in name.split("_")): value
        for name, value in found.describe().items()
    }


# -- scoring ----------------------------------------------------------------------------------------------


class _Shards:
    """The challenger's rows, shard by shard.

    Attributes:
        failed: keys of the rows without an output, once `rows` has ended.
        causes: their number by type of error.
        stats: of each shard.
    """

    def __init__(self, slice_: Slice, work: Work, engine: Scorer, progress: Progress) -> None:
        self._slice, self._work, self._engine, self._progress = slice_, work, engine, progress
        self.failed: list[str] = []
        self.causes: Counter[str] = Counter()
        self.stats: list[RunStats] = []

    def rows(self) -> Iterator[pa.RecordBatch]:
        waiting: deque[pa.Table] = deque()
        tolerated = int(self._slice.spec.inference.max_error_share * self._work.features.rows)
        for result in self._engine.score_stream(self._cut(waiting), tolerated):
            self.stats.append(result.stats)
            self.failed += [failure.row_key for failure in result.failures]
            self.causes.update(failure.error_type for failure in result.failures)
            done = sum(each.rows for each in self.stats)
            self._progress(f"{self._slice.about}: challenger: {done} rows scored")
            yield from self._finished(waiting.popleft(), result)

    def _cut(self, waiting: deque[pa.Table]) -> Iterator[pa.Table]:
        schema = self._slice.lake.schema("features")
        assert schema is not None  # there is a commit
        rows = RowStream(self._slice.lake.batches("features", self._slice.key), schema)
        while (batch := rows.take(self._work.parameters["shard_rows"])).num_rows:
            table = pa.Table.from_batches([batch])
            waiting.append(table)
            yield table

    def _finished(self, features: pa.Table, result: ShardResult) -> Iterator[pa.RecordBatch]:
        """The outputs of a shard with everything that says what made them, and what the pipeline's rule decides."""
        work, outputs = self._work, result.outputs
        columns: dict[str, Any] = {name: outputs[name] for name in outputs.column_names}
        constants = {
            "model_version": work.model.version,
            "model_digest": work.model.digest,
            "recipe_version": work.recipe_version,
            "run_id": self._slice.run.run_id,
            "scored_at": pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC")),
        }
        columns |= {name: pa.repeat(value, outputs.num_rows) for name, value in constants.items()}
        scored = pc.is_in(features["row_key"], value_set=outputs["row_key"].combine_chunks())
        columns["input_hash"] = input_hashes(features, work.inputs).filter(scored.combine_chunks())
        names = work.scored_schema.names
        rows = pa.table({name: columns[name] for name in names}, schema=work.scored_schema).to_batches()
        if work.decision is None:
            yield from rows
            return
        needed = ["row_key", *features_needed(work.decision, work.signature)]
        seen = features.select(needed).filter(scored)
        beside = RowStream(iter(seen.to_batches()), seen.schema) if len(needed) > 1 else None
        yield from with_decisions(iter(rows), work.decision, work.signature, beside, work.schema)


def _describe(work: Work, shards: _Shards, engine: Scorer) -> dict[str, Any]:
    return {
        **work.described(engine.hardware),
        "rows_scored": work.features.rows,
        "rows_reused": 0,
        "failed": dict(shards.causes),
        "stats": RunStats.combine(shards.stats).to_dict(),
    }


# -- judging ----------------------------------------------------------------------------------------------


def _judge(
    slice_: Slice,
    work: Work,
    rows: Iterable[pa.RecordBatch],
    failed: Sequence[str],
    causes: Mapping[str, int],
) -> tuple[CheckResult, ...]:
    bad, entering = len(failed), work.features.rows
    share, allowed = bad / entering if entering else 0.0, slice_.spec.inference.max_error_share
    words = f"{bad} of {entering} rows cannot be scored ({share:.2%}, allowed {allowed:.2%})"
    kinds = ", ".join(f"{count} {cause}" for cause, count in causes.items())
    values = {"failed": bad, "entering": entering, "share": share, "allowed": allowed, **causes}
    return (
        *gate.judge_predictions(_feature_keys(slice_), rows, frozenset(failed), work.signature),
        CheckResult("failed_share", share <= allowed, f"{words}: {kinds}" if kinds else words, values),
    )


def _adopt(slice_: Slice, work: Work, champion: Commit, standing: Commit) -> StageResult:
    """The same work was committed before: judge again what stands, score nothing."""
    causes = standing.receipt["failed"]
    failed = _without_output(_feature_keys(slice_), _rows_of(slice_.lake, standing))
    checks = _judge(slice_, work, _rows_of(slice_.lake, standing), failed, causes)
    gate.enforce(checks, f"{slice_.about}, challenger")
    return _result(slice_, work, champion, standing, checks, reused=True)


def _without_output(expected: Iterable[pa.Array], rows: Iterable[pa.RecordBatch]) -> list[str]:
    found = (key for batch in rows for key in batch["row_key"].to_pylist())
    following = next(found, None)
    left: list[str] = []
    for key in (key for keys in expected for key in keys.to_pylist()):
        if key == following:
            following = next(found, None)
        else:
            left.append(key)
    return left


def _result(
    slice_: Slice,
    work: Work,
    champion: Commit,
    commit: Commit,
    checks: tuple[CheckResult, ...],
    reused: bool,
) -> StageResult:
    found = comparison_of(slice_.lake, champion, commit)
    return StageResult(
        table=TABLE,
        rows=commit.rows,
        data_version=fingerprint({"challenger": commit.fingerprint, "champion": champion.fingerprint}),
        reused=reused,
        checks=(*checks, _compared(found)),
        metadata={
            "champion": f"{champion.receipt['model']} version {champion.receipt['model_version']}",
            "challenger": f"{work.model.name} version {work.model.version}",
            "failed": sum(commit.receipt["failed"].values()),
            **({} if found is None else told(found)),
            **{f"stats {name}": value for name, value in commit.receipt["stats"].items()},
        },
    )


def _compared(found: Comparison | None) -> CheckResult:
    if found is None:
        words = (
            "not compared: champion and challenger were made of different features; run the partition again"
        )
        return CheckResult("comparison", False, words, severity="warn")
    is_worse = found.verdict == "worse"
    return CheckResult("comparison", not is_worse, words_of(found), told(found), severity="warn")


def _rows_of(lake: Lake, commit: Commit) -> Iterator[pa.RecordBatch]:
    """The rows of exactly this commit, in their order."""
    slot = Slot.of(commit.receipt)
    return read_files(lake.location(slot, file["path"]) for file in commit.receipt["files"])


def _feature_keys(slice_: Slice) -> Iterator[pa.Array]:
    return (batch["row_key"] for batch in slice_.lake.batches("features", slice_.key, ["row_key"]))
