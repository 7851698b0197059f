"""What a lake's tables are, held against what their receipts say: the chain of commits, the receipts' copies, every file.

Reads all of it, history included, and trusts none of it. It does not know what the rows mean.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import PARTITION_COLUMN, Lake, Slot, attempt_of
from batch_platform.errors import StorageError

_ALTERED_COMMIT = "was altered: the commit after it, or its receipt's copy, names another one"


@dataclass(frozen=True)
class Finding:
    """Something that is not as the receipts say.

    Attributes:
        partition_key: the partition; empty where it concerns the table.
    """

    partition_key: str
    file: str
    problem: str


@dataclass
class TableAudit:
    """A table's receipts, oldest first, and everything wrong with the table.

    Attributes:
        altered: versions whose commits are not as they were.
        head: the chain's head: version and hash of the last commit.
        leftovers: files of attempts that never committed; housekeeping removes them.
        files: data files whose bytes were read.
    """

    table: str
    receipts: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    altered: set[int] = field(default_factory=set)
    rebuilt: list[str] = field(default_factory=list)
    head: tuple[int, str] | None = None
    leftovers: int = 0
    files: int = 0

    def standing(self) -> dict[Slot, dict[str, Any]]:
        """The last receipt of each slot."""
        return {Slot.of(receipt): receipt for receipt in self.receipts}

    def found(self, partition_key: str, file: Location | str, problem: str) -> None:
        self.findings.append(Finding(partition_key, str(file), problem))


def audit_table(
    lake: Lake, table: str, history_days: int, placed: frozenset[str], only: str | None, rebuild: bool
) -> TableAudit:
    """Look at one table.

    Args:
        history_days: superseded files older than this may be gone.
        placed: names of data files that other tables' receipts name.
        only: a partition whose files alone are read; the chain is always read as a whole.
        rebuild: write copies of receipts again that are missing or altered.
    """
    audit = TableAudit(table)
    try:
        handle = lake.table(table).open()
        if handle is None:
            raise StorageError(f"{lake.layout.table(table)} is no table any more")
    except StorageError as error:
        for place in lake.table(table).unreadable_commits():
            audit.found("", place, "was altered: it is no commit any more")
        if not audit.findings:
            audit.found("", lake.layout.table(table), str(error))
        return audit
    _read_chain(lake, audit, handle)
    _compare_copies(lake, audit, rebuild)
    if not audit.altered:
        _compare_state(lake, audit, handle)
    _read_files(lake, audit, history_days, only)
    _find_strays(lake, audit, placed)
    return audit


def _read_chain(lake: Lake, audit: TableAudit, handle: DeltaTable) -> None:
    folder = lake.table(audit.table)
    previous = ""
    for version in range(handle.version() + 1):
        place = folder.commit_location(version)
        try:
            hash_, text = folder.commit_hash(version), folder.receipt_at(version)
        except StorageError as error:
            audit.found("", place, str(error))
            audit.altered.add(version)
            continue
        receipt = None if text is None else _parsed(text)
        if text is not None and receipt is None:
            audit.altered.add(version)
            audit.found("", place, _ALTERED_COMMIT)
        elif receipt is not None:
            if receipt["previous"] != previous and not audit.altered & {version - 1, version}:
                # One of the two was altered; this one was not where its receipt's copy knows it.
                guilty = version - 1 if _known_commit(lake, receipt) == hash_ else version
                audit.altered.add(guilty)
                audit.found("", folder.commit_location(guilty), _ALTERED_COMMIT)
            audit.receipts.append(receipt)
        previous = hash_
    audit.head = (handle.version(), previous)


def _parsed(text: str) -> dict[str, Any] | None:
    """A receipt; None where a byte was changed so that it is no JSON any more."""
    try:
        receipt: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return receipt


def _known_commit(lake: Lake, receipt: dict[str, Any]) -> str | None:
    """The hash of a commit as the copy of its receipt has it; None where there is no whole copy."""
    place = lake.receipt_location(Slot.of(receipt), receipt["attempt"])
    copy = files.unsealed(files.read_if_there(place) or b"")
    return None if copy is None else copy["commit"]


def _compare_copies(lake: Lake, audit: TableAudit, rebuild: bool) -> None:
    known = set()
    for receipt in audit.receipts:
        key = receipt[PARTITION_COLUMN]
        place = lake.receipt_location(Slot.of(receipt), receipt["attempt"])
        known.add(str(place))
        content = files.read_if_there(place)
        copy = files.unsealed(content or b"")
        wanted = lake.receipt_copy(receipt)
        if content == wanted or receipt["version"] in audit.altered:
            continue
        if copy is not None:  # whole in itself: it is the commit that has changed
            audit.altered.add(receipt["version"])
            audit.found(key, lake.table(audit.table).commit_location(receipt["version"]), _ALTERED_COMMIT)
        elif rebuild:
            files.replace(place, wanted)
            audit.rebuilt.append(str(place))
        else:
            what = "is missing" if content is None else "was altered"
            audit.found(
                key, place, f"{what}; the commit still has the receipt: verify --rebuild writes it again"
            )
    for folder in files.entries(lake.layout.receipts(audit.table, "x").parent):
        for place in files.entries(folder, "*.json"):
            copy = files.unsealed(files.read_if_there(place) or b"")
            is_of_altered = copy is not None and copy["receipt"]["version"] in audit.altered
            if str(place) not in known and not is_of_altered:
                audit.found(folder.name, place, "is the receipt of no commit")


def _compare_state(lake: Lake, audit: TableAudit, handle: DeltaTable) -> None:
    """The files that Delta readers see are those of the standing receipts."""
    actions = pa.table(handle.get_add_actions(flatten=True)).to_pylist()
    seen: dict[str, dict[str, tuple[int, int]]] = {}
    for action in actions:
        key = action[f"partition.{PARTITION_COLUMN}"]
        name = action["path"].rpartition("/")[2]
        seen.setdefault(key, {})[name] = (action["size_bytes"], action["num_records"])
    wanted: dict[str, dict[str, tuple[int, int]]] = {}
    for slot, receipt in audit.standing().items():
        described = {file["path"]: (file["size"], file["rows"]) for file in receipt["files"]}
        wanted.setdefault(slot.partition_key, {}).update(described)
    for key in sorted(seen.keys() | wanted.keys()):
        if seen.get(key, {}) != wanted.get(key, {}):
            audit.found(key, lake.layout.table(audit.table), "the table names other files than the receipts")


def _read_files(lake: Lake, audit: TableAudit, history_days: int, only: str | None) -> None:
    standing = audit.standing()
    oldest = datetime.now(UTC) - timedelta(days=history_days)
    replaced: dict[Slot, datetime] = {}
    expired: set[Slot] = set()
    for receipt in reversed(audit.receipts):
        slot = Slot.of(receipt)
        may_be_gone = receipt is not standing[slot] and (slot in expired or replaced[slot] < oldest)
        replaced[slot] = datetime.fromisoformat(receipt["committed_at"])
        if receipt.get("expired"):
            expired.add(slot)
        if only in (None, slot.partition_key):
            for file in receipt["files"]:
                _read_file(lake, audit, slot, file, may_be_gone)


def _read_file(lake: Lake, audit: TableAudit, slot: Slot, file: dict[str, Any], may_be_gone: bool) -> None:
    place = lake.location(slot, file["path"])
    try:
        size = place.stat().st_size
    except FileNotFoundError:
        if not may_be_gone:
            audit.found(slot.partition_key, place, "is missing")
        return
    audit.files += 1
    if size != file["size"]:
        audit.found(slot.partition_key, place, f"was altered: {size} bytes instead of {file['size']}")
    elif files.sha256_of(place) != file["sha256"]:
        audit.found(slot.partition_key, place, "was altered: its digest is not the receipt's")


def _find_strays(lake: Lake, audit: TableAudit, placed: frozenset[str]) -> None:
    known = placed | {file["path"] for receipt in audit.receipts for file in receipt["files"]}
    folder = lake.layout.table(audit.table)
    for found in files.walk(folder):
        if files.relative(found.location, folder).startswith("_delta_log/") or found.location.name in known:
            continue
        if attempt_of(found.location.name) is None:
            audit.found("", found.location, "is in no receipt")
        else:
            audit.leftovers += 1
