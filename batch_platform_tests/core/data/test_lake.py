"""The lake replaces partitions whole, keeps receipts, and lets the newest attempt stand."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import Commit, Lake, Slot
from batch_platform.core.data.staging import stage
from batch_platform.core.layout import Layout
from batch_platform.errors import StorageError, SupersededError
from batch_platform_tests.tables import scan_delta

SCHEMA = pa.schema([("row_key", pa.string()), ("value", pa.float64())])


@pytest.fixture
def lake(root: Location) -> Lake:
    return Lake(Layout(root, "p"))


@pytest.fixture
def lake_on_disk(tmp_path: Path) -> Lake:
    return Lake(Layout(tmp_path, "p"))


def write(
    lake: Lake, key: str, values: list[float], fingerprint: str, attempt: int | None = None, part: str = ""
) -> Commit:
    attempt = attempt or lake.begin(Slot("t", key, part))
    batch = pa.record_batch({"row_key": [str(i) for i in range(len(values))], "value": values}, SCHEMA)
    staged = stage(iter([batch]), SCHEMA, lake.layout.scratch(key) / str(attempt), "part")
    receipt = {"fingerprint": fingerprint, **({"stage": part} if part else {})}
    return lake.commit(Slot("t", key, part), staged, SCHEMA, receipt, attempt)


def values(lake: Lake, key: str) -> list[float]:
    return [v for batch in lake.batches("t", key) for v in batch["value"].to_pylist()]


def test_a_partition_is_replaced_and_the_others_stay(lake: Lake) -> None:
    write(lake, "2026-01-01", [1, 2], "a")
    write(lake, "2026-01-02", [3], "b")
    write(lake, "2026-01-01", [4, 5, 6], "c")
    assert values(lake, "2026-01-01") == [4, 5, 6]
    assert values(lake, "2026-01-02") == [3]
    assert lake.partition_rows("t") == {"2026-01-01": 3, "2026-01-02": 1}


def test_head_is_the_last_receipt_also_for_an_empty_partition(lake: Lake) -> None:
    assert lake.head(Slot("t", "2026-01-01")) is None
    write(lake, "2026-01-01", [1], "a")
    write(lake, "2026-01-01", [], "b")
    head = lake.head(Slot("t", "2026-01-01"))
    assert head is not None
    assert (head.attempt, head.fingerprint, head.receipt["files"]) == (2, "b", [])
    assert values(lake, "2026-01-01") == []


def test_an_older_attempt_is_refused_and_leaves_no_file(lake: Lake) -> None:
    old = lake.begin(Slot("t", "2026-01-01"))
    write(lake, "2026-01-01", [2], "new")
    with pytest.raises(SupersededError, match="2026-01-01"):
        write(lake, "2026-01-01", [1], "old", attempt=old)
    assert values(lake, "2026-01-01") == [2]
    assert len(files.entries(lake.layout.table("t") / "partition_key=2026-01-01")) == 1


def test_a_twin_with_the_same_fingerprint_adopts(lake: Lake) -> None:
    old = lake.begin(Slot("t", "2026-01-01"))
    write(lake, "2026-01-01", [1], "same")
    assert write(lake, "2026-01-01", [1], "same", attempt=old).attempt == 2


def test_receipt_lost_after_the_commit_is_read_from_the_table(lake: Lake) -> None:
    write(lake, "2026-01-01", [1], "a")
    write(lake, "2026-01-02", [1], "b")
    for copy in files.entries(lake.layout.receipts("t", "2026-01-01"), "*.json"):
        files.remove(copy)
    head = lake.head(Slot("t", "2026-01-01"))
    assert head is not None and head.fingerprint == "a"


def test_attempt_numbers_are_never_given_twice(lake: Lake) -> None:
    assert [lake.begin(Slot("t", "2026-01-01")) for _ in range(3)] == [1, 2, 3]


def test_an_altered_staged_file_is_refused(lake: Lake) -> None:
    batch = pa.record_batch({"row_key": ["a"], "value": [1.0]}, SCHEMA)
    staged = stage(iter([batch]), SCHEMA, lake.layout.scratch("2026-01-01"), "part")
    content = bytearray(staged[0].path.read_bytes())
    content[10] ^= 1
    staged[0].path.write_bytes(content)
    with pytest.raises(StorageError, match="altered"):
        lake.commit(
            Slot("t", "2026-01-01"), staged, SCHEMA, {"fingerprint": "a"}, lake.begin(Slot("t", "2026-01-01"))
        )
    assert lake.head(Slot("t", "2026-01-01")) is None


def test_a_new_column_is_added_and_a_changed_type_refused(lake: Lake) -> None:
    write(lake, "2026-01-01", [1], "a")
    wider = pa.schema([*SCHEMA, ("extra", pa.string())])
    batch = pa.record_batch({"row_key": ["a"], "value": [1.0], "extra": ["x"]}, wider)
    staged = stage(iter([batch]), wider, lake.layout.scratch("2026-01-02"), "part")
    lake.commit(
        Slot("t", "2026-01-02"), staged, wider, {"fingerprint": "b"}, lake.begin(Slot("t", "2026-01-02"))
    )
    assert sorted(scan_delta(lake.layout.table("t")).collect()["extra"].to_list(), key=str) == [None, "x"]
    other = pa.schema([("row_key", pa.string()), ("value", pa.string())])
    with pytest.raises(StorageError, match="'value'"):
        lake.commit(
            Slot("t", "2026-01-02"), [], other, {"fingerprint": "c"}, lake.begin(Slot("t", "2026-01-02"))
        )


def test_parts_of_a_partition_are_replaced_apart(lake: Lake) -> None:
    write(lake, "2026-01-01", [1], "a", part="raw")
    write(lake, "2026-01-01", [2], "b", part="predictions")
    write(lake, "2026-01-01", [], "c", part="raw")
    frame = scan_delta(lake.layout.table("t")).collect()
    assert frame.select("stage", "value").rows() == [("predictions", 2.0)]


@pytest.mark.parametrize("key", ["2026-01-01", "2026-01-31-23:00"])
def test_other_readers_see_the_partition_key(lake: Lake, key: str) -> None:
    write(lake, key, [1, 2], "a")
    assert scan_delta(lake.layout.table("t")).collect()["partition_key"].to_list() == [key, key]


def test_the_listed_files_are_a_partition(lake_on_disk: Lake) -> None:
    key = "2026-01-31-23:00"
    write(lake_on_disk, key, [1, 2], "a")
    listed = [str(path) for path in lake_on_disk.paths("t", key)]
    assert duckdb.sql(f"select count(*) from read_parquet({listed})").fetchall() == [(2,)]


def receipts(lake: Lake) -> list[str]:
    handle = lake.table("t").open()
    assert handle is not None
    return list(lake.table("t").receipts_backwards(handle))[::-1]


def test_each_receipt_names_the_commit_before_it(lake: Lake) -> None:
    write(lake, "2026-01-01", [1], "a")
    write(lake, "2026-01-02", [2], "b")
    write(lake, "2026-01-01", [3], "c")
    chain = receipts(lake)
    assert [json.loads(receipt)["fingerprint"] for receipt in chain] == ["a", "b", "c"]
    assert [json.loads(receipt)["version"] for receipt in chain] == [1, 2, 3]
    assert [json.loads(receipt)["previous"] for receipt in chain] == [
        lake.table("t").commit_hash(v) for v in range(3)
    ]
    for receipt in chain:
        values = json.loads(receipt)
        copy = lake.receipt_location(Slot.of(values), values["attempt"])
        unsealed = files.unsealed(copy.read_bytes())
        assert unsealed == {"receipt": values, "commit": lake.table("t").commit_hash(values["version"])}
        assert lake.table("t").receipt_at(values["version"]) == receipt


def test_writers_take_turns_and_the_chain_has_no_fork(root: Location) -> None:
    lakes = [Lake(Layout(root, "p")) for _ in range(4)]

    def work(number: int) -> None:
        for day in range(1, 6):
            write(lakes[number], f"2026-0{number + 1}-0{day}", [day], f"{number}{day}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    chain = receipts(lakes[0])
    assert len(chain) == 20
    hashes = [lakes[0].table("t").commit_hash(version) for version in range(20)]
    assert [json.loads(receipt)["previous"] for receipt in chain] == hashes


@pytest.mark.parametrize("content", [b"", b'{"commitInfo":{"times'])
def test_a_commit_torn_by_a_power_loss_is_set_aside(lake_on_disk: Lake, content: bytes) -> None:
    write(lake_on_disk, "2026-01-01", [1], "a")
    torn = lake_on_disk.layout.table("t") / "_delta_log" / f"{2:020}.json"
    torn.write_bytes(content)
    other = Lake(lake_on_disk.layout)
    assert values(other, "2026-01-01") == [1]
    write(other, "2026-01-01", [2], "b")
    assert values(other, "2026-01-01") == [2]


def test_a_commit_that_was_reported_as_done_is_never_set_aside(lake_on_disk: Lake) -> None:
    write(lake_on_disk, "2026-01-01", [1], "a")
    write(lake_on_disk, "2026-01-01", [2], "b")
    last = lake_on_disk.layout.table("t") / "_delta_log" / f"{2:020}.json"
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.raises(StorageError, match="cannot be opened"):
        values(Lake(lake_on_disk.layout), "2026-01-01")
    assert last.is_file()


def test_a_torn_commit_in_the_middle_is_an_error(lake_on_disk: Lake) -> None:
    write(lake_on_disk, "2026-01-01", [1], "a")
    write(lake_on_disk, "2026-01-01", [2], "b")
    (lake_on_disk.layout.table("t") / "_delta_log" / f"{1:020}.json").write_bytes(b'{"commitInfo":{"times')
    with pytest.raises(StorageError, match="cannot be opened"):
        values(Lake(lake_on_disk.layout), "2026-01-01")


def test_a_torn_checkpoint_is_set_aside(lake_on_disk: Lake) -> None:
    for number in range(101):
        write(lake_on_disk, "2026-01-01", [number], str(number))
    (checkpoint,) = (lake_on_disk.layout.table("t") / "_delta_log").glob("*.checkpoint.parquet")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    assert values(Lake(lake_on_disk.layout), "2026-01-01") == [100]
