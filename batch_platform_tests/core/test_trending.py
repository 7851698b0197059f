"""The trend page from committed tables: everything on it, nothing live in it, on a disk and in object storage."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from batch_platform.core.layout import Layout
from batch_platform.core.monitoring.reference import Reference
from batch_platform.core.monitoring.reviews import Cause, Review
from batch_platform.core.monitoring.trend import MAX_PARTITIONS, Series, Trend, trend_page
from batch_platform.core.reviewing import decide
from batch_platform.core.trending import gather, write_trend
from batch_platform.core.watching import quality_file
from batch_platform.settings import Settings
from batch_platform_tests.core.committed import slice_of
from batch_platform_tests.core.test_drift_reporting import DRIFT, KEYS, Pages, judge, table

EVIL = "</title></svg><script>alert(1)</script><img src=x onerror=alert(2)>\x00'\"&"


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {str(value) for name, value in attrs if name in ("href", "src")}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_of_a_pipeline_shows_alarms_decisions_and_references(tmp_path: Path) -> None:
    pages = Pages()
    for day in range(6):
        judge(tmp_path, pages, day)
    judge(tmp_path, pages, 6, table(6, shift=3))
    slice_ = slice_of(tmp_path, KEYS[6], drift=DRIFT)
    decide(slice_.spec, slice_.settings, KEYS[6], "reject", "ann", "a broken sensor", retrain=True)
    trend = gather(slice_.layout)
    assert list(trend.keys) == KEYS[:7]
    assert trend.statuses["features"] == [*["not enough history"] * 5, "ok", "alert"]
    assert trend.alarms[("features", "amount")] == {6}
    assert trend.scores[("features", "amount")][:5] == [None] * 5
    place = write_trend(slice_.layout)
    page = Page(place.read_bytes().decode())
    for words in ("amount", "score", "a broken sensor", "a training was asked for", "reference 1", KEYS[6]):
        assert words in page.text
    assert f"{KEYS[6]}/drift.html" in page.links
    # What the verdicts are worth, and what was said of the rows themselves.
    assert "false alarms a quarter; not back-tested: the reference is too short" in page.text
    assert "mean ± " in page.text
    assert "usual_volume" not in page.text
    said = {"usual_volume": {"passed": False, "status": "alert", "message": "rows 3, usual 60"}}
    quality_file(slice_.layout, KEYS[5], "raw").write_text(json.dumps(said))
    trend = gather(slice_.layout)
    assert trend.quality["raw"] == [*[None] * 5, "alert", None]
    assert "rows 3, usual 60" in trend_page(trend)
    assert place == slice_.layout.report(KEYS[6]).parent / "trend.html"


def test_a_pipeline_that_was_never_judged_has_a_page(tmp_path: Path) -> None:
    place = write_trend(Layout.of(Settings(root=tmp_path), "mini"))
    assert "No partition was judged yet" in place.read_bytes().decode()


def made(partitions: int, columns: int, name: str = "column", **more: Any) -> Trend:
    keys = [f"2026-01-01-{place:05d}" for place in range(partitions)]
    scores = {
        ("features", f"{name} {column}"): [float((place * 7 + column) % 11) for place in range(partitions)]
        for column in range(columns)
    }
    performance = {"auc": Series([0.8] * partitions, [0.7] * partitions, [0.9] * partitions)}
    statuses = {"features": ["ok"] * partitions}
    return Trend("mini", keys, statuses, scores, performance=performance, **more)


def test_nothing_that_comes_from_data_is_markup() -> None:
    reference = Reference(1, ("2025-12-01", "2025-12-31"), EVIL, EVIL, "2026-01-01", ())
    cause = Cause("features", EVIL, EVIL, "up")
    review = Review(1, "2026-01-01-00003", "accept", EVIL, EVIL, "2026-01-02T00:00:00", (cause,), 1)
    trend = made(5, 1, EVIL, references=[reference], reviews=[review])
    changes = [{"column": EVIL, "statistic": EVIL, "words": EVIL}]
    calibration = {"sentence": EVIL, "season": EVIL, "smallest_changes": changes}
    more = {
        "quality": {EVIL: ["alert"] * 5},
        "unusual": {"2026-01-01-00002": {EVIL: EVIL}},
        "calibrations": {EVIL: calibration},
    }
    trend = Trend(**{**vars(trend), **more, "alarms": {name: frozenset({3}) for name in trend.scores}})
    text = trend_page(trend)
    page = Page(text)
    assert page.tags <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "h1",
            "h2",
            "h3",
            "p",
            "b",
            "small",
            "svg",
            "text",
            "rect",
        ),
        *("path", "circle", "table", "tr", "th", "td", "a", "details", "summary"),
    }
    assert not [name for name in page.attributes if name.startswith("on")]
    assert page.links == {"2026-01-01-00003/drift.html"}
    assert "Content-Security-Policy" in text
    assert "default-src 'none'" in text
    assert "\x00" not in text


@pytest.mark.parametrize(("partitions", "columns"), [(1, 1), (MAX_PARTITIONS, 50), (MAX_PARTITIONS, 2_000)])
def test_the_page_stays_small(partitions: int, columns: int) -> None:
    page = trend_page(made(partitions, columns))
    assert len(page) < 4_000_000
    assert ("with smaller z are not drawn" in page) == (columns > 300)


def test_what_is_estimated_stands_apart_from_what_labels_showed_and_says_what_it_cannot_see() -> None:
    series = {
        "auc": Series([0.8, None], [0.7, None], [0.9, None]),
        "ndcg": Series([0.2, 0.3], [None, None], [None, None]),
        "estimated_auc": Series([None, 0.8], [None, None], [None, None]),
    }
    page = trend_page(replace(made(2, 1), performance=series))
    realised, estimated = page.split("Performance estimated without labels")
    assert ">auc<" in realised
    assert ">ndcg<" in realised
    assert ">estimated_auc<" in estimated
    assert "cannot see a change of what the labels mean" in estimated
    assert "estimated" not in trend_page(replace(made(2, 1), performance={"auc": series["auc"]}))
