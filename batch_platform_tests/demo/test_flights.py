import io
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from batch_platform.demo.flights import WARNING_MINUTES, prepare, table_of, write_days


def flight(number: int, minute: int, delay: float | None, hour: int = 10) -> dict[str, object]:
    """A flight from JFK on 2013-06-03, scheduled at `hour`:`minute` UTC."""
    return {
        "year": 2013,
        "month": 6,
        "day": 3,
        "dep_time": 599,
        "dep_delay": 99.0,
        "sched_arr_time": 815,
        "arr_time": 999,
        "arr_delay": delay,
        "air_time": 77.0,
        "carrier": "AA",
        "flight": number,
        "tailnum": "N1" if number == 1 else "N2",
        "origin": "JFK",
        "dest": "MIA",
        "distance": 1089,
        "hour": hour - 4,
        "minute": minute,
        "time_hour": f"2013-06-03T{hour:02}:00:00Z",
    }


FLIGHTS = pd.DataFrame([flight(1, 30, 16.0), flight(2, 0, 15.0), flight(3, 59, None)])
PLANES = pd.DataFrame(
    [{"tailnum": "N1", "year": 1999.0, "seats": 150, "engines": 2, "manufacturer": "BOEING"}]
)


def weather(hours: range) -> pd.DataFrame:
    rows = [
        {
            "origin": "JFK",
            "time_hour": f"2013-06-03T{hour:02}:00:00Z",
            "temp": float(hour),
            "dewp": 1.0,
            "humid": 1.0,
            "wind_speed": 1.0,
            "wind_gust": None,
            "precip": 0.0,
            "pressure": 1000.0,
            "visib": 10.0,
        }
        for hour in hours
    ]
    return pd.DataFrame(rows)


def test_weather_is_never_later_than_the_hour_of_warning() -> None:
    flights = pd.DataFrame([flight(n, n % 60, 0.0, hour=8 + n % 12) for n in range(1, 100)])
    raw, _ = prepare(flights, weather(range(24)), PLANES)
    known = raw["scheduled_departure"] - raw["weather_observed_at"]
    assert known.min() >= pd.Timedelta(minutes=WARNING_MINUTES)
    # And it is the newest of those: there is one every hour.
    assert known.max() < pd.Timedelta(minutes=WARNING_MINUTES + 60)


def test_the_observation_at_the_hour_of_warning_counts_as_known() -> None:
    raw, _ = prepare(FLIGHTS, weather(range(12)), PLANES)
    by_id = raw.set_index("flight_id")["temperature_f"]
    assert by_id["2013-06-03-AA1-JFK-MIA"] == 9.0  # 10:30, known until 9:30
    assert by_id["2013-06-03-AA2-JFK-MIA"] == 9.0  # 10:00, known until 9:00


def test_old_weather_is_no_weather() -> None:
    raw, _ = prepare(FLIGHTS, weather(range(2)), PLANES)
    assert raw["temperature_f"].isna().all()
    assert raw["weather_observed_at"].isna().all()


def test_nothing_that_happened_to_the_flight_is_in_the_raw_inputs() -> None:
    raw, _ = prepare(FLIGHTS, weather(range(12)), PLANES)
    other = FLIGHTS.assign(arr_delay=-30.0, dep_delay=0.0, dep_time=600, arr_time=700, air_time=1.0)
    changed, _ = prepare(other, weather(range(12)), PLANES)
    pd.testing.assert_frame_equal(raw, changed)


def test_late_is_more_than_fifteen_minutes_and_cancelled_has_no_label() -> None:
    _, labels = prepare(FLIGHTS, weather(range(12)), PLANES)
    assert dict(zip(labels["flight_id"], labels["delayed"], strict=True)) == {
        "2013-06-03-AA1-JFK-MIA": "late",
        "2013-06-03-AA2-JFK-MIA": "on_time",
    }


def test_aircraft_facts_are_null_where_the_register_has_none() -> None:
    raw, _ = prepare(FLIGHTS, weather(range(12)), PLANES)
    by_id = raw.set_index("flight_id")
    assert by_id.loc["2013-06-03-AA1-JFK-MIA", "plane_year"] == 1999
    assert by_id["plane_year"].isna().sum() == 2


def test_days_are_local_and_written_apart(tmp_path: Path) -> None:
    # 02:00 UTC on the 4th is still the evening of the 3rd in New York.
    late = flight(4, 0, 20.0) | {"time_hour": "2013-06-04T02:00:00Z", "hour": 22}
    next_day = flight(5, 0, 20.0) | {"time_hour": "2013-06-04T12:00:00Z", "day": 4}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("flights.csv", pd.DataFrame([late, next_day]).to_csv(index=False))
    tables = {
        "flights": buffer.getvalue(),
        "weather": weather(range(12)).to_csv(index=False).encode(),
        "planes": PLANES.to_csv(index=False).encode(),
    }
    assert write_days(tables, tmp_path) == 2
    assert sorted(path.stem for path in (tmp_path / "raw").iterdir()) == ["2013-06-03", "2013-06-04"]
    raw = pq.read_table(tmp_path / "raw" / "2013-06-03.parquet")
    assert raw["flight_id"].to_pylist() == ["2013-06-03-AA4-JFK-MIA"]
    assert pq.read_table(tmp_path / "labels" / "2013-06-04.parquet").num_rows == 1


@pytest.mark.parametrize(("member", "table"), [("x/data/weather.csv", "weather"), ("x/setup.py", None)])
def test_tables_are_known_by_file_name(member: str, table: str | None) -> None:
    assert table_of(member) == table
