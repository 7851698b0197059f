"""The ledger of finished shards: what is done of a piece of work, surviving any kill.

A shard is finished once its entry exists; entries are created once, and the loser of a race adopts the
winner's. An entry whose file is missing or altered is void: it is removed, and the shard is to be scored again. It
does not know what a shard holds.
"""

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.data.objects import ObjectPath
from batch_platform.core.data.staging import StagedFile, finish_file

_ENTRY = re.compile(r"shard-\d{6}\.json")


@dataclass(frozen=True)
class FinishedShard:
    """A scored shard.

    Attributes:
        file: its rows; None where no row of it could be scored.
        notes: what else the writer wants to know again (failures, statistics), as JSON values.
    """

    file: StagedFile | None
    notes: Mapping[str, Any]


def discard_shards(folder: Location) -> None:
    """Remove a ledger, its work being committed. Entries go first: none is left that speaks of a file that is gone."""
    for entry in files.entries(folder, "shard-*.json"):
        files.remove(entry)
    files.remove_folder(folder)


class ShardLedger:
    """Finished shards of one work fingerprint, in one folder.

    Args:
        folder: of the ledger; its files outlive this machine where the root does.
        scratch: of this machine, for files in the making.
    """

    def __init__(self, folder: Location, scratch: Path) -> None:
        self._folder = folder
        self._scratch = scratch

    def finished(self, index: int) -> FinishedShard | None:
        """The shard's entry where its file is there; a void entry is removed. `fetch` looks at the bytes."""
        content = files.read_if_there(self._entry(index))
        if content is None:
            return None
        shard = _parse(content, self._folder)
        if shard is None or not _has_its_size(shard.file):
            files.remove(self._entry(index))
            return None
        return shard

    def fetch(self, index: int) -> FinishedShard | None:
        """The shard with its file on this machine, every byte checked; None where it is void."""
        shard = self.finished(index)
        if shard is None or shard.file is None:
            return shard
        local = self._local_copy(shard.file)
        if local is None or files.sha256_of(local) != shard.file.sha256:
            files.remove(self._entry(index))
            return None
        return FinishedShard(
            StagedFile(local, shard.file.size, shard.file.rows, shard.file.sha256), shard.notes
        )

    def record(self, index: int, rows: pa.Table, notes: Mapping[str, Any]) -> FinishedShard:
        """Write a shard and its entry; where another writer was first, that one's shard is returned."""
        mine = self._write(index, rows) if rows.num_rows else None
        entry = {
            "file": None if mine is None else mine.describe(),
            "notes": dict(notes),
            "writer": uuid.uuid4().hex,  # tells this entry from a rival's equal one
        }
        if files.create_once(self._entry(index), files.sealed(entry)):
            return FinishedShard(mine, notes)
        winner = self.finished(index)
        if winner is None:  # the other's entry was void and is gone
            return self.record(index, rows, notes)
        if mine is not None and (winner.file is None or winner.file.path != mine.path):
            files.remove(mine.path)
        return winner

    def _entry(self, index: int) -> Location:
        return self._folder / f"shard-{index:06d}.json"

    def _write(self, index: int, rows: pa.Table) -> StagedFile:
        name = f"shard-{index:06d}-{uuid.uuid4().hex[:12]}.parquet"
        path = self._scratch / name
        try:
            with files.writing(path):
                self._scratch.mkdir(parents=True, exist_ok=True)
                pq.write_table(rows, path, compression="zstd")
                staged = finish_file(path, rows.num_rows)
            files.publish(path, self._folder / name)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return StagedFile(self._folder / name, staged.size, staged.rows, staged.sha256)

    def _local_copy(self, file: StagedFile) -> Path | None:
        if not isinstance(file.path, ObjectPath):
            return file.path
        path = self._scratch / file.path.name
        try:
            files.fetch(file.path, path)
        except FileNotFoundError:
            return None
        return path


def damaged_entries(found: Iterable[Location]) -> Iterator[tuple[Location, str]]:
    """Entries of ledgers, among these files, that are void, and why."""
    for place in found:
        if not _ENTRY.fullmatch(place.name):
            continue
        content = files.read_if_there(place)
        if content is None:
            continue  # its work was finished meanwhile
        shard = _parse(content, place.parent)
        if shard is None:
            yield place, "was altered: the shard is scored again by the next run"
        elif shard.file is not None:
            try:
                same = files.sha256_of(shard.file.path) == shard.file.sha256
            except FileNotFoundError:
                same = False
            if not same:
                yield shard.file.path, "was altered or taken away: the shard is scored again by the next run"


def _parse(content: bytes, folder: Location) -> FinishedShard | None:
    """An entry as it was written; None for anything else."""
    entry = files.unsealed(content)
    if entry is None:
        return None
    notes, file = entry["notes"], entry["file"]
    if file is None:
        return FinishedShard(None, notes)
    return FinishedShard(
        StagedFile(folder / Path(file["path"]).name, file["size"], file["rows"], file["sha256"]), notes
    )


def _has_its_size(file: StagedFile | None) -> bool:
    try:
        return file is None or file.path.stat().st_size == file.size
    except FileNotFoundError:
        return False
