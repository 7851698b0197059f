"""Sources elsewhere than in plain files on a disk: object storage, compressed files, Delta tables, other pipelines."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from batch_platform.core.data.files import Location
from batch_platform.core.data.finding import find_files, place_of, source_name
from batch_platform.core.data.intake import PartitionReader
from batch_platform.core.data.objects import ObjectPath
from batch_platform.core.data.partitions import PartitionCalendar
from batch_platform.core.data.readers.opening import LONGEST_LINE
from batch_platform.core.spec import parse_spec
from batch_platform.errors import ContractError, PipelineFileError, SourceError, SourceMissingError
from batch_platform_tests.core.deliveries import Shop
from batch_platform_tests.mini import ATTRIBUTES, DAYS

CALENDAR = PartitionCalendar.of("daily", "2026-01-01", None, "UTC")
COLUMNS = {"id": {"type": "int64"}, "x": {"type": "float64"}}


def zstd(data: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return packed.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def attributes(**source: Any) -> dict[str, Any]:
    made = {"uri": "in/{partition}", "row_key": "id", "columns": COLUMNS} | source
    return {**ATTRIBUTES, "source": made}


def read(
    folder: Path, day: str = "2026-01-02", root: Location | None = None, **source: Any
) -> list[dict[str, Any]]:
    spec = parse_spec(attributes(**source), "p")
    reader = PartitionReader(spec.source, CALENDAR.partition(day), folder, root)
    return [row for good, _ in reader for row in good.to_pylist()]


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


# -- compressed files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_compressed_files(tmp_path: Path, kind: str, suffix: str) -> None:
    lines = {"csv": "id,x\n1,0.5\n2,1.5\n", "jsonl": '{"id": 1, "x": 0.5}\n{"id": 2, "x": 1.5}\n'}[kind]
    path = tmp_path / "in/2026-01-02" / f"a.{kind}{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(PACKERS[suffix](lines.encode()))
    assert [row["x"] for row in read(tmp_path, format=kind)] == [0.5, 1.5]


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKERS if suffix])
def test_compressed_files_that_are_cut_off(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in/2026-01-02.csv{suffix}"
    path.parent.mkdir()
    packed = PACKERS[suffix]("\n".join(["id,x", *(f"{i},{i * 7919 % 1013}" for i in range(20_000))]).encode())
    for damaged in (packed[: len(packed) // 2], b"not packed at all"):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"2026-01-02\.csv.* is damaged or cut off"):
            read(tmp_path, uri="in/{partition}.csv" + suffix, format="csv")


def test_a_bomb_of_one_line_is_refused_before_memory_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "in/2026-01-02.csv.gz"
    path.parent.mkdir()
    with gzip.open(path, "wb") as stream:
        for _ in range(40):
            stream.write(b"0" * (LONGEST_LINE // 8))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(SourceError, match="has a line longer than 32 MiB"):
        read(tmp_path, uri="in/{partition}.csv.gz", format="csv")


# -- object storage ---------------------------------------------------------------------------------------


def put(root: str, name: str, content: bytes) -> None:
    place = place_of(f"{root}/{name}", Path())
    assert isinstance(place, ObjectPath)
    place.put(content)


def test_files_in_object_storage(object_storage: str, tmp_path: Path) -> None:
    put(object_storage, "crm/2026-01-02/b.parquet", parquet(id=[3], x=[3.5]))
    put(object_storage, "crm/2026-01-02/a.parquet", parquet(id=[1, 2], x=[1.5, 2.5]))
    put(object_storage, "crm/2026-01-02/_tmp.parquet", b"unfinished")
    put(object_storage, "crm/2026-01-03/a.parquet", parquet(id=[9], x=[9.0]))
    for uri in ("crm/{partition}", "crm/{partition}/*.parquet", "**/{partition}/*.parquet"):
        rows = read(tmp_path, uri=f"{object_storage}/{uri}")
        assert [row["id"] for row in rows] == [1, 2, 3]
        assert rows[0]["source_file"] == f"{object_storage}/crm/2026-01-02/a.parquet"
    put(object_storage, "one.jsonl.gz", gzip.compress(b'{"id": 1, "x": 2}\n'))
    put(object_storage, "day=2026-01-02/in.csv", b"id,x\n5,0.5\n")
    assert [
        row["x"] for row in read(tmp_path, uri=f"{object_storage}/day={{partition}}/*", format="csv")
    ] == [0.5]
    (found,) = find_files(f"{object_storage}/one.jsonl.gz", "jsonl", tmp_path)
    assert source_name(found, tmp_path) == f"{object_storage}/one.jsonl.gz"
    for nothing in ("crm/2026-01-04", "crm/*.parquet", "two.csv"):
        with pytest.raises(SourceMissingError):
            find_files(f"{object_storage}/{nothing}", "parquet", tmp_path)


def test_a_store_that_refuses(object_storage: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"NoSuchBucket|not found|404") as caught:
        read(tmp_path, uri="s3://no-such-bucket-here/{partition}/*.csv", format="csv")
    assert not isinstance(caught.value, SourceMissingError)


# -- Delta ------------------------------------------------------------------------------------------------


def write_days(place: str, options: dict[str, str] | None = None) -> None:
    rows = {
        "id": [1, 2, 3],
        "x": [0.5, 1.5, 2.5],
        "day": [date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 2)],
        "at": [
            datetime(2026, 1, 1, 23, 59, tzinfo=UTC),
            datetime(2026, 1, 2, tzinfo=UTC),
            datetime(2026, 1, 3, tzinfo=UTC),
        ],
    }
    write_deltalake(place, pa.table(rows), partition_by=["day"], storage_options=options)
    write_deltalake(place, pa.table(rows).slice(2), mode="append", storage_options=options)


def test_a_delta_table(tmp_path: Path) -> None:
    write_days(str(tmp_path / "days"))
    source = {"uri": "days", "format": "delta", "partition_column": "day", "on_duplicate": "first"}
    rows = read(tmp_path, columns={**COLUMNS, "day": {"type": "date"}}, **source)
    assert sorted(row["id"] for row in rows) == [2, 3]
    assert {row["day"] for row in rows} == {date(2026, 1, 2)}
    assert all(row["source_file"].startswith("days@1/day=2026-01-02/part-") for row in rows)
    source["partition_column"] = "at"
    rows = read(tmp_path, columns={**COLUMNS, "at": {"type": "timestamp"}}, **source)
    assert [row["id"] for row in rows] == [2]
    DeltaTable(tmp_path / "days").delete("id = 2")
    with pytest.raises(SourceMissingError):
        read(tmp_path, columns={**COLUMNS, "at": {"type": "timestamp"}}, **source)


def test_a_delta_table_in_object_storage(object_storage: str, tmp_path: Path) -> None:
    place = place_of(f"{object_storage}/days", tmp_path)
    assert isinstance(place, ObjectPath)
    write_days(str(place), place.bucket.delta_options)
    columns = {**COLUMNS, "day": {"type": "date"}}
    rows = read(
        tmp_path, "2026-01-01", columns=columns, uri=str(place), format="delta", partition_column="day"
    )
    assert [(row["id"], row["x"]) for row in rows] == [(1, 0.5)]


def test_delta_tables_that_cannot_be_read(tmp_path: Path) -> None:
    source = {"uri": "days", "format": "delta", "partition_column": "day"}
    columns = {**COLUMNS, "day": {"type": "date"}}
    with pytest.raises(SourceMissingError, match="days: no Delta table is there"):
        read(tmp_path, columns=columns, **source)
    write_days(str(tmp_path / "days"))
    with pytest.raises(ContractError, match="days lacks column price of the contract"):
        read(tmp_path, columns={**columns, "price": {"type": "int64"}}, **source)
    with pytest.raises(ContractError, match="column x is of type double, which cannot be read as boolean"):
        read(tmp_path, columns={**columns, "x": {"type": "boolean"}}, **source)
    for path in (tmp_path / "days").rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match="days: the Delta table cannot be read"):
        read(tmp_path, columns=columns, **source)


# -- another pipeline's predictions -------------------------------------------------------------------------


CHAINED = {
    "uri": "mini",
    "format": "predictions",
    "row_key": "row_key",
    "columns": {
        "row_key": {"type": "string"},
        "mini_score": {"type": "float64"},
        "mini_label": {"type": "string"},
    },
}


def test_predictions_of_another_pipeline(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.commit({"a": 0.25, "b": 0.75}, "f1")
    shop.commit({"a": 0.5}, "f2")
    rows = read(tmp_path, DAYS[0], tmp_path / "root", **CHAINED)
    assert [(row["row_key"], row["mini_score"], row["mini_label"]) for row in rows] == [("a", 0.5, "yes")]
    assert rows[0]["source_file"].startswith("mini/predictions@2/f2-2-")
    with pytest.raises(SourceMissingError, match="pipeline mini has no predictions of 2026-01-02"):
        read(tmp_path, DAYS[1], tmp_path / "root", **CHAINED)
    with pytest.raises(ContractError, match="lacks column embedding"):
        columns = {**CHAINED["columns"], "mini_embedding": {"type": "list<float32>"}}
        read(tmp_path, DAYS[0], tmp_path / "root", **{**CHAINED, "columns": columns})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"uri": "../mini"}, "it is the name of another pipeline"),
        ({"uri": "mini/{partition}"}, "it is the name of another pipeline"),
        (
            {"columns": {"row_key": {"type": "string"}, "score": {"type": "float64"}}},
            "column 'score' has the name",
        ),
    ],
)
def test_chains_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PipelineFileError) as caught:
        parse_spec(attributes(**{**CHAINED, **changes}), "p")
    assert words in str(caught.value)


# -- what changes over the year ---------------------------------------------------------------------------


def test_a_column_that_changes_its_type_in_the_middle_of_the_year(tmp_path: Path) -> None:
    """Numbers that become wider numbers are read on; numbers that become texts fail the day, by name."""
    for day, x in {"2026-01-01": [1, 2], "2026-06-30": [1.5, 2.5], "2026-07-01": ["1.5", "2"]}.items():
        (tmp_path / "in" / day).mkdir(parents=True)
        (tmp_path / "in" / day / "a.parquet").write_bytes(parquet(id=[1, 2], x=x))
    assert [row["x"] for row in read(tmp_path, "2026-01-01")] == [1.0, 2.0]
    assert [row["x"] for row in read(tmp_path, "2026-06-30")] == [1.5, 2.5]
    with pytest.raises(
        ContractError, match=r"in/2026-07-01/a\.parquet: column x is of type string, which cannot"
    ):
        read(tmp_path, "2026-07-01")


def test_a_day_of_many_small_files(tmp_path: Path) -> None:
    folder = tmp_path / "in/2026-01-02"
    for number in range(500):
        path = folder / f"{number % 7}" / f"{number:05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"id": {number}, "x": 0.5}}\n')
    assert sorted(row["id"] for row in read(tmp_path, format="jsonl")) == list(range(500))
