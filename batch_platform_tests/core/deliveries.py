"""Committed predictions without a model, and databases to deliver them to."""

import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from batch_platform.core.data.lake import Slot
from batch_platform.core.data.staging import stage
from batch_platform.core.delivering import deliver_partition
from batch_platform.core.slice import Run, Slice, StageResult
from batch_platform.core.spec import parse_spec
from batch_platform.settings import Settings
from batch_platform_tests.mini import ATTRIBUTES, DAYS
from batch_platform_tests.postgres import execute

SCHEMA = pa.schema(
    [
        ("row_key", pa.string()),
        ("label", pa.string()),
        ("score", pa.float64()),
        ("scores", pa.list_(pa.float32())),
        ("scored_at", pa.timestamp("us", "UTC")),
    ]
)
SCORED_AT = datetime(2026, 1, 2, 3, 4, 5, 600000, UTC)
SINK = {"type": "sql", "connection_env": "SCORES_DB", "table": "scores"}


def rows_of(scores: Mapping[str, float], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """Predictions: row key -> score."""
    rows = [
        {"row_key": key, "label": "yes", "score": score, "scores": [1 - score, score], "scored_at": SCORED_AT}
        for key, score in scores.items()
    ]
    return pa.RecordBatch.from_pylist(rows, schema)


class Shop:
    """The pipeline `mini` with predictions written by hand."""

    def __init__(self, folder: Path, name: str = "mini", sinks: list[dict[str, Any]] | None = None) -> None:
        self.folder = folder
        self.spec = parse_spec({**ATTRIBUTES, "name": name, "sinks": sinks or [SINK]}, "mini")

    def slice(self, day: str = DAYS[0]) -> Slice:
        partition = self.spec.partitions.calendar().partition(day)
        return Slice(self.spec, partition, Settings(self.folder / "root"), self.folder, Run("r1", "a test"))

    def commit(
        self, scores: Mapping[str, float], fingerprint: str, day: str = DAYS[0], schema: pa.Schema = SCHEMA
    ) -> int:
        """Commit a day's predictions as `score_partition` does after the gate; the attempt's number."""
        here, slot = self.slice(day), Slot("predictions", day)
        attempt = here.lake.begin(slot)
        with here.workspace("predictions", attempt) as folder:
            staged = stage([rows_of(scores, schema)], schema, folder, "predictions")
            here.lake.commit(slot, staged, schema, here.receipt(fingerprint), attempt)
        return attempt

    def deliver(self, day: str = DAYS[0]) -> StageResult:
        return deliver_partition(self.slice(day))


def ask(url: str, folder: Path, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement on a database of any kind."""
    kind, _, rest = url.partition("://")
    if kind == "postgresql":
        return execute(url, statement)
    connection = (duckdb if kind == "duckdb" else sqlite3).connect(str(folder / rest.removeprefix("/")))
    try:
        rows = connection.execute(statement).fetchall()
        connection.commit()
    finally:
        connection.close()
    return rows
