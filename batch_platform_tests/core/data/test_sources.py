"""Files, formats and windows: which rows of which files a partition gets, and what is said when it gets none."""

import csv
import gzip
import io
import json
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batch_platform.core.data.contract import SourceBatch
from batch_platform.core.data.finding import find_files, source_name
from batch_platform.core.data.partitions import Partition, PartitionCalendar
from batch_platform.core.data.readers import delimited, jsonl, parquet
from batch_platform.core.data.sources import read_files, read_source
from batch_platform.core.spec import SourceSpec
from batch_platform.errors import ContractError, NotYetSupportedError, SourceError, SourceMissingError

TYPES: dict[str, Any] = {"id": "string", "x": "int64"}


def day(key: str = "2026-01-02", timezone: str = "UTC", cadence: Any = "daily") -> Partition:
    return PartitionCalendar.of(cadence, "2020-01-01", None, timezone).partition(key)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows_of(batches: Iterable[SourceBatch]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.batch.to_pylist()]


def read(folder: Path, content: str | bytes, file_format: str = "csv", **columns: str) -> list[SourceBatch]:
    write(folder / f"in.{file_format}", content)
    return list(read_files(f"in.{file_format}", file_format, columns or TYPES, folder))  # type: ignore[arg-type]


# -- files --------------------------------------------------------------------------------------------------


def test_folder_takes_all_files_of_the_format_in_order(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "sub/c.csv.gz", "_tmp.csv", ".d.csv", "_old/e.csv", ".x/f.csv", "g.txt"):
        write(tmp_path / "d" / name, "id\n")
    found = [source_name(path, tmp_path) for path in find_files("d", "csv", tmp_path)]
    assert found == ["d/a.csv", "d/b.csv", "d/sub/c.csv.gz"]


def test_glob(tmp_path: Path) -> None:
    for name in ("d/1/a.csv", "d/2/b.csv", "d/2/_c.csv", "d/2/b.txt"):
        write(tmp_path / name, "id\n")
    assert [p.name for p in find_files("d/*/*.csv", "csv", tmp_path)] == ["a.csv", "b.csv"]
    assert [p.name for p in find_files("d/[1]", "csv", tmp_path)] == ["a.csv"]
    assert [p.name for p in find_files("d/2/_*.csv", "csv", tmp_path)] == ["_c.csv"]
    assert [p.name for p in find_files("**/*.txt", "csv", tmp_path)] == ["b.txt"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].csv", "id\n")
    assert find_files("a[1].csv", "csv", tmp_path) == [path]


def test_source_name_outside_the_project(tmp_path: Path) -> None:
    assert source_name(tmp_path / "x.csv", tmp_path / "project") == f"{tmp_path}/x.csv"
    assert source_name(tmp_path / "project/../project/x.csv", tmp_path / "project") == "x.csv"


@pytest.mark.parametrize("uri", ["no.csv", "no/*.csv", "empty", "empty/*.csv", "in.csv/x.csv"])
def test_nothing_there(tmp_path: Path, uri: str) -> None:
    write(tmp_path / "in.csv", "id\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceMissingError, match=r"allow_empty") as caught:
        find_files(uri, "csv", tmp_path)
    assert uri in str(caught.value)


def test_a_broken_link_is_not_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "in.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(SourceError, match=r"in\.csv cannot be read") as caught:
        list(read_files("in.csv", "csv", TYPES, tmp_path))
    assert not isinstance(caught.value, SourceMissingError)


def test_a_folder_that_may_not_be_read_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "lstat", refuse)
    with pytest.raises(SourceError, match="Permission denied") as caught:
        find_files("in.csv", "csv", tmp_path)
    assert not isinstance(caught.value, SourceMissingError)


def test_what_is_no_format_of_files(tmp_path: Path) -> None:
    with pytest.raises(NotYetSupportedError):
        find_files("x", "sql", tmp_path)


@pytest.mark.parametrize("uri", ["http://b/x.csv", "s3:///x.csv"])
def test_urls_that_are_no_place_in_object_storage(tmp_path: Path, uri: str) -> None:
    with pytest.raises(SourceError, match="only s3://bucket/key is known"):
        find_files(uri, "csv", tmp_path)


# -- CSV ----------------------------------------------------------------------------------------------------


def test_csv_with_everything_in_it(tmp_path: Path) -> None:
    text = '\ufeffx,id,ignored\r\n1,"a\nb, ""c""",z\r\n\r\n,,\r\n3,ä,\r\n'
    [batch] = read(tmp_path, text)
    assert batch.batch.to_pylist() == [
        {"id": 'a\nb, "c"', "x": 1},
        {"id": None, "x": None},
        {"id": "ä", "x": 3},
    ]
    assert batch.source_rows.tolist() == [0, 1, 2]
    assert batch.columns_seen == {"x", "id", "ignored"}
    assert (batch.source_file, batch.unparsable, batch.bad_cells) == ("in.csv", [], [])


def test_csv_bad_lines_are_rejected_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    lines = [
        b"id,x",
        b"a,1",
        b"b",
        b"c,3,4",
        b"d\xff,4",
        b"e,5",
        b'"f"g,6',
        b"h,abc",
        b"\xed\xa0\x80,8",
        b"i,9",
    ]
    [batch] = read(tmp_path, b"\n".join(lines))
    assert batch.batch["id"].to_pylist() == ["a", "e", "h", "i"]
    assert batch.source_rows.tolist() == [0, 4, 6, 8]
    assert [(row.source_row, row.error_type) for row in batch.unparsable] == [
        (1, "unparsable"),
        (2, "unparsable"),
        (3, "invalid_utf8"),
        (5, "unparsable"),
        (7, "invalid_utf8"),
    ]
    assert batch.unparsable[0].message == "the line has 1 fields where the header has 2"
    assert [row.payload for row in batch.unparsable[:3]] == ["b", "c,3,4", "d\\xff,4"]
    assert [(cell.row, cell.column, cell.text) for cell in batch.bad_cells] == [(2, "x", "abc")]


def test_an_open_quote_costs_its_own_line_only(tmp_path: Path) -> None:
    [batch] = read(tmp_path, 'id,x\na,1\nb,"2\nc,3\nd,4\n')
    assert batch.batch["id"].to_pylist() == ["a", "c", "d"]
    assert batch.source_rows.tolist() == [0, 2, 3]
    assert [(row.source_row, row.payload) for row in batch.unparsable] == [(1, 'b,"2')]


@pytest.mark.parametrize(("kind", "line"), [("csv", "secret"), ("jsonl", '{"id": "secret"')])
def test_unparsable_lines_are_not_shown_where_something_is_sensitive(
    tmp_path: Path, kind: str, line: str
) -> None:
    write(tmp_path / f"2026-01-02/in.{kind}", f"id,x\n{line}\n" if kind == "csv" else f"{line}\n")
    spec = source(f"{{partition}}/in.{kind}", kind, sensitive=True)
    [batch] = read_source(spec, day(), tmp_path)
    assert [(row.payload, "secret" in row.message) for row in batch.unparsable] == [(None, False)]


def test_csv_strings_of_a_megabyte(tmp_path: Path) -> None:
    long = "y" * 1_500_000
    batches = read(tmp_path, f'id,x\n"{long}",1\n{long},2\n')
    assert [len(row["id"]) for row in rows_of(batches)] == [1_500_000] * 2


def test_a_line_too_long_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "LONGEST_LINE", 1_000)
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 1_000)
    for kind in ("csv", "jsonl"):
        with pytest.raises(SourceError, match=rf"in\.{kind} has a line longer than"):
            read(tmp_path, "id,x\n" + "y" * 2_000, kind)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty, without even a header"),
        ("a,b\n1,2\n", r"lacks column id, x of the contract; it has: a, b"),
        ("id,y\n1,2\n", r"lacks column x "),
        ("id,x,id\n1,2,3\n", "column id more than once"),
        (b"id,x\xff\n1,2\n", "header cannot be read: the line is not valid UTF-8"),
    ],
)
def test_csv_with_wrong_columns(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(ContractError, match=words) as caught:
        read(tmp_path, content)
    assert "in.csv" in str(caught.value)


def test_csv_header_without_rows(tmp_path: Path) -> None:
    assert read(tmp_path, "id,x\n") == []


def test_batches_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BATCH_ROWS", 10)
    batches = read(tmp_path, "id,x\n" + "".join(f"k{i},{i}\n" for i in range(25)))
    assert [batch.batch.num_rows for batch in batches] == [10, 10, 5]
    assert [row for batch in batches for row in batch.source_rows.tolist()] == list(range(25))
    monkeypatch.setattr(delimited, "BATCH_BYTES", 1_000)
    wide = read(tmp_path, "id,x\n" + "".join(f"{'y' * 400},{i}\n" for i in range(9)))
    assert [batch.batch.num_rows for batch in wide] == [3, 3, 3]


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
CSV_LINES = st.lists(
    st.one_of(
        st.tuples(CELLS, st.one_of(st.integers().map(str), CELLS)),
        st.sampled_from(["one field", "a,b,c", 'x,"open', '"a"b,1', "bad\udcff,1"]),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(CSV_LINES, st.sampled_from(["\n", "\r\n"]), st.integers(1, 5))
@example([("a", "9007199254740993")], "\n", 1)
def test_csv_accounts_for_every_record(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], newline: str, batch_rows: int
) -> None:
    buffer = io.StringIO()
    buffer.write(f"id,x{newline}")
    good = {}
    for place, record in enumerate(records):
        if isinstance(record, str):
            # What an open quote swallows is read again, unless a later quote happens to close it.
            buffer.write(record.replace('"open', "o,p,q") + newline)
        else:
            csv.writer(buffer, lineterminator=newline, quoting=csv.QUOTE_ALL).writerow(record)
            good[place] = record
    folder = tmp_path_factory.mktemp("csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "BATCH_ROWS", batch_rows)
        batches = read(folder, buffer.getvalue().encode("utf-8", "surrogateescape"))
    kept = {
        row: (values, {c.column: c.text for c in batch.bad_cells if c.row == index})
        for batch in batches
        for index, (row, values) in enumerate(
            zip(batch.source_rows.tolist(), batch.batch.to_pylist(), strict=True)
        )
    }
    rejected = {row.source_row for batch in batches for row in batch.unparsable}
    assert kept.keys() | rejected == set(range(len(records)))
    assert kept.keys() == good.keys()
    for place, (values, bad) in kept.items():
        identity, number = good[place]
        assert values["id"] == (identity or None)
        assert bad.get("x", number) == number
        assert "x" in bad or values["x"] == (int(Decimal(number)) if number.strip() else None)


# -- JSON lines ---------------------------------------------------------------------------------------------


def test_jsonl_good_and_bad_lines(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"id": "a", "x": 1, "more": [1]}',
        b"",
        b"{",
        b"[1]",
        b'{"id": "\xff", "x": 1}',
        b'{"id": "\\ud800", "x": 1}',
        b'{"id": "\\ud83d\\ude00", "x": 2.0}',
        b'{"id": 5, "x": "1"}',
        b'{"other": "\\ud800"}\r',
        b"[" * 200_000,
    ]
    [batch] = read(tmp_path, b"\n".join(lines), "jsonl")
    assert batch.batch.to_pylist() == [
        {"id": "a", "x": 1},
        {"id": "😀", "x": 2},
        {"id": None, "x": None},
        {"id": None, "x": None},
    ]
    assert batch.source_rows.tolist() == [0, 5, 6, 7]
    assert [(row.source_row, row.error_type) for row in batch.unparsable] == [
        (1, "unparsable"),
        (2, "unparsable"),
        (3, "invalid_utf8"),
        (4, "invalid_utf8"),
        (8, "unparsable"),
    ]
    assert [(cell.row, cell.column, cell.text) for cell in batch.bad_cells] == [(2, "id", "5"), (2, "x", "1")]
    assert batch.columns_seen == {"id", "x", "more", "other"}
    for row in batch.unparsable:
        assert (row.message + (row.payload or "")).encode()
        assert len(row.payload or "") < 2_010


def test_jsonl_not_a_number(tmp_path: Path) -> None:
    lines = '{"id": "a", "x": NaN}\n{"id": "b", "x": -Infinity}\n{"id": "c", "x": 1e999}\n'
    [batch] = read(tmp_path, lines, "jsonl", id="string", x="float64")
    assert [str(row["x"]) for row in batch.batch.to_pylist()] == ["nan", "-inf", "inf"]
    assert batch.bad_cells == []


JSON_LINES = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "id": st.one_of(st.none(), st.text(), st.integers()),
                "x": st.one_of(st.none(), st.integers(), st.floats(), st.booleans(), st.text(max_size=3)),
                "other": st.lists(st.none()),
            },
        ),
        st.sampled_from(["{", "null", "3", '"a"', '{"id": }', "\udcff", '{"id": "\udcfe"}']),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(JSON_LINES, st.integers(1, 5), st.booleans())
def test_jsonl_accounts_for_every_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Any], batch_rows: int, ascii_only: bool
) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=ascii_only) for line in lines]
    folder = tmp_path_factory.mktemp("jsonl")
    data = "\n".join(texts).encode("utf-8", "surrogateescape")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "BATCH_ROWS", batch_rows)
        batches = read(folder, data, "jsonl")
    kept = [row for batch in batches for row in batch.source_rows.tolist()]
    rejected = [row.source_row for batch in batches for row in batch.unparsable]
    assert sorted(kept + rejected) == list(range(len(lines)))
    assert [place for place, line in enumerate(lines) if isinstance(line, dict)] == kept
    for row, values in zip(kept, rows_of(batches), strict=True):
        given_x, given_id = lines[row].get("x"), lines[row].get("id")
        whole = type(given_x) is int or (type(given_x) is float and given_x.is_integer())
        assert values["x"] == (given_x if whole and -(2**63) <= given_x < 2**63 else None)
        assert values["id"] == (given_id if isinstance(given_id, str) else None)


@pytest.mark.parametrize(("kind", "content"), [("csv", "id,x\na,1\n"), ("jsonl", '{"id": "a", "x": 1}\n')])
def test_gzipped_and_cut_off(tmp_path: Path, kind: str, content: str) -> None:
    path = write(tmp_path / f"in.{kind}.gz", content * 1)
    assert rows_of(read_files(path.name, kind, TYPES, tmp_path)) == [{"id": "a", "x": 1}]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(SourceError, match=rf"in\.{kind}\.gz is damaged or cut off"):
        list(read_files(path.name, kind, TYPES, tmp_path))
    path.write_bytes(content.encode())
    with pytest.raises(SourceError, match="damaged or cut off"):
        list(read_files(path.name, kind, TYPES, tmp_path))


# -- Parquet ------------------------------------------------------------------------------------------------


def test_parquet_rows_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 4)
    table = pa.table({"x": list(range(20)), "id": [f"k{i}" for i in range(20)], "other": [1] * 20})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=7)
    batches = list(read_files("in.parquet", "parquet", TYPES, tmp_path))
    assert rows_of(batches) == [{"id": f"k{i}", "x": i} for i in range(20)]
    assert [row for batch in batches for row in batch.source_rows.tolist()] == list(range(20))
    assert max(batch.batch.num_rows for batch in batches) == 4
    assert batches[0].columns_seen == {"x", "id", "other"}


def test_parquet_wide_rows_come_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_BYTES", 2_000_000)
    long = pa.array([str(i) * 1_000_000 for i in range(6)])
    pq.write_table(pa.table({"id": long, "x": range(6)}), tmp_path / "in.parquet")
    batches = list(read_files("in.parquet", "parquet", TYPES, tmp_path))
    assert max(batch.batch.num_rows for batch in batches) <= 2
    assert [row["id"][0] for row in rows_of(batches)] == list("012345")


def test_parquet_cells_that_do_not_fit(tmp_path: Path) -> None:
    broken = pa.array([b"ok", b"\xff\xfe", b"ok"]).view(pa.string())
    pq.write_table(pa.table({"id": broken, "x": [1, 2, 2**40]}), tmp_path / "in.parquet")
    [batch] = read_files("in.parquet", "parquet", {"id": "string", "x": "int32"}, tmp_path)
    found = [(cell.row, cell.column, cell.error_type, cell.text) for cell in batch.bad_cells]
    assert found == [(1, "id", "invalid_utf8", "\\xff\\xfe"), (2, "x", "wrong_type", str(2**40))]


def test_parquet_of_another_schema_version(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "x": ["1"]}), tmp_path / "in.parquet")
    with pytest.raises(ContractError, match=r"in\.parquet: column x is of type string.*int64"):
        list(read_files("in.parquet", "parquet", TYPES, tmp_path))
    pq.write_table(pa.table({"id": ["a"], "x_v2": [1]}), tmp_path / "in.parquet")
    with pytest.raises(ContractError, match=r"lacks column x .*id, x_v2"):
        list(read_files("in.parquet", "parquet", TYPES, tmp_path))


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.Table.from_arrays(columns, ["id", "x", "x"]), tmp_path / "in.parquet")
    with pytest.raises(ContractError, match="column x more than once"):
        list(read_files("in.parquet", "parquet", TYPES, tmp_path))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "middle"])
def test_unreadable_parquet(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "in.parquet"
    table = pa.table({"id": [f"key number {i}" for i in range(5_000)], "x": range(5_000)})
    pq.write_table(table, path, use_dictionary=False)
    data = path.read_bytes()
    broken = {
        "cut": data[:-100],
        "empty": b"",
        "text": b"id,x\n1,2\n",
        "middle": data[:50] + bytes(20_000) + data[20_050:],
    }
    path.write_bytes(broken[damage])
    with pytest.raises(SourceError, match=r"in\.parquet"):
        list(read_files("in.parquet", "parquet", TYPES, tmp_path))


def test_empty_parquet_file(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": pa.array([], pa.string()), "x": pa.array([], pa.int64())}), tmp_path / "a.parquet"
    )
    assert rows_of(read_files("a.parquet", "parquet", TYPES, tmp_path)) == []


# -- windows ------------------------------------------------------------------------------------------------


def source(
    uri: str, kind: str, column: str | None = None, sensitive: bool = False, **columns: Any
) -> SourceSpec:
    specs = {"id": {"type": "string", "sensitive": sensitive}, "x": {"type": "int64"}} | columns
    return SourceSpec.model_validate(
        {"uri": uri, "format": kind, "row_key": "id", "partition_column": column, "columns": specs}
    )


def test_the_partition_key_goes_into_the_uri(tmp_path: Path) -> None:
    write(tmp_path / "d/2026-01-02/a.csv", "id,x\na,1\n")
    write(tmp_path / "d/2026-01-03/a.csv", "id,x\nb,2\n")
    assert rows_of(read_source(source("d/{partition}", "csv"), day(), tmp_path)) == [{"id": "a", "x": 1}]


MOMENTS = [
    "2026-01-01T22:59:59Z",
    "2026-01-01T23:00:00Z",
    "2026-01-02 22:59:59.999999",
    "2026-01-02T23:00Z",
    "",
    "soon",
]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_of_the_window_of_a_zone(tmp_path: Path, kind: str) -> None:
    rows = [{"id": f"k{i}", "x": "9" if i != 2 else "bad", "at": moment} for i, moment in enumerate(MOMENTS)]
    if kind == "csv":
        text = "id,x,at\n" + "".join(f"{row['id']},{row['x']},{row['at']}\n" for row in rows) + "broken\n"
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows) + "{\n"
    write(tmp_path / f"in.{kind}", text)
    spec = source(f"in.{kind}", kind, "at", at={"type": "timestamp"})
    [batch] = read_source(spec, day(timezone="Europe/Berlin"), tmp_path)
    assert batch.source_rows.tolist() == [1, 2]
    assert batch.batch["id"].to_pylist() == ["k1", "k2"]
    assert (1, "x", "bad") in [(cell.row, cell.column, cell.text) for cell in batch.bad_cells]
    assert {cell.row for cell in batch.bad_cells} <= {0, 1}
    assert (batch.unplaced, batch.unparsable) == (3, [])


def test_dates_are_days_of_the_pipelines_zone(tmp_path: Path) -> None:
    write(tmp_path / "in.csv", "id,x,at\na,1,2026-01-01\nb,2,2026-01-02\nc,3,2026-01-03\n")
    spec = source("in.csv", "csv", "at", at={"type": "date"})
    for zone in ("UTC", "Pacific/Auckland", "America/New_York"):
        assert [row["id"] for row in rows_of(read_source(spec, day(timezone=zone), tmp_path))] == ["b"]
    first, second = (day(f"2026-01-02-0{hour}:00", cadence="hourly") for hour in (0, 1))
    assert [row["id"] for row in rows_of(read_source(spec, first, tmp_path))] == ["b"]
    assert rows_of(read_source(spec, second, tmp_path)) == []


@pytest.mark.parametrize("unit", ["date", "s", "us", "ns", "ns, UTC", "ms, Asia/Tokyo"])
def test_parquet_windows_skip_row_groups_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    monkeypatch.setattr(parquet, "_group", counted := Counted(parquet._group))
    moments = [datetime(2026, 1, 1 + i // 4, (i % 4) * 6, tzinfo=UTC) for i in range(40)]
    if unit == "date":
        at = pa.array([moment.date() for moment in moments])
    else:
        precision, _, zone = unit.partition(", ")
        at = pa.array(moments, pa.timestamp("us", "UTC")).cast(pa.timestamp(precision, zone or None))
    at = pa.concat_arrays([at, pa.nulls(3, at.type)])
    table = pa.table({"id": [f"k{i}" for i in range(43)], "x": range(43), "at": at})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=8)
    kind = "date" if unit == "date" else "timestamp"
    spec = source("in.parquet", "parquet", "at", at={"type": kind})
    batches = list(read_source(spec, day("2026-01-04"), tmp_path))
    assert [row["x"] for row in rows_of(batches)] == [12, 13, 14, 15]
    assert [row for batch in batches for row in batch.source_rows.tolist()] == [12, 13, 14, 15]
    assert sum(batch.unplaced for batch in batches) == 3
    assert counted.calls == 1


class Counted:
    """Calls a function and counts how often."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def test_parquet_with_years_that_python_does_not_know(tmp_path: Path) -> None:
    at = pa.array([2**62, 0, None], pa.timestamp("us"))
    pq.write_table(pa.table({"id": ["a", "b", "c"], "x": [1, 2, 3], "at": at}), tmp_path / "in.parquet")
    spec = source("in.parquet", "parquet", "at", at={"type": "timestamp"})
    [batch] = read_source(spec, day(), tmp_path)
    assert (batch.batch.num_rows, batch.unplaced) == (0, 2)


def test_jsonl_without_the_partition_column_anywhere(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", '{"id": "a", "x": 1}\n')
    spec = source("in.jsonl", "jsonl", "at", at={"type": "date"})
    with pytest.raises(ContractError, match=r"in\.jsonl: no line has the partition column at"):
        list(read_source(spec, day(), tmp_path))


def test_every_row_is_in_one_partition_of_the_calendar(tmp_path: Path) -> None:
    """Across a change of clocks too."""
    calendar = PartitionCalendar.of("daily", "2026-03-28", "2026-03-31", "Europe/Berlin")
    first = datetime(2026, 3, 27, 23, tzinfo=UTC)
    moments = [datetime.fromtimestamp(first.timestamp() + 1800 * i, UTC).isoformat() for i in range(142)]
    write(tmp_path / "in.csv", "id,x,at\n" + "".join(f"k{i},{i},{at}\n" for i, at in enumerate(moments)))
    spec = source("in.csv", "csv", "at", at={"type": "timestamp"})
    found = [
        row["x"]
        for partition in calendar.partitions(datetime(2026, 4, 1, tzinfo=UTC))
        for row in rows_of(read_source(spec, partition, tmp_path))
    ]
    assert found == list(range(142))
    assert date(2026, 3, 29) == calendar.partition("2026-03-29").day


@pytest.mark.parametrize("file_format", ["csv", "parquet", "jsonl", "delta"])
def test_a_column_that_older_files_lack_is_null_where_the_contract_says_optional(
    file_format: str, tmp_path: Path
) -> None:
    days = [date(2026, 1, 2)] * 2
    old = pl.DataFrame({"id": ["a", "b"], "day": days})
    new = pl.DataFrame({"id": ["c", "d"], "day": days, "x": [1, None]})
    (tmp_path / "in").mkdir()
    for name, frame in (("1-old", old), ("2-new", new)):
        path = tmp_path / "in" / f"{name}.{file_format}"
        if file_format == "delta":
            frame.write_delta(tmp_path / "in" / name)
        elif file_format == "jsonl":
            frame.write_ndjson(path)
        else:
            (frame.write_csv if file_format == "csv" else frame.write_parquet)(path)
    columns = {"x": {"type": "int64", "optional": True}, "id": {"type": "string"}, "day": {"type": "date"}}
    about = {"format": file_format, "row_key": "id", "partition_column": "day"}
    # Files come in one source; of Delta, a table does.
    uris = ["in/1-old", "in/2-new"] if file_format == "delta" else ["in"]
    sources = [SourceSpec.model_validate({**about, "uri": uri, "columns": columns}) for uri in uris]
    rows = rows_of(batch for source in sources for batch in read_source(source, day(), tmp_path))
    assert [(row["id"], row["x"]) for row in rows] == [("a", None), ("b", None), ("c", 1), ("d", None)]
    if file_format != "jsonl":
        strict = SourceSpec.model_validate(
            {**about, "uri": uris[0], "columns": columns | {"x": {"type": "int64"}}}
        )
        with pytest.raises(ContractError, match=r"lacks column x .*optional: true"):
            list(read_source(strict, day(), tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"id": {"type": "string", "optional": True}}}, "cannot be optional"),
        (
            {
                "columns": {
                    "id": {"type": "string"},
                    "x": {"type": "int64", "optional": True, "required": True},
                }
            },
            "a required column cannot be optional",
        ),
        (
            {
                "format": "predictions",
                "uri": "other",
                "columns": {"id": {"type": "string"}, "x": {"type": "int64", "optional": True}},
            },
            "optional has no effect with format: predictions",
        ),
    ],
)
def test_optional_is_refused_where_it_makes_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceSpec.model_validate({"uri": "{partition}.csv", "format": "csv", "row_key": "id", **changes})
