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
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
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
    current: Location
    reference: Location | None
    scores: Mapping[str, float]
    detected: frozenset[str]
    out: Location


def render(request: RenderRequest) -> Location:
    """Make the page.

    Raises:
        MonitoringError: Evidently failed; the message says on what.
    """
    current = files.read_table(request.current)
    reference = None if request.reference is None else files.read_table(request.reference)
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

    drawings = _drawings(current, reference)
    if not drawings:
        return ""
    frames = [_frame(table, drawings, reference) for table in (current, reference)]
    definition = DataDefinition(
        numerical_columns=[drawing.name for drawing in drawings if not drawing.is_category],
        categorical_columns=[drawing.name for drawing in drawings if drawing.is_category],
    )
    preset = DataDriftPreset(
        columns=[drawing.name for drawing in drawings],
        per_column_method={
            drawing.name: _verdict_test(place, drawing.column, request)
            for place, drawing in enumerate(drawings)
        },
        drift_share=_alarming_share(drawings, request.detected),
        include_tests=False,
    )
    now, then = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
    snapshot = Report([preset]).run(now, then)
    return snapshot.get_html_str(as_iframe=False)


def _alarming_share(drawings: list["_Drawing"], detected: frozenset[str]) -> float:
    """From which share of detected columns Evidently's headline says "detected": so that it says what we decided."""
    if detected and detected.isdisjoint(drawing.column for drawing in drawings):
        return 0.0  # only columns that cannot be drawn moved: one that is gone, say
    return round(0.5 / len(drawings), 4)


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


# -- what is drawn ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawing:
    """One distribution of the page.

    Attributes:
        column: the column's name.
        name: its name on the page, safe as markup and unique there.
        is_category: values are categories, not numbers.
        is_length: of long texts the number of characters is drawn.
    """

    column: str
    name: str
    is_category: bool = False
    is_length: bool = False


def _drawings(current: pa.Table, reference: pa.Table) -> list[_Drawing]:
    """The columns that can be drawn: they are in both samples, and numbers have a value in both."""
    found: list[_Drawing] = []
    for column in current.column_names:
        if column not in reference.column_names or current[column].type != reference[column].type:
            continue
        is_text = _is_string(current[column].type) and any(
            map(_is_text, (current[column], reference[column]))
        )
        is_number = _is_number(current[column].type)
        name = html.escape(f"{column} (characters)" if is_text else column)
        while name in {drawing.name for drawing in found}:
            name += " "
        drawing = _Drawing(column, name, not (is_text or is_number), is_text)
        # Evidently cannot draw numbers without a value; the summary says how many are missing.
        if drawing.is_category or all(np.isfinite(_numbers(t, drawing)).any() for t in (current, reference)):
            found.append(drawing)
    return found


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_text(column: pa.ChunkedArray) -> bool:
    distinct = column.drop_null().unique()
    longest = pc.max(pc.utf8_length(distinct)).as_py() or 0
    return longest > _CATEGORY_CHARACTERS or len(distinct) > max(_MAX_CATEGORIES, len(column) // 2)


def _frame(table: pa.Table, drawings: list[_Drawing], reference: pa.Table) -> "pd.DataFrame":
    import pandas as pd

    columns: dict[str, Any] = {}
    for drawing in drawings:
        if drawing.is_category:
            kept = _frequent(reference[drawing.column])
            texts = [_category(value, kept) for value in table[drawing.column].to_pylist()]
            columns[drawing.name] = pd.Series(texts, dtype=object)
        else:
            columns[drawing.name] = _numbers(table, drawing)
    return pd.DataFrame(columns)


def _numbers(table: pa.Table, drawing: _Drawing) -> npt.NDArray[np.float64]:
    """Values or lengths, (rows,); what is no finite number is NaN, as infinity cannot be drawn."""
    column = table[drawing.column]
    values = pc.utf8_length(column) if drawing.is_length else column
    numbers = values.to_numpy().astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _frequent(column: pa.ChunkedArray) -> set[Any]:
    counts = sorted(column.value_counts().to_pylist(), key=lambda entry: -entry["counts"])
    return {entry["values"] for entry in counts[:_MAX_CATEGORIES]}


def _category(value: Any, kept: set[Any]) -> str:
    # Evidently drops nulls in silence: they are a category of their own here.
    if value is None:
        return _MISSING
    return html.escape(str(value)) if value in kept else _OTHER
