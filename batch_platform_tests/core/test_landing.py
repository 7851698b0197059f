"""Stage `raw`, without Dagster: what is committed, what is adopted, and what is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from batch_platform.core.data.lake import Slot
from batch_platform.core.landing import land_partition
from batch_platform.core.slice import Run, Slice, StageResult
from batch_platform.core.spec import PipelineSpec, parse_spec
from batch_platform.errors import ContractError, GateError, SourceError
from batch_platform.settings import Settings
from batch_platform_tests.mini import ATTRIBUTES, DAYS, good_row

DAY = DAYS[0]
ROWS = 20


class Landing:
    """One day of the pipeline `mini`, written as CSV and landed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: PipelineSpec = parse_spec(ATTRIBUTES, "mini")
        (folder / "data").mkdir()

    def change(self, **source: Any) -> None:
        self.spec = parse_spec({**ATTRIBUTES, "source": {**ATTRIBUTES["source"], **source}}, "mini")

    def slice(self, run: str = "r1") -> Slice:
        partition = self.spec.partitions.calendar().partition(DAY)
        return Slice(self.spec, partition, Settings(self.folder / "root"), self.folder, Run(run, "a test"))

    def write(self, changes: Mapping[int, Mapping[str, Any]] | None = None, rows: int = ROWS) -> None:
        made = [good_row(DAY, place) | dict((changes or {}).get(place, {})) for place in range(rows)]
        lines = [",".join(str(value) for value in row.values()) for row in made]
        (self.folder / "data" / f"{DAY}.csv").write_text("\n".join(["id,amount,age,plan", *lines]))

    def land(self, run: str = "r1") -> StageResult:
        return land_partition(self.slice(run))

    def table(self, name: str = "raw") -> pl.DataFrame:
        folder = self.slice().layout.table(name)
        return pl.read_delta(str(folder)) if folder.is_dir() else pl.DataFrame()

    def receipt(self) -> Mapping[str, Any]:
        head = self.slice().lake.head(Slot("raw", DAY))
        assert head is not None
        return head.receipt


@pytest.fixture
def landing(tmp_path: Path) -> Landing:
    return Landing(tmp_path)


def test_rows_and_receipt(landing: Landing) -> None:
    landing.write({3: {"age": -1}})
    result = landing.land()
    assert (result.table, result.rows, result.reused) == ("raw", ROWS - 1, False)
    assert all(check.passed for check in result.checks)
    assert (result.metadata["rows_in"], result.metadata["rows_kept"]) == (ROWS, ROWS - 1)
    table = landing.table().sort("source_row")
    assert table["source_row"].to_list() == [row for row in range(ROWS) if row != 3]
    assert set(table["source_file"]) == {f"data/{DAY}.csv"}
    assert table["row_key"].to_list() == table["id"].to_list()
    (bad,) = landing.table("quarantine").to_dicts()
    assert (bad["stage"], bad["row_key"], bad["error_type"]) == ("raw", f"{DAY}-3", "out_of_range")
    assert (bad["source_row"], bad["run_id"], bad["attempt"]) == (3, "r1", 1)
    receipt = landing.receipt()
    assert (receipt["run_id"], receipt["triggered_by"], receipt["pipeline"]) == ("r1", "a test", "mini")
    assert receipt["counts"] == dict(result.metadata)
    assert sum(file["rows"] for file in receipt["files"]) == ROWS - 1


def test_the_same_rows_are_not_committed_again(landing: Landing) -> None:
    landing.write({3: {"age": -1}})
    first = landing.land("r1")
    again = landing.land("r2")
    assert (again.reused, again.data_version) == (True, first.data_version)
    assert landing.receipt()["run_id"] == "r1"
    # The same good rows and another bad one are another result.
    landing.write({3: {"age": -2}})
    assert not landing.land("r2").reused
    (bad,) = landing.table("quarantine").to_dicts()
    assert "-2" in bad["message"]
    landing.write({3: {"age": -1}, 4: {"age": 151}}, rows=ROWS + 1)
    third = landing.land("r3")
    assert not third.reused
    assert third.data_version != first.data_version
    assert landing.table("quarantine").height == 2
    landing.write()
    landing.land("r4")
    assert landing.table("quarantine").is_empty()
    assert landing.table().height == ROWS


def test_too_many_bad_rows_are_kept_beside_the_table(landing: Landing) -> None:
    landing.write()
    landing.land()
    landing.write({place: {"age": "old"} for place in range(3)})
    with pytest.raises(GateError) as caught:
        landing.land()
    message = str(caught.value)
    assert message.startswith(f"pipeline mini, partition {DAY}: quarantined_share: 3 of 20 rows quarantined")
    failed = {check.name for check in caught.value.checks if not check.passed}
    assert failed == {"quarantined_share"}
    assert pl.read_parquet(message.rsplit("the rows are in ", 1)[1])["source_row"].to_list() == [0, 1, 2]
    assert landing.table().height == ROWS
    assert landing.table("quarantine").is_empty()


def test_an_allowed_empty_partition_replaces_what_stood(landing: Landing) -> None:
    landing.change(allow_empty=True)
    landing.write()
    landing.land()
    (landing.folder / "data" / f"{DAY}.csv").unlink()
    result = landing.land()
    assert (result.rows, result.reused) == (0, False)
    assert landing.table().is_empty()
    assert landing.land().reused


@pytest.mark.parametrize(
    ("policy", "kept", "quarantined"), [("first", 7.5, 0), ("last", 1.0, 0), ("quarantine", 7.5, 1)]
)
def test_repeated_keys(landing: Landing, policy: str, kept: float, quarantined: int) -> None:
    landing.write({6: {"id": f"{DAY}-5", "amount": 1.0}})
    with pytest.raises(GateError) as caught:
        landing.land()
    assert [check.name for check in caught.value.checks] == ["duplicates"]
    landing.change(on_duplicate=policy)
    result = landing.land()
    assert result.rows == ROWS - 1
    row = landing.table().filter(pl.col("row_key") == f"{DAY}-5")
    assert row["amount"].to_list() == [kept]
    assert landing.table("quarantine").height == quarantined


def test_a_file_that_cannot_be_used_as_a_whole(landing: Landing) -> None:
    path = landing.folder / "data" / f"{DAY}.csv"
    path.write_text("id,amount\n1,2\n")
    with pytest.raises(
        ContractError, match=rf"^pipeline mini, partition {DAY}: data/{DAY}\.csv lacks column age"
    ):
        landing.land()
    path.rename(path.with_suffix(".gz"))
    landing.change(uri="data/{partition}.gz")
    with pytest.raises(SourceError, match=rf"^pipeline mini, partition {DAY}: data/{DAY}\.gz is damaged"):
        landing.land()
    assert landing.table().is_empty()


def test_nothing_is_shown_of_sensitive_columns(landing: Landing) -> None:
    columns = ATTRIBUTES["source"]["columns"]
    landing.change(columns={**columns, "amount": {**columns["amount"], "sensitive": True}})
    landing.write({3: {"amount": "secret"}, 4: {"age": "old"}})
    landing.land()
    frame = landing.table("quarantine")
    assert frame.height == 2
    assert "secret" not in frame.write_csv()
    assert "old" in frame.write_csv()
