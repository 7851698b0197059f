"""The predictions of another pipeline, of the partition with the same key.

Decides under which names their columns go: the columns of predictions belong to the platform in every table, so a
contract calls the `score` of the pipeline `churn` `churn_score`; `row_key` keeps its name. Read are the files that the
receipt of one commit names; what is committed has passed that pipeline's gate.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from batch_platform.core.data.cells import CellType
from batch_platform.core.data.contract import SourceBatch
from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import Commit, Lake, Slot
from batch_platform.core.data.readers.parquet import read_parquet
from batch_platform.core.layout import Layout
from batch_platform.errors import SourceMissingError


def read_predictions(
    root: Location, pipeline: str, partition_key: str, columns: Mapping[str, CellType]
) -> Iterator[SourceBatch]:
    """The rows of a pipeline's predictions, a few megabytes at a time.

    Args:
        columns: the contract's columns and their types.

    Raises:
        SourceMissingError: that pipeline has not scored the partition.
        ContractError: the predictions lack a column of the contract, or it is of another type.
    """
    lake, slot = Lake(Layout(root, pipeline)), Slot("predictions", partition_key)
    commit = lake.head(slot)
    if commit is None:
        raise SourceMissingError(
            f"pipeline {pipeline} has no predictions of {partition_key}: run that partition of it first; both need the "
            "same cadence"
        )
    theirs = {_their_name(pipeline, column): column for column in columns}
    kinds = {_their_name(pipeline, column): kind for column, kind in columns.items()}
    for file in commit.receipt["files"]:
        name = _name_of(pipeline, commit, file)
        for batch in read_parquet(lake.location(slot, file["path"]), name, kinds, None):
            yield replace(
                batch,
                batch=batch.batch.rename_columns([theirs[column] for column in batch.batch.schema.names]),
                bad_cells=[replace(cell, column=theirs[cell.column]) for cell in batch.bad_cells],
                columns_seen=frozenset(theirs.get(column, column) for column in batch.columns_seen),
            )


def prediction_digests(root: Location, pipeline: str, partition_key: str) -> dict[str, str]:
    """SHA-256 of the files read, by the name that they have in tables; none where nothing is committed."""
    commit = Lake(Layout(root, pipeline)).head(Slot("predictions", partition_key))
    return (
        {}
        if commit is None
        else {_name_of(pipeline, commit, file): file["sha256"] for file in commit.receipt["files"]}
    )


def _name_of(pipeline: str, commit: Commit, file: Mapping[str, Any]) -> str:
    return f"{pipeline}/predictions@{commit.attempt}/{file['path']}"


def _their_name(pipeline: str, column: str) -> str:
    return column.removeprefix(f"{pipeline}_")
