"""Two results for the same rows, held against each other: a re-score and what stood before, a challenger and the champion.

Decides what counts as a flip, and which paired test says that one is better. Sums only, so that partitions add up. It
does not know why there are two results.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_SIGNIFICANT = 0.05
# Fewer labelled rows on which the two differ prove nothing, whatever the test says.
_ENOUGH = 10


@dataclass(frozen=True)
class Comparison:
    """Two results, `before` and `after`, row by row.

    Attributes:
        rows: rows that both have.
        only_before, only_after: rows that one of them has.
        changed: rows in which any output differs in any bit.
        flips: rows by "old -> new" decision (or label) where the two differ.
        decided: rows that have such a decision.
        moved: rows with a number to compare: score, prediction, or cosine of two embeddings.
        shift: sum of after - before of that number; of embeddings, of 1 - cosine.
        distance: sum of the absolute differences.
        largest: the largest of them.
        labelled: rows whose label is known.
        right_before, right_after: labelled rows that only this one got right.
        gain: sum over labelled rows of how much smaller the absolute error became; for numbers.
        gain_squared: sum of its squares.
    """

    rows: int = 0
    only_before: int = 0
    only_after: int = 0
    changed: int = 0
    flips: Mapping[str, int] = field(default_factory=dict)
    decided: int = 0
    moved: int = 0
    shift: float = 0.0
    distance: float = 0.0
    largest: float = 0.0
    labelled: int = 0
    right_before: int = 0
    right_after: int = 0
    gain: float = 0.0
    gain_squared: float = 0.0

    def __add__(self, other: "Comparison") -> "Comparison":
        values: dict[str, Any] = {}
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if each.name == "flips":
                values[each.name] = dict(Counter(mine) + Counter(theirs))
            else:
                values[each.name] = max(mine, theirs) if each.name == "largest" else mine + theirs
        return Comparison(**values)

    @property
    def flipped(self) -> int:
        return sum(self.flips.values())

    @property
    def flip_rate(self) -> float | None:
        """Share of the decisions that differ; None without decisions."""
        return self.flipped / self.decided if self.decided else None

    @property
    def p_value(self) -> float | None:
        """Two-sided p of "neither is better" on the labelled rows; None where nothing can be said.

        Decisions: McNemar's test, exact (binomial over the rows that one alone got right). Numbers: paired t-test on
        the absolute errors.
        """
        from scipy import stats

        discordant = self.right_before + self.right_after
        if discordant:
            return float(stats.binomtest(self.right_after, discordant).pvalue)
        if self.labelled < 2 or not self.gain_squared:
            return None
        mean = self.gain / self.labelled
        variance = (self.gain_squared - self.labelled * mean**2) / (self.labelled - 1)
        if variance <= 0:
            return None
        t = mean / math.sqrt(variance / self.labelled)
        return float(2 * stats.t.sf(abs(t), self.labelled - 1))

    @property
    def verdict(self) -> str:
        """On the labelled rows `after` is: better, worse, or undecided."""
        differing = self.right_before + self.right_after or self.labelled
        if self.p_value is None or self.p_value >= _SIGNIFICANT or differing < _ENOUGH:
            return "undecided"
        return "better" if self.right_after - self.right_before + self.gain > 0 else "worse"

    def describe(self) -> dict[str, Any]:
        """The comparison as JSON values; what does not apply is None."""
        return {
            "rows": self.rows,
            "only_before": self.only_before,
            "only_after": self.only_after,
            "changed": self.changed,
            "decisions_flipped": self.flipped if self.decided else None,
            "agreement": None if self.flip_rate is None else round(1 - self.flip_rate, 6),
            "flips": dict(self.flips),
            "score_shift_mean": round(self.shift / self.moved, 6) if self.moved else None,
            "score_shift_mean_absolute": round(self.distance / self.moved, 6) if self.moved else None,
            "score_shift_largest": round(self.largest, 6) if self.moved else None,
            "labelled": self.labelled,
            "only_before_right": self.right_before,
            "only_after_right": self.right_after,
            "p_value": self.p_value,
            "verdict": self.verdict,
        }


def compare(
    before: Iterable[pa.RecordBatch],
    after: Iterable[pa.RecordBatch],
    keys: Iterable[pa.Array],
    labels: Mapping[str, str] | None = None,
    judged: str | None = None,
) -> Comparison:
    """Hold two results for the rows of one partition against each other.

    Args:
        before, after: predictions; each has its rows in the order of `keys`, some of which it may lack.
        keys: (any,) strings, row keys in order.
        labels: true label, or number as text, by row key.
        judged: the column that is held against labels; by default the one whose flips are counted. A rule may decide
            in words that no label has.
    """
    first, second = _Prefixes(before), _Prefixes(after)
    total = Comparison()
    for window in keys:
        old, new = first.among(window), second.among(window)
        place = pc.index_in(old["row_key"], value_set=new["row_key"].combine_chunks())
        both = place.is_valid()
        shared = old.filter(both)
        alone = Comparison(
            only_before=old.num_rows - shared.num_rows, only_after=new.num_rows - shared.num_rows
        )
        total = total + alone + _pair(shared, new.take(place.drop_null()), labels or {}, judged)
    return total


class _Prefixes:
    """Rows taken from a stream as long as their keys are among those asked for."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches: Iterator[pa.RecordBatch] = iter(batches)
        self._held: pa.RecordBatch | None = next(self._batches, None)
        self._schema = None if self._held is None else self._held.schema

    def among(self, keys: pa.Array) -> pa.Table:
        parts: list[pa.RecordBatch] = []
        while self._held is not None:
            inside = pc.is_in(self._held["row_key"], value_set=keys)
            outside = pc.index(inside, False).as_py()
            if outside >= 0:
                parts.append(self._held.slice(0, outside))
                self._held = self._held.slice(outside)
                break
            parts.append(self._held)
            self._held = next(self._batches, None)
        schema = self._schema or pa.schema([("row_key", pa.string())])
        return pa.Table.from_batches(parts, schema)


def _pair(old: pa.Table, new: pa.Table, labels: Mapping[str, str], judged: str | None) -> Comparison:
    """Rows with equal keys at equal places."""
    if not old.num_rows:
        return Comparison()
    shared = [name for name in old.column_names if name in new.column_names and name in _OUTPUTS]
    changed = np.zeros(old.num_rows, np.bool_)
    for name in shared:
        changed |= ~_equal(old[name].combine_chunks(), new[name].combine_chunks())
    total = Comparison(rows=old.num_rows, changed=int(changed.sum()))
    decision = next((name for name in ("decision", "label", "generated_text") if name in shared), None)
    truth = [labels.get(key) for key in old["row_key"].to_pylist()] if labels else []
    if decision == "generated_text":  # texts are no names of flips
        total += Comparison(
            decided=old.num_rows, flips={"another text": total.changed} if total.changed else {}
        )
    elif decision is not None:
        total += _decisions(old[decision].to_pylist(), new[decision].to_pylist())
        column = decision if judged is None else judged
        if truth and column in shared:
            total += _right(old[column].to_pylist(), new[column].to_pylist(), truth)
    if "embedding" in shared:
        total += _moved(-_cosine_distance(old["embedding"], new["embedding"]), signed=False)
    number = next((name for name in ("score", "prediction") if name in shared), None)
    if number is not None:
        first, second = _floats(old[number]), _floats(new[number])
        total += _moved(second - first)
        if number == "prediction" and truth:
            total += _errors(first, second, truth)
    return total


_OUTPUTS = (
    "label",
    "score",
    "scores",
    "decision",
    "prediction",
    "embedding",
    "generated_text",
    "items",
    "item_scores",
)


def _equal(old: pa.Array, new: pa.Array) -> npt.NDArray[np.bool_]:
    if not pa.types.is_list(old.type):
        return pc.fill_null(pc.equal(old, new), False).to_numpy(zero_copy_only=False)
    sizes = [pc.list_value_length(column).to_numpy(zero_copy_only=False) for column in (old, new)]
    if len(old) and (sizes[0] == sizes[0][0]).all() and (sizes[1] == sizes[0][0]).all() and sizes[0][0]:
        flat = [
            column.flatten().to_numpy(zero_copy_only=False).reshape(len(old), -1) for column in (old, new)
        ]
        return (flat[0] == flat[1]).all(axis=1)
    pairs = zip(old.to_pylist(), new.to_pylist(), strict=True)
    return np.array([left == right for left, right in pairs], np.bool_)


def _decisions(old: list[str], new: list[str]) -> Comparison:
    flips = Counter(f"{a} -> {b}" for a, b in zip(old, new, strict=True) if a != b)
    return Comparison(flips=dict(flips), decided=len(old))


def _right(old: list[str], new: list[str], truth: list[str | None]) -> Comparison:
    known = [(a, b, t) for a, b, t in zip(old, new, truth, strict=True) if t is not None]
    return Comparison(
        labelled=len(known),
        right_before=sum(a == t != b for a, b, t in known),
        right_after=sum(b == t != a for a, b, t in known),
    )


def _errors(
    old: npt.NDArray[np.float64], new: npt.NDArray[np.float64], truth: list[str | None]
) -> Comparison:
    numbers = np.array([_number(text) for text in truth])
    known = np.isfinite(numbers)
    gain = np.abs(old[known] - numbers[known]) - np.abs(new[known] - numbers[known])
    return Comparison(labelled=int(known.sum()), gain=float(gain.sum()), gain_squared=float((gain**2).sum()))


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _moved(shift: npt.NDArray[np.float64], signed: bool = True) -> Comparison:
    sizes = np.abs(shift)
    return Comparison(
        moved=len(shift),
        shift=float(shift.sum()) if signed else float(sizes.sum()),
        distance=float(sizes.sum()),
        largest=float(sizes.max(initial=0.0)),
    )


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    return column.combine_chunks().to_numpy(zero_copy_only=False).astype(np.float64)


def _cosine_distance(old: pa.ChunkedArray, new: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    rows = len(old)
    left, right = (
        column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(rows, -1)
        for column in (old, new)
    )
    if left.shape != right.shape:
        return np.ones(rows)  # embeddings of different sizes have nothing in common
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return 1 - (left * right).sum(axis=1) / np.where(norms > 0, norms, 1)
