"""What is delivered to a sink, and what became of it. Decides nothing."""

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Consignment:
    """What is to be delivered: one commit of a partition's predictions.

    Attributes:
        attempt: of the commit; a higher one of the same partition is newer.
        fingerprint: identity of the commit's work.
        rows: how many there are.
        schema: their columns, `partition_key` first.
    """

    pipeline: str
    partition_key: str
    attempt: int
    fingerprint: str
    rows: int
    schema: pa.Schema
    run_id: str

    @property
    def about(self) -> str:
        return f"pipeline {self.pipeline}, partition {self.partition_key}"


@dataclass(frozen=True)
class Delivered:
    """What a delivery changed.

    Attributes:
        sink: what it is called.
        written: rows that were new or differed.
        removed: rows that are predicted no more.
        reused: whether this commit had been delivered before, and nothing was done.
    """

    sink: str
    written: int = 0
    removed: int = 0
    reused: bool = False
