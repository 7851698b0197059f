"""The partition's current snapshot as scoring meets it: its rows, and what they were made under.

Decides what a commit's receipt has to say for its rows to be reused later. Which rows those are is decided by `reusing`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_platform.core.data.lake import Commit, Slot
from batch_platform.core.data.staging import read_files
from batch_platform.core.quarantine import standing_quarantine
from batch_platform.core.reusing import Origin, RowPlan, Standing, plan_exactly, plan_rows
from batch_platform.core.slice import Slice
from batch_platform.core.work import Work
from batch_platform.errors import RescoreError


def plan_work(slice_: Slice, work: Work, standing: Commit | None, folder: Path) -> RowPlan:
    """What becomes of each row: reads the inputs of the features, and keys and hashes of the snapshot.

    Args:
        folder: of this machine, for hashes; must stay as long as the plan is used.

    Raises:
        RescoreError: the rows that are wanted do not fit the partition.
    """
    features = slice_.lake.batches("features", slice_.key, list(dict.fromkeys(["row_key", *work.inputs])))
    known = None if standing is None else standing_rows(slice_, standing)
    if work.rows is None:
        return plan_rows(features, work.inputs, work.conditions, known, folder)
    assert known is not None  # `score_exactly` has asked for it
    try:
        return plan_exactly(features, work.inputs, work.conditions, known, work.rows, folder)
    except KeyError as error:
        raise RescoreError(
            f"{slice_.about}: {error.args[0]}; materialize {slice_.spec.name}/predictions for it: that scores what is "
            "new or changed"
        ) from None


def standing_rows(slice_: Slice, standing: Commit) -> Standing:
    """A snapshot, as far as it decides what is scored."""
    # Commits of releases before this one do not say what their rows were made under.
    origins = [Origin(o["conditions"], tuple(o["run_ids"])) for o in standing.receipt.get("origins", ())]
    quarantined = (row.row_key for row in standing_quarantine(slice_, "predictions"))
    return Standing(
        snapshot(slice_, standing, ["row_key", "input_hash", "run_id"]),
        origins,
        frozenset(key for key in quarantined if key is not None),
    )


def snapshot(slice_: Slice, standing: Commit, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a commit, in their order, also where it is superseded."""
    slot = Slot("predictions", slice_.key)
    return read_files(
        [slice_.lake.location(slot, file["path"]) for file in standing.receipt["files"]], columns
    )


def origins(
    work: Work, standing: Commit | None, runs: Mapping[str, int], fresh: set[str]
) -> list[dict[str, Any]]:
    """What the rows of the result were made under, for its receipt.

    Args:
        runs: rows of the result by the run that scored them.
        fresh: runs that scored rows for this result.

    Returns:
        A mapping for each set of conditions: `conditions`, and `run_ids` of the runs that scored under them. Rows of
        other conditions than the work's are only there where exactly given rows were scored.
    """
    known = () if standing is None else standing.receipt.get("origins", ())
    kept = [{**origin, "run_ids": [run for run in origin["run_ids"] if run in runs]} for origin in known]
    made = [origin for origin in kept if origin["conditions"] == work.conditions]
    others = [origin for origin in kept if origin["conditions"] != work.conditions and origin["run_ids"]]
    mine = sorted(fresh.union(*(origin["run_ids"] for origin in made)) & runs.keys())
    return [*others, *([{"conditions": work.conditions, "run_ids": mine}] if mine else [])]
