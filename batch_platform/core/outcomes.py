"""What became of each partition's stages, as a person asks it: done, failed and why, or never tried.

One small file per partition, so that schedules and the command line need no server. Decides nothing: the
commits in the lake are the truth about data, this is the memory of the last try.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
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
        warnings: checks that do not stop anything and did not pass, by name: what they say.
        versions: of a stage that is done, what it was made of: its `code` and `data` version, and the data versions of
            the assets above it, by name.
    """

    state: State
    cause: str
    run_id: str
    at: str
    warnings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def now(
        cls,
        state: State,
        run_id: str,
        cause: str = "",
        warnings: Mapping[str, str] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> "Outcome":
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(state, cause, run_id, at, warnings or {}, versions or {})


def record(layout: Layout, partition_key: str, outcomes: Mapping[str, Outcome]) -> None:
    """Remember the outcome of stages; stages not named keep theirs."""
    path = layout.outcome(partition_key)
    known = json.loads(files.read_if_there(path) or b"{}")
    known |= {stage: asdict(outcome) for stage, outcome in outcomes.items()}
    files.replace(path, files.canonical_json(known))


def recall(layout: Layout, partition_key: str) -> dict[str, Outcome]:
    """The last outcome of each stage of a partition; empty where nothing was tried."""
    known = json.loads(files.read_if_there(layout.outcome(partition_key)) or b"{}")
    return {stage: Outcome(**values) for stage, values in known.items()}


def finished(layout: Layout, partition_key: str, stages: Iterable[str]) -> bool:
    """Whether the last try of each of these stages ended well."""
    known = recall(layout, partition_key)
    return all(stage in known and known[stage].state == "done" for stage in stages)
