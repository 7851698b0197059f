"""What the model sees of a flight: all of it known an hour before the scheduled departure.

Left out on purpose: month, day of the year, temperature and dew point. The model learns from January to
April, so they would only tell it which side of the training months a day lies on.
"""

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.features.columns import with_column
from batch_platform.core.features.recipe import Recipe, step
from batch_platform.core.features.tabular import date_parts

ZONE = "America/New_York"
DAY_MINUTES = 1440


@step
def planned_minutes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Planned time from gate to gate, plus the difference of the two airports' clocks, in minutes.

    The difference is the same for a route all the time, so that the model can learn it with the airport.
    """
    minutes = pc.subtract(batch["arrival_minute"], batch["departure_minute"])
    past_midnight = pc.less(minutes, 0)
    return with_column(
        batch, "planned_minutes", pc.if_else(past_midnight, pc.add(minutes, DAY_MINUTES), minutes)
    )


@step
def plane_age(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Age of the aircraft in years; null where its year is not in the register."""
    year = pc.cast(batch["plane_year"], pa.int64())
    return with_column(batch, "plane_age", pc.subtract(pc.year(batch["scheduled_departure"]), year))


@step
def gusts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Gusts in mph. Stations report them only where they exceed the wind, so none means as strong as the wind."""
    return with_column(batch, "gust_mph", pc.coalesce(batch["gust_mph"], batch["wind_mph"]))


@step
def weekday_name(batch: pa.RecordBatch, *, column: str) -> pa.RecordBatch:
    """The weekday number as text: a category, of which Sunday is not seven times Monday."""
    return with_column(batch, "weekday", pc.cast(batch[column], pa.string()))


OUTPUT = pa.schema(
    [
        pa.field("carrier", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("dest", pa.string(), nullable=False),
        pa.field("weekday", pa.string(), nullable=False),
        pa.field("plane_maker", pa.string()),
        pa.field("departure_minute", pa.int32(), nullable=False),
        pa.field("planned_minutes", pa.int32(), nullable=False),
        pa.field("distance_miles", pa.int32(), nullable=False),
        pa.field("departures_same_hour", pa.int32(), nullable=False),
        pa.field("plane_age", pa.int32()),
        pa.field("plane_seats", pa.int32()),
        pa.field("humidity_percent", pa.float64()),
        pa.field("wind_mph", pa.float64()),
        pa.field("gust_mph", pa.float64()),
        pa.field("precipitation_in", pa.float64()),
        pa.field("pressure_hpa", pa.float64()),
        pa.field("visibility_miles", pa.float64()),
    ]
)

RECIPE = Recipe(
    "flight_delays",
    [
        date_parts(column="scheduled_departure", parts=["weekday"], timezone=ZONE),
        weekday_name(column="scheduled_departure_weekday"),
        planned_minutes(),
        plane_age(),
        gusts(),
    ],
    OUTPUT,
)
