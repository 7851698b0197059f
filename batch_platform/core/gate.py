"""Every verdict on a partition: the checks that a staged result must pass before it is published.

Decides, from the staged rows themselves, whether they may stand. Dagster only displays these verdicts.
Each function reads all rows that it judges, in one pass and bounded memory; a check cannot be green on rows
that it did not read. It does not know how the rows were made, or what happens to a refused result.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data.contract import Rejected, bound
from batch_platform.core.data.keys import SeenKeys
from batch_platform.core.models.outputs import ranking_faults
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.spec import ColumnSpec, SourceSpec
from batch_platform.errors import GateError

# Rounding of float32 probabilities: sums may be off by this much.
_PROBABILITY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class CheckResult:
    """One verdict.

    Attributes:
        name: the check's name in the UI.
        passed: the verdict.
        description: what was seen and, where it failed, what to look at.
        values: the numbers behind it.
        severity: an `error` keeps the partition from being published; a `warn` only shows.
    """

    name: str
    passed: bool
    description: str
    values: Mapping[str, Any] = field(default_factory=dict)
    severity: Literal["error", "warn"] = "error"


def enforce(checks: tuple[CheckResult, ...], about: str) -> None:
    """Refuse a result of which a check of severity `error` failed.

    Raises:
        GateError: names every failed check; carries all of them.
    """
    failed = [check for check in checks if not check.passed and check.severity == "error"]
    if failed:
        causes = "; ".join(f"{check.name}: {check.description}" for check in failed)
        raise GateError(f"{about}: {causes}", checks)


def quarantined_share(rejected: Sequence[Rejected], entering: int, allowed: float) -> CheckResult:
    """Judge the rows a stage could not use: rejected / entering <= allowed.

    Args:
        rejected: the rows it could not use.
        entering: rows that entered the stage.
    """
    bad = len(rejected)
    share = bad / entering if entering else 0.0
    quarantined = dict(Counter(row.error_type for row in rejected).most_common())
    description = f"{bad} of {entering} rows quarantined ({share:.2%}, allowed {allowed:.2%})"
    if rejected:
        first = rejected[0]
        causes = ", ".join(f"{count} {cause}" for cause, count in quarantined.items())
        description += f": {causes}; the first is {first.source_file} row {first.source_row}: {first.message}"
    return CheckResult(
        "quarantined_share",
        share <= allowed,
        description,
        {"quarantined": bad, "entering": entering, "share": share, "allowed": allowed, **quarantined},
    )


def judge_raw(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, source: SourceSpec
) -> tuple[CheckResult, ...]:
    """Judge landed rows: they keep the contract, there are some, and their keys are unique.

    Args:
        batches: all staged rows.
        schema: the columns and types they must have.
        source: the contract.
    """
    violations: dict[str, int] = {}
    keys = SeenKeys()
    rows = repeated = 0
    for batch in batches:
        rows += batch.num_rows
        if not batch.schema.equals(schema):
            violations["schema"] = violations.get("schema", 0) + batch.num_rows
            continue
        repeated += int(keys.add(batch["row_key"].drop_null()).sum())
        for cause, count in _contract_violations(batch, source.columns):
            violations[cause] = violations.get(cause, 0) + count
    kept = not violations
    return (
        CheckResult(
            "contract",
            kept,
            f"{rows} rows keep the contract"
            if kept
            else f"rows break the contract: {violations}; see the columns named",
            {"rows_read": rows, **violations},
        ),
        _volume(rows, source.allow_empty),
        _uniqueness(rows, repeated),
    )


def judge_features(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> tuple[CheckResult, ...]:
    """Judge features: promised columns and types, no forbidden null, nothing infinite or NaN.

    Args:
        schema: `row_key` and the recipe's output; a field that is not nullable may hold no null.
    """
    rows = wrong_schema = 0
    nulls = dict.fromkeys(schema.names, 0)
    not_finite: dict[str, int] = {}
    for batch in batches:
        rows += batch.num_rows
        if [(f.name, f.type) for f in batch.schema] != [(f.name, f.type) for f in schema]:
            wrong_schema += batch.num_rows
            continue
        for name in schema.names:
            nulls[name] += batch[name].null_count
            if count := count_not_finite(batch[name]):
                not_finite[name] = not_finite.get(name, 0) + count
    forbidden = {name: n for name, n in nulls.items() if n and not schema.field(name).nullable}
    empty = [name for name, n in nulls.items() if rows and n == rows and name not in forbidden]
    return (
        CheckResult(
            "schema",
            wrong_schema == 0,
            f"{rows} rows have the recipe's {len(schema) - 1} features"
            if wrong_schema == 0
            else f"{wrong_schema} of {rows} rows do not have the columns {schema.names}",
            {"rows_read": rows, "columns": len(schema) - 1},
        ),
        CheckResult(
            "nulls",
            not forbidden and not empty,
            _describe_nulls(forbidden, empty),
            {"rows_read": rows, **{f"nulls {name}": n for name, n in nulls.items()}},
            # A column without a single value is suspicious, but the model may be made for nulls.
            severity="error" if forbidden else "warn",
        ),
        CheckResult(
            "finite",
            not not_finite,
            "every number is finite" if not not_finite else f"infinite or NaN values: {not_finite}",
            {"rows_read": rows, **not_finite},
        ),
    )


def judge_predictions(
    feature_keys: Iterable[pa.Array],
    batches: Iterable[pa.RecordBatch],
    quarantined: frozenset[str],
    signature: ModelSignature,
) -> tuple[CheckResult, ...]:
    """Judge predictions: one for every feature row that is not in quarantine, each finite and in range.

    Args:
        feature_keys: the row keys of the committed features, in their order.
        batches: the staged predictions, in the same order.
        quarantined: row keys quarantined in this stage.
        signature: what the outputs must look like.
    """
    expected = (key for keys in feature_keys for key in keys.to_pylist())
    reconciliation = _Reconciliation(expected, quarantined)
    rows = 0
    not_finite: dict[str, int] = {}
    out_of_range: dict[str, int] = {}
    for batch in batches:
        rows += batch.num_rows
        reconciliation.meet(batch["row_key"].to_pylist())
        for name in signature.output_schema().names:
            if count := count_not_finite(batch[name]) + batch[name].null_count:
                not_finite[name] = not_finite.get(name, 0) + count
        for cause, count in _range_violations(batch, signature):
            out_of_range[cause] = out_of_range.get(cause, 0) + count
    return (
        reconciliation.verdict(rows),
        CheckResult(
            "finite",
            not not_finite,
            f"{rows} rows have finite outputs" if not not_finite else f"null, infinite or NaN: {not_finite}",
            {"rows_read": rows, **not_finite},
        ),
        CheckResult(
            "range",
            not out_of_range,
            f"{rows} rows have outputs in range" if not out_of_range else f"out of range: {out_of_range}",
            {"rows_read": rows, **out_of_range},
        ),
    )


def count_not_finite(column: pa.Array) -> int:
    """Infinite or NaN numbers in a column of floats or lists of floats; 0 for other types."""
    if pa.types.is_list(column.type):
        column = column.flatten()
    if not pa.types.is_floating(column.type):
        return 0
    return len(column) - column.null_count - (pc.sum(pc.is_finite(column)).as_py() or 0)


# -- details ----------------------------------------------------------------------------------------------


def _volume(rows: int, allow_empty: bool) -> CheckResult:
    description = f"{rows} rows"
    if not rows:
        description = "no rows" + (
            "; allow_empty permits it" if allow_empty else "; set allow_empty if valid"
        )
    return CheckResult("volume", rows > 0 or allow_empty, description, {"rows_read": rows})


def _uniqueness(rows: int, repeated: int) -> CheckResult:
    description = f"{rows} row keys are unique"
    if repeated:
        description = f"{repeated} rows repeat a row key; set source.on_duplicate, or mend the source"
    return CheckResult("duplicates", repeated == 0, description, {"rows_read": rows, "repeated": repeated})


def _contract_violations(
    batch: pa.RecordBatch, columns: Mapping[str, ColumnSpec]
) -> Iterator[tuple[str, int]]:
    for name, rule in columns.items():
        column = batch[name]
        if rule.required and column.null_count:
            yield f"{name} is null", column.null_count
        if count := count_not_finite(column):
            yield f"{name} is not finite", count
        # The bounds as values of the column's type: int64 beyond 2**53 and float32 are compared exactly.
        if rule.min is not None and (count := _count(pc.less(column, bound(rule.min, column.type, up=True)))):
            yield f"{name} below {rule.min:g}", count
        if rule.max is not None and (
            count := _count(pc.greater(column, bound(rule.max, column.type, up=False)))
        ):
            yield f"{name} above {rule.max:g}", count
        if rule.allowed is not None:
            values = pa.array(rule.allowed, column.type)
            valid = column.drop_null()
            if count := len(valid) - _count(pc.is_in(valid, value_set=values)):
                yield f"{name} not allowed", count
    if batch["row_key"].null_count:
        yield "row_key is null", batch["row_key"].null_count


def _count(mask: pa.Array) -> int:
    return pc.sum(mask).as_py() or 0


def _describe_nulls(forbidden: Mapping[str, int], empty: list[str]) -> str:
    if forbidden:
        return f"nulls in features that may have none: {dict(forbidden)}; look at the recipe or the source"
    if empty:
        return f"features without a single value: {empty}; look at the source"
    return "no forbidden null"


class _Reconciliation:
    """Walks expected and met keys side by side: in order, each exactly once."""

    def __init__(self, expected: Iterator[str], quarantined: frozenset[str]) -> None:
        self._expected = expected
        self._quarantined = quarantined
        self._input = self._excused = self._wrong = 0
        self._first_wrong: str | None = None

    def meet(self, keys: list[str]) -> None:
        for key in keys:
            wanted = self._next()
            if wanted != key:
                self._wrong += 1
                self._first_wrong = self._first_wrong or f"expected {wanted!r}, found {key!r}"

    def _next(self) -> str | None:
        for key in self._expected:
            self._input += 1
            if key not in self._quarantined:
                return key
            self._excused += 1
        return None

    def verdict(self, rows: int) -> CheckResult:
        missing = 0
        while self._next() is not None:
            missing += 1
        unknown = len(self._quarantined) - self._excused
        passed = not (missing or self._wrong or unknown)
        description = f"{self._input} feature rows = {rows} predictions + {self._excused} quarantined"
        if not passed:
            description = (
                f"{self._input} feature rows against {rows} predictions and {len(self._quarantined)} quarantined: "
                f"{missing} missing, {self._wrong} wrong or doubled, {unknown} quarantined but unknown"
            )
        return CheckResult(
            "reconciliation",
            passed,
            description,
            {
                "feature_rows": self._input,
                "predictions": rows,
                "quarantined": self._excused,
                "missing": missing,
                "wrong": self._wrong,
            },
        )


def _range_violations(batch: pa.RecordBatch, signature: ModelSignature) -> Iterator[tuple[str, int]]:
    if signature.task == "classification":
        known = _count(pc.is_in(batch["label"], value_set=pa.array(signature.labels, pa.string())))
        if count := batch.num_rows - known:
            yield "label unknown to the signature", count
        score = batch["score"]
        if count := _count(pc.or_(pc.less(score, 0.0), pc.greater(score, 1.0 + _PROBABILITY_TOLERANCE))):
            yield "score outside 0..1", count
        if count := _count_bad_distributions(batch["scores"], len(signature.labels)):
            yield "scores are no distribution over the labels", count
    elif signature.task == "ranking":
        for name, is_bad in ranking_faults(batch["items"], batch["item_scores"], signature):
            if count := int(is_bad.sum()):
                yield name, count
    elif signature.task == "embedding" and signature.output_size is not None:
        lengths = pc.list_value_length(batch["embedding"])
        if count := _count(pc.not_equal(lengths, signature.output_size)):
            yield f"embedding length is not {signature.output_size}", count


def _count_bad_distributions(scores: pa.Array, labels: int) -> int:
    right_length = pc.equal(pc.list_value_length(scores), labels)
    count = len(scores) - _count(right_length)
    good = scores.filter(pc.fill_null(right_length, False))
    values = good.flatten().to_numpy(zero_copy_only=False).reshape(-1, labels)  # (rows, labels) float32
    bad = (values.min(axis=1, initial=0.0) < 0) | (np.abs(values.sum(axis=1) - 1) > _PROBABILITY_TOLERANCE)
    return count + int(bad.sum())
