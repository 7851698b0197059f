"""The commits that a prediction goes back to: predictions, the features they were made of, the raw rows behind these.

Follows the receipts of one partition, also to commits that were replaced since. It does not know what the rows mean.
"""

from collections.abc import Mapping
from datetime import UTC
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data.lake import Lake, Slot
from batch_platform.core.data.staging import read_files
from batch_platform.core.features.chunks import parent_key
from batch_platform.core.provenance import finding
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import RowNotFoundError, StorageError

Receipt = Mapping[str, Any]
Row = dict[str, Any]

STAGES = ("raw", "features", "predictions")


class Trail:
    """One partition, backwards.

    Args:
        made: receipt of the predictions to begin with; by default of those that stand.

    Attributes:
        partition_key: the partition.
        predictions: the receipt of the commit begun with; None where the partition was never scored.
        features: of the features that the predictions were made of; without predictions, of those that stand.
        raw: of the raw rows that the features were made of, in the same way.
        notes: what could not be read any more.
    """

    def __init__(self, lake: Lake, partition_key: str, made: Receipt | None = None) -> None:
        self._lake, self.partition_key = lake, partition_key
        self._receipts: dict[str, list[dict[str, Any]]] = {}
        self.predictions = made or self._newest("predictions")
        self.features = self._made_of(self.predictions, "features")
        self.raw = self._made_of(self.features, "raw")
        self.notes: list[str] = []

    @property
    def about(self) -> str:
        """How messages name it."""
        return f"pipeline {self._lake.layout.pipeline}, partition {self.partition_key}"

    def replaced_predictions(self) -> list[Receipt]:
        """The commits of predictions that were replaced, newest first."""
        return [*self._commits("predictions")[1:]]

    def row(self, receipt: Receipt | None, row_key: str) -> pa.Table | None:
        """A row of a commit, as a table of one; None where the commit has none, or its files were removed since.

        Raises:
            StorageError: a file of a commit that stands is missing.
        """
        if receipt is None:
            return None
        slot = Slot.of(receipt)
        try:
            place = finding.find(
                [self._lake.location(slot, file["path"]) for file in receipt["files"]], row_key
            )
            return None if place is None else finding.read(place)
        except FileNotFoundError:
            head = self._lake.head(slot)
            if head is None or head.attempt == receipt["attempt"]:
                raise StorageError(
                    f"{self.about}: a file of {slot.table} is missing; batch-platform verify "
                    f"{self._lake.layout.pipeline} says which"
                ) from None
        self.notes.append(
            f"{slot.table}, attempt {receipt['attempt']} of {receipt['committed_at']}: its files were removed since"
        )
        return None

    @property
    def is_of_pieces(self) -> bool:
        """Whether the feature rows are pieces of raw rows, with keys of their own."""
        return self.features is not None and self.features.get("expands", False)

    def raw_row(self, row_key: str) -> pa.Table | None:
        """The raw row with this key, or that the feature row with this key is a piece of; else as `row`."""
        found = self.row(self.raw, row_key)
        return self.row(self.raw, parent_key(row_key)) if found is None and self.is_of_pieces else found

    def quarantine(self, row_key: str) -> list[Row]:
        """The row's entries in quarantine, by stage, of all commits whose files are there, the newest first."""
        found = []
        for stage in STAGES:
            receipts = self._lake.receipts_of(Slot("quarantine", self.partition_key, stage))
            for receipt in receipts:
                row = self.row(receipt, row_key)
                if row is not None:
                    found.append({"stage": stage, "stands": receipt is receipts[0], **row.to_pylist()[0]})
        return found

    def scoring(self, prediction: Row) -> tuple[Receipt, int | None]:
        """The commit that a row was scored for, and the number of its shard there; a reused row keeps run and time.

        The number is None for commits of releases that only counted shards.

        Raises:
            StorageError: no commit of the partition scored it.
        """
        moment = prediction["scored_at"].astimezone(UTC).isoformat(timespec="microseconds")
        wanted = [prediction["run_id"], moment]
        for receipt in reversed(self._commits("predictions")):
            shards = receipt["shards"]
            if isinstance(shards, int):
                if receipt["run_id"] == prediction["run_id"]:
                    return receipt, None
            elif wanted in shards:
                return receipt, shards.index(wanted)
        raise StorageError(
            f"{self.about}: no receipt speaks of the run {prediction['run_id']} that scored the row at {moment}; "
            f"batch-platform verify {self._lake.layout.pipeline} --rebuild writes lost receipts again"
        )

    def row_in_shard(self, scored_by: Receipt, prediction: Row) -> int | None:
        """The number of a row among those of its shard that have an output, from 0, equal inputs counted once.

        Args:
            scored_by: from `scoring`.

        Returns:
            None where its files were removed since.
        """
        slot = Slot.of(scored_by)
        places = [self._lake.location(slot, file["path"]) for file in scored_by["files"]]
        inputs: dict[str, None] = {}
        try:
            for batch in read_files(places, ["run_id", "scored_at", "input_hash"]):
                same_run = pc.equal(batch["run_id"], prediction["run_id"])
                moment = pa.scalar(prediction["scored_at"], batch["scored_at"].type)
                mine = batch["input_hash"].filter(pc.and_(same_run, pc.equal(batch["scored_at"], moment)))
                inputs |= dict.fromkeys(mine.to_pylist())
                if prediction["input_hash"] in inputs:
                    return list(inputs).index(prediction["input_hash"])
        except FileNotFoundError:
            self.notes.append(
                f"predictions, attempt {scored_by['attempt']}: its files were removed since: the row's number in its shard "
                "is not known any more"
            )
        return None

    def _newest(self, table: str) -> Receipt | None:
        return next(iter(self._commits(table)), None)

    def _commits(self, table: str) -> list[dict[str, Any]]:
        """Receipts, newest first; read when first asked for."""
        if table not in self._receipts:
            self._receipts[table] = self._lake.receipts_of(Slot(table, self.partition_key))
        return self._receipts[table]

    def _made_of(self, made: Receipt | None, upstream: str) -> Receipt | None:
        if made is None:
            return self._newest(upstream)
        wanted = made[f"{upstream}_fingerprint"]
        return next((found for found in self._commits(upstream) if found["fingerprint"] == wanted), None)


def partition_of(spec: PipelineSpec, lake: Lake, row_key: str, partition_key: str | None) -> str:
    """The partition asked for; by default the newest with a prediction of the row, else with it in quarantine or raw.

    Raises:
        PartitionKeyError: the pipeline has no such partition.
        RowNotFoundError: no partition has the row.
    """
    if partition_key is not None:
        return spec.partitions.calendar().partition(partition_key).key
    for table in ("predictions", "quarantine", "raw"):
        found = finding.newest_partition_with(lake, table, row_key)
        if found is not None:
            return found
    raise RowNotFoundError(
        f"pipeline {spec.name}: no partition has a row with the key {row_key!r}: check the key (it is that of the "
        "column row_key, as a text), and whether its partition has run"
    )
