"""The diagnosis of a real alarm from committed tables: since when, whose change, which files and rows."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batch_platform.core.diagnosing import MASK
from batch_platform.core.slice import StageResult
from batch_platform_tests.core.committed import ATTRIBUTES, commit, slice_of
from batch_platform_tests.core.test_drift_reporting import KEYS, Pages, judge, table


@pytest.fixture
def pages() -> Pages:
    return Pages()


def raw(day: int, files: tuple[str, ...] = ("a.csv",)) -> pa.Table:
    """Where the rows of `table(day)` came from: equal parts of these files."""
    keys = table(day)["row_key"].to_pylist()
    size = -(-len(keys) // len(files))
    return pa.table(
        {
            "row_key": keys,
            "source_file": [files[place // size] for place in range(len(keys))],
            "source_row": pa.array(range(len(keys)), pa.int64()),
        }
    )


def day_of(
    folder: Path,
    pages: Pages,
    day: int,
    features: pa.Table | None = None,
    files: tuple[str, ...] = ("a.csv",),
    contract: str = "c1",
    **more: Any,
) -> StageResult:
    slice_ = slice_of(folder, KEYS[day])
    receipt = {
        "source": "data/{partition}.csv",
        "contract_version": contract,
        "counts": {"files": dict.fromkeys(files, 1)},
    }
    commit(slice_, "raw", raw(day, files), **receipt)
    return judge(folder, pages, day, features, **more)


def said(result: StageResult) -> dict[str, Any]:
    assert result.report is not None
    return json.loads(result.report.with_suffix(".json").read_bytes())["diagnosis"]


def test_an_alarm_says_since_when_and_that_nothing_of_ours_changed(tmp_path: Path, pages: Pages) -> None:
    for day in range(6):
        assert said(day_of(tmp_path, pages, day)) is None
    day_of(tmp_path, pages, 6, table(6, shift=3))
    result = day_of(tmp_path, pages, 7, table(7, shift=3))
    found = said(result)
    (amount,) = [change for change in found["changes"] if change["column"] == "amount"]
    assert (amount["since"], amount["direction"]) == (KEYS[6], "up")
    assert amount["measured"].startswith("its median went from ")
    assert "the same way in 2 of 2 of plan" in amount["segments"]
    assert found["predictions"][0].startswith("At least ")
    assert found["changed_on_our_side"] == {}
    assert "source" not in " ".join(found["unknown"])
    ((file, rows, unusual, _),) = [each.values() for each in found["source_files"]]
    assert (file, rows, unusual) == ("a.csv", 1.0, 1.0)
    example = found["examples"][0]
    assert example["row_key"].startswith("7-")
    assert example["source"].startswith("a.csv row ")
    assert float(example["amount"]) > 1
    assert example["label"] == "yes"
    paragraph = found["paragraph"]
    assert result.markdown.startswith(paragraph[:20])
    assert paragraph in result.checks[0].values["diagnosis"]
    assert "Rows that show it" in pages.requests[-1].summary_html


def test_what_changed_on_our_side_with_the_alarm_is_named(tmp_path: Path, pages: Pages) -> None:
    for day in range(6):
        day_of(tmp_path, pages, day)
    found = said(day_of(tmp_path, pages, 6, table(6, shift=3), contract="c2", files=("a.csv", "b.csv")))
    assert found["changed_on_our_side"] == {"contract": "c1 -> c2", "source files": "1 -> 2"}
    assert found["changed_with_the_alarm"] == ["contract", "source files"]
    assert "We changed when it began: contract c1 -> c2; source files 1 -> 2" in found["paragraph"]
    later = said(day_of(tmp_path, pages, 7, table(7, shift=3), contract="c2", files=("a.csv", "b.csv")))
    assert later["changed_with_the_alarm"] == ["contract", "source files"]  # when it began, not only today


def test_the_file_that_the_unusual_rows_come_from_is_named(tmp_path: Path, pages: Pages) -> None:
    files, drift = ("a.csv", "b.csv"), {"reference_partitions": 14}
    for day in range(14):
        day_of(tmp_path, pages, day, files=files, drift=drift)
    good, bad = table(14), table(14, shift=6)
    mixed = pa.concat_tables([good.slice(0, 30), bad.slice(30)])  # the rows of b.csv
    found = said(day_of(tmp_path, pages, 14, mixed, files=files, drift=drift))
    assert found["source_files"][0]["file"] == "b.csv"
    assert found["source_files"][0]["unusual"] > 0.8
    assert "come from b.csv, which has 50% of the rows" in found["paragraph"]


def test_a_sensitive_row_key_is_masked_and_sensitive_columns_are_not_shown(
    tmp_path: Path, pages: Pages
) -> None:
    columns = {
        "id": {"type": "string", "required": True, "sensitive": True},
        "amount": {"type": "float64"},
        "email": {"type": "string", "sensitive": True},
    }
    source = {**ATTRIBUTES["source"], "columns": columns}
    for day in range(6):
        day_of(tmp_path, pages, day, table(day, email="ann@example.org"), source=source)
    result = day_of(tmp_path, pages, 6, table(6, shift=3, email="ann@example.org"), source=source)
    found = said(result)
    assert {example["row_key"] for example in found["examples"]} == {MASK}
    for text in (json.dumps(found), result.markdown, pages.requests[-1].summary_html):
        assert "ann@example.org" not in text
        assert "6-1" not in text.replace("2026-1", "")
    assert found["examples"][0]["source"].startswith("a.csv row ")


def test_an_alarm_without_landed_rows_has_no_examples_of_their_place(tmp_path: Path, pages: Pages) -> None:
    for day in range(6):
        judge(tmp_path, pages, day)
    found = said(judge(tmp_path, pages, 6, table(6, shift=3)))
    assert found["source_files"] == []
    assert {example["source"] for example in found["examples"]} == {""}
