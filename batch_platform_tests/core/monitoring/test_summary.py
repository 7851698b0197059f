"""The judgement in words: readable, and nothing that comes from data is ever markup."""

import base64
import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

from batch_platform.core.monitoring.back_test import Trial
from batch_platform.core.monitoring.detectable import NONE, Detectable
from batch_platform.core.monitoring.drift import Calibration, Finding, Verdict
from batch_platform.core.monitoring.summary import markdown, plot, summary_html, verdict_values

EVIL = "</td><script>alert(1)</script>[x](javascript:alert(2))|`![y](http://z)"
FINDINGS = (
    Finding("tenure", "mean rank", "up", 0.14, 7.5, 1e-9),
    Finding(EVIL, f"share of {EVIL!r}", "down", -0.2, -6.0, 1e-6),
    Finding("gone", "schema", "changed", 1.0, np.inf, 0.0),
)
ALERT = Verdict(
    "alert", FINDINGS, 500, 28, {"tenure": 7.5, EVIL: 6.0, "quiet": 0.3}, f"drift in tenure, {EVIL}"
)
OK = Verdict("ok", (), 500, 28, {"score": 0.4}, "no drift found against 28 reference days")
NULLS = {"tenure": 0.0, EVIL: 0.5}


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_the_verdict_and_holds_only_our_tags() -> None:
    page = Tags(summary_html({"features": ALERT, "predictions": OK}, NULLS, "At most 500 rows."))
    assert page.names <= {"p", "b", "table", "tr", "th", "td", "img", "small", "h3"}
    for words in (
        "drift in tenure",
        "no drift found",
        "mean rank",
        "schema",
        "50.0%",
        "At most 500 rows.",
        EVIL,
    ):
        assert words in page.text


def test_page_and_markdown_state_the_false_alarm_rate_and_the_smallest_change() -> None:
    changes = (
        Detectable(EVIL, "mean rank", 0.1, "mean ± 0.36 sd"),
        Detectable(EVIL, "null rate", 0.1, "1.0 % to 3.1 %"),
        Detectable("wind", "mean rank", None, NONE),
    )
    trial = Trial(1.6, 28, 0, 0, 0, 0.0, 9.7)
    calibrations = {"features": Calibration(1.0, 91, 1.6, trial, "weekday", changes)}
    html = summary_html({"features": OK}, {}, "", calibrations=calibrations, quality={"raw freshness": EVIL})
    page = Tags(html)
    assert page.names <= {"p", "b", "table", "tr", "th", "td", "img", "small", "h3", "details", "summary"}
    for words in (
        "at most 1 false alarms a quarter",
        "0 false alarms on 28 back-tested partitions at strictness 1.6",
        "Compared by weekday",
        "mean ± 0.36 sd; null rate 1.0 % to 3.1 %",
        "mean rank: none, however large",
        EVIL,
    ):
        assert words in page.text
    text = markdown({"features": OK}, {}, calibrations=calibrations, quality={"raw freshness": EVIL})
    assert "*features*: set for at most 1 false alarms a quarter" in text
    assert "<script>" not in text
    assert "[x](" not in text
    assert "not calibrated yet" in Tags(summary_html({"features": OK}, {}, "")).text
    assert "not calibrated yet" in markdown({"features": OK}, {})


def test_markdown_starts_with_a_sentence_and_data_cannot_break_out() -> None:
    text = markdown({"features": ALERT}, NULLS)
    assert text.startswith("**features**: drift in tenure")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(FINDINGS)
    # Seven unescaped bars make six cells, whatever the values hold.
    assert {line.replace("\\|", "").count("|") for line in table} == {7}
    written_by_data = text.rpartition("![largest z by column]")[0]
    for markup in ("<script", "](", "![", "`"):
        assert markup not in written_by_data.replace("\\" + markup[0], "")
        assert f"\n{markup}" not in written_by_data


def test_a_long_list_of_findings_is_cut_and_says_so() -> None:
    many = tuple(Finding(f"c{place}", "mean rank", "up", 0.1, 6.0, 1e-6) for place in range(30))
    text = markdown({"features": Verdict("alert", many, 10, 28, {}, "drift")}, {})
    assert "and 18 more; see the report" in text


def test_the_plot_is_a_picture_that_parses() -> None:
    uri = plot(ALERT.scores, frozenset({"tenure"}))
    head, _, body = uri.partition(",")
    assert head == "data:image/svg+xml;base64"
    picture = ElementTree.fromstring(base64.b64decode(body))
    assert {element.tag.rpartition("}")[2] for element in picture.iter()} == {"svg", "text", "rect"}
    bars = [float(element.attrib["width"]) for element in picture.iter() if element.tag.endswith("rect")]
    assert bars == sorted(bars, reverse=True)


def test_json_has_no_infinity() -> None:
    values = json.loads(json.dumps(verdict_values(ALERT), allow_nan=False))
    assert values["alert"] is True
    assert [finding["column"] for finding in values["findings"]] == ["tenure", EVIL, "gone"]
    assert values["findings"][2]["z"] is None
    assert values["not_judged"] == []


def test_without_scores_there_is_no_plot() -> None:
    waiting = Verdict("not enough history", (), 5, 0, {}, "not enough history: 3 of 28")
    assert "data:image" not in markdown({"features": waiting}, {})
    assert "data:image" not in summary_html({"features": waiting}, {}, "")


def test_what_markdown_would_make_of_data_by_itself_stays_text() -> None:
    evil = "https://x.y www.x.y a@b.c &amp; <b> **bold**\n# head\x00" + "z" * 200
    text = markdown(
        {"features": Verdict("alert", (Finding(evil, "schema", "changed", 1, np.inf, 0),))}, {evil: 1.0}
    )
    cell = text.splitlines()[4].split(" | ")[1]
    for markup in ("https:", "www.", "a@", "&", "<", "*bold", "\x00"):
        assert markup not in text.replace("\\&", "").replace("\\<", "").replace("\\*", "")
    plain = cell.replace("\\", "")
    assert plain.startswith("https://x.y www.x.y a@b.c &amp; <b> **bold** # head zzz")
    assert (len(plain), plain[-1]) == (80, "…")


def test_the_plot_of_names_with_control_characters_parses() -> None:
    body = plot({"a\x00\x1b[31m\ufffe": 3.0, "b": 99.0}, frozenset()).partition(",")[2]
    assert "a" in "".join(ElementTree.fromstring(base64.b64decode(body)).itertext())


def test_the_page_explains_its_numbers_where_there_are_some() -> None:
    assert "mean rank: where the values lie" in summary_html({"features": ALERT}, {}, "")
    assert "mean rank: where" not in summary_html({"features": OK}, {}, "")
