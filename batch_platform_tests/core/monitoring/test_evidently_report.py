"""Evidently's pages: they agree with our decision, and data is never markup. One import of Evidently for all."""

import contextlib
import dataclasses
import pickle
import re
import threading
from concurrent.futures.process import BrokenProcessPool
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import sync_playwright

from batch_platform.core.monitoring.evidently_report import RenderRequest, render
from batch_platform.core.monitoring.rendering import Renderer
from batch_platform.core.monitoring.report_server import report_server
from batch_platform_tests.requirements import find_browser

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

EVIL = "</script><script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>"


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
            IMAGE: random.choice([IMAGE, "y"], rows),
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
    assert "<img src=x" not in first
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


def test_of_long_texts_the_lengths_are_drawn_and_marked(tmp_path: Path) -> None:
    said = marks(render(request(tmp_path, sample(0), sample(0), {"text"})).read_text())
    assert said["text (characters)"] == "Detected"


def test_columns_whose_names_look_alike_on_the_page_are_both_drawn(tmp_path: Path) -> None:
    columns = {
        "a<b": np.random.default_rng(0).normal(size=40),
        "a&lt;b": np.zeros(40),
        "text (characters)": np.ones(40),
    }
    table = pa.table(columns | {"text": ["x" * 80] * 40})
    page = render(request(tmp_path, table, table, {"a<b"})).read_text()
    assert headline(page) == "detected"
    assert sum(mark == "Detected" for mark in marks(page).values()) == 1
    assert len(marks(page)) == 4


def test_a_column_that_changed_its_type_is_left_to_the_summary(tmp_path: Path) -> None:
    current = sample(0).set_column(0, "moved", pa.array(["text"] * 60))
    said = marks(render(request(tmp_path, current, sample(0), {"moved"})).read_text())
    assert "moved" not in said
    assert "still" in said


def test_after_the_process_was_killed_the_next_page_is_made(tmp_path: Path) -> None:
    asked = request(tmp_path, sample(0), None)
    renderer = Renderer()
    try:
        renderer.submit(asked).result(timeout=120)
        (process,) = renderer._pool._processes.values()  # type: ignore[union-attr]
        process.kill()
        process.join()
        with contextlib.suppress(BrokenProcessPool):
            renderer.submit(asked).result(timeout=120)
        assert renderer.submit(asked).result(timeout=120).is_file()
    finally:
        renderer.close()


@pytest.mark.browser
def test_a_browser_shows_the_page_under_the_policy_of_the_server(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    asked = request(tmp_path, sample(3), sample(0), {"moved", EVIL})
    render(dataclasses.replace(asked, out=reports / "drift.html"))
    server = report_server(reports, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.goto(f"http://127.0.0.1:{server.server_port}/drift.html")
        page.get_by_text("Dataset Drift is detected").wait_for(timeout=30_000)
        page.get_by_text("day statistics").first.wait_for(timeout=30_000)
        assert page.get_by_text("our summary").is_visible()
        browser.close()
    server.shutdown()
    server.server_close()
    assert said == []
