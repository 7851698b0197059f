"""The catalogue of an `ItemRanker`, and rows as bags of its items, the same for training and for scoring.

A column of items is a text of their names with spaces between, as a lookup's aggregate `join` makes it. Items that the
catalogue does not have are passed over; a null is an empty bag. It knows numpy and pyarrow, not torch.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.models.tabular import CONFIG_FILE
from batch_platform.errors import ModelError, SignatureError

MOST_ITEMS = 2**24  # places are given on as float32


@dataclass(frozen=True)
class ItemRankerConfig:
    """Shape of an `ItemRanker`.

    Attributes:
        columns: the columns of items that it reads.
        items: the catalogue, in the order of the weights.
        factors: numbers through which items act on one another.
        top_k: items that a row gets.
    """

    columns: tuple[str, ...]
    items: tuple[str, ...]
    factors: int
    top_k: int
    class_name: str = field(default="ItemRanker")

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "items", tuple(self.items))
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ModelError("an item ranker reads one or more columns of items, each named once")
        if len(set(self.items)) < len(self.items) or any(not name or " " in name for name in self.items):
            raise ModelError("items are distinct names without spaces")
        if not 1 <= self.top_k <= len(self.items) <= MOST_ITEMS:
            raise ModelError(
                f"top_k is {self.top_k}: at least 1, and no more than the {len(self.items)} items"
            )

    def signature(self) -> ModelSignature:
        """The signature of a model of this shape."""
        inputs = tuple(InputColumn(name, "string") for name in self.columns)
        return ModelSignature(inputs, "ranking", top_k=self.top_k)

    def write(self, folder: Path) -> None:
        """Write the config into a model folder."""
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> "ItemRankerConfig":
        """Read the config of a model folder that nobody has checked.

        Raises:
            ModelError: names the file and what is wrong in it.
        """
        path = folder / CONFIG_FILE
        try:
            values = json.loads(path.read_text("utf-8"))
            _check(values)
            return cls(**values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path}: not the config of an item ranker: {error}") from None
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None


def _check(values: Any) -> None:
    known = {item.name for item in fields(ItemRankerConfig)}
    if not isinstance(values, dict) or set(values) != known:
        raise ValueError(f"expected an object with the fields {', '.join(sorted(known))}")
    for name in ("columns", "items"):
        if not isinstance(values[name], list) or not all(isinstance(value, str) for value in values[name]):
            raise ValueError(f"{name} is no list of texts")
    for name in ("factors", "top_k"):
        if type(values[name]) is not int or values[name] < 1:
            raise ValueError(f"{name} is no whole number from 1 on")


@dataclass(frozen=True)
class Bag:
    """One column's items: (entries,) int64 row and place of the item, rising, and float32 how often it is there."""

    rows: np.ndarray
    items: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Bags:
    """Rows as bags of items, one for each column of the model."""

    rows: int
    columns: tuple[Bag, ...]

    def take(self, rows: np.ndarray) -> "Bags":
        """The rows with these numbers, (n,) int64, in their order."""
        return Bags(len(rows), tuple(_take(bag, rows, self.rows) for bag in self.columns))

    def between(self, start: int, end: int) -> "Bags":
        """The rows from `start` up to `end`."""
        return self.take(np.arange(start, end))


def _take(bag: Bag, rows: np.ndarray, count: int) -> Bag:
    starts = np.searchsorted(bag.rows, np.arange(count + 1))
    sizes = starts[rows + 1] - starts[rows]
    ends = np.cumsum(sizes)
    entries = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts[rows] - (ends - sizes), sizes)
    return Bag(np.repeat(np.arange(len(rows)), sizes), bag.items[entries], bag.weights[entries])


def bags(batch: pa.RecordBatch | pa.Table, config: ItemRankerConfig) -> Bags:
    """Turn columns of items into bags.

    Raises:
        SignatureError: a column is missing, or holds no texts.
    """
    catalogue = pa.array(config.items, pa.string())
    return Bags(batch.num_rows, tuple(_bag(batch, name, catalogue) for name in config.columns))


def _bag(batch: pa.RecordBatch | pa.Table, name: str, catalogue: pa.Array) -> Bag:
    if name not in batch.schema.names:
        raise SignatureError(f"column {name!r} is missing: the model reads it")
    column = batch.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not pa.types.is_string(column.type):
        raise SignatureError(f"column {name!r} is {column.type}: the model reads texts of items")
    words = pc.split_pattern(column, " ")
    places = pc.index_in(words.flatten(), value_set=catalogue)
    rows = pc.list_parent_indices(words).to_numpy(zero_copy_only=False)
    known = places.is_valid().to_numpy(zero_copy_only=False)
    pairs = rows[known].astype(np.int64) * len(catalogue) + places.drop_null().to_numpy(
        zero_copy_only=False
    ).astype(np.int64)
    pairs, times = np.unique(pairs, return_counts=True)
    return Bag(pairs // len(catalogue), pairs % len(catalogue), times.astype(np.float32))
