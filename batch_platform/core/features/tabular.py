"""Steps for tables: parts of dates, and the choice of columns.

A missing value stays missing: filling it in, where a model needs that, belongs to the model, which learned what
to fill in from its training data.
"""

from collections.abc import Callable
from typing import get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data.cells import arrow_type
from batch_platform.core.features.columns import column_of, with_column
from batch_platform.core.features.recipe import step
from batch_platform.core.spec import ColumnType
from batch_platform.errors import RecipeError

_PARTS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "year": pc.year,
    "month": pc.month,
    "day": pc.day,
    "day_of_year": pc.day_of_year,
    "weekday": pc.day_of_week,  # Monday is 0
    "hour": pc.hour,
    "minute": pc.minute,
}
_OF_DAY = ("hour", "minute")
_KNOWN_TYPES = get_args(ColumnType)


@step
def date_parts(
    batch: pa.RecordBatch, *, column: str, parts: list[str], timezone: str = "UTC"
) -> pa.RecordBatch:
    """Integers made of a date or timestamp: `<column>_<part>`, int32.

    Args:
        batch: rows.
        column: a date or timestamp column.
        parts: of year, month, day, day_of_year, weekday (Monday is 0), hour, minute.
        timezone: IANA zone whose clock and calendar are read; dates have none.
    """
    moments = _local(column_of(batch, "date_parts", column), column, timezone)
    for part in parts:
        if part not in _PARTS:
            raise RecipeError(f"step date_parts: no part {part!r}; there are: {', '.join(_PARTS)}")
        if part in _OF_DAY and pa.types.is_date(moments.type):
            raise RecipeError(f"step date_parts: column {column!r} is a date and has no {part}")
        batch = with_column(batch, f"{column}_{part}", _PARTS[part](moments).cast(pa.int32()))
    return batch


@step
def select(
    batch: pa.RecordBatch, *, columns: dict[str, str], types: dict[str, ColumnType] | None = None
) -> pa.RecordBatch:
    """Keep, rename and cast columns; `row_key` stays where it is there.

    Args:
        batch: rows.
        columns: new name -> present name; others are left out.
        types: new name -> type of the contract to cast to.
    """
    wanted = types or {}
    for name, kind in wanted.items():
        if name not in columns:
            raise RecipeError(f"step select: a type is given for {name!r}, which is not selected")
        if kind not in _KNOWN_TYPES:
            raise RecipeError(f"step select: {kind!r} is no type; there are: {', '.join(_KNOWN_TYPES)}")
    chosen = {"row_key": "row_key"} if "row_key" in batch.schema.names else {}
    chosen |= columns
    arrays = [
        column_of(batch, "select", old, arrow_type(wanted[new]) if new in wanted else None)
        for new, old in chosen.items()
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(chosen))


def _local(values: pa.Array, column: str, timezone: str) -> pa.Array:
    if pa.types.is_date(values.type):
        return values
    if not pa.types.is_timestamp(values.type):
        raise RecipeError(f"step date_parts: column {column!r} is {values.type}, neither date nor timestamp")
    try:
        ZoneInfo(timezone)
    except (ValueError, ZoneInfoNotFoundError):
        raise RecipeError(f"step date_parts: {timezone!r} is not an IANA time zone") from None
    aware = values.cast(pa.timestamp("us", tz="UTC"))
    return pc.local_timestamp(aware.cast(pa.timestamp("us", tz=timezone)))
