"""Which sinks hold the rows that something made: the blast radius outside of the lake.

A sink holds the commit of predictions that it was given last, which need not be the one that stands. Told are rows by what
the lake remembers of its deliveries; no sink is asked.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from batch_platform.core.data.lake import Lake, Slot
from batch_platform.core.deliveries import TABLE, Row, standing
from batch_platform.core.layout import Layout
from batch_platform.core.provenance.impact import Question, count_in, pipelines_under
from batch_platform.core.provenance.trail import Receipt
from batch_platform.settings import Settings


@dataclass(frozen=True)
class Carried:
    """Rows of one partition that a sink holds.

    Attributes:
        attempt: of the commit of predictions that it was given.
        stands: whether that commit is the partition's current snapshot.
        delivered_at: ISO 8601, UTC.
        run_id: of the run that delivered.
    """

    pipeline: str
    partition_key: str
    sink: str
    rows: int
    attempt: int
    stands: bool
    delivered_at: str
    run_id: str


@dataclass(frozen=True)
class Carriage:
    """The answer.

    Attributes:
        sinks: those that hold such rows, by pipeline, partition and name.
        notes: what could not be counted.
    """

    sinks: tuple[Carried, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> Mapping[str, int]:
        """Rows by sink."""
        found: dict[str, int] = {}
        for carried in self.sinks:
            found[carried.sink] = found.get(carried.sink, 0) + carried.rows
        return found


def carried(settings: Settings, question: Question, pipelines: Iterable[str] | None = None) -> Carriage:
    """Count the rows in sinks that were made by something.

    Args:
        question: as for `impact.affected`; what a sink held before is not asked, also with `history`.
        pipelines: names; by default all that have predictions under the root.

    Raises:
        StorageError: a table, receipt or file is missing or unreadable.
    """
    names = pipelines_under(settings) if pipelines is None else pipelines
    found: list[Carried] = []
    notes: list[str] = []
    for name in names:
        lake = Lake(Layout.of(settings, name))
        for slot in lake.filled_slots(TABLE):
            if question.covers(slot.partition_key):
                found += _of_partition(lake, replace(question, history=False), slot.partition_key, notes)
    return Carriage(tuple(found), tuple(notes))


def _of_partition(lake: Lake, question: Question, key: str, notes: list[str]) -> Iterator[Carried]:
    head = lake.head(Slot("predictions", key))
    counted: dict[int, int] = {}
    for row in standing(lake, key):
        attempt = row["predictions_attempt"]
        if attempt not in counted:
            receipt = (
                head.receipt if head is not None and head.attempt == attempt else _receipt(lake, key, row)
            )
            try:
                counted[attempt] = 0 if receipt is None else count_in(lake, question, receipt)
            except FileNotFoundError:
                receipt = None
            if receipt is None:
                counted[attempt] = 0
                notes.append(
                    f"pipeline {lake.layout.pipeline}, partition {key}: {row['sink']} holds {row['rows']} rows of attempt "
                    f"{attempt}, which were removed from the lake since and are not counted"
                )
        if counted[attempt]:
            yield Carried(
                lake.layout.pipeline,
                key,
                row["sink"],
                counted[attempt],
                attempt,
                head is not None and head.attempt == attempt,
                row["delivered_at"].isoformat(timespec="seconds"),
                row["run_id"],
            )


def _receipt(lake: Lake, key: str, row: Row) -> Receipt | None:
    wanted = row["predictions_attempt"]
    receipts = lake.receipts_of(Slot("predictions", key))
    return next((receipt for receipt in receipts if receipt["attempt"] == wanted), None)
