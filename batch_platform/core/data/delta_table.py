"""One Delta table on a disk or in object storage: opened, created, widened, made durable, mended after a power loss.

Knows what delta-rs leaves to its caller: it fsyncs nothing, does not survive a torn last commit, and keeps a commit's
metadata where only the log's own files give it back at once. It does not know partitions, attempts or receipts' content.
"""

import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.data.objects import ObjectPath, told
from batch_platform.errors import StorageError

RECEIPT = "receipt"  # name of our entry in a commit's metadata
_CONFIGURATION = {
    # Receipts live in the log's commits: nothing of it may expire by itself.
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}
_COMMIT = re.compile(r"\d{20}\.json")


class DeltaFolder:
    """A table's folder, which need not exist yet. The opened table is kept and brought up to date at each use.

    Args:
        folder: of the table.
        is_recorded: whether a version was reported as committed, so that its commit was durable.
    """

    def __init__(self, folder: Location, is_recorded: Callable[[int], bool]) -> None:
        self.folder = folder
        self._is_recorded = is_recorded
        self._handle: DeltaTable | None = None
        # Shards are read ahead in another thread.
        self._lock = threading.Lock()

    @property
    def _options(self) -> dict[str, str] | None:
        return self.folder.bucket.delta_options if isinstance(self.folder, ObjectPath) else None

    # -- opening ------------------------------------------------------------------------------------------

    def open(self) -> DeltaTable | None:
        """The table as it is now; None where there is none.

        Raises:
            StorageError: it cannot be opened.
        """
        with self._lock:
            try:
                return self._refreshed()
            except (DeltaError, OSError) as error:
                self._handle = None
                if self._mend():
                    return self._refreshed()
                raise StorageError(f"the table {self.folder} cannot be opened: {told(error)}") from error

    def _refreshed(self) -> DeltaTable | None:
        if self._handle is not None:
            self._handle.update_incremental()
            return self._handle
        try:
            self._handle = DeltaTable(str(self.folder), storage_options=self._options)
        except TableNotFoundError:
            return None
        return self._handle

    def open_for(self, schema: pa.Schema, partition_by: list[str]) -> DeltaTable:
        """The table, created where it is not there, with at least these columns.

        Raises:
            StorageError: a column has another type in the table.
            deltalake.exceptions.DeltaError, OSError: the store refuses.
        """
        handle = self.open()
        if handle is None:
            DeltaTable.create(
                str(self.folder),
                schema=schema,
                mode="ignore",
                partition_by=partition_by,
                configuration=_CONFIGURATION,
                storage_options=self._options,
            )
            handle = self.open()
            assert handle is not None
        missing = self._missing_columns(handle, schema)
        if missing:
            handle.alter.add_columns(missing)
            self.make_durable(handle.version())
        return handle

    def _missing_columns(self, handle: DeltaTable, wanted: pa.Schema) -> list:
        present = {field.name: field for field in handle.schema().fields}
        missing = []
        for field in DeltaSchema.from_arrow(wanted).fields:
            known = present.get(field.name)
            if known is None:
                missing.append(field)
            elif known.type != field.type:
                raise StorageError(
                    f"table {self.folder}: column {field.name!r} is {known.type} in the table and {field.type} "
                    "now; rename it, or move the table's folder away"
                )
        return missing

    # -- the log ------------------------------------------------------------------------------------------

    @property
    def _log(self) -> Location:
        return self.folder / "_delta_log"

    def commit_location(self, version: int) -> Location:
        return self._log / f"{version:020}.json"

    def receipt_at(self, version: int) -> str | None:
        """The receipt in the commit that made a version, as it was written; None where it has none.

        Raises:
            StorageError: the log's file is missing, or no commit.
        """
        path = self.commit_location(version)
        content = files.read_if_there(path)
        try:
            for line in (content or b"").splitlines():
                action = json.loads(line)
                if "commitInfo" in action:
                    return action["commitInfo"].get(RECEIPT)
        except (ValueError, AttributeError) as error:
            raise StorageError(f"{path}: was altered: it is no commit any more ({error})") from None
        if content is None:
            raise StorageError(f"{path}: is missing: the table's log is not whole")
        return None

    def commit_hash(self, version: int) -> str:
        """SHA-256 of the log's file that made a version: what the next commit calls this one by.

        Raises:
            StorageError: the file is missing.
        """
        content = files.read_if_there(self.commit_location(version))
        if content is None:
            raise StorageError(f"{self.commit_location(version)}: is missing: the table's log is not whole")
        return hashlib.sha256(content).hexdigest()

    def receipts_backwards(self, handle: DeltaTable) -> Iterator[str]:
        """The receipts of the table's commits, newest first."""
        for version in range(handle.version(), -1, -1):
            receipt = self.receipt_at(version)
            if receipt is not None:
                yield receipt

    def unreadable_commits(self) -> list[Location]:
        """Files of the log that are no commits any more."""
        if not self._log.is_dir():
            return []
        commits = [path for path in self._log.iterdir() if _COMMIT.fullmatch(path.name)]
        return [path for path in commits if not _is_commit(path)]

    def make_durable(self, version: int) -> None:
        """Let a commit outlive a power loss. Object storage has done so when it answers."""
        if not isinstance(self._log, Path):
            return
        with files.writing(self._log):
            files.fsync_file(self._log / f"{version:020}.json")
            for name in (f"{version:020}.checkpoint.parquet", "_last_checkpoint"):
                if (self._log / name).is_file():
                    files.fsync_file(self._log / name)
            files.fsync_folder(self._log)

    def _mend(self) -> bool:
        """Set aside what a power loss can leave: a last commit or a checkpoint that is not whole.

        A commit that was reported as done had been durable before: it is never set aside, someone has altered it.
        Checkpoints only repeat commits.

        Returns:
            Whether something was set aside.
        """
        if not isinstance(self._log, Path) or not self._log.is_dir():
            return False
        torn = [path for path in self._log.glob("*.checkpoint.parquet") if not _is_parquet(path)]
        if torn:
            torn.append(self._log / "_last_checkpoint")
        newest = max((path for path in self._log.iterdir() if _COMMIT.fullmatch(path.name)), default=None)
        if newest is not None and not _is_commit(newest) and not self._is_recorded(int(newest.stem)):
            torn.append(newest)
        for path in torn:
            if path.is_file():
                path.rename(path.with_name(f".torn-{uuid.uuid4().hex[:8]}-{path.name}"))
        files.fsync_folder(self._log)
        return bool(torn)


def _is_commit(path: Location) -> bool:
    try:
        lines = path.read_bytes().splitlines()
        return bool(lines) and all(isinstance(json.loads(line), dict) for line in lines)
    except ValueError:
        return False


def _is_parquet(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError):
        return False
    return True


__all__ = ["RECEIPT", "CommitFailedError", "DeltaError", "DeltaFolder"]
