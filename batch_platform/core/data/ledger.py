"""The ledger of finished shards: what is done of a piece of work, surviving any kill.

A shard is finished once its entry exists; entries are created once, and the loser of a race adopts the
winner's. An entry whose file is missing or altered is void. It does not know what a shard holds.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.data import files
from batch_platform.core.data.staging import StagedFile, finish_file


@dataclass(frozen=True)
class FinishedShard:
    """A scored shard.

    Attributes:
        file: its rows; None where no row of it could be scored.
        notes: what else the writer wants to know again (failures, statistics), as JSON values.
    """

    file: StagedFile | None
    notes: Mapping[str, Any]


class ShardLedger:
    """Finished shards of one work fingerprint, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def finished(self, index: int) -> FinishedShard | None:
        """The shard's entry, after checking its bytes; a void entry is removed."""
        path = self._entry(index)
        if not path.is_file():
            return None
        entry = json.loads(path.read_bytes())
        file = entry["file"]
        if file is None:
            return FinishedShard(None, entry["notes"])
        staged = StagedFile(self._folder / file["path"], file["size"], file["rows"], file["sha256"])
        if not staged.path.is_file() or files.sha256_of(staged.path) != staged.sha256:
            path.unlink()
            return None
        return FinishedShard(staged, entry["notes"])

    def record(self, index: int, rows: pa.Table, notes: Mapping[str, Any]) -> FinishedShard:
        """Write a shard and its entry; where another writer was first, that one's shard is returned."""
        mine = self._write(index, rows) if rows.num_rows else None
        entry = {"file": None if mine is None else mine.describe(), "notes": dict(notes)}
        if files.create_once(self._entry(index), files.canonical_json(entry)):
            return FinishedShard(mine, notes)
        winner = self.finished(index)
        if winner is None:  # the other's entry was void and is gone
            return self.record(index, rows, notes)
        if mine is not None and (winner.file is None or winner.file.path != mine.path):
            mine.path.unlink()
        return winner

    def _entry(self, index: int) -> Path:
        return self._folder / f"shard-{index:06d}.json"

    def _write(self, index: int, rows: pa.Table) -> StagedFile:
        path = self._folder / f"shard-{index:06d}-{uuid.uuid4().hex[:12]}.parquet"
        try:
            with files.writing(path):
                pq.write_table(rows, path, compression="zstd")
                staged = finish_file(path, rows.num_rows)
                files.fsync_folder(self._folder)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return staged
