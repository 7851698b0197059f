"""LightGBM's text format: what a `model.txt` says about itself, and whether its trees are trees.

It decides which files LightGBM gets to see: its reader trusts the sizes and the numbers in the file, and a
wrong one ends the process. It needs numpy only, so that describing and registering a model is quick.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batch_platform.core.models.signature import Task
from batch_platform.core.models.tree_arrays import check_tree
from batch_platform.errors import ModelError

MODEL_FILE = "model.txt"
MAX_BYTES = 2**30
_END = "end of trees"
# What a block of a tree may say; the arrays have one value for each inner node or leaf, as the numbers say.
_INNER = {"split_feature", "split_gain", "threshold", "decision_type", "left_child", "right_child",
          "internal_value", "internal_weight", "internal_count"}  # fmt: skip
_LEAVES = {"leaf_value", "leaf_weight", "leaf_count"}
_NEEDED = {"split_feature", "threshold", "decision_type", "left_child", "right_child", "leaf_value"}
_OTHER = {"num_leaves", "num_cat", "cat_boundaries", "cat_threshold", "is_linear", "shrinkage"}
_IS_CATEGORICAL = 1  # bit of a decision type
_PLACEHOLDER = re.compile(r"Column_\d+")


@dataclass(frozen=True)
class LightGBMFile:
    """What a model file says.

    Attributes:
        path: the file.
        columns: names of the columns, in order.
        has_names: False where LightGBM numbered them because nobody had named them.
        categorical: columns whose splits are on categories.
        categories: the values of each column that was categorical in pandas, in the order of the columns.
        objective: its name; empty where the model has none.
        classes: numbers that it gives for a row; 1 for two classes.
    """

    path: Path
    columns: tuple[str, ...]
    has_names: bool
    categorical: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    objective: str
    classes: int

    @property
    def task(self) -> Task:
        is_classifier = self.objective in ("binary", "multiclass", "multiclassova")
        return "classification" if is_classifier else "regression"

    @property
    def outputs(self) -> int:
        """Labels of a classification, numbers of anything else."""
        return 2 if self.objective == "binary" else self.classes


def read(folder: Path) -> LightGBMFile:
    """Read and check the model file of a folder.

    Raises:
        ModelError: it is missing, cut short, or no LightGBM model that can be trusted to load.
    """
    path = folder / MODEL_FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path}: is larger than {MAX_BYTES} bytes: no model of trees needs so much")
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ModelError(f"{path}: is missing; write it with `booster.save_model`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as text: {error}") from None
    try:
        return _read(path, text)
    except (ValueError, KeyError, OverflowError) as error:
        raise ModelError(f"{path}: is no LightGBM model, or was altered ({error})") from None


def _read(path: Path, text: str) -> LightGBMFile:
    if not text.startswith("tree\n"):
        raise ModelError(f"{path}: is not in LightGBM's text format; write it with `booster.save_model`")
    end = text.find(f"\n{_END}\n")
    if end < 0:
        raise ModelError(f"{path}: is cut short (no line {_END!r}): copy it again")
    head, *blocks = re.split(r"^(?=Tree=)", text[: end + 1], flags=re.MULTILINE)
    values = _values(head)
    objective, *options = values.get("objective", "").split() or [""]
    found = LightGBMFile(
        path=path,
        columns=tuple(values["feature_names"].split()),
        has_names=not all(map(_PLACEHOLDER.fullmatch, values["feature_names"].split())),
        categorical=_categorical(values),
        categories=_categories(path, text[end:]),
        objective=objective,
        classes=int(values["num_class"]),
    )
    _check_head(found, values, options, [len(block.encode()) for block in blocks])
    for number, block in enumerate(blocks):
        _check_block(f"{path}: tree {number}", _values(block), len(found.columns))
    return found


def _values(block: str) -> dict[str, str]:
    pairs = [line.split("=", 1) for line in block.split("\n") if "=" in line]
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a value is there twice")
    return values


def _categorical(values: Mapping[str, str]) -> tuple[str, ...]:
    # A range is in brackets, categories are separated by colons, a column without any split is "none".
    kinds = zip(values["feature_names"].split(), values["feature_infos"].split(), strict=True)
    return tuple(name for name, info in kinds if info != "none" and not info.startswith("["))


def _categories(path: Path, tail: str) -> tuple[tuple[str, ...], ...]:
    line = tail.rstrip().rsplit("\n", 1)[-1]
    if not line.startswith("pandas_categorical:"):
        return ()
    lists = json.loads(line.removeprefix("pandas_categorical:")) or []
    if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists):
        raise ModelError(
            f"{path}: was trained on pandas categories that are no strings: train it on strings, or on the "
            "numbers themselves"
        )
    return tuple(map(tuple, lists))


def _check_head(found: LightGBMFile, values: Mapping[str, str], options: list[str], sizes: list[int]) -> None:
    if len(found.columns) != int(values["max_feature_idx"]) + 1:
        raise ValueError("the number of feature names is not that of the features")
    if len(set(found.columns)) < len(found.columns):
        raise ValueError("a feature name is there twice")
    # LightGBM jumps to where these sizes lead.
    if sizes != [int(size) for size in values["tree_sizes"].split()]:
        raise ModelError(f"{found.path}: its trees are not of the sizes that it says: copy it again")
    if int(values["num_tree_per_iteration"]) != found.classes or found.classes < 1:
        raise ValueError("num_class and num_tree_per_iteration differ")
    if len(sizes) % found.classes:
        raise ValueError("the trees are no multiple of num_class")
    said = dict(option.split(":", 1) for option in options if ":" in option)
    if found.objective in ("multiclass", "multiclassova") and int(said["num_class"]) != found.classes:
        raise ValueError("the objective's num_class is another")
    if found.objective == "binary" and found.classes != 1:
        raise ValueError("a binary objective with more than one tree an iteration")


def _check_block(about: str, values: Mapping[str, str], columns: int) -> None:
    if values.get("is_linear", "0") != "0":
        raise ModelError(f"{about} has linear leaves, which are not supported: train with linear_tree=false")
    unknown = set(values) - {"Tree"} - _INNER - _LEAVES - _OTHER
    if unknown:
        raise ModelError(f"{about} says {sorted(unknown)[0]!r}, which is not known")
    leaves = int(values["num_leaves"])
    if leaves < 1:
        raise ValueError("a tree without leaves")
    for name in values.keys() & (_LEAVES if leaves == 1 else _LEAVES | _INNER):
        asked = leaves if name in _LEAVES else leaves - 1
        if values[name] and len(values[name].split()) != asked:
            raise ModelError(f"{about}: {name} has {len(values[name].split())} values instead of {asked}")
    needed = {"leaf_value"} if leaves == 1 else _NEEDED
    if not all(values.get(name) for name in needed):
        raise ModelError(f"{about} lacks {sorted(name for name in needed if not values.get(name))[0]}")
    if leaves > 1:
        _check_splits(about, values, leaves, columns)


def _check_splits(about: str, values: Mapping[str, str], leaves: int, columns: int) -> None:
    children = np.concatenate([_integers(values["left_child"]), _integers(values["right_child"])])
    # Leaf n is written as ~n; here leaves come after the inner nodes.
    below = np.where(children < 0, leaves - 2 - children, children)
    misplaced = (children >= leaves - 1) | (~children >= leaves)
    if misplaced.any():
        raise ModelError(f"{about}: has a child that is not among its {2 * leaves - 1} nodes")
    check_tree(about, below, _integers(values["split_feature"]), 2 * leaves - 1, columns)
    np.array(values["threshold"].split(), np.float64)
    np.array(values["leaf_value"].split(), np.float64)
    categorical = (_integers(values["decision_type"]) & _IS_CATEGORICAL).astype(bool)
    count = int(values.get("num_cat", 0))
    if categorical.any() or count:
        _check_categories(about, values, categorical, count)


def _check_categories(about: str, values: Mapping[str, str], categorical: np.ndarray, count: int) -> None:
    bounds, bits = _integers(values["cat_boundaries"]), _integers(values["cat_threshold"])
    places = np.array(values["threshold"].split(), np.float64)[categorical]
    right = (
        len(bounds) == count + 1
        and bounds[0] == 0
        and (np.diff(bounds) >= 0).all()
        and bounds[-1] == len(bits)
        and ((places >= 0) & (places < count)).all()
    )
    if not right:
        raise ModelError(f"{about}: its categories are not where its splits look for them")


def _integers(text: str) -> np.ndarray:
    return np.array(text.split(), np.int64)
