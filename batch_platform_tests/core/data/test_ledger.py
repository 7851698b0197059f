"""A finished shard survives, a damaged one is scored again, and the first of two writers wins."""

from pathlib import Path

import pyarrow as pa
import pytest

from batch_platform.core.data.ledger import ShardLedger

ROWS = pa.table({"row_key": ["a", "b"]})


@pytest.fixture
def ledger(tmp_path: Path) -> ShardLedger:
    return ShardLedger(tmp_path / "work", tmp_path / "scratch")


def test_recorded_shard_is_found_by_another_process(ledger: ShardLedger, tmp_path: Path) -> None:
    assert ledger.finished(0) is None
    ledger.record(0, ROWS, {"seconds": 1.5})
    again = ShardLedger(tmp_path / "work", tmp_path / "scratch").finished(0)
    assert again is not None and again.file is not None
    assert (again.file.rows, again.notes) == (2, {"seconds": 1.5})


def test_a_shard_without_rows_is_finished_too(ledger: ShardLedger) -> None:
    ledger.record(3, ROWS.slice(0, 0), {})
    found = ledger.finished(3)
    assert found is not None and found.file is None


@pytest.mark.parametrize("damage", ["missing", "altered", "truncated"])
def test_a_damaged_file_voids_its_entry(ledger: ShardLedger, damage: str) -> None:
    file = ledger.record(0, ROWS, {}).file
    assert file is not None
    content = file.path.read_bytes()
    if damage == "missing":
        file.path.unlink()
    else:
        file.path.write_bytes(content[:-9] if damage == "truncated" else content[:-1] + b"x")
    assert ledger.fetch(0) is None
    assert ledger.finished(0) is None
    assert ledger.record(0, ROWS, {}).file is not None


def test_the_loser_of_a_race_adopts_the_winner(ledger: ShardLedger, tmp_path: Path) -> None:
    first = ledger.record(0, ROWS, {"who": 1})
    second = ShardLedger(tmp_path / "work", tmp_path / "scratch").record(0, ROWS, {"who": 2})
    assert second == first
    assert len(list((tmp_path / "work").glob("*.parquet"))) == 1
