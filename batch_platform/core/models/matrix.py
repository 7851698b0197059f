"""Columns of numbers as one matrix, for models that read a row as a list of numbers.

It decides which types count as numbers, that a null is NaN, which infinite values are refused, and what a
model file that names its columns must have in common with the signature. It knows no library.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.models.predictor import Prepared, Refusal, SignatureRequest
from batch_platform.core.models.signature import InputColumn, ModelSignature, Task
from batch_platform.errors import InferenceError, ModelError, SignatureError

NUMBERS = ("int32", "int64", "float32", "float64", "boolean")
# Rows that are laid out at a time: so many rows of some dozens of columns stay in the processor's cache.
_BLOCK_ROWS = 8192


@dataclass(frozen=True)
class MatrixRows(Prepared):
    """Rows as numbers: (rows, columns) float32 or float64, NaN where missing."""

    values: np.ndarray


def matrix(batch: pa.RecordBatch, names: Sequence[str], dtype: type[np.floating]) -> np.ndarray:
    """Lay columns side by side.

    Args:
        batch: rows with numeric or boolean columns of these names.
        names: the columns, in the order of the model.
        dtype: numpy's float32 or float64.

    Returns:
        (rows, columns), NaN where the value is null; beyond float32 is infinite.

    Raises:
        SignatureError: a column is missing or holds no numbers.
    """
    columns = [numbers(batch, name) for name in names]
    values = np.empty((batch.num_rows, len(names)), dtype)
    with np.errstate(over="ignore"):
        for start in range(0, batch.num_rows, _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            for place, column in enumerate(columns):
                values[rows, place] = column[rows]
    return values


def numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column as numbers, (rows,), with its own memory where it has no null; NaN for a null.

    Raises:
        SignatureError: the column is missing or holds no numbers.
    """
    if name not in batch.schema.names:
        raise SignatureError(f"column {name!r} is missing: the model reads it")
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.uint8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise SignatureError(f"column {name!r} is {column.type}: the model reads it as a number")
    if column.null_count and pa.types.is_integer(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    return column.to_numpy(zero_copy_only=False)


def infinite_rows(values: np.ndarray, names: Sequence[str]) -> tuple[Refusal, ...]:
    """Rows with an infinite number, each with its first such column.

    Args:
        values: (rows, columns).
        names: of the columns.
    """
    infinite = np.isinf(values)
    if not infinite.any():
        return ()
    refused: dict[int, Refusal] = {}
    for row, column in np.argwhere(infinite):
        kind = " (or too large for float32)" if values.dtype == np.float32 else ""
        message = f"column {names[column]!r} is infinite{kind}"
        refused.setdefault(int(row), Refusal(int(row), "InfiniteFeature", message))
    return tuple(refused.values())


def some_rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The numbered rows of an array; without a copy where they follow one another."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return values[rows[0] : rows[0] + len(rows)]
    return values[rows]


def two_columns(values: np.ndarray) -> np.ndarray:
    """Probabilities of the second of two labels, (rows,) -> of both, (rows, 2), of the same type."""
    return np.stack([1 - values, values], axis=1)


# -- signatures -------------------------------------------------------------------------------------------


def described(
    about: str, inputs: Sequence[InputColumn], task: Task, outputs: int, request: SignatureRequest
) -> ModelSignature:
    """The signature of a model file that knows its columns and its task, and not its labels.

    Args:
        about: the file, for messages.
        inputs: what it reads.
        task: what its objective says.
        outputs: classification only: how many labels it tells apart.
        request: gives the labels.

    Raises:
        ModelError: the labels are not said.
        SignatureError: the request contradicts the file.
    """
    refuse_text(request)
    if request.task not in (None, task):
        raise SignatureError(f"{about} says task {task}, not {request.task}")
    if task != "classification":
        if request.labels is not None:
            raise SignatureError(f"labels have no meaning for the task {task}: leave them out")
        return ModelSignature(tuple(inputs), task)
    if request.labels is None:
        raise ModelError(
            f"{about} tells {outputs} classes apart and does not name them: give --labels, "
            "in the order of the model's class numbers"
        )
    if len(request.labels) != outputs:
        raise SignatureError(f"{about} tells {outputs} classes apart, {len(request.labels)} labels are given")
    return ModelSignature(tuple(inputs), task, request.labels, request.positive_class)


def refuse_text(request: SignatureRequest) -> None:
    """Refuse what only a text model has.

    Raises:
        SignatureError: names it.
    """
    for name in ("text_column", "max_tokens", "pooling"):
        if name in request.given:
            raise SignatureError(f"{name} has no meaning for a tabular model: leave it out")


def check_numeric(about: str, inputs: Sequence[InputColumn]) -> None:
    """Refuse inputs that are no numbers.

    Raises:
        SignatureError: names the columns.
    """
    wrong = [f"{column.name!r} ({column.type})" for column in inputs if column.type not in NUMBERS]
    if wrong:
        raise SignatureError(
            f"{about}: reads numbers and booleans, the signature's inputs {', '.join(wrong)} are none: "
            "have the recipe make numbers of them, as in training"
        )


def in_model_order(about: str, names: Sequence[str], inputs: Sequence[InputColumn]) -> tuple[str, ...]:
    """The signature's names in the order of the model's columns.

    Args:
        about: the file, for messages.
        names: of the columns in the model file.
        inputs: of the signature, in any order.

    Raises:
        SignatureError: names the columns that only one of the two has.
    """
    absent = sorted(set(names) - {column.name for column in inputs})
    more = sorted({column.name for column in inputs} - set(names))
    problems = []
    if absent:
        problems.append(f"the model reads {', '.join(map(repr, absent))}, which the signature's inputs lack")
    if more:
        problems.append(f"the signature's inputs {', '.join(map(repr, more))} are no columns of the model")
    if problems:
        raise SignatureError(f"{about}: {'; '.join(problems)}")
    return tuple(names)


def check_place(flavor: str, device: str, dtype: str) -> None:
    """Refuse a device or a type that a model of trees does not compute with.

    Raises:
        InferenceError: says what to set.
    """
    if device != "cpu":
        raise InferenceError(
            f"a {flavor} model computes on the CPU, not on {device}: set device: auto or cpu"
        )
    if dtype != "float32":
        raise InferenceError(f"a {flavor} model does not compute in {dtype}: set dtype: auto or float32")


def check_task(about: str, task: Task, outputs: int, signature: ModelSignature) -> None:
    """Compare the task and the number of classes that a model file says with the signature.

    Raises:
        SignatureError: they differ.
    """
    if signature.task != task:
        raise SignatureError(f"{about} says {task}, the signature says {signature.task}")
    if task == "classification" and outputs != len(signature.labels):
        raise SignatureError(
            f"{about} tells {outputs} classes apart, the signature has {len(signature.labels)} labels "
            f"({', '.join(signature.labels)}): they must be one for each class, in the model's order"
        )
    if task == "regression" and outputs != 1:
        raise SignatureError(f"{about} gives {outputs} numbers a row; a regression gives one")
