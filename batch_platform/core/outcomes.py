"""What became of each partition's stages, as a person asks it: done, failed and why, or never tried.

One small file per partition, so that schedules and the command line need no server. Decides nothing: the
commits in the lake are the truth about data, this is the memory of the last try.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from batch_platform.core.data import files
from batch_platform.core.layout import Layout

State = Literal["done", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """The last try of one stage of one partition.

    Attributes:
        state: `skipped` where a stage above it failed.
        cause: the error's message, empty where there was none.
        at: end of the try, ISO 8601 in UTC.
    """

    state: State
    cause: str
    run_id: str
    at: str

    @classmethod
    def now(cls, state: State, run_id: str, cause: str = "") -> "Outcome":
        return cls(state, cause, run_id, datetime.now(UTC).isoformat(timespec="seconds"))


def record(layout: Layout, partition_key: str, outcomes: Mapping[str, Outcome]) -> None:
    """Remember the outcome of stages; stages not named keep theirs."""
    path = layout.outcome(partition_key)
    known = json.loads(path.read_bytes()) if path.is_file() else {}
    known |= {stage: asdict(outcome) for stage, outcome in outcomes.items()}
    files.replace(path, files.canonical_json(known))


def recall(layout: Layout, partition_key: str) -> dict[str, Outcome]:
    """The last outcome of each stage of a partition; empty where nothing was tried."""
    path = layout.outcome(partition_key)
    if not path.is_file():
        return {}
    return {stage: Outcome(**values) for stage, values in json.loads(path.read_bytes()).items()}


def finished(layout: Layout, partition_key: str, stages: Iterable[str]) -> bool:
    """Whether the last try of each of these stages ended well."""
    known = recall(layout, partition_key)
    return all(stage in known and known[stage].state == "done" for stage in stages)
