"""What texts are made of: measured in any language, judged, and told in its own unit; frequent values by name."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core.monitoring import diagnosis
from batch_platform.core.monitoring.drift import DriftMonitor
from batch_platform.core.monitoring.profile import Profile, profile_table
from batch_platform.core.monitoring.texts import text_measures

START = date(2026, 1, 5)


@pytest.mark.parametrize(
    ("text", "token_length", "symbols"),
    [
        ("", 0, 0),
        (" \n\t ", 0, 0),
        ("one three", 16, 0),  # 4 letters a token, in quarters
        (" a bb  ccc", 8, 0),
        ("1234", 16, 64),
        ("ab12 a!", 12, 32),  # 3 of 6
        ("été ß", 14, 0),  # five bytes and two
        ("x" * 5000, 4 * 64, 0),
    ],
)
def test_tokens_and_symbols(text: str, token_length: int, symbols: int) -> None:
    measures = text_measures(pa.array(["before", text, "after"]))
    assert measures.token_lengths.tolist() == [24, token_length, 20]
    assert measures.symbols.tolist() == [0, symbols, 0]


def test_no_texts_have_no_measures() -> None:
    assert text_measures(pa.array([], pa.string())).symbols.tolist() == []
    assert text_measures(pa.array(["", ""])).token_lengths.tolist() == [0, 0]


def texts(random: np.random.Generator, rows: int = 300, digits: float = 0.05) -> pa.Table:
    """Sixty characters each, some of them digits."""
    letters = np.array(list("abcdefghijklmnop    "))
    characters = letters[random.integers(0, len(letters), (rows, 60))]
    characters = np.where(random.random((rows, 60)) < digits, "7", characters)
    return pa.table({"body": ["".join(row) for row in characters]})


def test_texts_of_the_same_length_with_more_digits_are_found_and_told() -> None:
    random = np.random.default_rng(0)
    days = [(START + timedelta(days=day), profile_table(texts(random))) for day in range(20)]
    monitor = DriftMonitor.fit(days)
    assert not monitor.judge(START + timedelta(days=20), profile_table(texts(random))).alert
    changed = texts(random, digits=0.3)
    verdict = monitor.judge(START + timedelta(days=21), profile_table(changed))
    (finding,) = [each for each in verdict.findings if each.statistic == "mean rank of symbols"]
    assert finding.direction == "up"
    words = diagnosis.measure(finding, changed, texts(random))
    assert words.endswith("% signs and digits")
    assert diagnosis.unusual(finding, changed["body"], texts(random)).mean() > 0.8
    named = {each.statistic for each in monitor.calibration.detectable}
    assert {"mean rank of token lengths", "spread of ranks of symbols"} <= named


def test_a_reference_of_the_format_before_is_judged_without_these() -> None:
    random = np.random.default_rng(0)
    days = [(START + timedelta(days=day), _older(profile_table(texts(random)))) for day in range(20)]
    monitor = DriftMonitor.fit(days)
    verdict = monitor.judge(START + timedelta(days=20), profile_table(texts(random, digits=0.3)))
    assert verdict.status == "ok"


def _older(profile: Profile) -> Profile:
    from dataclasses import replace

    from batch_platform.core.monitoring.histogram import Histogram

    nothing = Histogram(128)
    return Profile(
        {
            name: replace(column, token_lengths=nothing, symbols=nothing)
            for name, column in profile.columns.items()
        },
        profile.rows,
    )


def test_a_frequent_value_of_very_many_is_named() -> None:
    random = np.random.default_rng(0)

    def day(share: float) -> Profile:
        rare = [f"id {key}" for key in random.integers(0, 100_000, 4000)]
        return profile_table(pa.table({"city": [*rare, *["Berlin"] * int(4000 * share)]}))

    monitor = DriftMonitor.fit([(START + timedelta(days=number), day(0.1)) for number in range(20)])
    verdict = monitor.judge(START + timedelta(days=20), day(0.4))
    named = [
        finding for finding in verdict.findings if finding.statistic.startswith("share of 'Berlin' (bin ")
    ]
    assert [finding.direction for finding in named] == ["up"]
    assert diagnosis.shared_value(named[0].statistic) == "Berlin"
