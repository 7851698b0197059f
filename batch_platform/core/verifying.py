"""`verify`: everything is there once, and as it was written, from the source to the last prediction.

Recomputed from the files: every row of the source is in `raw` or in quarantine, every raw row in `features` or in
quarantine, every feature row in `predictions` or in quarantine; every file has its receipt's digest; every commit names
the one before it. It changes nothing, unless it is asked to write receipts again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from batch_platform.core.data import files
from batch_platform.core.data.audit import Finding, TableAudit, audit_table
from batch_platform.core.data.intake import PartitionReader
from batch_platform.core.data.lake import Lake, Slot
from batch_platform.core.data.ledger import damaged_entries
from batch_platform.core.data.staging import read_files
from batch_platform.core.features.chunks import parent_key
from batch_platform.core.layout import Layout
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import SettingsError, SourceError, SourceMissingError
from batch_platform.settings import Settings

Receipt = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """Something lost, doubled or altered."""

    pipeline: str
    partition_key: str
    file: str
    problem: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        problems: empty where all is well.
        notes: what could not be compared, and what is not wrong but worth knowing.
        rebuilt: receipts that were written again.
        partitions: partitions looked at.
        files: data files whose every byte was read.
        rows: rows that stand in these partitions, by table.
        chain: by table, version and hash of the last commit: to be kept elsewhere as an anchor.
    """

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    rebuilt: tuple[str, ...]
    partitions: int
    files: int
    rows: Mapping[str, int]
    chain: Mapping[str, Mapping[str, Any]]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    spec: PipelineSpec,
    settings: Settings,
    base: Path,
    partition_key: str | None = None,
    rebuild: bool = False,
) -> Verification:
    """Look at a pipeline, or at one partition of it.

    Args:
        base: folder that relative URIs of the pipeline file start from.
        partition_key: the partition; None for all that were ever committed. The chain is always read as a whole.
        rebuild: write missing or altered copies of receipts again from the commits.

    Raises:
        PartitionKeyError: the pipeline has no such partition.
    """
    if partition_key is not None:
        spec.partitions.calendar().partition(partition_key)
    layout = Layout.of(settings, spec.name)
    lake = Lake(layout)
    names = sorted({*lake.tables(), *_tables_with_receipts(layout)})
    audits: dict[str, TableAudit] = {}
    # The quarantine's files are named by the stages' receipts too: it comes last.
    for name in sorted(names, key=lambda table: table == "quarantine"):
        days = spec.retention.quarantine_days if name == "quarantine" else spec.retention.history_days
        audits[name] = audit_table(lake, name, days, _placed(audits.values()), partition_key, rebuild)
    books = _Books(spec, base, lake, audits)
    keys = sorted({slot.partition_key for audit in audits.values() for slot in audit.standing()})
    chosen = [key for key in keys if partition_key in (None, key)]
    if partition_key is not None and not chosen:
        books.notes.append(f"nothing was ever committed for {partition_key}")
    for key in chosen:
        books.reconcile(key)
    findings = [finding for audit in audits.values() for finding in audit.findings]
    findings += [*books.findings, *_staging(layout, partition_key)]
    leftovers = sum(audit.leftovers for audit in audits.values())
    if leftovers:
        books.notes.append(
            f"{leftovers} files of attempts that never committed; the maintenance job removes them"
        )
    return Verification(
        tuple(Problem(spec.name, f.partition_key, f.file, f.problem) for f in dict.fromkeys(findings)),
        tuple(books.notes),
        tuple(place for audit in audits.values() for place in audit.rebuilt),
        len(chosen),
        sum(audit.files for audit in audits.values()),
        books.rows,
        {
            name: {"version": audit.head[0], "hash": audit.head[1]}
            for name, audit in audits.items()
            if audit.head is not None
        },
    )


def _tables_with_receipts(layout: Layout) -> set[str]:
    return {entry.name for entry in files.entries(layout.receipts("x", "x").parent.parent)} - {"outcomes"}


def _placed(audits: Iterable[TableAudit]) -> frozenset[str]:
    return frozenset(
        file["path"]
        for audit in audits
        for receipt in audit.receipts
        for file in receipt.get("quarantine_files", ())
    )


def _staging(layout: Layout, partition_key: str | None) -> Iterator[Finding]:
    """Shards of unfinished work that were altered. The next run would score them again."""
    folder = layout.staging(partition_key) if partition_key is not None else layout.staging("x").parent
    for entry, problem in damaged_entries(found.location for found in files.walk(folder)):
        yield Finding(entry.parent.parent.name, str(entry), problem)


class _Books:
    """The rows of each partition, counted and compared from stage to stage."""

    def __init__(self, spec: PipelineSpec, base: Path, lake: Lake, audits: Mapping[str, TableAudit]) -> None:
        self._spec, self._base, self._lake, self._audits = spec, base, lake, audits
        self._standing = {
            slot: receipt for audit in audits.values() for slot, receipt in audit.standing().items()
        }
        self._unreadable = {name for name, audit in audits.items() if audit.head is None}
        self._broken = {finding.file for audit in audits.values() for finding in audit.findings}
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.rows: dict[str, int] = {}

    def reconcile(self, key: str) -> None:
        """Compare the stages of one partition."""
        for slot, receipt in self._standing.items():
            if slot.partition_key == key:
                rows = sum(file["rows"] for file in receipt["files"])
                self.rows[slot.table] = self.rows.get(slot.table, 0) + rows
        raw = self._standing.get(Slot("raw", key))
        if raw is not None:
            self._compare_source(key, raw)
            self._compare_counts(key, raw)
        for stage, upstream in (("features", "raw"), ("predictions", "features")):
            made = self._standing.get(Slot(stage, key))
            if made is not None and upstream not in self._unreadable:
                source = self._made_of(key, upstream, made[f"{upstream}_fingerprint"])
                if source is None:
                    self._found(key, stage, f"was made of {upstream} that no commit has")
                else:
                    self._compare_keys(key, stage, made, source)
        self._compare_challenger(key)
        for stage in ("raw", "features", "predictions"):
            self._compare_quarantine(key, stage)

    # -- source -------------------------------------------------------------------------------------------

    def _compare_source(self, key: str, raw: Receipt) -> None:
        landed = raw["counts"]["rows_in"]
        reader = PartitionReader(
            self._spec.source,
            self._spec.partitions.calendar().partition(key),
            self._base,
            self._lake.layout.root,
        )
        try:
            for _ in reader:
                pass
        except SourceMissingError:
            if landed:
                self.notes.append(
                    f"{key}: the source is not there any more; its {landed} rows were not counted"
                )
            return
        except (
            SourceError,
            SettingsError,
        ) as error:  # also where no database's address is in the environment
            self.notes.append(f"{key}: the source cannot be read any more: {error}")
            return
        now = reader.counts.rows_in
        if now != landed:
            self.findings.append(
                Finding(
                    key,
                    self._spec.source.place.replace("{partition}", key),
                    f"has {now} rows, and had {landed} when it was landed: materialize raw again",
                )
            )

    def _compare_counts(self, key: str, raw: Receipt) -> None:
        counts = raw["counts"]
        kept = sum(file["rows"] for file in raw["files"])
        rejected = sum(counts["rejected"].values())
        if (kept, rejected) != (counts["rows_kept"], raw["quarantined"]) or counts["rows_in"] != (
            kept + rejected + counts["duplicates_dropped"]
        ):
            self._found(
                key,
                "raw",
                f"{counts['rows_in']} source rows are not {kept} landed + {rejected} quarantined + "
                f"{counts['duplicates_dropped']} duplicates left out",
            )

    # -- from stage to stage ------------------------------------------------------------------------------

    def _made_of(self, key: str, upstream: str, fingerprint: str) -> Receipt | None:
        """The newest commit of that content; it may be superseded since."""
        for receipt in reversed(self._audits[upstream].receipts if upstream in self._audits else []):
            if receipt["partition_key"] == key and receipt["fingerprint"] == fingerprint:
                if receipt is not self._standing[Slot(upstream, key)]:
                    self.notes.append(f"{key}: {upstream} has changed since what is made of it was committed")
                return receipt
        return None

    def _compare_keys(self, key: str, stage: str, made: Receipt, source: Receipt) -> None:
        upstream = source["table"]
        bad = self._quarantined_keys(key, stage, made)
        if bad is None or not (
            self._readable(Slot(upstream, key), source) and self._readable(Slot(stage, key), made)
        ):
            counted = sum(file["rows"] for file in made["files"]) + made["quarantined"]
            entered = sum(file["rows"] for file in source["files"])
            if counted < entered if made.get("expands", False) else counted != entered:
                self._found(
                    key, stage, f"{entered} rows of {upstream} are not {counted} rows with quarantine"
                )
            return
        expected = (row for row in self._keys(Slot(upstream, key), source) if row not in bad)
        excused = made["quarantined"] - len(bad)
        lost = doubled = 0
        total = len(bad)
        for mine, theirs in zip_longest(self._made_of_keys(Slot(stage, key), made), expected):
            total += mine is not None
            if mine != theirs:
                lost += theirs is not None
                doubled += mine is not None
        entered = sum(file["rows"] for file in source["files"])
        if lost or doubled or excused or total != entered:
            self._found(
                key,
                stage,
                f"its rows are not those of {upstream} without the quarantined ones: {lost} are missing, "
                f"{doubled} are doubled or unknown, from the first that differs",
            )

    def _compare_challenger(self, key: str) -> None:
        """The challenger's rows are those of the features, in their order, without as many as it could not score."""
        table = "challenger_predictions"
        made = self._standing.get(Slot(table, key))
        if made is None or "features" in self._unreadable:
            return
        source = self._made_of(key, "features", made["features_fingerprint"])
        if source is None:
            self._found(key, table, "was made of features that no commit has")
            return
        failed = sum(made["failed"].values())
        if not (self._readable(Slot("features", key), source) and self._readable(Slot(table, key), made)):
            return
        entered = self._keys(Slot("features", key), source)
        left = unknown = 0
        for row in self._keys(Slot(table, key), made):
            skipped = 0
            for expected in entered:
                if expected == row:
                    break
                skipped += 1
            else:
                unknown += 1
            left += skipped
        left += sum(1 for _ in entered)
        if unknown or left != failed:
            self._found(
                key,
                table,
                f"its rows are not those of features without the {failed} that it could not score: {left} are missing, "
                f"{unknown} are doubled or unknown, from the first that differs",
            )

    def _quarantined_keys(self, key: str, stage: str, made: Receipt) -> frozenset[str] | None:
        """Keys of the rows that the commit set aside; None where they cannot be read any more."""
        slot = Slot("quarantine", key, stage)
        stands = self._standing.get(slot)
        is_its = stands is not None and stands["decided_by"] == made["attempt"]
        as_receipt = stands if stands is not None and is_its else {"files": made["quarantine_files"]}
        if not self._readable(slot, as_receipt):
            return None
        return frozenset(self._keys(slot, as_receipt))

    def _compare_quarantine(self, key: str, stage: str) -> None:
        if self._unreadable & {stage, "quarantine"}:
            return
        made = self._standing.get(Slot(stage, key))
        stands = self._standing.get(Slot("quarantine", key, stage))
        decided = 0 if made is None or not made["quarantine_files"] else made["attempt"]
        if stands is not None and not decided and not stands["files"]:
            return
        if (0 if stands is None else stands["decided_by"]) != decided:
            self._found(
                key,
                "quarantine",
                f"the rows set aside by {stage} are not those of its commit: run the partition again",
            )

    # -- reading ------------------------------------------------------------------------------------------

    def _readable(self, slot: Slot, receipt: Receipt) -> bool:
        """Whether all files are there and unaltered; what is not was found already, or has expired."""
        places = [self._lake.location(slot, file["path"]) for file in receipt["files"]]
        return all(str(place) not in self._broken and place.is_file() for place in places)

    def _keys(self, slot: Slot, receipt: Receipt) -> Iterator[str]:
        places = [self._lake.location(slot, file["path"]) for file in receipt["files"]]
        for batch in read_files(places, ["row_key"]):
            yield from batch["row_key"].to_pylist()

    def _made_of_keys(self, slot: Slot, receipt: Receipt) -> Iterator[str]:
        """Keys of the upstream rows that the rows were made of: their own, or the parents of pieces, each once."""
        if not receipt.get("expands", False):
            yield from self._keys(slot, receipt)
            return
        number, last = 0, None
        for row in self._keys(slot, receipt):
            parent = parent_key(row)
            number = number + 1 if parent == last else 0
            # A piece out of its order is named as it is, and found to be unknown.
            if row != f"{parent}#{number}":
                yield row
            elif number == 0:
                yield parent
            last = parent

    def _found(self, key: str, table: str, problem: str) -> None:
        self.findings.append(Finding(key, str(self._lake.layout.table(table)), problem))
