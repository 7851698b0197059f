"""What an alarm is about, in plain words: how columns moved, whether the mix of rows did, and who changed.

Decides the comparisons and the wording, from samples of the partition and of the reference. It reads nothing.
Numbers from samples are estimates, and say so.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.monitoring.day_statistics import OTHERS
from batch_platform.core.monitoring.drift import Finding
from batch_platform.core.monitoring.texts import text_measures

# A segmenting column has at most so many values; more would leave a few rows a segment.
_MOST_SEGMENTS = 12
_LEAST_ROWS = 20
# A mix explains a change if it gives at least half of it, and if the mix itself has visibly moved.
_MOSTLY = 0.5
_MOVED_MIX = 0.05
_NAMED_VALUES = 3
_VALUE_CHARACTERS = 40
_SHARE = "share of "
_TELLING_ODDS = 2.0
_TELLING_SPREADS = 4.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """One column's change.

    Attributes:
        group: features or predictions.
        finding: what the rule found, the strongest of the column.
        since: first partition of the unbroken run of alarms for it.
        measured: before and now in the column's own unit; empty where a sample cannot tell.
        segments: a shift of the mix or a change within segments, in words; empty where a sample cannot tell.
    """

    group: str
    finding: Finding
    since: str
    measured: str = ""
    segments: str = ""


@dataclass(frozen=True)
class SourceShare:
    """A source file: its share of the partition's rows, and of the rows that are unusual as the alarm says.

    Attributes:
        counted: how many unusual rows there are in all files.
    """

    file: str
    rows: float
    unusual: float
    counted: int

    @property
    def is_telling(self) -> bool:
        """Whether it holds more of the unusual rows than its size and chance explain: twice the odds, four spreads."""
        chance = math.sqrt(self.rows * (1 - self.rows) / max(self.counted, 1))
        is_many = self.unusual * (1 - self.rows) >= _TELLING_ODDS * self.rows * (1 - self.unusual)
        return is_many and self.unusual - self.rows > _TELLING_SPREADS * chance


@dataclass(frozen=True)
class Diagnosis:
    """What is known of an alarm.

    Attributes:
        changes: the columns, the strongest first.
        predictions: how the model's outputs moved, in words.
        ours: what changed on our side since the reference: name -> "before -> now, when".
        ours_with_it: of these, the names of what changed together with the alarm.
        files: source files that hold more of the unusual rows than their size explains; else the largest.
        examples: unusual rows: column -> value, as text.
        unknown: what could not be compared.
    """

    changes: tuple[Change, ...]
    predictions: tuple[str, ...] = ()
    ours: Mapping[str, str] = field(default_factory=dict)
    ours_with_it: frozenset[str] = frozenset()
    files: tuple[SourceShare, ...] = ()
    examples: tuple[Mapping[str, str], ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def paragraph(self) -> str:
        """The alarm in one paragraph."""
        first = self.changes[0]
        count = len(self.changes)
        head = f"{count} columns moved, most of all {first.finding.column}" if count > 1 else ""
        head = head or f"The column {first.finding.column} moved"
        told = first.measured or f"{first.finding.statistic} {first.finding.direction}"
        sentences = [f"{head}: {told}; so since {first.since}."]
        sentences += [f"{words}." for words in self._where()]
        sentences += [f"{words}." for words in self._outputs()]
        sentences.append(self._who())
        telling = [share for share in self.files if share.is_telling]
        if telling:
            share = telling[0]
            sentences.append(
                f"{share.unusual:.0%} of the unusual rows come from {share.file}, which has {share.rows:.0%} of the rows."
            )
        return " ".join(sentences)

    def _where(self) -> Iterator[str]:
        """Mix or within, of the strongest column of which that is known."""
        for place, change in enumerate(self.changes):
            if change.segments:
                column = f"{change.finding.column}: " if place else ""
                yield f"{column}{change.segments}"
                return

    def _outputs(self) -> Sequence[str]:
        """How the predictions moved; a few percent are chance where they raise no alarm."""
        if any(change.group == "predictions" for change in self.changes):
            return self.predictions
        return ["The predictions raise no alarm"]

    def _who(self) -> str:
        if self.ours_with_it:
            named = "; ".join(f"{name} {self.ours[name]}" for name in sorted(self.ours_with_it))
            return f"We changed when it began: {named}. Look there first."
        if self.ours:
            named = "; ".join(f"{name} {words}" for name, words in self.ours.items())
            return f"Since the reference we changed before it began: {named}. Nothing of ours changed with the alarm."
        if self.unknown:
            return f"What changed on our side is not known: {'; '.join(self.unknown)}."
        return (
            "Nothing changed on our side since the reference (model, recipe, code, contract, source): "
            "the data changed."
        )

    def to_values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "paragraph": self.paragraph,
            "changes": [
                {
                    "group": change.group,
                    "column": change.finding.column,
                    "statistic": change.finding.statistic,
                    "direction": change.finding.direction,
                    "effect": change.finding.effect,
                    "since": change.since,
                    "measured": change.measured,
                    "segments": change.segments,
                }
                for change in self.changes
            ],
            "predictions": list(self.predictions),
            "changed_on_our_side": dict(self.ours),
            "changed_with_the_alarm": sorted(self.ours_with_it),
            "source_files": [asdict(share) for share in self.files],
            "examples": [dict(example) for example in self.examples],
            "unknown": list(self.unknown),
        }


# -- before and now ---------------------------------------------------------------------------------------


def measure(finding: Finding, current: pa.Table, reference: pa.Table) -> str:
    """The column before and now, in its own unit; empty where the samples cannot tell."""
    column = finding.column
    if finding.statistic == "schema":
        return _schema_words(column, current, reference)
    if column not in current.column_names or column not in reference.column_names:
        return ""
    before, now = reference[column], current[column]
    if finding.statistic == "null rate":
        return f"rows without a value from {_missing(before).mean():.1%} to {_missing(now).mean():.1%}"
    value = shared_value(finding.statistic)
    if value is not None:
        return f"the share of {value!r} from {_equal(before, value).mean():.1%} to {_equal(now, value).mean():.1%}"
    if finding.statistic == OTHERS:
        return _new_words(before, now)
    return _number_words(finding.statistic, before, now)


def _new_words(before: pa.ChunkedArray, now: pa.ChunkedArray) -> str:
    """The values that the sample of the reference has not; an empty string is one."""
    known, shares = set(before.unique().to_pylist()), _shares(now)
    new = sorted(
        (key for key in shares if key not in known and key is not None), key=lambda key: -shares[key]
    )
    if not new:
        return ""
    named = ", ".join(f"{str(key)[:_VALUE_CHARACTERS]!r} {shares[key]:.1%}" for key in new[:_NAMED_VALUES])
    more = f" and {len(new) - _NAMED_VALUES} more" if len(new) > _NAMED_VALUES else ""
    return f"{sum(shares[key] for key in new):.1%} have values that its sample has not: {named}{more}"


def _schema_words(column: str, current: pa.Table, reference: pa.Table) -> str:
    here, there = column in current.column_names, column in reference.column_names
    if here and there:
        return f"it holds {current[column].type} values now, {reference[column].type} in the reference"
    return "it is new" if here else "it is gone" if there else "it came, went, or changed its kind"


def _number_words(statistic: str, before: pa.ChunkedArray, now: pa.ChunkedArray) -> str:
    numbers = [_finite(_measured(statistic, values)) for values in (before, now)]
    if not statistic.startswith(("mean rank", "spread")) or any(len(each) < _LEAST_ROWS for each in numbers):
        return ""
    unit = _unit(statistic, now)
    if statistic.startswith("spread"):
        wide = [float(np.subtract(*np.quantile(each, [0.75, 0.25]))) for each in numbers]
        return f"the middle half of its values is {wide[1]:.4g}{unit} wide, {wide[0]:.4g} before"
    middle = [float(np.median(each)) for each in numbers]
    return f"its median went from {middle[0]:.4g} to {middle[1]:.4g}{unit}"


def shared_value(statistic: str) -> str | None:
    """The value whose share a statistic is, where it names one."""
    quoted = statistic.removeprefix(_SHARE).partition(" (bin ")[0]
    if (
        not statistic.startswith(_SHARE)
        or len(quoted) < 2
        or quoted[0] not in "'\""
        or quoted[-1] != quoted[0]
    ):
        return None
    return quoted[1:-1]


def prediction_words(current: pa.Table, reference: pa.Table) -> Iterator[str]:
    """How the model's outputs moved between the samples; decisions only where they are not the labels once more."""
    told: list[tuple[dict[Any, float], dict[Any, float]]] = []
    for name, what in (("label", "labels"), ("decision", "decisions")):
        if (column := _common(name, current, reference)) is not None:
            before, now = (_shares(table[column]) for table in (reference, current))
            if (before, now) in told:
                continue
            told.append((before, now))
            changed = sum(abs(before.get(key, 0.0) - now.get(key, 0.0)) for key in before.keys() | now) / 2
            top = max(before.keys() | now, key=lambda key: abs(before.get(key, 0.0) - now.get(key, 0.0)))
            yield (
                f"At least {changed:.0%} of the {what} are others than in the reference: {top!r} went from "
                f"{before.get(top, 0.0):.0%} to {now.get(top, 0.0):.0%}"
            )
    for name in ("score", "prediction"):
        if (column := _common(name, current, reference)) is not None:
            means = [float(np.mean(_numbers(table[column]))) for table in (reference, current)]
            yield f"The mean {name} went from {means[0]:.3g} to {means[1]:.3g}"


# -- mix or change within ---------------------------------------------------------------------------------


def segment_words(finding: Finding, current: pa.Table, reference: pa.Table, among: Sequence[str]) -> str:
    """Whether the mix of rows moved, or the column within segments of rows.

    The change of the column's mean (of its ranks, or of the share of rows in question) is the sum of what the
    segments' shares and what the segments' means give (Kitagawa, J. Am. Stat. Assoc. 50, 1955).

    Args:
        among: columns that may segment the rows.
    """
    measured = _measurable(finding, current, reference)
    if measured is None:
        return ""
    now, before = measured
    total = float(np.nanmean(now) - np.nanmean(before))
    best: tuple[float, str, str] | None = None
    for name in among:
        if name == finding.column or not _segments(name, current, reference):
            continue
        mix, words = _decomposed(now, before, current[name], reference[name], name, total)
        if best is None or mix > best[0]:
            best = (mix, name, words)
    return "" if best is None or not total else best[2]


def _decomposed(
    now: Floats,
    before: Floats,
    segment_now: pa.ChunkedArray,
    segment_before: pa.ChunkedArray,
    name: str,
    total: float,
) -> tuple[float, str]:
    """What the shift of the mix explains of the change, and the words for it."""
    shares_now, shares_before = _shares(segment_now), _shares(segment_before)
    members = {key: (_equal(segment_now, key), _equal(segment_before, key)) for key in shares_before}
    means = {key: (_mean(now[a]), _mean(before[b])) for key, (a, b) in members.items()}
    mix = sum(
        (shares_now.get(key, 0.0) - share) * (means[key][1] or 0.0) for key, share in shares_before.items()
    )
    explained = mix / total if total else 0.0
    moved = sum(
        abs(shares_now.get(key, 0.0) - shares_before.get(key, 0.0))
        for key in shares_before.keys() | shares_now
    )
    if explained >= _MOSTLY and moved / 2 >= _MOVED_MIX:
        top = max(shares_before, key=lambda key: abs(shares_now.get(key, 0.0) - shares_before[key]))
        return explained, (
            f"It is mostly a shift of the mix: {name} = {top!r} went from {shares_before[top]:.0%} to "
            f"{shares_now.get(top, 0.0):.0%} of the rows, and the mix of {name} explains {min(explained, 1.0):.0%} of it"
        )
    alike = [
        key
        for key, (mean_now, mean_before) in means.items()
        if mean_now is not None and mean_before is not None and (mean_now - mean_before) * total > 0
    ]
    known = [key for key, pair in means.items() if None not in pair]
    return (
        explained,
        f"It is a change within segments: the same way in {len(alike)} of {len(known)} of {name}",
    )


def _measurable(finding: Finding, current: pa.Table, reference: pa.Table) -> tuple[Floats, Floats] | None:
    """(rows,) now and before of what moved: ranks among the reference, or 0 and 1."""
    column = finding.column
    if any(
        column not in table.column_names or table.num_rows < _LEAST_ROWS for table in (current, reference)
    ):
        return None
    pair = (current[column], reference[column])
    if finding.statistic == "null rate":
        return _missing(pair[0]).astype(float), _missing(pair[1]).astype(float)
    value = shared_value(finding.statistic)
    if value is not None:
        return _equal(pair[0], value).astype(float), _equal(pair[1], value).astype(float)
    if not finding.statistic.startswith("mean rank"):
        return None
    known = np.sort(_finite(_measured(finding.statistic, pair[1])))
    if len(known) < _LEAST_ROWS:
        return None
    now, before = (_ranks(_measured(finding.statistic, values), known) for values in pair)
    return (now, before) if np.isfinite(now).any() else None


def _ranks(values: Floats, known: Floats) -> Floats:
    """Midranks among sorted known values, 0..1; NaN stays."""
    ranks = (np.searchsorted(known, values) + np.searchsorted(known, values, side="right")) / 2 / len(known)
    return np.where(np.isfinite(values), ranks, np.nan)


def _segments(name: str, current: pa.Table, reference: pa.Table) -> bool:
    if any(name not in table.column_names for table in (current, reference)):
        return False
    kinds = [table[name].type for table in (current, reference)]
    if not all(pa.types.is_string(kind) or pa.types.is_boolean(kind) for kind in kinds):
        return False
    return 2 <= pc.count_distinct(reference[name]).as_py() <= _MOST_SEGMENTS


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


# -- values of a sample -----------------------------------------------------------------------------------


def unusual(
    finding: Finding, column: pa.ChunkedArray | pa.Array, reference: pa.Table
) -> npt.NDArray[np.bool_] | None:
    """(rows,) bool: the rows that are as the finding says, by the reference's sample; None where that cannot be told."""
    is_up, value = finding.direction == "up", shared_value(finding.statistic)
    if finding.statistic == "null rate":
        return _missing(column) if is_up else None
    if value is not None:
        return _equal(column, value) if is_up else None
    if finding.column not in reference.column_names:
        return None
    if finding.statistic == OTHERS:
        seen = reference[finding.column].unique()
        is_new = ~pc.is_in(column, value_set=seen.cast(column.type)).to_numpy(zero_copy_only=False)
        return is_new if is_up else None
    known = _finite(_measured(finding.statistic, reference[finding.column]))
    return _extreme(finding, _measured(finding.statistic, column), known)


def _extreme(finding: Finding, values: Floats, before: Floats) -> npt.NDArray[np.bool_] | None:
    """The rows beyond the reference's middle nine tenths, on the side that the finding speaks of."""
    if len(before) < _LEAST_ROWS or not finding.statistic.startswith(("mean rank", "spread")):
        return None
    low, high = np.quantile(before, [0.05, 0.95])
    if finding.statistic.startswith("spread"):
        return (values > high) | (values < low) if finding.direction == "up" else None
    return values > high if finding.direction == "up" else values < low


def _common(name: str, current: pa.Table, reference: pa.Table) -> str | None:
    """The output's name on the pages; a feature may bear it too."""
    for shown in (f"{name} (prediction)", name):
        if shown in current.column_names and shown in reference.column_names:
            return shown if current.num_rows and reference.num_rows else None
    return None


def _shares(column: pa.ChunkedArray) -> dict[Any, float]:
    counts = {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}
    return {value: count / max(len(column), 1) for value, count in counts.items()}


def _equal(column: pa.ChunkedArray | pa.Array, value: Any) -> npt.NDArray[np.bool_]:
    if value is None:
        return pc.is_null(column).to_numpy(zero_copy_only=False)
    same = pc.equal(
        column.cast(pa.string()), str(value) if not isinstance(value, bool) else str(value).lower()
    )
    return pc.fill_null(same, False).to_numpy(zero_copy_only=False)


def _missing(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.bool_]:
    missing = pc.is_null(column, nan_is_null=True)
    if pa.types.is_floating(column.type):
        missing = pc.or_kleene(missing, pc.is_inf(column))
    return pc.fill_null(missing, True).to_numpy(zero_copy_only=False)


def _is_text(column: pa.ChunkedArray | pa.Array) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def _all_numbers(column: pa.ChunkedArray | pa.Array) -> Floats:
    """(rows,) values, of strings their lengths; NaN where there is none."""
    values = pc.utf8_length(column) if _is_text(column) else column
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return np.full(len(column), np.nan)
    numbers = values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
    numbers = numbers.astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _numbers(column: pa.ChunkedArray | pa.Array) -> Floats:
    return _finite(_all_numbers(column))


def _finite(numbers: Floats) -> Floats:
    return numbers[np.isfinite(numbers)]


def _measured(statistic: str, column: pa.ChunkedArray | pa.Array) -> Floats:
    """(rows,) what a statistic of ranks is about; NaN where there is none."""
    end = next((end for end in _TEXT_UNITS if statistic.endswith(end)), None)
    if end is None or not _is_text(column):
        return _all_numbers(column)
    texts = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    measures = text_measures(pc.fill_null(texts, ""))
    found = measures.token_lengths / 4 if end == " of token lengths" else 100 * measures.symbols / 64
    return np.where(_missing(texts), np.nan, found)


def _unit(statistic: str, column: pa.ChunkedArray) -> str:
    if not _is_text(column):
        return ""
    return next((unit for end, unit in _TEXT_UNITS.items() if statistic.endswith(end)), " characters")


# Statistics of what texts are made of, by the ends of their names.
_TEXT_UNITS = {" of token lengths": " characters a token", " of symbols": " % signs and digits"}
