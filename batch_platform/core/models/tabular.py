"""Rows of a table as numbers, the same for training and for scoring.

It decides how a null, an unseen category and a large integer reach a tabular model: a null number is
NaN (the model turns it into an indicator), a null category has a code of its own, an unseen one has
another. It knows numpy and pyarrow, not torch.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.errors import ModelError, SignatureError

UNSEEN, MISSING = 0, 1  # codes before those of the vocabulary
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class TabularConfig:
    """Shape of a `TabularMLP` and the vocabularies of its categorical columns.

    Attributes:
        numeric: columns read as numbers.
        categorical: columns read as text, each with the values that have a code, in order.
        task: classification or regression.
        labels: classification only, in the order of the logits.
        hidden: widths of the hidden layers.
        embedding_size: length of a category's vector.
        dropout: share of hidden values dropped while training.
    """

    numeric: tuple[str, ...]
    categorical: Mapping[str, tuple[str, ...]]
    task: Literal["classification", "regression"]
    labels: tuple[str, ...] = ()
    hidden: tuple[int, ...] = (64, 32)
    embedding_size: int = 8
    dropout: float = 0.0
    class_name: str = field(default="TabularMLP")

    def __post_init__(self) -> None:
        object.__setattr__(self, "numeric", tuple(self.numeric))
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        categorical = {name: tuple(values) for name, values in self.categorical.items()}
        object.__setattr__(self, "categorical", categorical)
        if not self.columns:
            raise ModelError("a tabular model needs at least one numeric or categorical column")
        if len(set(self.columns)) < len(self.columns):
            raise ModelError("a column is both numeric and categorical, or named twice")
        for name, values in categorical.items():
            if len(set(values)) < len(values):
                raise ModelError(f"the vocabulary of column {name!r} has a value twice")

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.numeric, *self.categorical)

    @property
    def outputs(self) -> int:
        """Width of the model's output: one logit per label, or one number."""
        return len(self.labels) if self.task == "classification" else 1

    def signature(self, positive_class: str | None = None) -> ModelSignature:
        """The signature of a model of this shape: numbers as float64, categories as string."""
        numeric = [InputColumn(name, "float64") for name in self.numeric]
        categorical = [InputColumn(name, "string") for name in self.categorical]
        return ModelSignature((*numeric, *categorical), self.task, self.labels, positive_class)

    def write(self, folder: Path) -> None:
        """Write the config into a model folder."""
        text = json.dumps(asdict(self), indent=1)
        (folder / CONFIG_FILE).write_text(text + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> "TabularConfig":
        """Read the config of a model folder that nobody has checked.

        Raises:
            ModelError: names the file and what is wrong in it.
        """
        path = folder / CONFIG_FILE
        try:
            values = json.loads(path.read_text("utf-8"))
            _check_config(values)
            return cls(**values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path}: not the config of a tabular model: {error}") from None
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None


def _check_config(values: Any) -> None:
    known = {item.name for item in fields(TabularConfig)}
    if not isinstance(values, dict) or set(values) - known:
        raise ValueError(f"expected an object with the fields {', '.join(sorted(known))}")
    right = {
        "numeric": _texts(values["numeric"]),
        "categorical": isinstance(values["categorical"], dict)
        and all(_texts(words) for words in values["categorical"].values()),
        "labels": _texts(values.get("labels", [])),
        "hidden": isinstance(values.get("hidden", []), list)
        and all(type(width) is int and width > 0 for width in values.get("hidden", [])),
        "embedding_size": type(values.get("embedding_size", 1)) is int
        and values.get("embedding_size", 1) > 0,
        "dropout": isinstance(values.get("dropout", 0.0), int | float)
        and 0 <= values.get("dropout", 0.0) < 1,
        "task": values["task"] in ("classification", "regression"),
    }
    for name, is_right in right.items():
        if not is_right:
            raise ValueError(f"{name} has a wrong value")


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


@dataclass(frozen=True)
class Encoded:
    """Rows as arrays.

    Attributes:
        numeric: (rows, numeric columns) float32, NaN where the value is null or NaN.
        categories: (rows, categorical columns) int64 codes.
    """

    numeric: np.ndarray
    categories: np.ndarray


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each numeric column over the training rows, (columns,) float32."""

    mean: np.ndarray
    std: np.ndarray


def encode(batch: pa.RecordBatch | pa.Table, config: TabularConfig) -> Encoded:
    """Turn feature columns into arrays.

    Raises:
        SignatureError: a column is missing or cannot be read as a number.
    """
    rows = batch.num_rows
    numeric = np.empty((rows, len(config.numeric)), np.float32)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which the predictor refuses by row
        for position, name in enumerate(config.numeric):
            numeric[:, position] = _numbers(_column(batch, name), name)
    categories = np.empty((rows, len(config.categorical)), np.int64)
    for position, (name, vocabulary) in enumerate(config.categorical.items()):
        categories[:, position] = _codes(_column(batch, name), vocabulary)
    return Encoded(numeric, categories)


def fit(
    batches: Iterable[pa.RecordBatch],
    *,
    numeric: Iterable[str],
    categorical: Iterable[str],
    task: Literal["classification", "regression"],
    labels: Iterable[str] = (),
    hidden: Iterable[int] = (64, 32),
    embedding_size: int = 8,
    dropout: float = 0.0,
    max_vocabulary: int = 1000,
    min_count: int = 10,
) -> tuple[TabularConfig, Standardisation]:
    """Learn vocabularies and standardisation in one pass over the training rows.

    Values seen fewer than `min_count` times get no code, so that the code of unseen values is trained.

    Args:
        batches: the training rows, never scored rows.
        numeric: columns to read as numbers.
        categorical: columns to read as text.
        task: classification or regression.
        labels: classification only, in the order of the logits.
        hidden: widths of the hidden layers.
        embedding_size: length of a category's vector.
        dropout: share of hidden values dropped while training.
        max_vocabulary: the most frequent values of a column that get a code.
        min_count: rows that a value needs for a code.
    """
    moments = _Moments(tuple(numeric))
    seen: dict[str, Counter[str]] = {name: Counter() for name in categorical}
    for batch in batches:
        moments.add(batch)
        for name, counter in seen.items():
            counts = pc.value_counts(_text(_column(batch, name)).drop_null()).to_pylist()
            counter.update({item["values"]: item["counts"] for item in counts})
    config = TabularConfig(
        numeric=moments.columns,
        categorical={name: _vocabulary(counter, max_vocabulary, min_count) for name, counter in seen.items()},
        task=task,
        labels=tuple(labels),
        hidden=tuple(hidden),
        embedding_size=embedding_size,
        dropout=dropout,
    )
    return config, moments.standardisation()


class _Moments:
    """Running count, mean and squared deviation of each column, in float64 (Chan's update)."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._count, self._mean, self._squares = (np.zeros(len(columns)) for _ in range(3))

    def add(self, batch: pa.RecordBatch) -> None:
        for place, name in enumerate(self.columns):
            values = _numbers(_column(batch, name), name)
            values = values[np.isfinite(values)]
            if len(values):
                self._add_values(place, values)

    def _add_values(self, place: int, values: np.ndarray) -> None:
        before, total = self._count[place], self._count[place] + len(values)
        step = values.mean() - self._mean[place]
        self._squares[place] += ((values - values.mean()) ** 2).sum() + step**2 * before * len(values) / total
        self._mean[place] += step * len(values) / total
        self._count[place] = total

    def standardisation(self) -> Standardisation:
        std = np.sqrt(self._squares / np.maximum(self._count, 1))
        std[std < 1e-6] = 1.0  # a constant column carries nothing; it must not blow up when it moves
        return Standardisation(self._mean.astype(np.float32), std.astype(np.float32))


def _vocabulary(seen: Counter[str], most: int, min_count: int) -> tuple[str, ...]:
    # By count, then by name, so that equal data give an equal vocabulary.
    ranked = sorted(seen.items(), key=lambda item: (-item[1], item[0]))
    return tuple(value for value, count in ranked[:most] if count >= min_count)


def _column(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    if name not in batch.schema.names:
        raise SignatureError(f"column {name!r} is missing: the model reads it")
    column = batch.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _numbers(column: pa.Array, name: str) -> np.ndarray:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise SignatureError(f"column {name!r} is {kind}: the model reads it as a number")
    values = pc.cast(column, pa.float64(), safe=False).fill_null(float("nan"))
    return values.to_numpy(zero_copy_only=False)


def _codes(column: pa.Array, vocabulary: tuple[str, ...]) -> np.ndarray:
    text = _text(column)
    found = pc.index_in(text, value_set=pa.array(vocabulary, pa.string()), skip_nulls=True)
    codes = pc.add(pc.cast(found, pa.int64()), MISSING + 1).fill_null(UNSEEN)
    return pc.if_else(text.is_null(), MISSING, codes).to_numpy(zero_copy_only=False)


def _text(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return pc.cast(column, pa.string())
