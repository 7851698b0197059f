"""A small real pipeline for tests: CSV files by day, a tiny tabular model, everything under a temporary folder."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from batch_platform.core.data.files import Location
from batch_platform.core.layout import Layout
from batch_platform.core.models.registry import RegisteredVersion, Registry
from batch_platform.core.spec import parse_spec
from batch_platform.orchestration.assets import pipeline_assets
from batch_platform.orchestration.model_assets import challenger_asset, model_asset
from batch_platform.orchestration.stages import asset_key, stages_of
from batch_platform.settings import Settings
from batch_platform_tests import tiny_models
from batch_platform_tests.tables import scan_delta

DAYS = ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05"]
COLUMNS = ["id", "amount", "age", "plan"]

ATTRIBUTES: dict[str, Any] = {
    "name": "mini",
    "partitions": {"start": "2026-01-01", "end": "2026-02-01"},
    "source": {
        "uri": "data/{partition}.csv",
        "format": "csv",
        "row_key": "id",
        "columns": {
            "id": {"type": "string", "required": True},
            "amount": {"type": "float64", "min": 0},
            "age": {"type": "int64", "required": True, "min": 0, "max": 150},
            "plan": {"type": "string", "allowed": ["basic", "pro", "gold"]},
        },
    },
    "model": {"name": "churn"},
    "inference": {"max_error_share": 0.1, "shard_rows": 8},
    "drift": {"reference_partitions": 3},
}


class Mini:
    """One pipeline in one folder.

    Attributes:
        spec: the pipeline; `change` replaces parts of it.
    """

    def __init__(self, folder: Path, instance: dg.DagsterInstance, root: Location | None = None) -> None:
        self.folder = folder
        self.instance = instance
        self.settings = Settings(root=root or folder / "root")
        self.spec = parse_spec(ATTRIBUTES, "mini")

    @property
    def layout(self) -> Layout:
        return Layout.of(self.settings, self.spec.name)

    def change(self, **sections: Any) -> None:
        """Replace sections of the pipeline file; mappings are merged into the ones there are."""
        attributes = dict(ATTRIBUTES)
        for name, value in sections.items():
            known = attributes.get(name)
            attributes[name] = {**known, **value} if isinstance(known, dict) else value
        self.spec = parse_spec(attributes, "mini")

    def register(self, seed: int = 0) -> RegisteredVersion:
        """Register a tiny model as champion; another seed is another version."""
        model = tiny_models.tabular_model(self.folder / f"model-{seed}", seed=seed)
        return Registry(self.settings.root).register(
            "churn",
            model,
            "torch",
            tiny_models.TABULAR_CONFIG.signature(),
            card=tiny_models.CARD,
            golden=None,
            alias="champion",
            by="tests",
            why="a test",
        )

    def write(
        self, day: str, rows: Sequence[Mapping[str, Any]] | int = 20, columns: list[str] | None = None
    ) -> Path:
        """Write a day's source; a number makes so many good rows."""
        if isinstance(rows, int):
            rows = [good_row(day, number) for number in range(rows)]
        path = self.folder / "data" / f"{day}.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns or COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        return path

    def run(
        self, first: str, last: str | None = None, stages: Sequence[str] | None = None, fail: bool = False
    ) -> dg.ExecuteInProcessResult:
        """Materialize a date or a range in one run; asserts that it ended well, or with `fail` that it did not."""
        names = stages or [stage.name for stage in stages_of(self.spec)]
        tags = {
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last or first,
        }
        result = dg.materialize(
            [
                pipeline_assets(self.spec),
                model_asset(self.spec, is_trained=False),
                *challenger_asset(self.spec),
            ],
            selection=[asset_key(self.spec, name) for name in names],
            instance=self.instance,
            tags=tags,
            raise_on_error=False,
        )
        assert result.success is not fail, [event.message for event in result.all_events if event.is_failure]
        return result

    def table(self, name: str) -> pl.DataFrame:
        """A table as another reader sees it; empty where nothing was committed."""
        folder = self.layout.table(name)
        return scan_delta(folder).collect() if (folder / "_delta_log").is_dir() else pl.DataFrame()

    def rows(self, name: str, day: str) -> int:
        """Rows of a day in a table."""
        frame = self.table(name)
        return 0 if frame.is_empty() else frame.filter(pl.col("partition_key") == day).height

    def check(self, stage: str, check: str, day: str) -> bool | None:
        """The last verdict of a check on a day; None where it was never evaluated."""
        key = dg.AssetCheckKey(asset_key(self.spec, stage), check)
        records = self.instance.event_log_storage.get_asset_check_execution_history(key, limit=200)
        for record in records:
            event = None if record.event is None else record.event.dagster_event
            if event is None or event.event_type != dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                continue  # planned and never made
            evaluation = event.asset_check_evaluation_data
            if evaluation.partition == day:
                return evaluation.passed
        return None


def good_row(day: str, number: int) -> dict[str, Any]:
    plan = ["basic", "pro", "gold"][number % 3]
    return {"id": f"{day}-{number}", "amount": 1.5 * number, "age": 20 + number % 60, "plan": plan}


def failure_message(result: dg.ExecuteInProcessResult) -> str:
    """The message that the run ended with."""
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            assert error is not None
            return error.message + str(error.cause or "")
    return ""
