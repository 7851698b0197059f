"""A partition's rows from files to good and rejected: duplicates, emptiness, and counts that add up."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.intake import PartitionReader, read_partition
from batch_platform.core.data.keys import LastOccurrences
from batch_platform.core.data.partitions import Partition, PartitionCalendar
from batch_platform.core.data.readers import jsonl
from batch_platform.core.spec import SourceSpec
from batch_platform.errors import ContractError, SourceError, SourceMissingError

DAY: Partition = PartitionCalendar.of("daily", "2026-01-01", None, "UTC").partition("2026-01-02")
COLUMNS: dict[str, Any] = {"id": {"type": "string", "required": True}, "x": {"type": "int64", "min": 0}}


def source(**fields: Any) -> SourceSpec:
    given = {"uri": "{partition}.jsonl", "format": "jsonl", "row_key": "id", "columns": COLUMNS}
    return SourceSpec.model_validate(given | fields)


def lines(folder: Path, *rows: Any, name: str = "2026-01-02.jsonl") -> None:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / name).write_text(text)


def drained(reader: PartitionReader) -> tuple[list[dict[str, Any]], list[Rejected]]:
    good: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    for batch, bad in reader:
        assert batch.schema == reader.contract.schema
        good += batch.to_pylist()
        rejected += bad
    counts = reader.counts
    assert counts.rows_in == counts.rows_kept + counts.rows_rejected + counts.duplicates_dropped
    assert (counts.rows_kept, counts.rows_rejected) == (len(good), len(rejected))
    assert sum(counts.files.values()) == counts.rows_in
    return good, rejected


def keyed(*pairs: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"id": key, "x": x} for key, x in pairs]


def test_counts_of_a_mixed_file(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "x": 1, "y": 0},
        {"x": 2},
        {"id": "b", "x": -1},
        "{",
        {"id": "c", "x": "1"},
        {"id": "d"},
    ]
    lines(tmp_path, *rows)
    reader = read_partition(source(), DAY, tmp_path)
    good, rejected = drained(reader)
    assert [row["id"] for row in good] == ["a", "d"]
    assert [(row.source_row, row.error_type) for row in rejected] == [
        (1, "null_key"),
        (2, "out_of_range"),
        (3, "unparsable"),
        (4, "wrong_type"),
    ]
    assert reader.counts.describe() == {
        "rows_in": 6,
        "rows_kept": 2,
        "rejected": {"null_key": 1, "out_of_range": 1, "unparsable": 1, "wrong_type": 1},
        "duplicates_dropped": 0,
        "unplaced": 0,
        "ignored_columns": ["y"],
        "absent_columns": [],
        "files": {"2026-01-02.jsonl": 6},
    }


def test_a_column_that_no_line_has_is_told(tmp_path: Path) -> None:
    lines(tmp_path, {"id": "a"})
    reader = read_partition(source(), DAY, tmp_path)
    drained(reader)
    assert reader.counts.absent_columns == ["x"]


PAIRS = [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("a", 5)]


@pytest.mark.parametrize(
    ("policy", "kept"), [("first", [1, 2, 4]), ("last", [2, 4, 5]), ("quarantine", [1, 2, 4])]
)
@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_which_duplicate_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, kept: list[int], batch_rows: int
) -> None:
    monkeypatch.setattr(jsonl, "BATCH_ROWS", batch_rows)
    lines(tmp_path, *keyed(*PAIRS))
    reader = read_partition(source(on_duplicate=policy), DAY, tmp_path)
    good, rejected = drained(reader)
    assert [row["x"] for row in good] == kept
    quarantined = [(row.row_key, row.error_type, row.source_row) for row in rejected]
    if policy == "quarantine":
        assert quarantined == [("a", "duplicate_key", 2), ("a", "duplicate_key", 4)]
    else:
        assert (quarantined, reader.counts.duplicates_dropped) == ([], 2)


def test_duplicates_fail_with_keys_and_places(tmp_path: Path) -> None:
    lines(tmp_path, *keyed(*PAIRS))
    with pytest.raises(ContractError) as caught:
        drained(read_partition(source(), DAY, tmp_path))
    message = str(caught.value)
    assert "partition 2026-01-02: 2 rows repeat the key of an earlier row" in message
    assert "'a' in 2026-01-02.jsonl row 2, 'a' in 2026-01-02.jsonl row 4" in message


def test_duplicates_of_a_sensitive_key_are_told_by_place_only(tmp_path: Path) -> None:
    lines(tmp_path, *keyed(("secret", 1), ("secret", 2)))
    columns = {"id": {"type": "string", "sensitive": True}, "x": {"type": "int64"}}
    with pytest.raises(ContractError, match=r"2026-01-02\.jsonl row 1") as caught:
        drained(read_partition(source(columns=columns), DAY, tmp_path))
    assert "secret" not in str(caught.value)


def test_many_duplicates_are_not_all_listed(tmp_path: Path) -> None:
    lines(tmp_path, *keyed(*[("a", 1)] * 50))
    with pytest.raises(ContractError, match=r"49 rows.*, …\)") as caught:
        drained(read_partition(source(), DAY, tmp_path))
    assert str(caught.value).count("jsonl row") == 5


def test_a_rejected_row_does_not_count_as_the_first(tmp_path: Path) -> None:
    lines(tmp_path, *keyed(("a", -1), ("a", 2)))
    good, rejected = drained(read_partition(source(on_duplicate="quarantine"), DAY, tmp_path))
    assert [row["x"] for row in good] == [2]
    assert [row.error_type for row in rejected] == ["out_of_range"]


def test_null_keys_are_no_duplicates_of_each_other(tmp_path: Path) -> None:
    lines(tmp_path, {"x": 1}, {"x": 2}, {"id": "a", "x": 3})
    good, rejected = drained(read_partition(source(), DAY, tmp_path))
    assert (len(good), [row.error_type for row in rejected]) == (1, ["null_key", "null_key"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.integers(-1, 3)), max_size=10),
    st.sampled_from(["first", "last", "quarantine"]),
    st.integers(1, 4),
)
def test_every_row_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], policy: str, batch_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("in")
    lines(folder, *keyed(*rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "BATCH_ROWS", batch_rows)
        good, rejected = drained(read_partition(source(on_duplicate=policy, allow_empty=True), DAY, folder))
    fit = [(place, key) for place, (key, x) in enumerate(rows) if key is not None and x >= 0]
    chosen = {key: place for place, key in (fit if policy == "last" else reversed(fit))}
    assert [(row["source_row"], row["id"]) for row in good] == sorted(
        (place, key) for key, place in chosen.items()
    )
    broken = [place for place in range(len(rows)) if place not in dict(fit)]
    later = [place for place, key in fit if chosen[key] != place] if policy == "quarantine" else []
    assert sorted(row.source_row for row in rejected) == sorted(broken + later)


@pytest.mark.parametrize("content", [None, ""])
def test_an_absent_or_empty_partition(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "2026-01-02.jsonl").write_text(content)
    with pytest.raises(SourceMissingError, match=r"2026-01-02.*allow_empty: true"):
        drained(read_partition(source(), DAY, tmp_path))
    assert drained(read_partition(source(allow_empty=True), DAY, tmp_path)) == ([], [])


def test_allow_empty_excuses_no_other_mistake(tmp_path: Path) -> None:
    (tmp_path / "2026-01-02.csv").write_text("id\na\n")
    with pytest.raises(ContractError, match="lacks column x"):
        drained(read_partition(source(uri="{partition}.csv", format="csv", allow_empty=True), DAY, tmp_path))


def test_no_row_in_the_window_tells_of_rows_without_a_date(tmp_path: Path) -> None:
    lines(tmp_path, {"id": "a", "at": "soon"}, {"id": "b", "at": "2026-01-03"}, {"id": "c"}, name="in.jsonl")
    columns = COLUMNS | {"at": {"type": "date"}}
    given = source(uri="in.jsonl", partition_column="at", columns=columns)
    with pytest.raises(SourceMissingError, match=r"no rows \(2 rows have no readable at\)"):
        drained(read_partition(given, DAY, tmp_path))


@pytest.mark.parametrize("later", [[("a", 1)], [("a", 1), ("b", 2), ("c", 3), ("d", 4)]])
def test_a_file_that_changes_between_two_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: list[tuple[str, int]]
) -> None:
    def changing(self: LastOccurrences) -> Any:
        lines(tmp_path, *keyed(*later))
        return superseded(self)

    superseded = LastOccurrences.superseded
    monkeypatch.setattr(LastOccurrences, "superseded", changing)
    lines(tmp_path, *keyed(("a", 1), ("b", 2), ("c", 3)))
    with pytest.raises(SourceError, match="changed while it was read"):
        drained(read_partition(source(on_duplicate="last"), DAY, tmp_path))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        with (tmp_path / "2026-01-02.csv").open("w") as file:
            file.write("id,x\n")
            file.writelines(f"key-{i}-{'y' * 80},{i}\n" for i in range(rows))
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        most = 0
        for _ in read_partition(source(uri="{partition}.csv", format="csv"), DAY, tmp_path):
            most = max(most, pa.total_allocated_bytes() - before)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most + python

    peak(100)
    assert peak(80_000) < 1.5 * peak(20_000)
