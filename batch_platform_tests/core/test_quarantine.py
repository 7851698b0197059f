"""The quarantine: what is kept of a bad row, for how long, and where it came from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.lake import Commit, Slot
from batch_platform.core.data.staging import stage
from batch_platform.core.gate import CheckResult
from batch_platform.core.publishing import publish, publishable, settle
from batch_platform.core.quarantine import Stage, locate, payload_of, standing_quarantine
from batch_platform.core.slice import Run, Slice
from batch_platform.core.spec import parse_spec
from batch_platform.errors import GateError, SupersededError
from batch_platform.settings import Settings
from batch_platform_tests.mini import ATTRIBUTES, DAYS

BAD = Rejected("k1", "wrong_type", "column age is no int64: 'old'", "data/a.csv", 7, '{"age": "old"}')
NO_KEY = Rejected(None, "unparsable", "the line is not valid CSV", "data/a.csv", 9, None)
RED = (CheckResult("quarantined_share", False, "2 of 3 rows quarantined"),)
GREEN = (
    CheckResult("quarantined_share", True, "fine"),
    CheckResult("nulls", False, "a hint", severity="warn"),
)


def slice_of(folder: Path, day: str = DAYS[0], **source: Any) -> Slice:
    spec = parse_spec({**ATTRIBUTES, "source": {**ATTRIBUTES["source"], **source}}, "mini")
    partition = spec.partitions.calendar().partition(day)
    return Slice(spec, partition, Settings(folder / "root"), folder, Run("r1"))


def table(slice_: Slice) -> pl.DataFrame:
    return pl.read_delta(str(slice_.layout.table("quarantine")))


SCHEMA = pa.schema([("row_key", pa.string())])


def decide(
    slice_: Slice, stage_name: Stage, rejected: list[Rejected], fingerprint: str, attempt: int = 0
) -> Commit:
    """Publish an empty result of a stage with these rows in quarantine."""
    attempt = attempt or slice_.lake.begin(Slot(stage_name, slice_.key))
    return publish(slice_, stage_name, [], SCHEMA, rejected, fingerprint, attempt)


def test_rows_by_stage_and_partition(tmp_path: Path) -> None:
    first, second = slice_of(tmp_path), slice_of(tmp_path, DAYS[1])
    decide(first, "raw", [BAD, NO_KEY], "f1")
    decide(first, "features", [BAD], "f2")
    decide(second, "raw", [BAD], "f3", attempt=4)
    assert standing_quarantine(first, "raw") == [BAD, NO_KEY]
    assert standing_quarantine(first, "features") == [BAD]
    assert standing_quarantine(second, "raw") == [BAD]
    assert standing_quarantine(second, "predictions") == []
    frame = table(first)
    assert frame.height == 4
    assert set(frame["run_id"]) == {"r1"}
    assert frame.filter(pl.col("partition_key") == DAYS[1])["attempt"].to_list() == [4]

    # The rows of one stage are replaced, and cleared, alone.
    decide(first, "raw", [], "f4")
    assert standing_quarantine(first, "raw") == []
    assert table(first).height == 2


def test_nothing_is_written_where_nothing_is_bad(tmp_path: Path) -> None:
    slice_ = slice_of(tmp_path)
    decide(slice_, "raw", [], "f1")
    assert not slice_.layout.table("quarantine").exists()


def test_a_twin_changes_nothing(tmp_path: Path) -> None:
    slice_ = slice_of(tmp_path)
    attempts = [slice_.lake.begin(Slot("raw", slice_.key)) for _ in range(2)]
    decide(slice_, "raw", [BAD], "f1", attempts[1])
    before = table(slice_)
    twin = decide(replace(slice_, run=Run("r2")), "raw", [BAD], "f1", attempts[0])
    assert twin.attempt == attempts[1]
    assert table(slice_).equals(before)
    assert len(list(slice_.layout.table("quarantine").rglob("*.parquet"))) == 1


def test_an_older_attempt_of_the_stage_is_refused(tmp_path: Path) -> None:
    slice_ = slice_of(tmp_path)
    attempts = [slice_.lake.begin(Slot("predictions", slice_.key)) for _ in range(2)]
    decide(slice_, "predictions", [], "new", attempts[1])
    with pytest.raises(SupersededError, match="attempt 1 is superseded by attempt 2"):
        decide(slice_, "predictions", [BAD], "old", attempts[0])
    assert standing_quarantine(slice_, "predictions") == []
    assert not list(slice_.layout.table("quarantine").rglob("*.parquet"))


@pytest.mark.parametrize("before", [[], [NO_KEY]])
def test_killed_between_rows_and_quarantine_the_decision_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[Rejected]
) -> None:
    slice_ = slice_of(tmp_path)
    decide(slice_, "raw", before, "f1")
    with monkeypatch.context() as patch:
        patch.setattr(
            "batch_platform.core.publishing.settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            decide(slice_, "raw", [BAD], "f2")
    assert standing_quarantine(slice_, "raw") == before
    head = slice_.lake.head(Slot("raw", slice_.key))
    assert head is not None
    settle(slice_, "raw", head)
    assert standing_quarantine(slice_, "raw") == [BAD]
    versions = pl.read_delta(str(slice_.layout.table("quarantine")))
    settle(slice_, "raw", head)
    assert table(slice_).equals(versions)


def test_the_gate_keeps_refused_rows_where_they_can_be_read(tmp_path: Path) -> None:
    slice_ = slice_of(tmp_path)
    publishable(slice_, "raw", GREEN, [BAD])
    with pytest.raises(GateError) as caught:
        publishable(slice_, "raw", RED, [BAD, NO_KEY])
    assert caught.value.checks == RED
    path = str(caught.value).rsplit("the rows are in ", 1)[1]
    assert pl.read_parquet(path)["source_row"].to_list() == [7, 9]
    assert not slice_.layout.table("quarantine").exists()
    with pytest.raises(GateError) as caught:
        publishable(slice_, "raw", RED, [])
    assert "the rows are in" not in str(caught.value)


def test_payload(tmp_path: Path) -> None:
    row = {"id": "k1", "note": "ä" * 5_000, "at": None}
    payload = payload_of(slice_of(tmp_path), row)
    assert payload is not None
    assert payload.startswith('{"id": "k1", "note": "ää')
    assert len(payload) == 2_000
    assert json.loads(payload_of(slice_of(tmp_path), {"id": "k1"}) or "") == {"id": "k1"}
    columns = {**ATTRIBUTES["source"]["columns"], "plan": {"type": "string", "sensitive": True}}
    assert payload_of(slice_of(tmp_path, columns=columns), row) is None


def test_rows_are_located_by_key(tmp_path: Path) -> None:
    slice_ = slice_of(tmp_path)
    assert locate(slice_, set()) == {}
    schema = pa.schema([("row_key", pa.string()), ("source_file", pa.string()), ("source_row", pa.int64())])
    rows = pa.record_batch([["a", "b", "c"], ["x.csv", "x.csv", "y.csv"], [0, 1, 0]], schema=schema)
    slot = Slot("raw", slice_.key)
    staged = stage([rows], schema, tmp_path / "staged", "raw")
    slice_.lake.commit(slot, staged, schema, {"fingerprint": "f"}, slice_.lake.begin(slot))
    assert locate(slice_, {"c", "b"}) == {"b": ("x.csv", 1), "c": ("y.csv", 0)}
