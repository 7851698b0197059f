"""The trend page of a pipeline, made of what its stages committed and judged: one file, written whole.

Reads the newest partitions of two small tables, so that its cost does not grow with the pipeline's age. Drawing
is done by `monitoring/trend.py`.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import Lake
from batch_platform.core.data.staging import read_files
from batch_platform.core.layout import Layout
from batch_platform.core.monitoring.reference import ReferenceStore
from batch_platform.core.monitoring.reviews import ReviewStore
from batch_platform.core.monitoring.trend import MAX_PARTITIONS, Series, Trend, trend_page
from batch_platform.core.reviewing import GROUPS
from batch_platform.core.watching import QUALITY_CHECKS, quality_of
from batch_platform.errors import MonitoringError

# Metrics that are drawn, where a pipeline has them.
_DRAWN = (
    "auc",
    "accuracy",
    "f1",
    "calibration_error",
    "r2",
    "mae",
    "rmse",
    "ndcg",
    "hit_rate",
    "reciprocal_rank",
    "estimated_auc",
    "estimated_accuracy",
)
_READERS = 8
_LOOKED_BACK = 30

Rows = Mapping[str, list[dict[str, Any]]]


def write_trend(layout: Layout) -> Location:
    """Make the page anew.

    Raises:
        MonitoringError: a reference or a decision cannot be read.
        StorageError: the lake cannot be read, or the page not written.
    """
    files.replace(layout.trend, trend_page(gather(layout)).encode())
    return layout.trend


def gather(layout: Layout) -> Trend:
    """What the page shows, of the newest partitions."""
    lake, store = Lake(layout), ReferenceStore(layout.monitoring)
    known = store.keys(*GROUPS)
    keys = known[-MAX_PARTITIONS:]
    drift = _rows(lake, "drift_metrics", keys)
    with ThreadPoolExecutor(_READERS) as pool:
        quality = dict(zip(keys, pool.map(lambda key: quality_of(layout, key), keys), strict=True))
    names = dict.fromkeys((row["group"], row["column"]) for key in keys for row in drift.get(key, ()))
    scores: dict[tuple[str, str], list[float | None]] = {name: [None] * len(keys) for name in names}
    alarms: dict[tuple[str, str], set[int]] = {name: set() for name in names}
    statuses: dict[str, list[str | None]] = {group: [None] * len(keys) for group in GROUPS}
    for place, key in enumerate(keys):
        for group in GROUPS:
            statuses[group][place] = "not enough history"
        for row in drift.get(key, ()):
            name = row["group"], row["column"]
            scores[name][place] = row["largest_z"]
            statuses[row["group"]][place] = row["status"]
            if row["alert"]:
                alarms[name].add(place)
    return Trend(
        layout.pipeline,
        keys,
        statuses,
        scores,
        {name: frozenset(places) for name, places in alarms.items() if places},
        _performance(_rows(lake, "performance", keys), keys),
        store.all(),
        ReviewStore(layout.monitoring).all(),
        len(known) - len(keys),
        quality={stage: [_quality_status(quality[key], stage) for key in keys] for stage in QUALITY_CHECKS},
        unusual={
            key: {check: told["message"] for check, told in found.items() if not told["passed"]}
            for key, found in quality.items()
        },
        calibrations=_calibrations(layout, keys),
    )


def _quality_status(quality: Mapping[str, Mapping[str, Any]], stage: str) -> str | None:
    """The worst of a stage's checks; None where it was not judged."""
    found = [told for check, told in quality.items() if check.startswith(f"{stage} ")]
    if not found:
        return None
    if not all(told["passed"] for told in found):
        return "alert"
    return "ok" if any(told.get("status") == "ok" for told in found) else "not enough history"


def _calibrations(layout: Layout, keys: Sequence[str]) -> dict[str, Any]:
    """How the decision was set when the newest partition was judged that had a reference; empty without one."""
    for key in keys[: -_LOOKED_BACK - 1 : -1]:
        path = layout.report(key) / "drift.json"
        try:
            found = json.loads(files.read_if_there(path) or b"{}").get("calibration")
        except (ValueError, AttributeError) as error:
            raise MonitoringError(
                f"{path}: cannot be read ({error!r}); materialize {layout.pipeline}/drift_report for {key} again"
            ) from None
        if found:
            return dict(found)
    return {}


def _performance(rows: Rows, keys: Sequence[str]) -> dict[str, Series]:
    values = {
        key: {row["metric"]: row["value"] for row in rows.get(key, ()) if not row.get("segment")}
        for key in keys
    }

    def series(metric: str) -> list[float | None]:
        return [values[key].get(metric) for key in keys]

    return {name: Series(series(name), series(f"{name}_low"), series(f"{name}_high")) for name in _DRAWN}


def _rows(lake: Lake, table: str, keys: Sequence[str]) -> Rows:
    """Rows of the partitions, by key; in object storage several at a time."""
    places = lake.standing_files(table)
    wanted = [key for key in keys if key in places]
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda key: [row for b in read_files(places[key]) for row in b.to_pylist()], wanted)
        return dict(zip(wanted, read, strict=True))
