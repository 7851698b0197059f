"""Steps for tables."""

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from batch_platform.core.features.recipe import Recipe, Step
from batch_platform.core.features.tabular import date_parts, select
from batch_platform.errors import RecipeError

AT = pa.array([datetime(2026, 2, 1, 4, 30, tzinfo=UTC), None], pa.timestamp("us", "UTC"))
RAW = pa.record_batch(
    {"row_key": ["a", "b"], "at": AT, "on": pa.array([date(2026, 2, 1), None]), "x": [1, 2]}
)


def run(made: Step, output: list[tuple[str, pa.DataType]]) -> list[dict[str, object]]:
    return Recipe("r", [made], pa.schema(output)).apply(RAW).to_pylist()


def test_parts_are_read_on_the_clock_of_a_zone() -> None:
    parts = ["year", "month", "day", "day_of_year", "weekday", "hour", "minute"]
    output = [(f"at_{part}", pa.int32()) for part in parts]
    utc = run(date_parts(column="at", parts=parts), output)
    assert list(utc[0].values()) == [2026, 2, 1, 32, 6, 4, 30]
    there = run(date_parts(column="at", parts=parts, timezone="America/New_York"), output)
    assert list(there[0].values()) == [2026, 1, 31, 31, 5, 23, 30]
    assert set(utc[1].values()) == {None}


def test_parts_of_a_date_are_the_same_in_every_zone() -> None:
    made = date_parts(column="on", parts=["day"], timezone="America/New_York")
    assert run(made, [("on_day", pa.int32())]) == [{"on_day": 1}, {"on_day": None}]


def test_select_keeps_renames_and_casts() -> None:
    made = select(columns={"amount": "x", "at": "at"}, types={"amount": "float32"})
    batch = made.function(RAW, **made.params)
    assert batch.schema.names == ["row_key", "amount", "at"]
    assert (batch["amount"].type, batch["amount"].to_pylist()) == (pa.float32(), [1.0, 2.0])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (date_parts(column="x", parts=["day"]), "column 'x' is int64, neither date nor timestamp"),
        (date_parts(column="on", parts=["hour"]), "column 'on' is a date and has no hour"),
        (date_parts(column="at", parts=["century"]), "no part 'century'"),
        (
            date_parts(column="at", parts=["day"], timezone="Mars/Olympus"),
            "'Mars/Olympus' is not an IANA time zone",
        ),
        (select(columns={"a": "zz"}), "step select: no column 'zz'"),
        (select(columns={"a": "x"}, types={"b": "int32"}), "'b', which is not selected"),
        (select(columns={"a": "x"}, types={"a": "number"}), "'number' is no type"),  # type: ignore[dict-item]
        (
            select(columns={"a": "x"}, types={"a": "list<float32>"}),
            "column 'x' is int64 and cannot become list",
        ),
    ],
)
def test_mistakes_are_named(made: Step, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        run(made, [("a", pa.int32())])
