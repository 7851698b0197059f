"""Realised and estimated performance for people: tables and the picture of the calibration, for the Dagster UI."""

import base64
from collections.abc import Mapping

from batch_platform.core.monitoring.calibration import BLIND_SPOT
from batch_platform.core.monitoring.performance import Performance
from batch_platform.core.monitoring.summary import plain

_OF_SEGMENTS = ("accuracy", "auc", "f1", "brier", "r2", "mae", "rmse", "ndcg", "hit_rate")
_SIZE = 220


def markdown(
    performance: Performance,
    expected: int,
    estimated: Mapping[str, float | None],
    segments: Mapping[tuple[str, str], Performance],
) -> str:
    """What the labels say, by segment too, and what the scores promise where labels are missing.

    Args:
        expected: predictions of the partition.
        estimated: without labels; empty for nothing.
        segments: by (column, value).
    """
    metrics = performance.metrics
    lines = [
        f"{performance.rows} of {expected} predictions have labels.",
        "",
        "| metric | value | 95 % |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {_number(value)} | {_interval(metrics, name)} |"
        for name, value in metrics.items()
        if not name.endswith(("_low", "_high"))
    ]
    lines += ["", *performance.notes]
    if performance.calibration:
        lines += ["", f"![said and happened]({calibration_picture(performance)})"]
    if segments:
        lines += ["", *_segments(segments)]
    if estimated:
        lines += ["", f"Without labels, {BLIND_SPOT}:", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {_number(value)} |" for name, value in estimated.items()]
    return "\n".join(lines)


def _segments(segments: Mapping[tuple[str, str], Performance]) -> list[str]:
    names = [name for name in _OF_SEGMENTS if any(name in found.metrics for found in segments.values())]
    lines = [f"| segment | rows | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for (column, value), found in segments.items():
        cells = [
            " ".join(filter(None, [_number(found.metrics.get(name)), _interval(found.metrics, name)]))
            for name in names
        ]
        lines.append(f"| {plain(f'{column} = {value}')} | {found.rows} | {' | '.join(cells)} |")
    return lines


def _interval(metrics: Mapping[str, float | None], name: str) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f"({low:.3f} to {high:.3f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def calibration_picture(performance: Performance) -> str:
    """What was said against what happened, by groups of like probability, as a data URI of an SVG picture."""
    dots = "".join(
        f'<circle cx="{30 + _SIZE * group.said:.1f}" cy="{10 + _SIZE * (1 - group.happened):.1f}" r="4" '
        'fill="#2c6fbb"/>'
        for group in performance.calibration
    )
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_SIZE + 60}" height="{_SIZE + 40}" '
        f'font-family="sans-serif" font-size="11"><path d="M30 10v{_SIZE}h{_SIZE}M30 {_SIZE + 10}l{_SIZE} -{_SIZE}" '
        f'fill="none" stroke="#bbb"/>{dots}<text x="30" y="{_SIZE + 26}">0   probability said   1</text>'
        f'<text x="36" y="20">share that happened</text></svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()
