"""The trend page: how every column, the alarms, the decisions and the realised performance moved over the partitions.

Decides what is drawn, and draws it as one HTML file without a script: pictures are inline SVG, and whatever comes
from data is escaped. It reads nothing.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from batch_platform.core.monitoring.calibration import BLIND_SPOT, ESTIMATED
from batch_platform.core.monitoring.reference import Reference
from batch_platform.core.monitoring.reviews import Review
from batch_platform.core.monitoring.summary import calibration_html, one_line

# Beyond these the page would be long before it is of use.
MAX_PARTITIONS = 400
_MAX_COLUMNS = 300
_OPEN_COLUMNS = 25
_MAX_LISTED = 60
_HIGHEST_Z = 12.0

_LEFT, _WIDTH, _HEIGHT = 190, 900, 44
# The page may run, load and send nothing, wherever it is opened.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"
_STYLE = """
body{font-family:sans-serif;max-width:78em;margin:1.5em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{text-align:left;padding:.25em .7em;border-bottom:1px solid #ddd;vertical-align:top}
svg{display:block}svg text{font-size:11px;fill:#333}small{color:#666}summary{cursor:pointer;margin:.6em 0}
"""
_COLOURS = {"ok": "#bfd8c5", "alert": "#c0392b", "no rows": "#eeeeee", "not enough history": "#d5d5d5"}


@dataclass(frozen=True)
class Series:
    """A number of each partition, with its interval where there is one; None where there is no number."""

    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Trend:
    """What is drawn.

    Attributes:
        pipeline: its name.
        keys: partition keys, oldest first.
        statuses: by group: the status of each partition; None where it was not judged.
        scores: by (group, column): largest |z| of each partition.
        alarms: by (group, column): places of the partitions whose alarm names it.
        performance: metrics by name, realised ones and estimated ones.
        references: every reference, oldest first.
        reviews: every decision, oldest first.
        left_out: older partitions that are not drawn.
        quality: by stage: the status of each partition's data quality.
        unusual: by partition: what is not as usual, by check.
        calibrations: by group: `summary.calibration_values` of the decision.
    """

    pipeline: str
    keys: Sequence[str]
    statuses: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    scores: Mapping[tuple[str, str], Sequence[float | None]] = field(default_factory=dict)
    alarms: Mapping[tuple[str, str], frozenset[int]] = field(default_factory=dict)
    performance: Mapping[str, Series] = field(default_factory=dict)
    references: Sequence[Reference] = ()
    reviews: Sequence[Review] = ()
    left_out: int = 0
    quality: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    unusual: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    calibrations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def trend_page(trend: Trend) -> str:
    """The page as HTML."""
    title = f"Trend: {html.escape(trend.pipeline)}"
    body = "\n".join(
        [
            f"<h1>{title}</h1>",
            _opening(trend),
            *_timeline(trend),
            *_performance(trend),
            *_columns(trend),
            *_alarms(trend),
            *_unusual(trend),
            *calibration_html(trend.calibrations),
            *_reviews(trend),
            *_references(trend),
        ]
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def _opening(trend: Trend) -> str:
    if not trend.keys:
        return "<p>No partition was judged yet.</p>"
    places = sorted({place for found in trend.alarms.values() for place in found})
    words = f"{len(trend.keys)} partitions, {_safe(trend.keys[0])} to {_safe(trend.keys[-1])}"
    words += f" ({trend.left_out} older ones are not drawn)" if trend.left_out else ""
    words += f"; {len(places)} of them with an alarm that stands"
    words += f", the last one {_safe(trend.keys[places[-1]])}" if places else ""
    decided = f"; {len(trend.reviews)} decisions of owners" if trend.reviews else ""
    reference = f"; compared with reference {trend.references[-1].version}" if trend.references else ""
    return f"<p>{words}{reference}{decided}.</p>"


# -- pictures ---------------------------------------------------------------------------------------------


def _timeline(trend: Trend) -> Iterator[str]:
    """A strip for each group of columns: what was decided on each partition."""
    if not trend.keys:
        return
    quality = {f"{stage} quality": statuses for stage, statuses in trend.quality.items()}
    rows, step = [*trend.statuses.items(), *quality.items()], _step(trend)
    parts = []
    for row, (group, statuses) in enumerate(rows):
        y = 24 * row + 4
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{_safe(group, 28)}</text>')
        for first, last, status in _runs(statuses):
            if isinstance(status, str):
                colour = _COLOURS.get(status, "#d5d5d5")
                width = max(step * (last - first + 1) - 0.3, 0.5)
                span = f"{trend.keys[first]}" + (f" to {trend.keys[last]}" if last > first else "")
                parts.append(
                    f'<rect x="{_x(trend, first) - step / 2:.1f}" y="{y}" width="{width:.1f}" height="18" '
                    f'fill="{colour}"><title>{_safe(span)}: {_safe(status)}</title></rect>'
                )
    height = 24 * len(rows) + 34
    parts += [*_marks(trend, height - 24), *_axis(trend, height)]
    legend = "green: no drift, as usual; red: alarm; grey: not enough history or no rows; dashed: a new reference begins to "
    yield "<h2>Partitions</h2>"
    yield _svg(height, parts)
    yield f"<p><small>{legend}be used; triangle: an owner's decision. Hold the pointer still for details.</small></p>"


def _columns(trend: Trend) -> Iterator[str]:
    ranked = sorted(
        trend.scores,
        key=lambda name: (
            -len(trend.alarms.get(name, ())),
            -max(_known(trend.scores[name]), default=0.0),
            name,
        ),
    )
    if not ranked:
        return
    yield "<h2>Columns</h2>"
    yield (
        "<p><small>The largest |z| of each column's day statistics, up to "
        f"{_HIGHEST_Z:.0f}; red dots: the column is in an alarm that stands. Alarming columns come first.</small></p>"
    )
    yield "".join(_column(trend, name) for name in ranked[:_OPEN_COLUMNS])
    if more := ranked[_OPEN_COLUMNS:_MAX_COLUMNS]:
        charts = "".join(_column(trend, name) for name in more)
        yield f"<details><summary>{len(more)} more columns</summary>{charts}</details>"
    if len(ranked) > _MAX_COLUMNS:
        yield f"<p><small>{len(ranked) - _MAX_COLUMNS} columns with smaller z are not drawn.</small></p>"


def _column(trend: Trend, name: tuple[str, str]) -> str:
    group, column = name
    values = [None if value is None else min(value, _HIGHEST_Z) for value in trend.scores[name]]
    top = max(5.0, *_known(values)) if _known(values) else 5.0
    parts = [
        f'<text x="{_LEFT - 8}" y="20" text-anchor="end">{_safe(column, 28)}</text>',
        f'<text x="{_LEFT - 8}" y="33" text-anchor="end" style="fill:#999">{_safe(group, 28)}</text>',
        f'<text x="{_LEFT + _WIDTH + 6}" y="10">{top:.0f}</text>',
        f'<text x="{_LEFT + _WIDTH + 6}" y="{_HEIGHT - 4}">0</text>',
        *_marks(trend, _HEIGHT),
        _line(trend, values, 0.0, top, "#7f8c8d"),
    ]
    for place in sorted(trend.alarms.get(name, ())):
        value = values[place] or 0.0
        parts.append(
            f'<circle cx="{_x(trend, place):.1f}" cy="{_y(value, 0.0, top):.1f}" r="3" fill="#c0392b">'
            f"<title>{_safe(trend.keys[place])}: |z| {value:.1f}</title></circle>"
        )
    return _svg(_HEIGHT, parts)


def _performance(trend: Trend) -> Iterator[str]:
    """What the labels say, and apart from it what the scores promise where labels are missing."""
    drawn = {name: series for name, series in trend.performance.items() if _known(series.values)}
    estimated = {name: series for name, series in drawn.items() if name.startswith(ESTIMATED)}
    realised = {name: series for name, series in drawn.items() if name not in estimated}
    if realised:
        yield "<h2>Realised performance</h2>"
        yield from (_metric(trend, name, series) for name, series in realised.items())
        yield "<p><small>Grey bars: 95 % intervals.</small></p>"
    if estimated:
        yield "<h2>Performance estimated without labels</h2>"
        yield from (_metric(trend, name, series) for name, series in estimated.items())
        yield f"<p><small>Of partitions whose labels are not all there, {html.escape(BLIND_SPOT)}.</small></p>"


def _metric(trend: Trend, name: str, series: Series) -> str:
    known = _known([*series.values, *series.low, *series.high])
    low, high = min(known), max(known)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    parts = [
        f'<text x="{_LEFT - 8}" y="25" text-anchor="end">{_safe(name, 28)}</text>',
        f'<text x="{_LEFT + _WIDTH + 6}" y="10">{high:.3g}</text>',
        f'<text x="{_LEFT + _WIDTH + 6}" y="{_HEIGHT - 4}">{low:.3g}</text>',
        *_marks(trend, _HEIGHT),
        *_intervals(trend, series, low, high),
        _line(trend, series.values, low, high, "#2c6fbb"),
    ]
    return _svg(_HEIGHT, parts)


def _intervals(trend: Trend, series: Series, low: float, high: float) -> Iterator[str]:
    for place, (bottom, top) in enumerate(zip(series.low, series.high, strict=True)):
        if bottom is not None and top is not None:
            x = _x(trend, place)
            yield (
                f'<path d="M{x:.1f} {_y(bottom, low, high):.1f}V{_y(top, low, high):.1f}" '
                'stroke="#c9d6e4" stroke-width="2"/>'
            )


def _line(trend: Trend, values: Sequence[float | None], low: float, high: float, colour: str) -> str:
    """A line through the numbers, broken where there is none; a number alone is a dot."""
    path, dots = "", ""
    for first, last, known in _runs([value is not None for value in values]):
        if not known:
            continue
        points = [
            f"{_x(trend, place):.1f} {_y(value, low, high):.1f}"
            for place in range(first, last + 1)
            if (value := values[place]) is not None
        ]
        path += "M" + "L".join(points)
        if first == last:
            x, y = points[0].split()
            dots += f'<circle cx="{x}" cy="{y}" r="1.5" fill="{colour}"/>'
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>{dots}' if path else ""


def _marks(trend: Trend, height: int) -> Iterator[str]:
    """Where references begin to be used, and the partitions that owners decided on."""
    for reference in trend.references:
        after = next((place for place, key in enumerate(trend.keys) if key > reference.keys[-1]), None)
        if after is not None:
            x = _x(trend, after) - _step(trend) / 2
            words = f"reference {reference.version} by {reference.by}: {reference.why}"
            yield (
                f'<path d="M{x:.1f} 0V{height}" stroke="#555" stroke-dasharray="3 3">'
                f"<title>{_safe(words, 300)}</title></path>"
            )
    places = {key: place for place, key in enumerate(trend.keys)}
    for review in trend.reviews:
        if review.partition_key in places:
            x = _x(trend, places[review.partition_key])
            yield (
                f'<path d="M{x - 4:.1f} {height}h8l-4 -7z" fill="#8e44ad">'
                f"<title>{_safe(f'{review.partition_key}: {review.words}', 300)}</title></path>"
            )


def _axis(trend: Trend, height: int) -> Iterator[str]:
    shown = max(1, -(-len(trend.keys) // 9))
    for place in range(0, len(trend.keys), shown):
        yield f'<text x="{_x(trend, place):.1f}" y="{height - 4}" text-anchor="middle">{_safe(trend.keys[place])}</text>'


def _svg(height: int, parts: Sequence[str]) -> str:
    size = f'width="{_LEFT + _WIDTH + 60}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'


def _step(trend: Trend) -> float:
    return _WIDTH / len(trend.keys)


def _x(trend: Trend, place: int) -> float:
    return _LEFT + _step(trend) * (place + 0.5)


def _y(value: float, low: float, high: float) -> float:
    return 4 + (_HEIGHT - 10) * (1 - (value - low) / (high - low))


def _runs(values: Sequence) -> Iterator[tuple[int, int, str | bool | None]]:
    """First and last place of each run of equal values."""
    first = 0
    for place in range(1, len(values) + 1):
        if place == len(values) or values[place] != values[first]:
            yield first, place - 1, values[first]
            first = place


# -- tables -----------------------------------------------------------------------------------------------


def _alarms(trend: Trend) -> Iterator[str]:
    by_place: dict[int, list[str]] = {}
    for (_, column), found in trend.alarms.items():
        for place in found:
            by_place.setdefault(place, []).append(column)
    if not by_place:
        return
    yield "<h2>Alarms that stand</h2><table><tr><th>partition</th><th>columns</th></tr>"
    for place in sorted(by_place, reverse=True)[:_MAX_LISTED]:
        key, columns = trend.keys[place], sorted(set(by_place[place]))
        names = ", ".join(_safe(column) for column in columns[:8])
        names += f" and {len(columns) - 8} more" if len(columns) > 8 else ""
        yield f'<tr><td><a href="{_report(key)}">{_safe(key)}</a></td><td>{names}</td></tr>'
    yield "</table>" + _cut(len(by_place))


def _unusual(trend: Trend) -> Iterator[str]:
    found = [(key, trend.unusual[key]) for key in reversed(trend.keys) if trend.unusual.get(key)]
    if not found:
        return
    yield "<h2>Data quality that is not as usual</h2><table><tr><th>partition</th><th>check</th><th>what</th></tr>"
    for key, checks in found[:_MAX_LISTED]:
        for check, words in checks.items():
            yield f"<tr><td>{_safe(key)}</td><td>{_safe(check)}</td><td>{_safe(words, 400)}</td></tr>"
    yield "</table>" + _cut(len(found))


def _reviews(trend: Trend) -> Iterator[str]:
    if not trend.reviews:
        return
    yield "<h2>Owners' decisions</h2><table><tr><th>partition</th><th>decision</th><th>causes</th></tr>"
    for review in list(trend.reviews)[::-1][:_MAX_LISTED]:
        causes = ", ".join(_safe(str(cause)) for cause in review.causes[:8])
        causes += f" and {len(review.causes) - 8} more" if len(review.causes) > 8 else ""
        key = review.partition_key
        yield (
            f'<tr><td><a href="{_report(key)}">{_safe(key)}</a></td><td>{_safe(review.words, 600)}</td>'
            f"<td>{causes}</td></tr>"
        )
    yield "</table>" + _cut(len(trend.reviews))


def _references(trend: Trend) -> Iterator[str]:
    if not trend.references:
        return
    yield "<h2>References</h2><table><tr><th>version</th><th>partitions</th><th>made</th></tr>"
    for reference in list(trend.references)[::-1][:_MAX_LISTED]:
        span = f"{len(reference.keys)}: {reference.keys[0]} to {reference.keys[-1]}"
        made = f"{reference.at[:10]} by {reference.by}: {reference.why}"
        yield f"<tr><td>{reference.version}</td><td>{_safe(span)}</td><td>{_safe(made, 600)}</td></tr>"
    yield "</table>" + _cut(len(trend.references))


def _cut(rows: int) -> str:
    return f"<p><small>and {rows - _MAX_LISTED} older ones</small></p>" if rows > _MAX_LISTED else ""


def _report(partition_key: str) -> str:
    return quote(f"{partition_key.replace(':', '-')}/drift.html")


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _safe(text: str, longest: int = 120) -> str:
    return html.escape(one_line(text, longest))
