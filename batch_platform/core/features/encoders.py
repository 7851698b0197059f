"""Encoding columns with what was fitted at training, from `encoders.json` of the model's folder.

Decides what an encoder may be: a file of numbers, never code. The values that training saw are the model's own, so
that training and scoring cannot disagree, and a batch being scored fits nothing.
"""

import json
from functools import lru_cache
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from batch_platform.core.features.columns import column_of, with_column
from batch_platform.core.features.recipe import step_with_file
from batch_platform.errors import RecipeError

ENCODERS = "encoders.json"


class _Encoder(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Ordinal(_Encoder):
    """The place of a value in a list; null for a value that is not in it."""

    kind: Literal["ordinal"]
    values: list[str]

    def encode(self, column: pa.Array) -> pa.Array:
        found = pc.index_in(column.cast(pa.string()), value_set=pa.array(self.values, pa.string()))
        return found.cast(pa.float64())


class _Standard(_Encoder):
    """A number less the mean, divided by the scale."""

    kind: Literal["standard"]
    mean: float
    scale: float = Field(gt=0.0)

    def encode(self, column: pa.Array) -> pa.Array:
        return pc.divide(pc.subtract(column.cast(pa.float64()), self.mean), self.scale)


class _Mapping(_Encoder):
    """A number for each value, such as the mean of the target; `otherwise` for others, null for null."""

    kind: Literal["mapping"]
    values: dict[str, float]
    otherwise: float | None = None

    def encode(self, column: pa.Array) -> pa.Array:
        text = column.cast(pa.string())
        place = pc.index_in(text, value_set=pa.array(list(self.values), pa.string()))
        numbers = pa.array(list(self.values.values()), pa.float64()).take(place)
        unknown = pc.and_(text.is_valid(), numbers.is_null())
        return pc.if_else(unknown, pa.scalar(self.otherwise, pa.float64()), numbers)


_FILE = TypeAdapter(dict[str, Annotated[_Ordinal | _Standard | _Mapping, Field(discriminator="kind")]])


@step_with_file(ENCODERS)
def encode(batch: pa.RecordBatch, encoders: bytes, *, columns: list[str], suffix: str = "") -> pa.RecordBatch:
    """Columns as numbers (float64), by the encoders that the model's training fitted.

    `encoders.json` lies beside the model's other files:
    `{"plan": {"kind": "ordinal", "values": ["basic", "pro"]}, "age": {"kind": "standard", "mean": 41.2, "scale": 9.8},
    "city": {"kind": "mapping", "values": {"Bonn": 0.31}, "otherwise": 0.2}}`.

    Args:
        batch: rows.
        encoders: the model's `encoders.json`.
        columns: the columns to encode, each with an encoder of its name.
        suffix: put behind the names of the results; without one they take the columns' places.
    """
    known = _read(encoders) if encoders else {}
    for column in columns:
        values = column_of(batch, "encode", column)
        if encoders and column not in known:
            raise RecipeError(f"step encode: {ENCODERS} of the model has no encoder for {column!r}")
        made = known[column].encode(values) if encoders else pa.nulls(batch.num_rows, pa.float64())
        batch = with_column(batch, f"{column}{suffix}", made)
    return batch


@lru_cache(maxsize=4)
def _read(content: bytes) -> dict[str, _Ordinal | _Standard | _Mapping]:
    try:
        return _FILE.validate_python(json.loads(content))
    except (ValueError, ValidationError) as error:
        raise RecipeError(
            f"step encode: {ENCODERS} of the model is wrong: {str(error).splitlines()[0]}"
        ) from None
