"""The Evidently page of one partition: distributions from samples, marks from our decision.

The only module that imports Evidently. Its "detected" marks are those of the verdict, by one custom test per
column, so that the page never contradicts the decision. Our summary stands on top. Made in a process of its own.

Every string that comes from data is escaped before Evidently sees it, and the page as a whole cannot be left
by a `</script>` in its data.
"""

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.data import files
from batch_platform.errors import MonitoringError

if TYPE_CHECKING:
    import pandas as pd

# Beyond this a column's strings are text to a reader, not categories.
_CATEGORY_CHARACTERS = 60
_MAX_CATEGORIES = 30
_OTHER = "(other)"
_MISSING = "(no value)"


@dataclass(frozen=True)
class RenderRequest:
    """A page to be made.

    Attributes:
        title: heading of the page.
        summary_html: our summary, already safe markup.
        current: Parquet file with a sample of the partition.
        reference: Parquet file with a sample of the reference; None where there is none.
        scores: column -> largest |z| of the decision.
        detected: columns that the decision names.
        out: where the page goes.
    """

    title: str
    summary_html: str
    current: Path
    reference: Path | None
    scores: Mapping[str, float]
    detected: frozenset[str]
    out: Path


def render(request: RenderRequest) -> Path:
    """Make the page.

    Raises:
        MonitoringError: Evidently failed; the message says on what.
    """
    current = pq.read_table(request.current)
    reference = None if request.reference is None else pq.read_table(request.reference)
    body = ""
    if reference is not None and reference.num_rows and current.num_rows:
        try:
            body = _evidently(current, reference, request)
        except (ValueError, TypeError, KeyError, ZeroDivisionError, IndexError, AttributeError) as error:
            raise MonitoringError(
                f"{request.title}: Evidently failed with {type(error).__name__}: {error}"
            ) from error
    page = _with_summary(body, request)
    files.replace(request.out, page.encode())
    return request.out


def _with_summary(page: str, request: RenderRequest) -> str:
    title = html.escape(request.title)
    style = "font-family:sans-serif;max-width:70em;margin:1.5em auto;padding:0 1em"
    summary = f'<div style="{style}"><h1>{title}</h1>{request.summary_html}</div>'
    if not page:
        return f'<!doctype html><html><head><meta charset="utf-8"><title>{title}</title></head><body>{summary}</body></html>'
    head, mark, rest = page.partition("<body>")
    if not mark:
        raise MonitoringError("Evidently's page has no <body>: its version is not the one that is pinned")
    return head + mark + summary + rest


def _evidently(current: pa.Table, reference: pa.Table, request: RenderRequest) -> str:
    os.environ["DO_NOT_TRACK"] = "1"
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    numbers, categories = _columns(current, reference)
    columns = [*numbers, *categories]
    if not columns:
        return ""
    frames = [_frame(table, numbers, categories, reference) for table in (current, reference)]
    definition = DataDefinition(
        numerical_columns=[html.escape(name) for name in numbers],
        categorical_columns=[html.escape(name) for name in categories],
    )
    preset = DataDriftPreset(
        columns=[html.escape(name) for name in columns],
        per_column_method={
            html.escape(name): _verdict_test(place, name, request) for place, name in enumerate(columns)
        },
        drift_share=_alarming_share(columns, request.detected),
        include_tests=False,
    )
    now, then = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
    snapshot = Report([preset]).run(now, then)
    return snapshot.get_html_str(as_iframe=False)


def _verdict_test(place: int, column: str, request: RenderRequest) -> Any:
    """An Evidently test that says of a column what the decision said."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    score, detected = float(request.scores.get(column, 0.0)), column in request.detected

    def decided(_reference: Any, _current: Any, _kind: Any, _threshold: float) -> tuple[float, bool]:
        return score, detected

    test = StatTest(
        name=f"day_statistics_{place}",
        display_name="largest |z| of the day statistics",
        allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical],
        default_threshold=0.0,
    )
    register_stattest(test, decided)
    return test


def _alarming_share(columns: list[str], detected: frozenset[str]) -> float:
    """The share of drawn columns from which Evidently's headline says "detected", so that it says what we decided."""
    if detected and detected.isdisjoint(columns):
        return 0.0  # only columns that cannot be drawn moved, e.g. one that is gone
    return 1 / len(columns)


def _columns(current: pa.Table, reference: pa.Table) -> tuple[list[str], list[str]]:
    """Names of the columns that can be drawn: numbers with a value in both samples, and categories."""
    numbers, categories = [], []
    for name in current.column_names:
        if name not in reference.column_names or current[name].type != reference[name].type:
            continue
        kind = current[name].type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            # Evidently cannot draw a column without values; the summary says how many are missing.
            if all(np.isfinite(_numbers(table[name])).any() for table in (current, reference)):
                numbers.append(name)
        elif pa.types.is_boolean(kind) or (pa.types.is_string(kind) and not _is_text(reference[name])):
            categories.append(name)
    return numbers, categories


def _is_text(column: pa.ChunkedArray) -> bool:
    distinct = column.drop_null().unique()
    longest = max((len(value) for value in distinct.to_pylist()), default=0)
    return longest > _CATEGORY_CHARACTERS or len(distinct) > max(_MAX_CATEGORIES, len(column) // 2)


def _frame(table: pa.Table, numbers: list[str], categories: list[str], reference: pa.Table) -> "pd.DataFrame":
    import pandas as pd

    columns: dict[str, Any] = {html.escape(name): _numbers(table[name]) for name in numbers}
    for name in categories:
        kept = _frequent(reference[name])
        columns[html.escape(name)] = pd.Series(
            [_category(value, kept) for value in table[name].to_pylist()], dtype=object
        )
    return pd.DataFrame(columns)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Values as (rows,) float64; what is no finite number as NaN, as Evidently cannot draw infinity."""
    values = column.to_numpy().astype("float64")
    return np.where(np.isfinite(values), values, np.nan)


def _frequent(column: pa.ChunkedArray) -> set[Any]:
    counts = sorted(column.value_counts().to_pylist(), key=lambda entry: -entry["counts"])
    return {entry["values"] for entry in counts[:_MAX_CATEGORIES]}


def _category(value: Any, kept: set[Any]) -> str:
    # Evidently drops nulls in silence: they are a category of their own here.
    if value is None:
        return _MISSING
    return html.escape(str(value)) if value in kept else _OTHER
