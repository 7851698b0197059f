"""LightGBM's text format: what a `model.txt` says about itself, and whether its trees are trees.

It decides what LightGBM gets to see: its reader trusts the sizes and the numbers in the file, and a wrong
one ends the process. So a model is written anew of the parts that were checked, without the parameters and
statistics of its training. It needs numpy only, so that describing and registering a model is quick.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from batch_platform.core.models.signature import Task
from batch_platform.core.models.tree_arrays import check_tree
from batch_platform.errors import ModelError

MODEL_FILE = "model.txt"
MAX_BYTES = 2**30
_END = "end of trees"
# What is read of a tree, and how it is spelled: one value for each inner node, or for each leaf.
_INNER = ("split_feature", "threshold", "decision_type", "left_child", "right_child")
_CATEGORIES = ("cat_boundaries", "cat_threshold")
_WORD = r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|-?nan|-?inf"
_REALS = re.compile(rf"(?:{_WORD})(?: (?:{_WORD}))*")
_INTEGERS = re.compile(r"-?\d{1,10}(?: -?\d{1,10})*")
_OBJECTIVE = re.compile(r"(?:[a-z0-9_]+(?: [a-z_]+(?::[-+.e0-9]+)?)*)?")
_VERSION = re.compile(r"v[2-4](\.\d)?")
_IS_CATEGORICAL = 1  # bit of a decision type
_MOST_DECISION = 11  # two bits, and three ways to treat what is missing
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
        content: the model to be loaded, with nothing in it that was not checked.
    """

    path: Path
    columns: tuple[str, ...]
    has_names: bool
    categorical: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    objective: str
    classes: int
    content: str = ""

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
    trees = [
        _checked_tree(f"{path}: tree {number}", _values(block), len(found.columns))
        for number, block in enumerate(blocks)
    ]
    return replace(found, content=_written(found, values, head, trees))


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
    if "tree_sizes" in values and sizes != [int(size) for size in values["tree_sizes"].split()]:
        raise ModelError(f"{found.path}: its trees are not of the sizes that it says: copy it again")
    if not _OBJECTIVE.fullmatch(values.get("objective", "")) or not _VERSION.fullmatch(values["version"]):
        raise ValueError("its version or objective is not known")
    if int(values["num_tree_per_iteration"]) != found.classes or found.classes < 1:
        raise ValueError("num_class and num_tree_per_iteration differ")
    if len(sizes) % found.classes:
        raise ValueError("the trees are no multiple of num_class")
    said = dict(option.split(":", 1) for option in options if ":" in option)
    if found.objective in ("multiclass", "multiclassova") and int(said["num_class"]) != found.classes:
        raise ValueError("the objective's num_class is another")
    if found.objective == "binary" and found.classes != 1:
        raise ValueError("a binary objective with more than one tree an iteration")


def _checked_tree(about: str, values: Mapping[str, str], columns: int) -> str:
    """The tree, with the parts that computing needs and no others."""
    if values.get("is_linear", "0") != "0":
        raise ModelError(f"{about} has linear leaves, which are not supported: train with linear_tree=false")
    leaves, categories = int(values["num_leaves"]), int(values.get("num_cat", 0))
    if leaves < 1 or categories < 0:
        raise ValueError("a tree without leaves")
    names = ["leaf_value"] if leaves == 1 else ["leaf_value", *_INNER]
    for name in names:
        asked, found = leaves if name == "leaf_value" else leaves - 1, len(values.get(name, "").split())
        if found != asked:
            raise ModelError(f"{about}: {name} has {found} values instead of {asked}")
    _real(values["leaf_value"])
    if leaves > 1:
        _check_splits(about, values, leaves, columns)
        _check_categories(about, values, categories)
    lines = [f"num_leaves={leaves}", f"num_cat={categories if leaves > 1 else 0}"]
    names += _CATEGORIES if leaves > 1 and categories else ()
    lines += [f"{name}={values[name]}" for name in names]
    shrinkage = values.get("shrinkage", "1")
    _real(shrinkage)
    return "\n".join([*lines, "is_linear=0", f"shrinkage={shrinkage}"])


def _check_splits(about: str, values: Mapping[str, str], leaves: int, columns: int) -> None:
    children = np.concatenate([_whole(values["left_child"]), _whole(values["right_child"])])
    if ((children >= leaves - 1) | (~children >= leaves)).any():
        raise ModelError(f"{about}: has a child that is not among its {2 * leaves - 1} nodes")
    # Leaf n is written as ~n; here leaves come after the inner nodes.
    below = np.where(children < 0, leaves - 2 - children, children)
    check_tree(about, below, _whole(values["split_feature"]), 2 * leaves - 1, columns)
    decisions = _whole(values["decision_type"])
    if ((decisions < 0) | (decisions > _MOST_DECISION)).any():
        raise ModelError(f"{about}: decides in a way that is not known")
    _real(values["threshold"])


def _check_categories(about: str, values: Mapping[str, str], count: int) -> None:
    categorical = (_whole(values["decision_type"]) & _IS_CATEGORICAL).astype(bool)
    if not count and not categorical.any():
        return
    bounds, bits = _whole(values["cat_boundaries"]), _whole(values["cat_threshold"])
    places = _real(values["threshold"])[categorical]
    right = (
        len(bounds) == count + 1
        and bounds[0] == 0
        and (np.diff(bounds) >= 0).all()
        and bounds[-1] == len(bits)
        and ((bits >= 0) & (bits < 2**32)).all()
        and ((places >= 0) & (places < count)).all()
    )
    if not right:
        raise ModelError(f"{about}: its categories are not where its splits look for them")


def _written(found: LightGBMFile, values: Mapping[str, str], head: str, trees: list[str]) -> str:
    """The model anew, of what was checked."""
    blocks = [f"Tree={number}\n{tree}\n\n\n" for number, tree in enumerate(trees)]
    width = len(found.columns)
    lines = [
        "tree",
        f"version={values['version']}",
        f"num_class={found.classes}",
        f"num_tree_per_iteration={found.classes}",
        "label_index=0",
        f"max_feature_idx={width - 1}",
        f"objective={values['objective']}" if found.objective else "",
        "average_output" if "\naverage_output\n" in head else "",
        "feature_names=" + " ".join(f"Column_{place}" for place in range(width)),
        "feature_infos=" + " ".join(["none"] * width),
        "tree_sizes=" + " ".join(str(len(block)) for block in blocks),
    ]
    start = "\n".join(line for line in lines if line)
    return f"{start}\n\n{''.join(blocks)}{_END}\n\npandas_categorical:null\n"


def _whole(text: str) -> np.ndarray:
    if not _INTEGERS.fullmatch(text):
        raise ValueError(f"not whole numbers: {text[:40]!r}")
    return np.array(text.split(" "), np.int64)


def _real(text: str) -> np.ndarray:
    if not _REALS.fullmatch(text):
        raise ValueError(f"not numbers: {text[:40]!r}")
    return np.array(text.split(" "), np.float64)
