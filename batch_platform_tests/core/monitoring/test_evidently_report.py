"""Evidently's pages: they agree with our decision, and data is never markup. One import of Evidently for all."""

import pickle
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_platform.core.monitoring.evidently_report import RenderRequest, render
from batch_platform.core.monitoring.rendering import Renderer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

EVIL = "</script><script>alert(1)</script>"


class Scripts(HTMLParser):
    """What a browser would run of a page, and the page's text outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def sample(shift: float, rows: int = 60) -> pa.Table:
    random = np.random.default_rng(int(shift * 10))
    return pa.table(
        {
            "moved": random.normal(shift, 1, rows),
            "still": random.normal(size=rows),
            "half": pa.array(random.normal(size=rows), mask=np.arange(rows) % 2 == 0),
            "constant": np.ones(rows),
            "nothing": pa.nulls(rows, pa.float64()),
            "category": pa.array(random.choice(["x", EVIL, None], rows)),
            EVIL: random.normal(size=rows),
            "text": [f"{EVIL} row {row} " * 9 for row in range(rows)],
        }
    )


def request(
    folder: Path, current: pa.Table, reference: pa.Table | None, detected: set[str] = frozenset()
) -> RenderRequest:
    pq.write_table(current, folder / "current.parquet")
    if reference is not None:
        pq.write_table(reference, folder / "reference.parquet")
    return RenderRequest(
        title=f"Drift report {EVIL}",
        summary_html="<p>our summary</p>",
        current=folder / "current.parquet",
        reference=folder / "reference.parquet" if reference is not None else None,
        scores=dict.fromkeys(detected, 7.5),
        detected=frozenset(detected),
        out=folder / "drift.html",
    )


def marks(page: str) -> dict[str, str]:
    """Column -> what Evidently's table says of it."""
    found = re.finditer(r'"column_name": "([^"]*)".*?"data_drift": "(Detected|Not Detected)"', page)
    return {match[1]: match[2] for match in found}


def test_marks_follow_the_verdict_from_page_to_page_and_data_is_no_markup(tmp_path: Path) -> None:
    # What Evidently itself would find is `moved`; the marks must be ours, on the second page too.
    first = render(request(tmp_path, sample(3), sample(0), {"moved"})).read_text()
    second = render(request(tmp_path, sample(3), sample(0), {"half", "category"})).read_text()
    drawn = {"moved", "still", "half", "constant", "category"}
    for page, detected in ((first, {"moved"}), (second, {"half", "category"})):
        said = marks(page)
        assert drawn <= said.keys()
        assert {name for name, mark in said.items() if mark == "Detected"} == detected
    assert "our summary" in first.partition("<body>")[2][:500]
    assert "(no value)" in first
    seen = Scripts(first)
    assert not seen.handlers
    assert not any(script.strip().startswith("alert") for script in seen.scripts)
    assert first.count("alert(1)") > 0
    assert "<script>alert" not in first


@pytest.mark.parametrize("rows", [0, 1])
def test_a_partition_of_hardly_any_rows_gets_a_page(tmp_path: Path, rows: int) -> None:
    page = render(request(tmp_path, sample(0).slice(0, rows), sample(0))).read_text()
    assert "our summary" in page


def test_without_a_reference_the_page_is_our_summary(tmp_path: Path) -> None:
    page = render(request(tmp_path, sample(0), None)).read_text()
    assert "our summary" in page
    assert len(page) < 2000
    assert not Scripts(page).scripts


def test_columns_that_only_one_sample_has_are_left_to_the_summary(tmp_path: Path) -> None:
    page = render(request(tmp_path, sample(0).drop_columns("still"), sample(0))).read_text()
    assert "still" not in marks(page)


def test_a_request_is_small_and_can_go_to_another_process(tmp_path: Path) -> None:
    asked = request(tmp_path, sample(0), None)
    assert len(pickle.dumps(asked)) < 4000
    renderer = Renderer()
    try:
        assert "our summary" in renderer.submit(asked).result(timeout=120).read_text()
    finally:
        renderer.close()


def test_the_page_is_replaced_whole(tmp_path: Path) -> None:
    asked = request(tmp_path, sample(0), None)
    asked.out.write_text("an older page")
    render(asked)
    assert "an older page" not in asked.out.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"current.parquet", "drift.html"}


def headline(page: str) -> str:
    return re.findall("Dataset Drift is (detected|NOT detected)", page)[0]


@pytest.mark.parametrize(
    ("detected", "words"), [({"moved"}, "detected"), (set(), "NOT detected"), ({"nothing"}, "detected")]
)
def test_the_headline_says_what_was_decided(tmp_path: Path, detected: set[str], words: str) -> None:
    assert headline(render(request(tmp_path, sample(3), sample(0), detected)).read_text()) == words


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_column_without_a_finite_number_is_left_to_the_summary(tmp_path: Path, value: float) -> None:
    current = sample(0).set_column(0, "moved", pa.array(np.full(60, value)))
    page = render(request(tmp_path, current, sample(0), {"moved"})).read_text()
    assert "moved" not in marks(page)
    assert "still" in marks(page)
