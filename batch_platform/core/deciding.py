"""The column `decision`: what a pipeline's rule makes of a row's outputs and features.

Decides which of the rule's conditions hold for a row, and whether a rule can be applied to a pipeline's columns at all. A
rule acts on finished predictions: another rule decides anew, about rows that are reused too, and nothing is scored. It does
not know how the outputs were made.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data.row_stream import RowStream
from batch_platform.core.features.recipe import Recipe
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.provenance.fingerprint import code_version, fingerprint
from batch_platform.core.spec import ConditionSpec, DecisionSpec, PipelineSpec
from batch_platform.errors import PipelineFileError, SignatureError, StorageError

COLUMN = "decision"
# The outputs that a condition may be about; which of them there are depends on the model.
_OUTPUTS = {
    "label": pa.string(),
    "score": pa.float64(),
    "prediction": pa.float64(),
    "generated_text": pa.string(),
}


def rule_version(decision: DecisionSpec) -> str:
    """12 hex digits over the rule and the code that applies it."""
    return fingerprint({"rule": _said(decision), "code": code_version("deciding.py")})[:12]


def describe(decision: DecisionSpec) -> dict[str, Any]:
    """The rule as it stands in a receipt."""
    return {"version": rule_version(decision), **_said(decision)}


def _said(decision: DecisionSpec) -> dict[str, Any]:
    hidden = None if decision.rules is None else {"threshold"}
    return decision.model_dump(mode="json", exclude_none=True, exclude=hidden)


def check_rules(spec: PipelineSpec, recipe: Recipe) -> None:
    """Refuse rules about columns that the pipeline cannot have, or of another type.

    Args:
        recipe: the pipeline's.

    Raises:
        PipelineFileError: begins with the place of the wrong condition.
    """
    features = {field.name: field.type for field in recipe.output}
    # Columns that pass through from a lookup's files are known when it is read.
    is_open = spec.features is None and any(lookup.taken() is None for lookup in spec.lookups)
    for place, name, condition in _conditions(spec.decision):
        kind = _OUTPUTS.get(name, features.get(name))
        if kind is None and is_open:
            continue
        problem = f"no output or feature {name!r}" if kind is None else _misfit(condition, kind)
        if problem is not None:
            there = f"; there are: {', '.join([*_OUTPUTS, *features])}" if kind is None else ""
            raise PipelineFileError(f"{place}: {problem}{there}")


def check_columns(decision: DecisionSpec, signature: ModelSignature, features: pa.Schema) -> None:
    """Refuse a rule that the model's outputs and these features cannot be held against.

    Raises:
        SignatureError: names the condition.
    """
    kinds = {field.name: field.type for field in (*features, *signature.output_schema())}
    for place, name, condition in _conditions(decision):
        problem = f"there is no column {name!r}" if name not in kinds else _misfit(condition, kinds[name])
        if problem is not None:
            raise SignatureError(f"{place}: {problem}: change the rule, the recipe or the model")


def features_needed(decision: DecisionSpec | None, signature: ModelSignature) -> list[str]:
    """The features that the rule looks at."""
    outputs = signature.output_schema().names
    names = dict.fromkeys(name for _, name, _ in _conditions(decision))
    return [name for name in names if name not in outputs]


def with_decisions(
    rows: Iterator[pa.RecordBatch],
    decision: DecisionSpec,
    signature: ModelSignature,
    features: RowStream | None,
    schema: pa.Schema,
) -> Iterator[pa.RecordBatch]:
    """Predictions with the column `decision`.

    Args:
        rows: predictions without it.
        features: `row_key` and the features needed, of the same rows in the same order; None where none is needed.
        schema: of the result.

    Raises:
        StorageError: the features are not those of the predictions.
    """
    for batch in rows:
        columns = {name: batch[name] for name in batch.schema.names}
        beside = {} if features is None else _beside(features, batch)
        columns[COLUMN] = decide(decision, signature, {**beside, **columns})
        yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def decide(decision: DecisionSpec, signature: ModelSignature, columns: Mapping[str, pa.Array]) -> pa.Array:
    """(rows,) strings.

    Args:
        columns: outputs and the features needed, (rows,) each.
    """
    if decision.rules is None:
        other = next(label for label in signature.labels if label != decision.positive_class)
        above = pc.greater_equal(columns["score"], decision.threshold)
        return pc.if_else(above, decision.positive_class, other)
    rows = len(next(iter(columns.values())))
    decided = pa.repeat(pa.scalar(decision.otherwise, pa.string()), rows)
    for rule in reversed(decision.rules):
        holds = pa.repeat(True, rows)
        for name, condition in rule.when.items():
            holds = pc.and_(holds, _holds(condition, columns[name]))
        decided = pc.if_else(holds, rule.decide, decided)
    return decided


def _conditions(decision: DecisionSpec | None) -> Iterator[tuple[str, str, ConditionSpec]]:
    """Each condition of the rules with its place in the pipeline file and its column."""
    for number, rule in enumerate((decision and decision.rules) or ()):
        for name, condition in rule.when.items():
            yield f"decision.rules.{number}.when.{name}", name, condition


def _misfit(condition: ConditionSpec, kind: pa.DataType) -> str | None:
    """Why a condition cannot be asked of a column of this type; None where it can."""
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if condition.is_of_numbers and not is_number:
        return f"it is {kind}, and no number"
    for value in condition.is_in or ():
        fits = {bool: pa.types.is_boolean(kind), int: is_number, str: pa.types.is_string(kind)}[type(value)]
        if not fits:
            return f"it is {kind}, and never {value!r}"
    return None


def _holds(condition: ConditionSpec, column: pa.Array) -> pa.Array:
    """(rows,) bool, without nulls."""
    holds = pa.repeat(True, len(column))
    for compare, limit in (
        (pc.greater_equal, condition.at_least),
        (pc.greater, condition.above),
        (pc.less_equal, condition.at_most),
        (pc.less, condition.below),
    ):
        if limit is not None:
            holds = pc.and_(holds, pc.fill_null(compare(column.cast(pa.float64(), safe=False), limit), False))
    if condition.is_in is not None:
        # pc.is_in takes a null of the column for no member.
        holds = pc.and_(holds, pc.is_in(column, value_set=pa.array(condition.is_in).cast(column.type)))
    if condition.is_null is not None:
        holds = pc.and_(holds, pc.equal(column.is_null(), condition.is_null))
    return holds


def _beside(features: RowStream, batch: pa.RecordBatch) -> dict[str, pa.Array]:
    found = features.take(batch.num_rows)
    if not found["row_key"].equals(batch["row_key"]):
        raise StorageError("the features are not those that were scored: run the partition again")
    return {name: found[name] for name in found.schema.names if name != "row_key"}
