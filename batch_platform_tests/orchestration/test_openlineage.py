"""OpenLineage events at a real HTTP receiver, which holds them against the standard's rules."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from batch_platform_tests.mini import DAYS, Mini
from batch_platform_tests.project import free_port

DAY = DAYS[0]
STAGES = ["raw", "features", "predictions", "drift_report"]

# What OpenLineage 2-0-2 requires of a RunEvent and its facets.
FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {
            "_producer": {"type": "string", "format": "uri"},
            "_schemaURL": {
                "type": "string",
                "format": "uri",
                "pattern": r"^https://openlineage\.io/spec/facets/",
            },
        },
    },
}
DATASET = {
    "type": "object",
    "required": ["namespace", "name"],
    "properties": {
        "namespace": {"type": "string", "minLength": 1},
        "name": {"type": "string", "minLength": 1},
        "facets": FACETS,
        "inputFacets": FACETS,
        "outputFacets": FACETS,
    },
    "additionalProperties": False,
}
RUN_EVENT = {
    "type": "object",
    "required": ["eventTime", "eventType", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventTime": {"type": "string", "format": "date-time"},
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "producer": {"type": "string", "format": "uri"},
        "schemaURL": {
            "type": "string",
            "pattern": r"^https://openlineage\.io/spec/2-0-2/OpenLineage\.json#/",
        },
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": FACETS},
            "additionalProperties": False,
        },
        "job": {
            "type": "object",
            "required": ["namespace", "name"],
            "properties": {"namespace": {"type": "string"}, "name": {"type": "string"}, "facets": FACETS},
            "additionalProperties": False,
        },
        "inputs": {"type": "array", "items": DATASET},
        "outputs": {"type": "array", "items": DATASET},
    },
    "additionalProperties": False,
}


class Receiver:
    """Takes events at /api/v1/lineage; those that break the rules are answered with 422."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.refused: list[str] = []
        receiver = self
        validator = Draft202012Validator(RUN_EVENT, format_checker=FormatChecker())

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                event = json.loads(body)
                problems = [error.message for error in validator.iter_errors(event)]
                if self.path != "/api/v1/lineage" or problems:
                    receiver.refused += problems or [self.path]
                    self.send_response(422)
                else:
                    receiver.events.append(event)
                    self.send_response(201)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    monkeypatch.setenv("OPENLINEAGE_URL", made.url)
    yield made
    made.server.shutdown()


def test_an_event_for_every_materialization(mini: Mini, receiver: Receiver) -> None:
    mini.write(DAY)
    result = mini.run(DAY)
    assert receiver.refused == []
    events = {event["job"]["name"]: event for event in receiver.events}
    assert len(receiver.events) == len(events) == 4
    assert list(events) == [f"mini.{stage}" for stage in STAGES]
    lake = str(mini.layout.table("x").parent)
    inputs = {
        name.removeprefix("mini."): [place["name"] for place in event["inputs"]]
        for name, event in events.items()
    }
    assert all(datetime.fromisoformat(event["eventTime"]).tzinfo for event in receiver.events)
    assert inputs == {
        "raw": [str(mini.folder / "data" / f"{DAY}.csv")],
        "features": [f"{lake}/raw"],
        "predictions": [f"{lake}/features", str(mini.settings.root / "registry" / "churn")],
        "drift_report": [f"{lake}/features", f"{lake}/predictions"],
    }
    made = events["mini.predictions"]
    (output,) = made["outputs"]
    assert (output["namespace"], output["name"]) == ("file", f"{lake}/predictions")
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 20
    assert "input_hash" in {field["name"] for field in output["facets"]["schema"]["fields"]}
    assert made["inputs"][1]["facets"]["version"]["datasetVersion"].startswith("sha256:")
    assert made["run"]["facets"]["parent"]["run"]["runId"] == result.run_id
    assert made["run"]["facets"]["nominalTime"]["nominalStartTime"].startswith(DAY)
    assert not {"amount", "plan"} & set(made["job"]["facets"] or {})
    assert f"{DAY}-3" not in json.dumps(receiver.events)  # no row's key or value


def test_what_was_delivered_is_named_where_it_went(
    mini: Mini, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORES_DB", f"duckdb:///{mini.folder / 'secret-place.duckdb'}")
    sql = {"type": "sql", "connection_env": "SCORES_DB", "table": "churn_scores"}
    mini.change(sinks=[sql, {"type": "parquet", "uri": "exports/churn"}])
    mini.write(DAY)
    mini.run(DAY)
    (event,) = [event for event in receiver.events if event["job"]["name"] == "mini.delivered"]
    assert receiver.refused == []
    assert [place["name"] for place in event["inputs"]] == [str(mini.layout.table("predictions"))]
    assert [(place["namespace"], place["name"]) for place in event["outputs"]] == [
        ("sql", "SCORES_DB.churn_scores"),
        ("file", str(mini.folder / "exports" / "churn")),
    ]
    assert event["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 20
    assert "secret-place" not in json.dumps(receiver.events)


def test_a_receiver_that_is_away_stops_nothing(
    mini: Mini, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__RETRY__TOTAL", "0")
    mini.write(DAY)
    mini.run(DAY, stages=STAGES[:2])
    assert capfd.readouterr().out.count("OpenLineage's receiver did not take the event") == 1
    assert mini.rows("features", DAY) == 20


def test_configured_and_not_installed(mini: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(__import__("sys").modules, "openlineage.client", None)
    mini.write(DAY)
    result = mini.run(DAY, stages=["raw"], fail=True)
    assert any("pip install 'batch_platform[openlineage]'" in str(event) for event in result.all_events)
