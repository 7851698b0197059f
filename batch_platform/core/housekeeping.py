"""Housekeeping: what nobody needs any more is removed, and nothing else.

Removed are the staging of finished work and of work left alone for `staging_days`; data files of attempts that can never
commit any more; superseded data files after `history_days`; payloads and messages of quarantined rows after
`quarantine_days` (their keys, causes and places stay: they are part of the account of the partition). A live run's files
are younger, or belong to an attempt that can still commit. Receipts and the tables' logs are never touched.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from batch_platform.core.data import files
from batch_platform.core.data.files import FoundFile, Location
from batch_platform.core.data.lake import Commit, Lake, Slot, attempt_of
from batch_platform.core.data.staging import StagedFile, read_files, stage
from batch_platform.core.layout import Layout
from batch_platform.core.quarantine import SCHEMA
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import SupersededError
from batch_platform.settings import Settings

EXPIRED = "expired"  # in the place of a message that was kept for its time
_STAGES = ("raw", "features", "predictions")


@dataclass
class Cleaned:
    """What was removed: files and bytes by reason; and partitions whose quarantine lost its payloads."""

    files: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    expired: int = 0

    def count(self, reason: str, size: int) -> None:
        self.files[reason] = self.files.get(reason, 0) + 1
        self.bytes[reason] = self.bytes.get(reason, 0) + size


def clean(spec: PipelineSpec, settings: Settings, now: datetime, progress: Callable[[str], None]) -> Cleaned:
    """Remove what a pipeline's `retention` has no need to keep.

    Args:
        now: aware; ages are counted from here.
        progress: told after every table.

    Raises:
        StorageError: the root cannot be read or written.
    """
    keeper = _Housekeeper(spec, Layout.of(settings, spec.name), now)
    keeper.clean_staging()
    keeper.clean_scratch()
    keeper.expire_quarantine()
    for table in keeper.lake.tables():
        keeper.clean_table(table)
        progress(f"[{spec.name}] housekeeping: {table} is clean")
    keeper.clean_receipts()
    return keeper.cleaned


class _Housekeeper:
    def __init__(self, spec: PipelineSpec, layout: Layout, now: datetime) -> None:
        self._layout = layout
        self._now = now
        self._retention = spec.retention
        self.lake = Lake(layout)
        self.cleaned = Cleaned()

    # -- work in progress ---------------------------------------------------------------------------------

    def clean_staging(self) -> None:
        """Ledgers of work that is committed, and those that nobody has added to for long."""
        groups: dict[str, list[FoundFile]] = {}
        for found in files.walk(self._layout.staging("x").parent):
            groups.setdefault(str(found.location.parent), []).append(found)
        finished = {commit.fingerprint for _, commit in self._heads("predictions") if commit is not None}
        for group in groups.values():
            is_finished = group[0].location.parent.name in finished
            if is_finished or self._is_old(max(found.modified for found in group)):
                for found in group:
                    self._remove("staging", found)
        files.remove_empty_folders(self._layout.staging("x").parent, self._old)

    def clean_scratch(self) -> None:
        """Files in the making on this machine, left by processes that were killed."""
        for found in files.walk(files.scratch(self._layout.root) / self._layout.pipeline):
            if self._is_old(found.modified):
                self._remove("scratch", found)
        files.remove_empty_folders(files.scratch(self._layout.root) / self._layout.pipeline, self._old)

    def clean_receipts(self) -> None:
        """Numbers of attempts below a commit that stands: they cannot be given out again. Half-written files."""
        for table in self.lake.tables():
            for slot, commit in self._heads(table):
                if commit is not None:
                    self.lake.forget_attempts(slot, commit.attempt)
        for found in files.walk(self._layout.receipts("x", "x").parent.parent):
            if found.location.name.endswith(".tmp") and self._is_old(found.modified):
                self._remove("scratch", found)

    # -- tables -------------------------------------------------------------------------------------------

    def clean_table(self, table: str) -> None:
        """Files that no commit names, and those of commits that were superseded long ago."""
        receipts = self._receipts(table)
        known = {file["path"] for receipt in receipts for file in receipt["files"]}
        if table == "quarantine":
            known |= self._decided_quarantines()
        droppable = self._superseded(table, receipts)
        for found in files.walk(self._layout.table(table)):
            name = found.location.name
            if name in droppable:
                self._remove("history", found)
            elif name.endswith(".tmp") or ".tmp" in name:
                if self._is_old(found.modified):
                    self._remove("scratch", found)
            elif name not in known and attempt_of(name) is not None and self._can_never_commit(table, found):
                self._remove("leftovers", found)

    def _superseded(self, table: str, receipts: Iterable[dict[str, Any]]) -> set[str]:
        days = self._retention.quarantine_days if table == "quarantine" else self._retention.history_days
        oldest = self._now - timedelta(days=days)
        droppable: set[str] = set()
        replaced: dict[Slot, datetime] = {}
        expired: set[Slot] = set()
        for receipt in reversed(list(receipts)):
            slot = Slot.of(receipt)
            if slot in expired or (slot in replaced and replaced[slot] < oldest):
                droppable |= {file["path"] for file in receipt["files"]}
            replaced[slot] = datetime.fromisoformat(receipt["committed_at"])
            if receipt.get("expired"):
                expired.add(slot)
        return droppable

    def _can_never_commit(self, table: str, found: FoundFile) -> bool:
        """The attempt is not newer than what stands; a newer one may be running, unless it is long dead."""
        attempt = attempt_of(found.location.name)
        head = self.lake.head(self._deciding_slot(table, found.location))
        if head is not None and attempt is not None and attempt <= head.attempt:
            return True
        return self._is_old(found.modified)

    def _deciding_slot(self, table: str, location: Location) -> Slot:
        """The slot whose commit decides about a data file: the stage's for its quarantine."""
        values = dict(part.split("=", 1) for part in str(location).split("/") if "=" in part)
        key = values["partition_key"]
        return Slot(values["stage"], key) if table == "quarantine" else Slot(table, key)

    def _decided_quarantines(self) -> set[str]:
        """Files that the standing commits of the stages name: a kill may have come before the quarantine's commit."""
        return {
            file["path"]
            for stage_name in _STAGES
            for _, commit in self._heads(stage_name)
            if commit is not None
            for file in commit.receipt["quarantine_files"]
        }

    # -- quarantine ---------------------------------------------------------------------------------------

    def expire_quarantine(self) -> None:
        """Blank what quarantined rows said, after their time."""
        oldest = self._now - timedelta(days=self._retention.quarantine_days)
        for slot, commit in self._heads("quarantine"):
            if commit is None or not commit.receipt["files"] or commit.receipt.get("expired"):
                continue
            if datetime.fromisoformat(commit.receipt["committed_at"]) < oldest:
                self._expire(slot, commit)

    def _expire(self, slot: Slot, commit: Commit) -> None:
        attempt = self.lake.begin(Slot(slot.stage, slot.partition_key))
        folder = self._layout.scratch(slot.partition_key) / f"expire-{slot.stage}-{attempt}"
        try:
            places = [self.lake.location(slot, file["path"]) for file in commit.receipt["files"]]
            staged: list[StagedFile] = stage(_blanked(read_files(places)), SCHEMA, folder, slot.stage)
            receipt = {
                **commit.receipt,
                "fingerprint": f"{EXPIRED}_{commit.fingerprint}",
                "committed_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "expired": True,
            }
            self.lake.commit(slot, staged, SCHEMA, receipt, attempt)
            self.cleaned.expired += 1
        except SupersededError:
            return  # the partition was worked on meanwhile
        finally:
            files.remove_folder(folder)

    # -- details ------------------------------------------------------------------------------------------

    def _receipts(self, table: str) -> list[dict[str, Any]]:
        """Oldest first."""
        return list(self.lake.receipts(table))[::-1]

    def _heads(self, table: str) -> Iterator[tuple[Slot, Commit | None]]:
        for slot in dict.fromkeys(Slot.of(receipt) for receipt in self._receipts(table)):
            yield slot, self.lake.head(slot)

    @property
    def _old(self) -> datetime:
        return self._now - timedelta(days=self._retention.staging_days)

    def _is_old(self, modified: datetime) -> bool:
        return modified < self._old

    def _remove(self, reason: str, found: FoundFile) -> None:
        files.remove(found.location)
        self.cleaned.count(reason, found.size)


def _blanked(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        columns = {name: batch[name] for name in SCHEMA.names}
        columns["payload"] = pa.nulls(batch.num_rows, pa.string())
        columns["message"] = pa.array([EXPIRED] * batch.num_rows, pa.string())
        yield pa.RecordBatch.from_pydict(columns, SCHEMA)
