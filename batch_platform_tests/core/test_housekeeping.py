"""Housekeeping removes what its rules name, and never what a live run or the audit period needs."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from batch_platform.core import featurizing, landing, scoring
from batch_platform.core.data.lake import Slot
from batch_platform.core.data.ledger import ShardLedger
from batch_platform.core.data.staging import stage
from batch_platform.core.housekeeping import Cleaned, clean
from batch_platform.core.slice import Run, Slice
from batch_platform.core.verifying import verify
from batch_platform_tests.mini import DAYS, Mini, good_row

NOW = datetime.now(UTC)
BAD = {"id": "bad", "amount": -1, "age": 20, "plan": "pro"}


class Lived:
    """Two days, scored three times each with changed rows; a bad row in quarantine."""

    def __init__(self, mini: Mini) -> None:
        self.mini = mini
        self.model = mini.register()
        self.engine = scoring.load_engine(self.model, mini.spec, mini.settings.root)
        for round_ in range(3):
            for day in DAYS[:2]:
                self.run(day, 20 + round_)

    def slice(self, day: str) -> Slice:
        partition = self.mini.spec.partitions.calendar().partition(day)
        return Slice(self.mini.spec, partition, self.mini.settings, self.mini.folder, Run("r"))

    def run(self, day: str, rows: int) -> None:
        self.mini.write(day, [*(good_row(day, number) for number in range(rows)), BAD])
        slice_ = self.slice(day)
        landing.land_partition(slice_)
        featurizing.featurize_partition(slice_)
        scoring.score_partition(slice_, self.model, self.engine, lambda line: None)

    def clean(self, days_later: float = 0) -> Cleaned:
        return clean(self.mini.spec, self.mini.settings, NOW + timedelta(days=days_later), lambda line: None)

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.mini.settings.root.glob(pattern))  # type: ignore[arg-type]

    def is_well(self) -> bool:
        return verify(self.mini.spec, self.mini.settings, self.mini.folder).ok


@pytest.fixture
def lived(mini: Mini) -> Lived:
    return Lived(mini)


def test_a_fresh_lake_loses_nothing(lived: Lived) -> None:
    before = lived.files("lake/**/*")
    cleaned = lived.clean()
    assert (cleaned.files, cleaned.expired) == ({}, 0)
    assert lived.files("lake/**/*") == before
    assert lived.is_well()


def test_superseded_files_go_after_the_history_and_reading_goes_on(lived: Lived) -> None:
    lived.mini.change(retention={"history_days": 30, "quarantine_days": 30})
    assert lived.clean(29).files == {}
    cleaned = lived.clean(31)
    # Of three commits of raw, features, predictions on two days, two are superseded; so are run_stats'.
    assert cleaned.files["history"] >= 2 * 3 * 2
    for table in ("raw", "features", "predictions"):
        assert len(lived.files(f"lake/mini/{table}/*/*.parquet")) == 2
        assert pl.read_delta(str(lived.mini.layout.table(table))).height == 2 * 22
    assert len(lived.files("receipts/mini/predictions/*/all-*.json")) == 6


def test_what_is_gone_before_its_time_is_missed_and_after_it_is_not(lived: Lived) -> None:
    lived.mini.change(retention={"history_days": 30, "quarantine_days": 30})
    lived.clean(31)
    found = verify(lived.mini.spec, lived.mini.settings, lived.mini.folder)
    # The clock of `verify` is today's: the files should still be there.
    assert {problem.problem for problem in found.problems} == {"is missing"}
    assert all("2026-01-0" in problem.file for problem in found.problems)


def test_quarantined_rows_lose_payload_and_message_and_stay_accounted_for(lived: Lived) -> None:
    before = lived.mini.table("quarantine")
    assert before["payload"].null_count() == 0
    assert lived.clean(89).expired == 0
    assert lived.clean(91).expired == 2
    after = lived.mini.table("quarantine")
    kept = ["row_key", "partition_key", "stage", "error_type", "source_file", "source_row", "run_id"]
    assert after.sort(kept).select(kept).equals(before.sort(kept).select(kept))
    assert after["payload"].null_count() == 2
    assert set(after["message"]) == {"expired"}
    assert len(lived.files("lake/mini/quarantine/**/*.parquet")) == 2
    assert lived.is_well()
    assert lived.clean(200).expired == 0

    # The partition can be worked on again: the same rows are adopted, others decide anew.
    slice_ = lived.slice(DAYS[0])
    assert landing.land_partition(slice_).reused
    assert set(lived.mini.table("quarantine")["message"]) == {"expired"}
    lived.run(DAYS[0], 30)
    rows = lived.mini.table("quarantine").filter(pl.col("partition_key") == DAYS[0])
    assert rows["message"].to_list() != ["expired"]
    assert lived.is_well()


def test_leftovers_of_attempts_that_lost_go_and_those_that_may_still_win_stay(lived: Lived) -> None:
    lake, slot = lived.slice(DAYS[0]).lake, Slot("predictions", DAYS[0])
    rows = pa.Table.from_batches(lake.batches("predictions", DAYS[0]))

    def place(attempt: int) -> Path:
        staged = stage(
            rows.to_batches(), rows.schema, lived.mini.layout.scratch("x"), f"predictions{attempt}"
        )
        return lake.place(slot, staged, "f" * 16, attempt)[0].path  # type: ignore[return-value]

    newer = lake.begin(slot)
    lost, live = place(1), place(newer)
    assert lived.clean().files == {"leftovers": 1}
    assert (lost.exists(), live.exists()) == (False, True)
    assert lived.clean(8).files["leftovers"] == 1
    assert not live.exists()
    assert lived.is_well()


def test_staging_of_live_work_stays_and_of_abandoned_work_goes(lived: Lived) -> None:
    layout = lived.mini.layout
    live = ShardLedger(layout.staging(DAYS[2]) / "live", layout.scratch(DAYS[2]))
    live.record(0, pa.table({"a": [1]}), {})
    head = lived.slice(DAYS[0]).lake.head(Slot("predictions", DAYS[0]))
    assert head is not None
    # A kill came between the commit and the cleaning.
    finished = ShardLedger(layout.staging(DAYS[0]) / head.fingerprint, layout.scratch(DAYS[0]))
    finished.record(0, pa.table({"a": [1]}), {})
    (layout.scratch(DAYS[2]) / "raw-1").mkdir(parents=True)
    (layout.scratch(DAYS[2]) / "raw-1" / "half.parquet").write_bytes(b"x")
    assert lived.clean().files == {"staging": 2}
    assert live.finished(0) is not None
    assert lived.clean(8).files == {"staging": 2, "scratch": 1}
    assert live.finished(0) is None


def test_numbers_of_attempts_are_forgotten_and_never_given_out_again(lived: Lived) -> None:
    lake, slot = lived.slice(DAYS[0]).lake, Slot("raw", DAYS[0])
    records = "receipts/mini/raw/2026-01-01/attempts/*"
    dead = lake.begin(slot)
    lived.run(DAYS[0], 40)
    assert len(lived.files(records)) == 1  # of the attempt that died
    lived.clean()
    assert lived.files(records) == []
    assert lake.begin(slot) == dead + 2
