"""What every stage is given and gives back.

A slice is one partition of one pipeline together with where to read and write it; a stage result is what
a stage committed and how it was judged. No stage logic here.
"""

import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import Commit, Lake, Slot
from batch_platform.core.data.partitions import Partition
from batch_platform.core.data.staging import stage
from batch_platform.core.gate import CheckResult
from batch_platform.core.layout import Layout
from batch_platform.core.provenance import receipts
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import UpstreamMissingError
from batch_platform.settings import Settings


@dataclass(frozen=True)
class Run:
    """Who does the work: the orchestrator's run, and what started it."""

    run_id: str
    triggered_by: str = "manual"


@dataclass(frozen=True)
class Slice:
    """One partition of one pipeline, and where it is worked on.

    Attributes:
        base: folder that relative URIs of the pipeline file start from.
        started_at: when work on it began, UTC.
    """

    spec: PipelineSpec
    partition: Partition
    settings: Settings
    base: Path
    run: Run
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)

    def starting(self) -> "Slice":
        """The same slice for a stage that begins now."""
        return replace(self, started_at=datetime.now(UTC))

    @property
    def layout(self) -> Layout:
        return Layout.of(self.settings, self.spec.name)

    @cached_property
    def lake(self) -> Lake:
        return Lake(self.layout)

    @property
    def key(self) -> str:
        return self.partition.key

    @property
    def about(self) -> str:
        """How messages name it."""
        return f"pipeline {self.spec.name}, partition {self.key}"

    def committed(self, table: str) -> Commit:
        """The commit of an upstream stage.

        Raises:
            UpstreamMissingError: nothing was committed yet.
        """
        commit = self.lake.head(Slot(table, self.key))
        if commit is None:
            raise UpstreamMissingError(
                f"{self.about}: {table} is not there yet; materialize {self.spec.name}/{table} for it first"
            )
        return commit

    def receipt(self, fingerprint: str, **what: Any) -> dict[str, Any]:
        """The receipt of a commit: what is given, and who, when, by which code and on which machine."""
        return receipts.complete(
            {
                "fingerprint": fingerprint,
                "pipeline": self.spec.name,
                "run_id": self.run.run_id,
                "triggered_by": self.run.triggered_by,
                "started_at": self.started_at.isoformat(timespec="seconds"),
                "committed_at": datetime.now(UTC).isoformat(timespec="seconds"),
                **what,
            }
        )

    @contextmanager
    def workspace(self, table: str, attempt: int) -> Iterator[Path]:
        """A folder of this machine for an attempt's files in the making; gone at the end of the block."""
        folder = self.layout.scratch(self.key) / f"{table}-{attempt}-{uuid.uuid4().hex[:8]}"
        try:
            yield folder
        finally:
            files.remove_folder(folder)


def commit_small(slice_: Slice, table: str, rows: pa.RecordBatch, fingerprint: str, **what: Any) -> None:
    """Make a few rows (statistics, verdicts) the content of a table's partition, unless they are already.

    Args:
        what: more for the receipt.
    """
    slot = Slot(table, slice_.key)
    standing = slice_.lake.head(slot)
    if standing is not None and standing.fingerprint == fingerprint:
        return
    attempt = slice_.lake.begin(slot)
    with slice_.workspace(table, attempt) as folder:
        staged = stage([rows], rows.schema, folder, table)
        slice_.lake.commit(slot, staged, rows.schema, slice_.receipt(fingerprint, **what), attempt)


@dataclass(frozen=True)
class StageResult:
    """A stage's committed result.

    Attributes:
        table: the table committed to.
        rows: rows that stand in the partition.
        data_version: identity of the content, for staleness.
        reused: True where the same work had been committed before and nothing was done.
        checks: the gate's verdicts on this content.
        metadata: values (numbers, strings, mappings) that a person wants to see.
        markdown: a longer text for people, with tables and pictures; empty for none.
        report: file that a person opens; None for none.
        trend: the page over all partitions, which is made anew at the end of the run; None where none shows the stage.
        rendering: work on `report` that goes on beside the next partitions; the stage has ended well only
            when it has.
    """

    table: str
    rows: int
    data_version: str
    reused: bool
    checks: tuple[CheckResult, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    markdown: str = ""
    report: Location | None = None
    rendering: Future[Any] | None = None
    trend: Location | None = None
