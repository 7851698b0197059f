"""A judgement in words and pictures: markdown for the Dagster UI, HTML for the page, JSON for programs.

Decides the wording. Every string that comes from data is escaped for the place that it goes to.
"""

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from batch_platform.core.monitoring.detectable import NONE
from batch_platform.core.monitoring.diagnosis import Diagnosis
from batch_platform.core.monitoring.drift import Calibration, Finding, Verdict
from batch_platform.core.monitoring.reviews import Reviewed

_SHOWN_FINDINGS = 12
_BARS = 12
_NAME_CHARACTERS = 80
_CELL_CHARACTERS = 240
_SENTENCE_CHARACTERS = 600
_SHOWN_CHANGES = 6
_MOST_COLUMNS = 300
_SMALLEST = "smallest lasting change that is found nine of ten times within seven partitions"
_UNCALIBRATED = "The rule is not calibrated yet: there are too few partitions before this one."
# Also what markdown makes links and entities of without being asked: https://x, www.x, a@b, &amp;
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|<>~:.@&-])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")

_LEGEND = (
    "mean rank: where the values lie among the reference's, +0.1 is ten hundredths of its rows further up; "
    "spread of ranks: how far from the reference's median; shares and the null rate on the scale arcsine of the "
    "root, so that 10 % against 1 % is +0.22; p: how often a quiet day would look like this."
)


def verdict_values(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON values; infinite z as null."""
    return {
        "status": verdict.status,
        "alert": verdict.alert,
        "message": verdict.message,
        "rows": verdict.rows,
        "reference_days": verdict.reference_days,
        "findings": [_finding_values(finding) for finding in verdict.findings],
        "scores": dict(verdict.scores),
        "not_judged": list(verdict.not_judged),
    }


def reviewed_values(reviewed: Reviewed) -> dict[str, Any]:
    """A verdict and the owners' decisions on its causes as JSON values."""
    return {
        **verdict_values(reviewed.verdict),
        **{
            name: [{**_finding_values(finding), "decision": review.number} for finding, review in decided]
            for name, decided in (
                ("accepted", reviewed.accepted),
                ("rejected", reviewed.rejected),
                ("grown", reviewed.grown),
            )
        },
    }


def _finding_values(finding: Finding) -> dict[str, Any]:
    return {**vars(finding), "z": finding.z if math.isfinite(finding.z) else None}


def markdown(
    verdicts: Mapping[str, Verdict],
    nulls: Mapping[str, float],
    decisions: str = "",
    diagnosis: Diagnosis | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    quality: Mapping[str, str] | None = None,
) -> str:
    """The judgement for the Dagster UI: what happened, a sentence per group, a table of findings, a plot.

    Args:
        verdicts: by group.
        nulls: column -> share of rows without a value.
        decisions: what owners decided on the causes, in words.
        diagnosis: of an alarm.
        calibrations: by group: how the decision is set; none before there is a reference.
        quality: what is not as usual in the partition's quality, by check.
    """
    lines = [] if diagnosis is None else [plain(diagnosis.paragraph), ""]
    lines += [f"**{group}**: {plain(verdict.message)}  " for group, verdict in verdicts.items()]
    if decisions:
        lines.append(f"**owner's decision**: {plain(decisions)}  ")
    lines += [f"**{plain(check)}**: {plain(words)}  " for check, words in (quality or {}).items()]
    rows = [(group, finding) for group, verdict in verdicts.items() for finding in verdict.findings]
    if rows:
        lines += ["", "| group | column | what | direction | effect | p |", "|---|---|---|---|---|---|"]
        lines += [
            "| " + " | ".join(_cells(group, finding)) + " |" for group, finding in rows[:_SHOWN_FINDINGS]
        ]
    if len(rows) > _SHOWN_FINDINGS:
        lines.append(f"\nand {len(rows) - _SHOWN_FINDINGS} more; see the report")
    if diagnosis is not None and diagnosis.examples:
        lines += ["", "Rows that show it:", "", *_markdown_table(diagnosis.examples)]
    missing = {name: share for name, share in nulls.items() if share}
    if missing:
        named = ", ".join(f"{plain(one_line(name))} {share:.1%}" for name, share in missing.items())
        lines += ["", f"Rows without a value: {named}"]
    lines += ["", *(f"*{group}*: {plain(words)}  " for group, words in _rates(calibrations).items())]
    scores = _scores(verdicts)
    if scores:
        lines += ["", f"![largest z by column]({plot(scores, _alarming(verdicts))})"]
    return "\n".join(lines)


def _markdown_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = [[plain(one_line(name)) for name in columns], ["---"] * len(columns)]
    table += [[plain(one_line(row.get(name, ""), _CELL_CHARACTERS)) for name in columns] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in table]


def summary_html(
    verdicts: Mapping[str, Verdict],
    nulls: Mapping[str, float],
    sampled: str,
    decisions: str = "",
    diagnosis: Diagnosis | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    quality: Mapping[str, str] | None = None,
) -> str:
    """The judgement for the top of the page.

    Args:
        sampled: what the distributions below are drawn from, in words.
        decisions: what owners decided on the causes, in words.
        diagnosis: of an alarm.
        calibrations: by group: how the decision is set; none before there is a reference.
        quality: what is not as usual in the partition's quality, by check.
    """
    parts = [] if diagnosis is None else [f"<p><big>{html.escape(diagnosis.paragraph)}</big></p>"]
    parts += [
        f"<p><b>{html.escape(group)}</b>: {html.escape(v.message)}</p>" for group, v in verdicts.items()
    ]
    if decisions:
        parts.append(f"<p><b>owner's decision</b>: {html.escape(decisions)}</p>")
    parts += [
        f"<p><b>{html.escape(check)}</b>: {html.escape(one_line(words, _SENTENCE_CHARACTERS))}</p>"
        for check, words in (quality or {}).items()
    ]
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _texts(group, finding)) + "</tr>"
        for group, verdict in verdicts.items()
        for finding in verdict.findings
    )
    if rows:
        head = "".join(
            f"<th align=left>{name}</th>" for name in ("group", "column", "what", "direction", "effect", "p")
        )
        parts.append(f"<table cellpadding=4><tr>{head}</tr>{rows}</table><p><small>{_LEGEND}</small></p>")
    if diagnosis is not None:
        parts += _diagnosis_html(diagnosis)
    missing = ", ".join(
        f"{html.escape(one_line(name))} {share:.1%}" for name, share in nulls.items() if share
    )
    parts.append(f"<p>Rows without a value: {missing or 'none'}.</p>")
    scores = _scores(verdicts)
    if scores:
        parts.append(f'<p><img alt="largest z by column" src="{plot(scores, _alarming(verdicts))}"></p>')
    parts += calibration_html(
        {group: calibration_values(each) for group, each in (calibrations or {}).items()}
    )
    parts.append(f"<p><small>{html.escape(sampled)}</small></p>")
    return "\n".join(parts)


# -- what the verdict is worth ----------------------------------------------------------------------------


def calibration_values(calibration: Calibration) -> dict[str, Any]:
    """How the decision is set and what it finds, as JSON values."""
    return {
        "sentence": calibration.sentence(),
        "budget": calibration.budget,
        "strictness": calibration.strictness,
        "season": calibration.season,
        "meets_budget": calibration.meets_budget,
        "smallest_changes": [
            {"column": each.column, "statistic": each.statistic, "words": each.words}
            for each in calibration.detectable
        ],
    }


def calibration_html(calibrations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The false-alarm rate and the smallest change that is found in each column, of `calibration_values` by group."""
    parts = ["<h3>What this verdict is worth</h3>"]
    if not calibrations:
        parts.append(f"<p>{_UNCALIBRATED}</p>")
    for name, values in calibrations.items():
        group, season = html.escape(one_line(name)), html.escape(one_line(values["season"]))
        by = "" if values["season"] == "none" else f" Compared by {season}."
        sentence = html.escape(one_line(values["sentence"], _SENTENCE_CHARACTERS))
        parts.append(f"<p><b>{group}</b>: {sentence}.{by}</p>")
        words: dict[str, list[str]] = {}
        for each in values["smallest_changes"]:
            words.setdefault(each["column"], []).append(_smallest(each["statistic"], each["words"]))
        rows = [
            {"column": column, _SMALLEST: "; ".join(said[:_SHOWN_CHANGES])} for column, said in words.items()
        ]
        if rows:
            more = f"; {len(rows) - _MOST_COLUMNS} more are not listed" if len(rows) > _MOST_COLUMNS else ""
            head = f"{group}: the smallest change of each column that is found{more}"
            parts.append(f"<details><summary>{head}</summary>{_html_table(rows[:_MOST_COLUMNS])}</details>")
    return parts


def _smallest(statistic: str, words: str) -> str:
    """`mean ± 0.2 sd of lengths`, `null rate 1.0 % to 3.1 %`, `spread of ranks: none, however large`."""
    if words == NONE:
        return f"{statistic}: {words}"
    for kind in ("mean rank", "spread of ranks"):
        if statistic.startswith(kind):
            return words + statistic.removeprefix(kind)
    return f"{statistic} {words}"


def _rates(calibrations: Mapping[str, Calibration] | None) -> dict[str, str]:
    rates = {group: f"{calibration.sentence()}." for group, calibration in (calibrations or {}).items()}
    return rates or {"calibration": _UNCALIBRATED}


def _diagnosis_html(diagnosis: Diagnosis) -> list[str]:
    rows = [
        {
            "column": change.finding.column,
            "since": change.since,
            "before and now (samples)": change.measured,
            "where": change.segments,
        }
        for change in diagnosis.changes
    ]
    parts = ["<h3>What moved</h3>", _html_table(rows)]
    if diagnosis.predictions:
        parts.append(f"<p>{html.escape('. '.join(diagnosis.predictions))}.</p>")
    if diagnosis.examples:
        parts += ["<h3>Rows that show it</h3>", _html_table(diagnosis.examples)]
    files = [
        {
            "source file": share.file,
            "of all rows": f"{share.rows:.0%}",
            "of the unusual rows": f"{share.unusual:.0%}",
        }
        for share in diagnosis.files
    ]
    return [*parts, *([_html_table(files)] if files else [])]


def _html_table(rows: Sequence[Mapping[str, str]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th align=left>{html.escape(one_line(name))}</th>" for name in columns)
    cells = [[html.escape(one_line(row.get(name, ""), _CELL_CHARACTERS)) for name in columns] for row in rows]
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    return f"<table cellpadding=4><tr>{head}</tr>{body}</table>"


def plot(scores: Mapping[str, float], alarming: frozenset[str]) -> str:
    """A bar chart of the largest |z| by column, as a data URI of an SVG picture."""
    shown = sorted(scores.items(), key=lambda item: -item[1])[:_BARS]
    longest = max(5.0, shown[0][1])
    bars = []
    for place, (column, z) in enumerate(shown):
        y = 20 * place + 22
        width = 300 * min(z, longest) / longest
        colour = "#c0392b" if column in alarming else "#7f8c8d"
        name = html.escape(one_line(column, 28))
        bars.append(
            f'<text x="195" y="{y + 12}" text-anchor="end">{name}</text>'
            f'<rect x="200" y="{y}" width="{width:.1f}" height="14" fill="{colour}"/>'
            f'<text x="{205 + width:.1f}" y="{y + 12}">{z:.1f}</text>'
        )
    height = 20 * len(shown) + 30
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="560" height="{height}" font-family="sans-serif" '
        f'font-size="12"><text x="200" y="14">largest |z| of the day statistics (red: in the alarm)</text>'
        f"{''.join(bars)}</svg>"
    )
    return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()


def _scores(verdicts: Mapping[str, Verdict]) -> dict[str, float]:
    return {column: score for verdict in verdicts.values() for column, score in verdict.scores.items()}


def _alarming(verdicts: Mapping[str, Verdict]) -> frozenset[str]:
    return frozenset(finding.column for verdict in verdicts.values() for finding in verdict.findings)


def _texts(group: str, finding: Finding) -> list[str]:
    numbers = ["", ""] if finding.statistic == "schema" else [f"{finding.effect:+.3f}", f"{finding.p:.2g}"]
    return [group, one_line(finding.column), one_line(finding.statistic), finding.direction, *numbers]


def _cells(group: str, finding: Finding) -> list[str]:
    *words, effect, p = _texts(group, finding)
    return [*map(plain, words), effect, p]


def one_line(text: str, longest: int = _NAME_CHARACTERS) -> str:
    """A name from data as one line that is not too long."""
    line = " ".join(_CONTROL.sub(" ", text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def plain(text: str) -> str:
    """Text that markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\1", " ".join(_CONTROL.sub(" ", text).split()))
