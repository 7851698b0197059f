"""Source rows = predictions + quarantine, for every date of both demos, counted by readers that are not ours.

The sources are counted with DuckDB (Parquet) and line by line (JSON lines), the tables read with polars. Run after
`make demo`: `.venv/bin/python benchmarks/reconcile.py`. Exit code 1 where a date does not add up.
"""

import sys
from pathlib import Path

import duckdb
import polars as pl

ROOT = Path(__file__).resolve().parent.parent
LAKE = ROOT / ".batch_platform" / "lake"
DATA = ROOT / ".demo_data"


def source_rows(pipeline: str) -> dict[str, int]:
    """Rows of each day's source file."""
    folder = DATA / pipeline / "raw"
    counts = {path.stem: sum(1 for _ in path.open("rb")) for path in folder.glob("*.jsonl")}
    for path in folder.glob("*.parquet"):
        counts[path.stem] = duckdb.sql(f"select count(*) from read_parquet('{path}')").fetchall()[0][0]
    return counts


def table_rows(pipeline: str, table: str) -> dict[str, int]:
    """Rows of each partition of a table."""
    folder = LAKE / pipeline / table
    if not (folder / "_delta_log").is_dir():
        return {}
    return dict(pl.read_delta(str(folder)).group_by("partition_key").len().rows())


def main() -> int:
    """Count and compare."""
    wrong = 0
    for pipeline in ("email_triage", "flight_delays"):
        source = source_rows(pipeline)
        predictions, quarantine = table_rows(pipeline, "predictions"), table_rows(pipeline, "quarantine")
        scored = sorted(
            path.stem for path in (ROOT / ".batch_platform/receipts" / pipeline / "outcomes").glob("*.json")
        )
        for key in scored:
            parts = (predictions.get(key, 0), quarantine.get(key, 0))
            if source.get(key, 0) != sum(parts):
                wrong += 1
                print(
                    f"{pipeline} {key}: {source.get(key, 0)} source rows, {parts[0]} predictions, {parts[1]} quarantined"
                )
        totals = [sum(counts.get(key, 0) for key in scored) for counts in (source, predictions, quarantine)]
        doubled = (
            pl.read_delta(str(LAKE / pipeline / "predictions"))
            .select("partition_key", "row_key")
            .is_duplicated()
            .sum()
        )
        wrong += doubled
        print(
            f"{pipeline}: {len(scored)} dates, {totals[0]} source rows = {totals[1]} predictions + {totals[2]} in "
            f"quarantine; {doubled} keys doubled"
        )
    print("every date adds up" if not wrong else f"{wrong} dates or keys are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
