"""The heads of the chains of commits, to be kept where whoever can write the lake cannot.

Every receipt carries the hash of the commit before it: a commit in the middle cannot change unnoticed, the whole tail
can be rewritten. An exported head is the anchor against that. Decides whether a head that was exported once is still
part of its chain; what else may be wrong with a table is `verify`'s to find.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from batch_platform.core.data import files
from batch_platform.core.data.lake import Lake
from batch_platform.core.layout import Layout
from batch_platform.errors import StorageError
from batch_platform.settings import Settings


@dataclass(frozen=True)
class Head:
    """The last commit of a table: its version and the sha256 of its file in the table's log."""

    version: int
    hash: str


def heads(pipeline: str, settings: Settings) -> dict[str, Head]:
    """The heads of all tables of a pipeline, by table. Opens each table's log; reads no data.

    Raises:
        StorageError: a table cannot be opened.
    """
    lake = Lake(Layout.of(settings, pipeline))
    found = {}
    for name in lake.tables():
        handle = lake.table(name).open()
        if handle is not None:
            found[name] = Head(handle.version(), lake.table(name).commit_hash(handle.version()))
    return found


def export(pipeline: str, settings: Settings) -> dict[str, Any]:
    """The heads as one JSON value, which `check` takes."""
    return {
        "pipeline": pipeline,
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "heads": {name: asdict(head) for name, head in heads(pipeline, settings).items()},
    }


def read_anchor(content: bytes) -> tuple[str, dict[str, Head]]:
    """An exported anchor: the pipeline's name, and the heads by table.

    Raises:
        StorageError: it is none.
    """
    try:
        value = json.loads(content)
        return value["pipeline"], {name: Head(h["version"], h["hash"]) for name, h in value["heads"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"this is no exported head of a chain ({type(error).__name__}: {error}); write one with: batch-platform "
            "chain export PIPELINE"
        ) from None


def check(pipeline: str, anchor: Mapping[str, Head], settings: Settings) -> list[str]:
    """Hold an anchor against the tables as they are now.

    From the anchored commit on the chain is walked back by hashes to the one before it, so that a head that is still
    there stands for everything before it.

    Returns:
        What is wrong, a line for each table; empty where all commits up to the anchor are as they were.
    """
    lake = Lake(Layout.of(settings, pipeline))
    problems = []
    for name, head in anchor.items():
        try:
            handle = lake.table(name).open()
            if handle is None or handle.version() < head.version:
                has = "is not there" if handle is None else f"ends at version {handle.version()}"
                problems.append(f"{name}: {has}: version {head.version} was there when the head was exported")
            elif lake.table(name).commit_hash(head.version) != head.hash:
                problems.append(f"{name}: version {head.version} is not the commit that was exported")
            else:
                problems += [f"{name}: {problem}" for problem in _walk_back(lake, name, head.version)]
        except StorageError as error:
            problems.append(f"{name}: {error}")
    return problems


def _walk_back(lake: Lake, table: str, version: int) -> list[str]:
    """Commits before a version that are not the ones that the next receipt names."""
    folder = lake.table(table)
    for number in range(version, 0, -1):
        text = folder.receipt_at(number)
        if text is not None and json.loads(text)["previous"] != folder.commit_hash(number - 1):
            return [f"version {number - 1} is not the commit that version {number} was made after"]
    return []


def write(value: Mapping[str, Any]) -> bytes:
    """An exported anchor as a file holds it."""
    return files.canonical_json(value) + b"\n"
