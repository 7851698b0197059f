"""What engines in several processes have in common: how tables travel, and what all of them together may do.

It decides neither which process gets which shard nor how a process is reached. Tables travel as Arrow's own bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.inference.computing import NAMED
from batch_platform.core.inference.engine import Engine
from batch_platform.errors import InferenceError

# Shards that a process may have: one that computes, one that is prepared, one on its way.
HELD = 3


@dataclass(frozen=True)
class Way:
    """How an engine computes: what acts on the bits of an output, and the machine.

    Attributes:
        plan: how batches are cut, and the device.
        backend: what computes, where there is a choice.
        hardware: the machine.
    """

    plan: BatchPlan
    backend: str
    hardware: Mapping[str, Any]

    @classmethod
    def of(cls, engine: Engine) -> "Way":
        return cls(engine.plan, engine.backend, engine.hardware)

    def refuse_unlike(self, other: "Way") -> None:
        """Let another engine work beside this one.

        Raises:
            InferenceError: it would compute otherwise.
        """
        mine, theirs = (self.plan, self.backend), (other.plan, other.backend)
        if mine != theirs:
            raise InferenceError(f"the devices are not alike: {mine}, {theirs}; use devices of one kind")


def check_failed(failed: int, tolerated: int | None) -> None:
    """Let the rows that failed on all devices together pass.

    Raises:
        InferenceError: they are too many.
    """
    if tolerated is not None and failed > max(tolerated, NAMED):
        raise InferenceError(
            f"{failed} rows have failed on all devices together, and {tolerated} may (inference.max_error_share): the "
            "rest is not computed. Remove the cause and run the partition again; finished shards are kept"
        )


def packed(table: pa.Table) -> pa.Buffer:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpacked(buffer: pa.Buffer) -> pa.Table:
    """The table of `packed`, on the same bytes."""
    return pa.ipc.open_stream(buffer).read_all()
