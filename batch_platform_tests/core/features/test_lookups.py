"""Point-in-time joins: nothing from after a row's moment is ever used; what was known then, all of it, is."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batch_platform.core.data.files import replace
from batch_platform.core.data.finding import place_of
from batch_platform.core.data.staging import read_files
from batch_platform.core.features.lookups import Joined, beside, join_lookups
from batch_platform.core.spec import LookupSpec, PipelineSpec, parse_spec
from batch_platform.errors import ContractError, PipelineFileError, SourceError, SourceMissingError

DAY = "2026-01-10"
START = datetime(2026, 1, 10, tzinfo=UTC)
END = START + timedelta(days=1)
RAW = pa.schema([("customer", pa.string()), ("at", pa.timestamp("us", tz="UTC"))])
LOOKUP: dict[str, Any] = {"uri": "usage.parquet", "on": "customer", "event_time": "ts", "lookback_days": 3}
SUM = {"function": "sum", "column": "a"}

Event = tuple[str | None, datetime | date | None, float | None]


def pipeline(*lookups: Mapping[str, Any], timezone: str = "UTC", **columns: Any) -> PipelineSpec:
    attributes = {
        "name": "p",
        "partitions": {"start": "2026-01-01", "timezone": timezone},
        "source": {
            "uri": "raw/{partition}.csv",
            "row_key": "id",
            "columns": {
                "id": {"type": "string"},
                "customer": {"type": "string"},
                "at": {"type": "timestamp", "required": True},
                **columns,
            },
        },
        "model": {"name": "m"},
        "lookups": [{**LOOKUP, **lookup} for lookup in lookups],
    }
    return parse_spec(attributes, "p")


def write_events(folder: Path, events: Sequence[Event], group: int = 64) -> None:
    kind = pa.date32() if events and type(events[0][1]) is date else pa.timestamp("us", tz="UTC")
    keys, times, amounts = zip(*events, strict=True) if events else ((), (), ())
    table = pa.table(
        {
            "customer": pa.array(keys, pa.string()),
            "ts": pa.array(times, kind),
            "amount": pa.array(amounts, pa.float64()),
        }
    )
    pq.write_table(table, folder / "usage.parquet", row_group_size=group)


def join(folder: Path, spec: PipelineSpec, rows: Sequence[tuple[str | None, datetime]]) -> list[Joined]:
    """The lookups joined to raw rows, which come in batches of three."""
    raw = pa.RecordBatch.from_pylist([{"customer": key, "at": at} for key, at in rows], RAW)

    def columns(names: list[str]) -> Iterable[pa.RecordBatch]:
        return [raw.slice(place, 3).select(names) for place in range(0, raw.num_rows, 3)]

    return join_lookups(spec, spec.partitions.calendar().partition(DAY), columns, folder, folder / "work")


def column(joined: Joined, name: str = "amount") -> list[Any]:
    return [
        value for batch in read_files(file.path for file in joined.files) for value in batch[name].to_pylist()
    ]


def amounts(folder: Path, spec: PipelineSpec, *rows: tuple[str | None, datetime]) -> list[Any]:
    return column(join(folder, spec, rows)[0])


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


# -- the proof ---------------------------------------------------------------------------------------------

_KEYS = st.sampled_from(["a", "b", "c"])
_MOMENTS = st.integers(-5 * 48, 2 * 48).map(lambda halves: END + timedelta(minutes=30 * halves))
_EVENTS = st.lists(
    st.tuples(st.one_of(st.none(), _KEYS), _MOMENTS, st.floats(-9, 9)), min_size=25, max_size=80
)
_ROWS = st.lists(st.tuples(st.one_of(st.none(), _KEYS), _MOMENTS), min_size=12, max_size=40)
_SETTINGS = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_SETTINGS
@given(events=_EVENTS, rows=_ROWS, own=st.booleans(), days=st.integers(1, 6))
def test_newest_row_and_aggregates_are_those_of_the_past_alone(
    tmp_path: Path, events: list[Event], rows: list[tuple[str | None, datetime]], own: bool, days: int
) -> None:
    write_events(tmp_path, events)
    common = {"lookback_days": days, "as_of": "at" if own else None, "on_duplicate": "last"}
    total = {"total": {"function": "sum", "column": "amount"}, "events": {"function": "count"}}
    newest, made = join(tmp_path, pipeline(common, {**common, "aggregates": total}), rows)
    last = END - timedelta(microseconds=1)
    for place, (key, at) in enumerate(rows):
        until = min(at, last) if own else last
        # Without a moment of its own the row looks back from the partition's end.
        span = timedelta(0) if own else timedelta(microseconds=1)
        expected = [
            value
            for of, moment, value in sorted(
                ((of, moment, value) for of, moment, value in events if of == key and key is not None),
                key=lambda event: event[1],
            )
            if until + span - timedelta(days=days) <= moment <= until
        ]
        assert column(newest)[place] == (expected[-1] if expected else None)
        assert column(made, "events")[place] == len(expected)
        assert column(made, "total")[place] == (pytest.approx(sum(expected), abs=1e-9) if expected else None)


@_SETTINGS
@given(events=_EVENTS, future=_EVENTS, rows=_ROWS)
def test_what_comes_later_changes_nothing(
    tmp_path: Path, events: list[Event], future: list[Event], rows: list[tuple[str | None, datetime]]
) -> None:
    """The proof against leakage: the same bits with and without the rows from after every moment that counts."""
    spec = pipeline({"as_of": "at", "on_duplicate": "last"}, {"on_duplicate": "last", "prefix": "end_"})
    latest = max(min(at, END - timedelta(microseconds=1)) for _, at in rows)
    write_events(tmp_path, events)
    before = join(tmp_path, spec, rows)
    digests = [before[0].digests, before[1].digests]
    leaks = [
        (key, at + (latest - at if at <= latest else timedelta(0)) + hours(0.25), value)
        for key, at, value in future
    ]
    write_events(tmp_path, [*events, *(event for event in leaks)])
    assert join(tmp_path, spec, rows)[0].digests == digests[0]
    write_events(tmp_path, [*events, *((key, max(at, END), value) for key, at, value in future)])
    assert join(tmp_path, spec, rows)[1].digests == digests[1]


# -- moments -----------------------------------------------------------------------------------------------


def test_the_end_of_the_partition_belongs_to_the_next_one(tmp_path: Path) -> None:
    write_events(tmp_path, [("a", START, 1.0), ("a", END, 2.0), ("b", END - timedelta(microseconds=1), 3.0)])
    assert amounts(tmp_path, pipeline({}), ("a", START), ("b", START)) == [1.0, 3.0]


def test_a_row_may_know_what_happened_at_its_very_moment_and_nothing_later(tmp_path: Path) -> None:
    write_events(tmp_path, [("a", START + hours(5), 5.0), ("a", START + hours(7), 7.0)])
    moments = [START + hours(h) for h in (4.9, 5, 6.9, 7, 23)] + [END + hours(9)]
    found = amounts(tmp_path, pipeline({"as_of": "at"}), *(("a", moment) for moment in moments))
    assert found == [None, 5.0, 5.0, 7.0, 7.0, 7.0]


def test_a_date_is_known_when_its_day_ends_in_the_zone_of_the_pipeline(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        [("a", date(2026, 1, 9), 9.0), ("a", date(2026, 1, 10), 10.0), ("a", date(2026, 1, 11), 11.0)],
    )
    for zone in ("UTC", "America/New_York", "Pacific/Auckland"):
        assert amounts(tmp_path, pipeline({}, timezone=zone), ("a", START)) == [10.0]
    own = pipeline({"as_of": "at"}, timezone="America/New_York")
    # 04:59 UTC is still the 9th in New York, 05:00 the 10th: the 9th is known from then on, the 10th not before the 11th.
    assert amounts(tmp_path, own, ("a", START + hours(4.98)), ("a", START + hours(5))) == [None, 9.0]


def test_the_lookback_ends_to_the_microsecond(tmp_path: Path) -> None:
    edge = END - timedelta(days=3)
    write_events(tmp_path, [("a", edge, 1.0), ("b", edge - timedelta(microseconds=1), 2.0)])
    assert amounts(tmp_path, pipeline({}), ("a", START), ("b", START)) == [1.0, None]


def test_keys_of_numbers_meet(tmp_path: Path) -> None:
    table = pa.table(
        {"store": pa.array([7, 8], pa.int32()), "ts": pa.array([START, START]), "amount": [1.5, 2.5]}
    )
    pq.write_table(table, tmp_path / "usage.parquet")
    spec = pipeline({"on": "store"}, store={"type": "int64"})
    raw = pa.RecordBatch.from_pydict({"store": pa.array([8, 9, 7], pa.int64())})
    [joined] = join_lookups(
        spec,
        spec.partitions.calendar().partition(DAY),
        lambda names: [raw.select(names)],
        tmp_path,
        tmp_path / "w",
    )
    assert column(joined) == [2.5, None, 1.5]
    assert joined.counts == {"rows_read": 2, "matched": 2}


# -- what is taken -----------------------------------------------------------------------------------------


def test_all_types_of_the_contract_come_through_and_stand_beside_the_raw_columns(tmp_path: Path) -> None:
    values = {
        "s": pa.array(["x"]), "b": pa.array([True]), "i": pa.array([3], pa.int32()), "l": pa.array([2**60], pa.int64()),
        "f": pa.array([0.5], pa.float32()), "d": pa.array([date(2020, 2, 29)]),
        "t": pa.array([START], pa.timestamp("us", "UTC")),
        "v": pa.array([[1.0, 2.0]], pa.list_(pa.float32())), "y": pa.array([b"\x00\xff"]),
    }  # fmt: skip
    pq.write_table(
        pa.table({"customer": ["a"], "ts": pa.array([START]), **values}), tmp_path / "usage.parquet"
    )
    kinds = dict(
        zip(
            "sbilfdtvy",
            (
                "string",
                "boolean",
                "int32",
                "int64",
                "float32",
                "date",
                "timestamp",
                "list<float32>",
                "binary",
            ),
            strict=True,
        )
    )
    spec = pipeline({"columns": {name: {"type": kind} for name, kind in kinds.items()}, "prefix": "u_"})
    joined = join(tmp_path, spec, [("a", START), ("zz", START)])
    raw = pa.RecordBatch.from_pydict({"customer": ["a", "zz"]})
    [batch] = beside([raw], joined)
    assert batch.schema.names == ["customer", *(f"u_{name}" for name in values)]
    first, second = batch.to_pylist()
    assert first == {"customer": "a", **{f"u_{name}": array[0].as_py() for name, array in values.items()}}
    assert set(second.values()) == {"zz", None}


def test_text_files_need_types_and_have_them_obeyed(tmp_path: Path) -> None:
    (tmp_path / "usage.csv").write_text(
        "customer,ts,amount\na,2026-01-10T08:00:00Z,1.5\n,2026-01-10,3\nb,,4\n"
    )
    text = {"uri": "usage.csv", "format": "csv"}
    spec = pipeline({**text, "columns": {"amount": {"type": "float64", "max": 9}}})
    assert amounts(tmp_path, spec, ("a", START), ("b", START), (None, START)) == [1.5, None, None]
    (tmp_path / "usage.csv").write_text("customer,ts,amount\na,2026-01-10,1.5\na,2026-01-10,oops\n")
    with pytest.raises(
        ContractError, match=r"lookups\.0: usage\.csv row 1: column amount is no float64: 'oops'\. Correct"
    ):
        join(tmp_path, spec, [("a", START)])
    with pytest.raises(
        PipelineFileError, match="columns: name them with their types, which csv does not say"
    ):
        pipeline(text)


def test_aggregates_of_every_kind(tmp_path: Path) -> None:
    events = [("a", START, 1.0), ("a", START, 5.0), ("a", START - hours(1), None), ("b", START, None)]
    write_events(tmp_path, events)
    functions = {
        name: {"function": name, "column": "amount"} for name in ("count", "sum", "mean", "min", "max")
    }
    [joined] = join(
        tmp_path,
        pipeline({"aggregates": {**functions, "rows": {"function": "count"}}}),
        [(k, START) for k in "abc"],
    )
    found = [
        list(row.values())
        for row in pa.Table.from_batches(read_files(f.path for f in joined.files)).to_pylist()
    ]
    assert found == [
        [2, 6.0, 3.0, 1.0, 5.0, 3],
        [0, None, None, None, None, 1],
        [0, None, None, None, None, 0],
    ]


def test_duplicates_that_differ(tmp_path: Path) -> None:
    write_events(tmp_path, [("a", START, 1.0), ("b", START, 7.0), ("a", START, 2.0), ("b", START, 7.0)])
    with pytest.raises(ContractError) as caught:
        join(tmp_path, pipeline({}), [("a", START), ("b", START)])
    assert str(caught.value) == (
        "lookups.0: usage.parquet row 0 and usage.parquet row 2 differ for customer 'a' at the same moment "
        "(2026-01-10 00:00:00 UTC). Remove one, or set on_duplicate: last"
    )
    # Equal ones are no question; nor are those that nobody needs.
    assert amounts(tmp_path, pipeline({}), ("b", START)) == [7.0]
    assert amounts(tmp_path, pipeline({"on_duplicate": "last"}), ("a", START)) == [2.0]
    write_events(tmp_path, [("a", START, 1.0), ("a", START, 2.0), ("a", START + hours(1), 3.0)])
    assert amounts(tmp_path, pipeline({}), ("a", START)) == [3.0]
    write_events(tmp_path, [("a", START, 1.0), ("a", START, 2.0)])
    with pytest.raises(ContractError, match="differ for a key at the same moment"):
        join(tmp_path, pipeline({}, customer={"type": "string", "sensitive": True}), [("a", START)])


def test_files_that_are_absent_empty_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(SourceMissingError, match=r"lookups\.0: usage\.parquet: no such parquet file"):
        join(tmp_path, pipeline({}), [("a", START)])
    write_events(tmp_path, [])
    assert amounts(tmp_path, pipeline({}), ("a", START)) == [None]
    assert amounts(tmp_path, pipeline({})) == []
    (tmp_path / "usage.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SourceError, match=r"usage\.parquet is not a readable Parquet file"):
        join(tmp_path, pipeline({}), [("a", START)])
    pq.write_table(pa.table({"customer": ["a"], "ts": ["soon"]}), tmp_path / "usage.parquet")
    with pytest.raises(ContractError, match="there is no column ts of dates or timestamps"):
        join(tmp_path, pipeline({}), [("a", START)])
    pq.write_table(pa.table({"ts": pa.array([START]), "amount": [1.0]}), tmp_path / "usage.parquet")
    with pytest.raises(ContractError, match="customer"):
        join(tmp_path, pipeline({}), [("a", START)])


def test_only_row_groups_within_the_lookback_are_read(tmp_path: Path) -> None:
    events = [("a", END - timedelta(days=day) - hours(1), float(day)) for day in range(400)]
    write_events(tmp_path, events, group=4)
    [joined] = join(tmp_path, pipeline({}), [("a", START)])
    assert (column(joined), joined.counts["rows_read"]) == ([0.0], 3)


@pytest.mark.parametrize(
    ("lookup", "message"),
    [
        ({"on": "nobody"}, r"lookups\.0\.on: 'nobody' must be a column of source\.columns"),
        ({"as_of": "customer"}, r"lookups\.0\.as_of: 'customer' must be a date or timestamp of source"),
        ({"columns": {"at": {"type": "float64"}}}, r"lookups\.0: a column 'at' is there already; set a prefix"),
        ({"columns": {"customer": {"type": "string"}}}, "columns names 'customer', whose type is that of the contract"),
        ({"columns": {"ts": {"type": "string"}}}, "event_time 'ts' must be a date or timestamp, not string"),
        ({"columns": {"source_row": {"type": "int64"}}}, "'source_row' has the name of a column that"),
        ({"columns": {}}, "columns is empty"),
        ({"aggregates": {"x": {"function": "sum"}}}, r"lookups\.0\.aggregates\.x: sum needs a column"),
        ({"aggregates": {"x": SUM}, "columns": {"b": {"type": "int64"}}}, "'a' is not among columns"),
        ({"aggregates": {"x": SUM}, "columns": {"a": {"type": "string"}}}, "'a' is string, of which there is no sum"),
        ({"lookback_days": 0}, "lookback_days"),
        ({"uri": "a/{day}.parquet"}, "unknown placeholder {day}"),
        ({"format": "sql", "columns": {"a": {"type": "int64"}}}, "sql needs query and connection_env, and no uri"),
        ({"connection_env": "DB"}, "parquet needs uri, and no query or connection_env"),
        (
            {"uri": None, "format": "sql", "connection_env": "DB", "query": "DELETE FROM usage"},
            "query",
        ),
    ],
)  # fmt: skip
def test_mistakes_that_are_found_when_the_file_loads(lookup: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineFileError, match=message):
        pipeline(lookup)


def test_on_may_stand_in_yaml_without_quotes(tmp_path: Path) -> None:
    """YAML 1.1 reads it as true; neither we nor the check of Dagster's schema may stumble over it."""
    import jsonschema
    import yaml

    lookup = yaml.safe_load("{uri: usage.parquet, on: customer, event_time: ts}")
    assert True in lookup
    assert (
        pipeline().model_copy(update={"lookups": [LookupSpec.model_validate(lookup)]}).lookups[0].on
        == "customer"
    )
    jsonschema.validate(lookup, LookupSpec.model_json_schema())
    with pytest.raises(ValueError, match="evnt_time"):
        LookupSpec.model_validate({**lookup, "evnt_time": "ts"})


def test_two_lookups_may_not_bring_the_same_column(tmp_path: Path) -> None:
    write_events(tmp_path, [("a", START, 1.0)])
    with pytest.raises(
        ContractError, match=r"lookups\.1: usage\.parquet has a column 'amount', which is there already"
    ):
        join(tmp_path, pipeline({}, {}), [("a", START)])


def test_a_pipeline_with_lookups_from_the_source_to_the_features(tmp_path: Path) -> None:
    """Through the stages: required values, masking, what is adopted, and what a changed lookup makes anew."""
    from batch_platform.core.featurizing import featurize_partition
    from batch_platform.core.landing import land_partition
    from batch_platform.core.slice import Run, Slice, StageResult
    from batch_platform.settings import Settings

    lookup = {"columns": {"amount": {"type": "float64", "required": True}}}
    spec = pipeline(lookup, {"aggregates": {"events": {"function": "count"}}})
    spec = spec.model_copy(
        update={
            "source": spec.source.model_copy(update={"format": "csv"}),
            "inference": spec.inference.model_copy(update={"max_error_share": 0.5}),
        }
    )
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / f"{DAY}.csv").write_text(
        "id,customer,at\n1,a,2026-01-10\n2,b,2026-01-10\n3,a,2026-01-10\n"
    )
    write_events(tmp_path, [("a", START, 4.0), ("b", END, 9.0)])
    partition = spec.partitions.calendar().partition(DAY)
    slice_ = Slice(spec, partition, Settings(tmp_path / "root"), tmp_path, Run("r1"))

    def featurize() -> StageResult:
        return featurize_partition(slice_)

    land_partition(slice_)
    result = featurize()
    table = pl.read_delta(str(slice_.layout.table("features"))).sort("row_key")
    assert table.select("row_key", "customer", "amount", "events").rows() == [
        ("1", "a", 4.0, 1),
        ("3", "a", 4.0, 1),
    ]
    [bad] = pl.read_delta(str(slice_.layout.table("quarantine"))).to_dicts()
    assert (bad["row_key"], bad["error_type"], bad["source_row"]) == ("2", "lookup_missing", 1)
    assert "column amount is required" in bad["message"]
    assert json.loads(bad["payload"])["customer"] == "b"
    assert result.metadata["lookup usage.parquet"]["rows_read"] == 1
    assert featurize().reused
    write_events(tmp_path, [("a", START, 4.0), ("b", END, 9.0), ("b", END + hours(1), 9.5)])
    assert featurize().reused  # later rows change nothing
    write_events(tmp_path, [("a", START, 4.5), ("b", END, 9.0)])
    assert not featurize().reused
    assert pl.read_delta(str(slice_.layout.table("features")))["amount"].to_list() == [4.5, 4.5]


# -- texts of items ----------------------------------------------------------------------------------------


def write_items(folder: Path, events: Sequence[tuple[str, datetime, str | None]]) -> None:
    keys, times, items = zip(*events, strict=True)
    table = {
        "customer": keys,
        "ts": pa.array(times, pa.timestamp("us", tz="UTC")),
        "item": pa.array(items, pa.string()),
    }
    pq.write_table(pa.table(table), folder / "usage.parquet")


def items_of(function: str = "join") -> Mapping[str, Any]:
    return {
        "columns": {"item": {"type": "string"}},
        "aggregates": {"items": {"function": function, "column": "item"}},
    }


def test_items_of_the_past_are_joined_the_newest_first(tmp_path: Path) -> None:
    write_items(
        tmp_path,
        [
            ("a", END - hours(2), "tea"),
            ("a", END - hours(30), "milk"),
            ("a", END - hours(1), "tea"),
            ("a", END - hours(3), None),
            ("a", END, "tomorrow"),
            ("a", END - hours(73), "too-old"),
            ("b", END - hours(1), None),
        ],
    )
    (found,) = join(tmp_path, pipeline(items_of()), [("b", START), ("a", START), (None, START)])
    assert found.schema.field("items").type == pa.string()
    assert column(found, "items") == [None, "tea tea milk", None]


def test_an_item_with_a_space_is_refused(tmp_path: Path) -> None:
    write_items(tmp_path, [("a", END - hours(2), "tea"), ("a", END - hours(1), "oat milk")])
    with pytest.raises(ContractError, match=r"usage\.parquet row 1: column item has a space"):
        join(tmp_path, pipeline(items_of()), [("a", START)])


def test_what_an_aggregate_cannot_be_made_of_is_refused() -> None:
    with pytest.raises(PipelineFileError, match="'item' is string, of which there is no sum"):
        pipeline(items_of("sum"))
    numbers = {
        "columns": {"item": {"type": "float64"}},
        "aggregates": {"i": {"function": "join", "column": "item"}},
    }
    with pytest.raises(PipelineFileError, match="'item' is float64, of which there is no join"):
        pipeline(numbers)


# -- where a lookup may lie --------------------------------------------------------------------------------


EVENTS: list[Event] = [
    ("a", END - hours(2), 1.5),
    ("a", END - hours(1), 2.5),
    ("a", END, 99.0),
    ("b", END - hours(71), 3.5),
    ("c", END - hours(73), 4.5),
]


def in_duckdb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    import duckdb

    with duckdb.connect(str(folder / "usage.duckdb")) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"CREATE TABLE usage AS FROM '{folder / 'usage.parquet'}'")
    monkeypatch.setenv("USAGE_DB", "duckdb:///usage.duckdb")
    query = "SELECT customer, ts, amount FROM usage WHERE ts >= :start ORDER BY ts"
    return {"uri": None, "format": "sql", "connection_env": "USAGE_DB", "query": query}


def in_sqlite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    import sqlite3

    with sqlite3.connect(folder / "usage.sqlite") as connection:
        connection.execute("CREATE TABLE usage (customer TEXT, ts TEXT, amount REAL)")
        rows = [
            (key, moment.strftime("%Y-%m-%d %H:%M:%S"), amount) for key, moment, amount in EVENTS if moment
        ]
        connection.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)
    monkeypatch.setenv("USAGE_DB", "sqlite:///usage.sqlite")
    return {
        "uri": None,
        "format": "sql",
        "connection_env": "USAGE_DB",
        "query": "SELECT * FROM usage ORDER BY ts",
    }


def in_delta(folder: Path, _monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from deltalake import write_deltalake

    write_deltalake(str(folder / "usage-table"), pq.read_table(folder / "usage.parquet"))
    return {"uri": "usage-table", "format": "delta"}


@pytest.mark.parametrize("place", [in_duckdb, in_sqlite, in_delta])
def test_the_same_lookup_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any) -> None:
    write_events(tmp_path, EVENTS)
    columns = {"columns": {"amount": {"type": "float64"}}}
    rows = [("a", START), ("b", START), ("c", START), (None, START)]
    expected = amounts(tmp_path, pipeline(columns), *rows)
    assert expected == [2.5, 3.5, None, None]
    assert amounts(tmp_path, pipeline({**columns, **place(tmp_path, monkeypatch)}), *rows) == expected


def test_a_lookup_in_object_storage(tmp_path: Path, object_storage: str) -> None:
    write_events(tmp_path, EVENTS)
    uri = f"{object_storage}/usage/all.parquet"
    replace(place_of(uri, tmp_path), (tmp_path / "usage.parquet").read_bytes())
    assert amounts(
        tmp_path, pipeline({"uri": f"{object_storage}/usage/*.parquet"}), ("a", START), ("b", START)
    ) == [2.5, 3.5]
    with pytest.raises(SourceMissingError, match=r"lookups\.0: .*nowhere"):
        amounts(tmp_path, pipeline({"uri": f"{object_storage}/nowhere/*.parquet"}), ("a", START))


def test_a_lookup_whose_database_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_DB", "duckdb:///absent.duckdb")
    lookup = {
        "uri": None,
        "format": "sql",
        "connection_env": "USAGE_DB",
        "query": "SELECT * FROM usage",
        "columns": {"amount": {"type": "float64"}},
    }
    with pytest.raises(SourceError, match=r"lookups\.0: the database of USAGE_DB refuses"):
        amounts(tmp_path, pipeline(lookup), ("a", START))
