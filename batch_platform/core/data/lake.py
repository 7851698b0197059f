"""The lake: one Delta table per kind of result, replaced one partition at a time, all or nothing.

Decides how staged files become a partition's content and who wins when two attempts race. An attempt
has a number; check and commit happen on the same table handle, whose application transaction makes them
a compare-and-swap: the highest attempt stands, an older one is told that it is superseded. The receipt of
a commit is its Delta commit metadata; a copy lies in `receipts/` so that no reader scans history.
It does not know what the rows mean.
"""

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from batch_platform.core.data import files
from batch_platform.core.data.staging import StagedFile, read_files
from batch_platform.core.layout import Layout
from batch_platform.errors import StorageError, SupersededError

PARTITION_COLUMN = "partition_key"
_CONFIGURATION = {
    # Receipts live in the log's commits: nothing of it may expire by itself.
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}
_COMMIT_TRIES = 40
_LONGEST_PAUSE_SECONDS = 1.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


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


@dataclass(frozen=True)
class Commit:
    """What stands in a partition: its attempt number and receipt."""

    attempt: int
    receipt: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Identity of the work whose result this is."""
        return self.receipt["fingerprint"]


class Lake:
    """The tables of one pipeline. Opened tables are kept and brought up to date at each use."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._handles: dict[str, DeltaTable] = {}
        # Shards are read ahead in another thread.
        self._lock = threading.Lock()

    # -- reading ------------------------------------------------------------------------------------------

    def head(self, slot: Slot) -> Commit | None:
        """The commit that stands in a slot; None where nothing was ever committed."""
        handle = self._open(slot.table)
        attempt = None if handle is None else handle.transaction_version(slot.application)
        if handle is None or attempt is None:
            return None
        return Commit(attempt, self._receipt(handle, slot, attempt))

    def batches(
        self, table: str, partition_key: str, columns: list[str] | None = None, stage: str = ""
    ) -> Iterator[pa.RecordBatch]:
        """The rows that stand in a partition, in the order of their commit, without partition columns."""
        return read_files(self.paths(table, partition_key, stage), columns)

    def paths(self, table: str, partition_key: str, stage: str = "") -> list[Path]:
        """The files that stand in a partition, in the order of their rows."""
        handle = self._open(table)
        if handle is None:
            return []
        slot = Slot(table, partition_key, stage)
        uris = handle.file_uris(
            file_pruning_predicate=[(column, "=", value) for column, value in slot.values.items()]
        )
        return sorted(Path(uri) for uri in uris)

    def schema(self, table: str) -> pa.Schema | None:
        """The table's columns without `partition_key`; None where there is no table."""
        handle = self._open(table)
        if handle is None:
            return None
        schema = pa.schema(handle.schema().to_arrow())
        return schema.remove(schema.get_field_index(PARTITION_COLUMN))

    def partition_rows(self, table: str) -> dict[str, int]:
        """Rows by partition key, from the table's log alone. Partitions committed empty are not in it."""
        handle = self._open(table)
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

    # -- writing ------------------------------------------------------------------------------------------

    def begin(self, slot: Slot) -> int:
        """Take the next attempt number of a slot; never given out twice."""
        folder = self.layout.receipts(slot.table, slot.partition_key) / "attempts"
        taken = [int(path.name.removeprefix(slot.prefix)) for path in folder.glob(f"{slot.prefix}*")]
        handle = self._open(slot.table)
        head = None if handle is None else handle.transaction_version(slot.application)
        number = max([*taken, head or 0]) + 1
        while not files.create_once(folder / f"{slot.prefix}{number}", b""):
            number += 1
        return number

    def commit(
        self,
        slot: Slot,
        staged: Sequence[StagedFile],
        schema: pa.Schema,
        receipt: Mapping[str, Any],
        attempt: int,
    ) -> Commit:
        """Make the staged files the whole content of the slot, in one Delta commit.

        Args:
            slot: the partition to replace; its table is created at the first commit.
            staged: files in row order; none for an empty partition.
            schema: the files' columns, without the partition columns.
            receipt: what produced the rows; `fingerprint` is required.
            attempt: the number from `begin`.

        Returns:
            The commit that stands: this one, or an equal one (same fingerprint) of a twin.

        Raises:
            SupersededError: a newer attempt stands already.
            StorageError: a staged file is not what it was, or the store refuses.
        """
        for file in staged:
            _check_unaltered(file)
        linked = [self._link(slot, file, receipt["fingerprint"], attempt) for file in staged]
        full = {
            **receipt,
            "table": slot.table,
            **slot.values,
            "attempt": attempt,
            "files": [file.describe() for file in linked],
        }
        try:
            return self._compare_and_swap(slot, linked, schema, full, attempt)
        except SupersededError:
            for file in linked:
                file.path.unlink()
            raise

    def _compare_and_swap(
        self,
        slot: Slot,
        linked: Sequence[StagedFile],
        schema: pa.Schema,
        receipt: dict[str, Any],
        attempt: int,
    ) -> Commit:
        pause = 0.01
        for _ in range(_COMMIT_TRIES):
            handle = self._open_or_create(slot, schema)
            standing = handle.transaction_version(slot.application)
            if standing is not None and standing >= attempt:
                found = self._receipt(handle, slot, standing)
                if standing == attempt or found["fingerprint"] == receipt["fingerprint"]:
                    return Commit(standing, found)
                raise SupersededError(
                    f"{self._about(slot)}: attempt {attempt} is superseded by attempt {standing}; there is "
                    "nothing left to do"
                )
            try:
                self._write(handle, slot, linked, receipt, attempt)
            except CommitFailedError:
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
                continue
            except (DeltaError, OSError) as error:
                raise self._failed(slot, error) from error
            self._make_log_durable(slot.table)
            self._save_receipt(slot, attempt, receipt)
            return Commit(attempt, receipt)
        raise StorageError(
            f"{self._about(slot)}: {_COMMIT_TRIES} commits in a row met another writer's; run it again when "
            "there are fewer writers"
        )

    def _write(
        self,
        handle: DeltaTable,
        slot: Slot,
        linked: Sequence[StagedFile],
        receipt: Mapping[str, Any],
        attempt: int,
    ) -> None:
        root = self.layout.table(slot.table)
        actions: list[AddAction | RemoveAction] = [
            AddAction(
                path=str(file.path.relative_to(root)),
                size=file.size,
                partition_values=slot.values,
                modification_time=int(file.path.stat().st_mtime * 1000),
                data_change=True,
                stats=json.dumps({"numRecords": file.rows}),
            )
            for file in linked
        ]
        handle.create_write_transaction(
            actions,
            mode="overwrite",
            schema=handle.schema(),
            partition_by=list(slot.values),
            partition_filters=[(column, "=", value) for column, value in slot.values.items()],
            commit_properties=CommitProperties(
                custom_metadata={"receipt": files.canonical_json(receipt).decode()},
                app_transactions=[Transaction(slot.application, attempt)],
            ),
            post_commithook_properties=PostCommitHookProperties(
                create_checkpoint=True, cleanup_expired_logs=False
            ),
        )

    def _link(self, slot: Slot, file: StagedFile, fingerprint: str, attempt: int) -> StagedFile:
        folder = self.layout.table(slot.table) / slot.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / f"{fingerprint[:16]}-{attempt}-{file.path.name}"
            if not target.exists():
                os.link(file.path, target)
            files.fsync_folder(folder)
        except OSError as error:
            raise self._failed(slot, error) from error
        return StagedFile(target, file.size, file.rows, file.sha256)

    def _make_log_durable(self, table: str) -> None:
        # delta-rs does not fsync its commit file; a torn last commit would make the table unreadable.
        log = self.layout.table(table) / "_delta_log"
        files.fsync_file(max(log.glob("*.json")))
        files.fsync_folder(log)

    # -- receipts -----------------------------------------------------------------------------------------

    def _receipt_path(self, slot: Slot, attempt: int) -> Path:
        folder = self.layout.receipts(slot.table, slot.partition_key)
        return folder / f"{slot.prefix}{attempt}.json"

    def _save_receipt(self, slot: Slot, attempt: int, receipt: Mapping[str, Any]) -> None:
        files.create_once(self._receipt_path(slot, attempt), files.canonical_json(receipt))

    def _receipt(self, handle: DeltaTable, slot: Slot, attempt: int) -> dict[str, Any]:
        path = self._receipt_path(slot, attempt)
        if path.is_file():
            return json.loads(path.read_bytes())
        # The process died between the commit and the copy: the commit has it.
        wanted = {**slot.values, "attempt": attempt}
        for entry in handle.history():
            receipt = json.loads(entry.get("receipt", "{}"))
            if {name: receipt.get(name) for name in wanted} == wanted:
                self._save_receipt(slot, attempt, receipt)
                return receipt
        raise StorageError(
            f"{self._about(slot)}: attempt {attempt} is committed but its receipt is neither at {path} nor in "
            "the table's history"
        )

    # -- tables -------------------------------------------------------------------------------------------

    def _open(self, table: str) -> DeltaTable | None:
        with self._lock:
            try:
                if table in self._handles:
                    self._handles[table].update_incremental()
                else:
                    self._handles[table] = DeltaTable(self.layout.table(table))
                return self._handles[table]
            except TableNotFoundError:
                return None
            except (DeltaError, OSError) as error:
                raise StorageError(
                    f"pipeline {self.layout.pipeline}: the table {self.layout.table(table)} cannot be opened: "
                    f"{error}"
                ) from error

    def _open_or_create(self, slot: Slot, schema: pa.Schema) -> DeltaTable:
        keys = list(slot.values)
        full = pa.schema([*schema, *(pa.field(name, pa.string()) for name in keys)])
        handle = self._open(slot.table)
        if handle is None:
            try:
                handle = DeltaTable.create(
                    self.layout.table(slot.table),
                    schema=full,
                    mode="ignore",
                    partition_by=keys,
                    configuration=_CONFIGURATION,
                )
            except (DeltaError, OSError) as error:
                raise self._failed(slot, error) from error
        self._evolve(handle, slot.table, full)
        return handle

    def _evolve(self, handle: DeltaTable, table: str, wanted: pa.Schema) -> None:
        have = DeltaSchema.from_arrow(pa.schema(handle.schema().to_arrow()))
        present = {field.name: field for field in have.fields}
        missing = []
        for field in DeltaSchema.from_arrow(wanted).fields:
            known = present.get(field.name)
            if known is None:
                missing.append(field)
            elif known.type != field.type:
                raise StorageError(
                    f"pipeline {self.layout.pipeline}, table {table}: column {field.name!r} is {known.type} "
                    f"in the table and {field.type} now; rename it, or move the table's folder away"
                )
        if missing:
            handle.alter.add_columns(missing)

    def _about(self, slot: Slot) -> str:
        return f"pipeline {self.layout.pipeline}, partition {slot.partition_key}, table {slot.table}"

    def _failed(self, slot: Slot, error: Exception) -> StorageError:
        # delta-rs writes a coloured tree of causes.
        cause = " ".join(_COLOUR.sub("", str(error)).split())
        return StorageError(
            f"{self._about(slot)}: writing under {self.layout.root} failed: {cause}; nothing was committed. "
            "Free some space or mend the permissions, then run the partition again"
        )


def _check_unaltered(file: StagedFile) -> None:
    try:
        same = file.path.stat().st_size == file.size and files.sha256_of(file.path) == file.sha256
    except FileNotFoundError:
        same = False
    if not same:
        raise StorageError(f"staged file {file.path} is missing or altered; run the partition again")
