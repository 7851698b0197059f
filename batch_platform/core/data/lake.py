"""The lake: one Delta table per kind of result, replaced one partition at a time, all or nothing.

Decides how finished files become a partition's content and who wins when two attempts race. An attempt
has a number; check and commit happen on the same table handle, whose application transaction makes them
a compare-and-swap: the highest attempt stands, an older one is told that it is superseded. The receipt of
a commit is its Delta commit metadata, and carries the hash of the commit before it in the table's log; a copy lies in
`receipts/`, so that no reader scans history. It does not know what the rows mean.
"""

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.transaction import AddAction, RemoveAction

from batch_platform.core.data import files
from batch_platform.core.data.delta_table import RECEIPT, CommitFailedError, DeltaError, DeltaFolder
from batch_platform.core.data.files import Location
from batch_platform.core.data.objects import told
from batch_platform.core.data.staging import StagedFile, read_files
from batch_platform.core.layout import Layout
from batch_platform.errors import StorageError, SupersededError

PARTITION_COLUMN = "partition_key"
_COMMIT_TRIES = 60
_LOST_TRIES = 15
_LONGEST_PAUSE_SECONDS = 1.0
_DATA_FILE = re.compile(r"([0-9A-Za-z_]{1,16})-([0-9]+)-[A-Za-z0-9_.-]+\.parquet")


@dataclass(frozen=True)
class Slot:
    """What one commit replaces: a partition of a table.

    Attributes:
        table: the table's name.
        partition_key: the partition.
        stage: only for the table `quarantine`, which is partitioned by the stage as well.
    """

    table: str
    partition_key: str
    stage: str = ""

    @property
    def application(self) -> str:
        """Id of the Delta application transaction that orders the slot's attempts."""
        return f"{self.partition_key}/{self.stage}" if self.stage else self.partition_key

    @property
    def values(self) -> dict[str, str]:
        """Partition values, in the order of the table's partition columns."""
        return {PARTITION_COLUMN: self.partition_key} | ({"stage": self.stage} if self.stage else {})

    @property
    def folder(self) -> str:
        # Bears the key unescaped: some readers take the value from the folder's name.
        return "/".join(f"{column}={value}" for column, value in self.values.items())

    @property
    def prefix(self) -> str:
        return f"{self.stage or 'all'}-"

    @classmethod
    def of(cls, receipt: Mapping[str, Any]) -> "Slot":
        """The slot that a receipt speaks of."""
        stage = receipt["stage"] if receipt["table"] == "quarantine" else ""
        return cls(receipt["table"], receipt[PARTITION_COLUMN], stage)


@dataclass(frozen=True)
class Commit:
    """What stands in a partition: its attempt number and receipt."""

    attempt: int
    receipt: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Identity of the work whose result this is."""
        return self.receipt["fingerprint"]

    @property
    def rows(self) -> int:
        return sum(file["rows"] for file in self.receipt["files"])


class Lake:
    """The tables of one pipeline."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._folders: dict[str, DeltaFolder] = {}

    def table(self, name: str) -> DeltaFolder:
        """A table's folder and log."""
        if name not in self._folders:
            self._folders[name] = DeltaFolder(self.layout.table(name), lambda v: self._is_recorded(name, v))
        return self._folders[name]

    def _is_recorded(self, table: str, version: int) -> bool:
        """Whether a copy of a receipt speaks of this version. Looked for only where a table cannot be opened."""
        for found in files.walk(self.layout.receipts(table, "x").parent):
            copy = files.unsealed(found.location.read_bytes())
            if copy is not None and copy["receipt"]["version"] == version:
                return True
        return False

    def tables(self) -> list[str]:
        """Names of the tables that are there."""
        found = files.entries(self.layout.table("x").parent)
        return [entry.name for entry in found if (entry / "_delta_log").is_dir()]

    # -- reading ------------------------------------------------------------------------------------------

    def head(self, slot: Slot) -> Commit | None:
        """The commit that stands in a slot; None where nothing was ever committed."""
        handle = self.table(slot.table).open()
        attempt = None if handle is None else handle.transaction_version(slot.application)
        if handle is None or attempt is None:
            return None
        return Commit(attempt, self._receipt(handle, slot, attempt))

    def heads(self, table: str) -> Iterator[tuple[Slot, Commit]]:
        """The commits that stand in the slots in which there are rows, by slot, all of one moment."""
        slots = self.filled_slots(table)
        handle = self.table(table).open()
        for slot in slots:
            assert handle is not None
            attempt = handle.transaction_version(slot.application)
            assert attempt is not None  # rows come by commits of ours
            yield slot, Commit(attempt, self._receipt(handle, slot, attempt))

    def batches(
        self, table: str, partition_key: str, columns: list[str] | None = None, stage: str = ""
    ) -> Iterator[pa.RecordBatch]:
        """The rows that stand in a partition, in the order of their commit, without partition columns."""
        return read_files(self.paths(table, partition_key, stage), columns)

    def paths(self, table: str, partition_key: str, stage: str = "") -> list[Location]:
        """The files that stand in a partition, in the order of their rows."""
        handle = self.table(table).open()
        if handle is None:
            return []
        slot = Slot(table, partition_key, stage)
        uris = handle.file_uris(
            file_pruning_predicate=[(column, "=", value) for column, value in slot.values.items()]
        )
        # Only the name is taken: object storage gives its addresses percent-encoded.
        return [self.location(slot, uri.rpartition("/")[2]) for uri in sorted(uris)]

    def location(self, slot: Slot, name: str) -> Location:
        """Where a data file of a slot lies, by its name in the receipt.

        Raises:
            StorageError: it is no name of a data file.
        """
        if not _DATA_FILE.fullmatch(name):
            raise StorageError(f"{self._about(slot)}: {name!r} is not the name of one of its files")
        return self.layout.table(slot.table) / slot.folder / name

    def schema(self, table: str) -> pa.Schema | None:
        """The table's columns without `partition_key`; None where there is no table."""
        handle = self.table(table).open()
        if handle is None:
            return None
        schema = pa.schema(handle.schema().to_arrow())
        return schema.remove(schema.get_field_index(PARTITION_COLUMN))

    def standing_files(self, table: str) -> dict[str, list[Location]]:
        """The files that stand, by partition key, from the table's log alone, in the order of their names."""
        handle = self.table(table).open()
        if handle is None:
            return {}
        actions = pa.table(handle.get_add_actions(flatten=True))
        stages = actions["partition.stage"].to_pylist() if table == "quarantine" else [""] * len(actions)
        found: dict[str, list[Location]] = {}
        for path, key, stage in sorted(
            zip(
                actions["path"].to_pylist(),
                actions[f"partition.{PARTITION_COLUMN}"].to_pylist(),
                stages,
                strict=True,
            )
        ):
            slot = Slot(table, key, stage)
            found.setdefault(key, []).append(self.location(slot, path.rpartition("/")[2]))
        return found

    def partition_rows(self, table: str) -> dict[str, int]:
        """Rows by partition key, from the table's log alone. Partitions committed empty are not in it."""
        handle = self.table(table).open()
        if handle is None:
            return {}
        actions = pa.table(handle.get_add_actions(flatten=True))
        rows: dict[str, int] = {}
        for key, count in zip(
            actions[f"partition.{PARTITION_COLUMN}"].to_pylist(),
            actions["num_records"].to_pylist(),
            strict=True,
        ):
            rows[key] = rows.get(key, 0) + count
        return rows

    def filled_slots(self, table: str) -> list[Slot]:
        """The slots in which rows stand, in order."""
        handle = self.table(table).open()
        if handle is None:
            return []
        actions = pa.table(handle.get_add_actions(flatten=True))
        keys = actions[f"partition.{PARTITION_COLUMN}"].to_pylist()
        stages = actions["partition.stage"].to_pylist() if table == "quarantine" else [""] * len(keys)
        return [Slot(table, key, stage) for key, stage in sorted(set(zip(keys, stages, strict=True)))]

    # -- writing ------------------------------------------------------------------------------------------

    def begin(self, slot: Slot) -> int:
        """Take the next attempt number of a slot; never given out twice."""
        # Listed before the head is read: records are removed only below a head that stands.
        taken = [
            self._attempt_number(slot, path.name) for path in self._attempts(slot).glob(f"{slot.prefix}*")
        ]
        handle = self.table(slot.table).open()
        head = None if handle is None else handle.transaction_version(slot.application)
        number = max([*taken, head or 0]) + 1
        while not files.create_once(self._attempt(slot, number), uuid.uuid4().hex.encode()):
            number += 1
        return number

    def place(
        self, slot: Slot, staged: Sequence[StagedFile], fingerprint: str, attempt: int
    ) -> list[StagedFile]:
        """Move finished files into a table's folder, where no reader sees them before a commit names them.

        Raises:
            StorageError: a file is not what it was, or the store refuses.
        """
        placed = []
        for file in staged:
            _check_unaltered(file)
            target = self.location(slot, f"{fingerprint[:16]}-{attempt}-{file.path.name}")
            files.publish(file.path, target)
            placed.append(replace(file, path=target))
        return placed

    def commit(
        self,
        slot: Slot,
        staged: Sequence[StagedFile],
        schema: pa.Schema,
        receipt: Mapping[str, Any],
        attempt: int,
    ) -> Commit:
        """Make staged files the whole content of the slot: `place`, then `commit_placed`."""
        placed = self.place(slot, staged, receipt["fingerprint"], attempt)
        return self.commit_placed(slot, placed, schema, receipt, attempt)

    def commit_placed(
        self,
        slot: Slot,
        placed: Sequence[StagedFile],
        schema: pa.Schema,
        receipt: Mapping[str, Any],
        attempt: int,
    ) -> Commit:
        """Make placed files the whole content of the slot, in one Delta commit.

        Args:
            slot: the partition to replace; its table is created at the first commit.
            placed: files in row order, from `place`; none for an empty partition.
            schema: the files' columns, without the partition columns.
            receipt: what produced the rows; `fingerprint` is required.
            attempt: the number from `begin`.

        Returns:
            The commit that stands: this one, or an equal one (same fingerprint) of a twin.

        Raises:
            SupersededError: a newer attempt stands already.
            StorageError: the store refuses.
        """
        full = {
            **receipt,
            "table": slot.table,
            **slot.values,
            "attempt": attempt,
            "files": [file.describe() for file in placed],
        }
        try:
            commit = self._compare_and_swap(slot, placed, schema, full)
        except SupersededError:
            _remove(placed)
            raise
        if commit.attempt != attempt:  # a twin's result is the same: this one is not needed
            _remove(placed)
        files.remove(self._attempt(slot, attempt))
        return commit

    def _compare_and_swap(
        self, slot: Slot, placed: Sequence[StagedFile], schema: pa.Schema, receipt: dict[str, Any]
    ) -> Commit:
        attempt, pause = receipt["attempt"], 0.01
        rival: Exception | None = None
        lost = 0
        lock = files.scratch(self.layout.root) / "locks" / f"{self.layout.pipeline}-{slot.table}"
        for _ in range(_COMMIT_TRIES):
            try:
                with files.locked(lock):
                    handle = self._open_for(slot, schema)
                    standing = handle.transaction_version(slot.application)
                    if standing is not None and standing >= attempt:
                        return self._yield_to(handle, slot, standing, receipt)
                    last = handle.version()
                    previous = self.table(slot.table).commit_hash(last)
                    whole = receipt | {"version": last + 1, "previous": previous, "supersedes": standing}
                    content = files.canonical_json(whole)
                    self._write(handle, slot, placed, content, attempt)
                    self.table(slot.table).make_durable(whole["version"])
                    self._save_receipt(slot, whole)
                    return Commit(attempt, whole)
            except CommitFailedError as error:
                rival = error
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            except (DeltaError, OSError) as error:
                commit = self._standing(
                    slot, attempt
                )  # a checkpoint after the commit can fail, or a reply be lost
                if commit is not None:
                    return commit
                lost += 1
                if lost > self._patience:
                    raise self._failed(slot, error) from error
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        raise StorageError(
            f"{self._about(slot)}: {_COMMIT_TRIES} commits in a row met another writer's ({rival and told(rival)}); run it "
            "again when there are fewer writers"
        )

    @property
    def _patience(self) -> int:
        """How often a failed commit is tried again: object storage has passing failures, a full disk has not."""
        return 0 if isinstance(self.layout.root, Path) else _LOST_TRIES

    def _standing(self, slot: Slot, attempt: int) -> Commit | None:
        head = self.head(slot)
        return head if head is not None and head.attempt == attempt else None

    def _yield_to(self, handle: DeltaTable, slot: Slot, standing: int, mine: Mapping[str, Any]) -> Commit:
        """What stands instead: my own commit whose reply was lost, a twin's equal work, or newer work."""
        found = self._receipt(handle, slot, standing)
        if standing == mine["attempt"] or found["fingerprint"] == mine["fingerprint"]:
            return Commit(standing, found)
        raise SupersededError(
            f"{self._about(slot)}: attempt {mine['attempt']} is superseded by attempt {standing}; there is "
            "nothing left to do"
        )

    def _write(
        self, handle: DeltaTable, slot: Slot, placed: Sequence[StagedFile], receipt: bytes, attempt: int
    ) -> None:
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [
            AddAction(
                path=f"{slot.folder}/{file.path.name}",
                size=file.size,
                partition_values=slot.values,
                modification_time=now,
                data_change=True,
                stats=json.dumps({"numRecords": file.rows}),
            )
            for file in placed
        ]
        handle.create_write_transaction(
            actions,
            mode="overwrite",
            schema=handle.schema(),
            partition_by=list(slot.values),
            partition_filters=[(column, "=", value) for column, value in slot.values.items()],
            commit_properties=CommitProperties(
                custom_metadata={RECEIPT: receipt.decode()},
                app_transactions=[Transaction(slot.application, attempt)],
                # The receipt names the one before it: with another commit in between it must be made anew.
                max_commit_retries=0,
            ),
            post_commithook_properties=PostCommitHookProperties(
                create_checkpoint=True, cleanup_expired_logs=False
            ),
        )

    # -- receipts -----------------------------------------------------------------------------------------

    def receipt_location(self, slot: Slot, attempt: int) -> Location:
        """Where the copy of a commit's receipt lies."""
        folder = self.layout.receipts(slot.table, slot.partition_key)
        return folder / f"{slot.prefix}{attempt}.json"

    def receipt_copy(self, receipt: Mapping[str, Any]) -> bytes:
        """What the copy of a receipt holds: the receipt, and the hash of the commit that it was made by."""
        return files.sealed(
            {"receipt": receipt, "commit": self.table(receipt["table"]).commit_hash(receipt["version"])}
        )

    def _save_receipt(self, slot: Slot, receipt: Mapping[str, Any]) -> None:
        files.create_once(self.receipt_location(slot, receipt["attempt"]), self.receipt_copy(receipt))

    def _receipt(self, handle: DeltaTable, slot: Slot, attempt: int) -> dict[str, Any]:
        copy = files.unsealed(files.read_if_there(self.receipt_location(slot, attempt)) or b"")
        if copy is not None:
            return copy["receipt"]
        # The process died between the commit and the copy, perhaps before the commit was durable.
        wanted = {"table": slot.table, **slot.values, "attempt": attempt}
        for found in self.table(slot.table).receipts_backwards(handle):
            receipt = json.loads(found)
            if {name: receipt.get(name) for name in wanted} == wanted:
                self.table(slot.table).make_durable(receipt["version"])
                self._save_receipt(slot, receipt)
                return receipt
        raise StorageError(
            f"{self._about(slot)}: attempt {attempt} is committed but its receipt is neither at "
            f"{self.receipt_location(slot, attempt)} nor in the table's log"
        )

    def receipts_of(self, slot: Slot) -> list[dict[str, Any]]:
        """The receipts of a slot's commits, newest first, from their copies: `verify --rebuild` makes lost ones again."""
        self.head(slot)  # which makes the newest copy again where it is not whole
        folder = self.layout.receipts(slot.table, slot.partition_key)
        copies = (
            files.unsealed(place.read_bytes()) for place in files.entries(folder, f"{slot.prefix}*.json")
        )
        found = [copy["receipt"] for copy in copies if copy is not None]
        return sorted(found, key=lambda receipt: -receipt["attempt"])

    def receipts(self, table: str) -> Iterator[dict[str, Any]]:
        """The receipts of all commits of a table, newest first: reads its whole log."""
        handle = self.table(table).open()
        if handle is not None:
            yield from (json.loads(found) for found in self.table(table).receipts_backwards(handle))

    # -- attempts -----------------------------------------------------------------------------------------

    def forget_attempts(self, slot: Slot, standing: int) -> None:
        """Remove the records of attempts up to one that stands: numbers above it alone are given out."""
        for place in self._attempts(slot).glob(f"{slot.prefix}*"):
            if self._attempt_number(slot, place.name) <= standing:
                files.remove(place)

    def _attempts(self, slot: Slot) -> Location:
        return self.layout.receipts(slot.table, slot.partition_key) / "attempts"

    def _attempt(self, slot: Slot, number: int) -> Location:
        return self._attempts(slot) / f"{slot.prefix}{number}"

    def _attempt_number(self, slot: Slot, name: str) -> int:
        number = name.removeprefix(slot.prefix)
        return int(number) if number.isdecimal() else 0

    # -- details ------------------------------------------------------------------------------------------

    def _open_for(self, slot: Slot, schema: pa.Schema) -> DeltaTable:
        keys = list(slot.values)
        full = pa.schema([*schema, *(pa.field(name, pa.string()) for name in keys)])
        return self.table(slot.table).open_for(full, keys)

    def _about(self, slot: Slot) -> str:
        return f"pipeline {self.layout.pipeline}, partition {slot.partition_key}, table {slot.table}"

    def _failed(self, slot: Slot, error: Exception) -> StorageError:
        return StorageError(
            f"{self._about(slot)}: writing under {self.layout.root} failed: {told(error)}; nothing was committed. "
            "Free some space or mend the permissions, then run the partition again"
        )


def attempt_of(name: str) -> int | None:
    """The attempt that made a data file, from its name; None where it is no name of a data file."""
    found = _DATA_FILE.fullmatch(name)
    return None if found is None else int(found[2])


def _check_unaltered(file: StagedFile) -> None:
    try:
        same = file.path.stat().st_size == file.size and files.sha256_of(file.path) == file.sha256
    except FileNotFoundError:
        same = False
    if not same:
        raise StorageError(f"staged file {file.path} is missing or altered; run the partition again")


def _remove(placed: Sequence[StagedFile]) -> None:
    for file in placed:
        files.remove(file.path)
