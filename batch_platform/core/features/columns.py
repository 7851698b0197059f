"""Taking columns out of a batch and putting them in, with errors that name the step and the column."""

import pyarrow as pa

from batch_platform.errors import RecipeError


def column_of(batch: pa.RecordBatch, step: str, column: str, kind: pa.DataType | None = None) -> pa.Array:
    """A column, cast to a type where one is given.

    Raises:
        RecipeError: it is not there, or cannot become that type at all.
        pa.ArrowInvalid: values of it cannot.
    """
    if column not in batch.schema.names:
        raise RecipeError(f"step {step}: no column {column!r}; there are: {', '.join(batch.schema.names)}")
    values = batch.column(column)
    try:
        return values if kind is None else values.cast(kind)
    except pa.ArrowNotImplementedError:
        raise RecipeError(
            f"step {step}: column {column!r} is {values.type} and cannot become {kind}"
        ) from None


def with_column(batch: pa.RecordBatch, column: str, values: pa.Array) -> pa.RecordBatch:
    """The batch with a column put in the place of the one of that name, or at the end."""
    if column in batch.schema.names:
        return batch.set_column(batch.schema.names.index(column), column, values)
    return batch.append_column(column, values)
