"""Scoring exactly given rows of a partition again, and saying what that changed.

Which rows, and why, is the caller's to know: those of a bad model version, of a source file, of a run. All other
rows of the partition are copied byte for byte, with their run and their time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.comparing import Comparison, compare
from batch_platform.core.data.lake import Commit
from batch_platform.core.inference.engine import Scorer
from batch_platform.core.models.registry import RegisteredVersion
from batch_platform.core.scoring import Progress, score_exactly
from batch_platform.core.slice import Slice, StageResult
from batch_platform.core.snapshots import snapshot


@dataclass(frozen=True)
class Rescored:
    """A partition after exactly given rows of it were scored again.

    Attributes:
        result: as of the stage; a Dagster asset reports it like any other.
        before, after: attempts of the commits that stood before and stand now.
        rows: rows that were asked for.
        comparison: of the rows that were asked for, before and after: rows changed, decisions flipped, movement of the
            scores. `only_before`: they are in quarantine now; `only_after`: they were.
    """

    result: StageResult
    before: int
    after: int
    rows: int
    comparison: Comparison


def rescore_rows(
    slice_: Slice, keys: pa.Array, model: RegisteredVersion, engine: Scorer, progress: Progress
) -> Rescored:
    """Score exactly these rows of a partition again, from its features, and commit a new snapshot.

    The rows are scored by `model` whatever they were scored by before. All others keep their values, `run_id`
    and `scored_at`; rows in quarantine that are not among `keys` stay there untried. If rows remain that the pipeline
    would score anew (of another model, say), the next materialization scores those. `slice_.run.run_id` becomes the
    `run_id` of the scored rows: give each call a run of its own. Killed and called again with the same keys it goes on from
    the last finished shard.

    Args:
        slice_: the partition.
        keys: (rows,) strings, row keys, unique.
        model: version to score with, such as the one that the pipeline's alias points to now.
        engine: from `scoring.load_engine`; one for all partitions of a call.
        progress: told after every shard.

    Raises:
        RescoreError: a key is no row's, or rows have come or gone since the partition was scored (then the partition
            has to be materialized: that scores what is new or changed).
        UpstreamMissingError: the partition was never scored.
        GateError, SignatureError, SupersededError, StorageError: as `scoring.score_partition`.
    """
    standing = slice_.committed("predictions")
    result = score_exactly(slice_, keys, model, engine, progress)
    made = slice_.committed("predictions")
    feature_keys = (batch["row_key"] for batch in slice_.lake.batches("features", slice_.key, ["row_key"]))
    comparison = compare(
        _rows_of(slice_, standing, keys),
        _rows_of(slice_, made, keys),
        (found.filter(pc.is_in(found, value_set=keys)) for found in feature_keys),
    )
    return Rescored(result, standing.attempt, made.attempt, len(keys), comparison)


def _rows_of(slice_: Slice, commit: Commit, keys: pa.Array) -> Iterator[pa.RecordBatch]:
    for batch in snapshot(slice_, commit):
        yield batch.filter(pc.is_in(batch["row_key"], value_set=keys))
