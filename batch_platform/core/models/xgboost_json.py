"""XGBoost's JSON format: what a `model.json` says about itself, and whether its trees are trees.

It decides what XGBoost gets to see: its reader follows the numbers in the file, and a wrong one ends the
process. So a model is written anew of the parts that were checked. It needs numpy only, so that describing
and registering a model is quick.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from batch_platform.core.models.signature import InputColumn, Task
from batch_platform.core.models.tree_arrays import check_tree
from batch_platform.errors import ModelError

MODEL_FILE = "model.json"
MAX_BYTES = 2**30
# Classifiers, and whether what they predict is probabilities or has to be asked for as margins.
_CLASSIFIERS = {
    "binary:logistic": True, "binary:logitraw": False, "multi:softprob": True, "multi:softmax": False
}  # fmt: skip
_REFUSED = ("binary:hinge", "rank:", "survival:")
# What a tree says of each of its nodes.
_WHOLE = ("left_children", "right_children", "split_indices", "default_left", "split_type")
_REAL = ("split_conditions", "base_weights", "sum_hessian", "loss_changes")
_NO_PARENT = 2**31 - 1
_MOST_CATEGORIES = 2**24  # XGBoost's own bound
_TYPES = {"i": "boolean"}  # of pandas; every other number is read as one


@dataclass(frozen=True)
class XGBoostFile:
    """What a model file says.

    Attributes:
        path: the file.
        columns: names of the columns, in order; empty where nobody had named them.
        types: of the columns, as XGBoost calls them; empty where it was not told.
        width: number of columns.
        objective: its name.
        classes: labels of a classification, 1 for anything else.
        content: the model to be loaded, with nothing in it that was not checked.
        iterations: so many rounds of trees are to be used, 0 for all, as the library does by itself.
    """

    path: Path
    columns: tuple[str, ...]
    types: tuple[str, ...]
    width: int
    objective: str
    classes: int
    iterations: int
    content: bytes = b""

    @property
    def task(self) -> Task:
        return "classification" if self.objective in _CLASSIFIERS else "regression"

    @property
    def gives_margins(self) -> bool:
        """Whether margins are to be asked for, because there are no probabilities."""
        return not _CLASSIFIERS.get(self.objective, True)

    @property
    def inputs(self) -> list[InputColumn]:
        """The columns with types of the contract."""
        types = self.types or ("float",) * self.width
        return [
            InputColumn(name, _TYPES.get(kind, "float64"))
            for name, kind in zip(self.columns, types, strict=True)
        ]


def read(folder: Path) -> XGBoostFile:
    """Read and check the model file of a folder.

    Raises:
        ModelError: it is missing, cut short, or no XGBoost model that can be trusted to load.
    """
    path = folder / MODEL_FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path}: is larger than {MAX_BYTES} bytes: no model of trees needs so much")
        values = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: is missing; write it with `booster.save_model('model.json')`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}): copy it again") from None
    try:
        return _read(path, values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ModelError(
            f"{path}: is no XGBoost model, or was altered ({type(error).__name__}: {error})"
        ) from None


def _read(path: Path, values: Mapping[str, Any]) -> XGBoostFile:
    learner = values["learner"]
    objective = learner["objective"]["name"]
    if objective.startswith(_REFUSED):
        raise ModelError(
            f"{path}: the objective {objective} is not supported: it gives no probabilities or values"
        )
    shape = learner["learner_model_param"]
    groups = max(1, int(shape["num_class"]))
    is_multiclass = objective.startswith("multi:")
    found = XGBoostFile(
        path=path,
        columns=tuple(map(str, learner.get("feature_names", ()))),
        types=tuple(map(str, learner.get("feature_types", ()))),
        width=int(shape["num_feature"]),
        objective=objective,
        classes=groups if is_multiclass else 2 if objective in _CLASSIFIERS else 1,
        iterations=_iterations(learner.get("attributes", {})),
    )
    _check_head(found, learner, groups, is_multiclass)
    model = _booster(path, learner["gradient_booster"])
    trees = _checked_trees(found, model, groups)
    return replace(found, content=_written(values, groups, model, trees))


def _iterations(attributes: Mapping[str, str]) -> int:
    # scikit-learn's interface stops at the best round by itself, XGBoost's own does not.
    return int(attributes.get("best_iteration", -1)) + 1 if "scikit_learn" in attributes else 0


def _booster(path: Path, booster: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part with the trees."""
    if booster["name"] == "gbtree":
        return booster["model"]
    if booster["name"] == "dart":
        model = booster["gbtree"]["model"]
        if len(booster["weight_drop"]) != len(model["trees"]):
            raise ValueError("dart's weights are not one for each tree")
        return model
    raise ModelError(f"{path}: the booster {booster['name']} is not supported: use gbtree or dart")


def _check_head(found: XGBoostFile, learner: Mapping[str, Any], groups: int, is_multiclass: bool) -> None:
    shape = learner["learner_model_param"]
    if int(shape.get("num_target", 1)) > 1:
        raise ModelError(
            f"{found.path}: predicts several targets, which is not supported: train one model for each"
        )
    if is_multiclass and int(learner["objective"]["softmax_multiclass_param"]["num_class"]) != groups:
        raise ValueError("the objective's num_class is another")
    if not is_multiclass and groups > 1:
        raise ValueError(f"{groups} classes, and the objective is {found.objective}")
    if found.width < 1 or found.iterations < 0:
        raise ValueError("no columns, or a negative round")
    for name, values in (("feature_names", found.columns), ("feature_types", found.types)):
        if values and len(values) != found.width:
            raise ValueError(f"{len(values)} {name} for {found.width} columns")
    if len(set(found.columns)) < len(found.columns):
        raise ValueError("a feature name is there twice")


def _checked_trees(found: XGBoostFile, model: Mapping[str, Any], groups: int) -> list[dict[str, Any]]:
    """The trees, each with the parts that XGBoost reads and no others."""
    trees, places = model["trees"], _integers(model["tree_info"])
    if int(model["gbtree_model_param"]["num_trees"]) != len(trees) or len(places) != len(trees):
        raise ValueError("num_trees is not the number of trees")
    if len(places) and (places.min() < 0 or places.max() >= groups):
        raise ValueError("a tree belongs to a class that is not there")
    bounds = _integers(model.get("iteration_indptr", [0, len(trees)]))
    if bounds[0] != 0 or bounds[-1] != len(trees) or (np.diff(bounds) < 0).any():
        raise ValueError("the rounds are not made of the trees")
    if found.iterations >= len(bounds):
        raise ValueError("the best round is not there")
    if any(column.get("values") for column in model.get("cats", {}).get("enc", ())):
        raise ModelError(
            f"{found.path}: has categories of its own, which are not supported: train on codes that the recipe makes"
        )
    return [
        _checked_tree(f"{found.path}: tree {number}", number, tree, found.width)
        for number, tree in enumerate(trees)
    ]


def _checked_tree(about: str, number: int, tree: Mapping[str, Any], columns: int) -> dict[str, Any]:
    nodes = int(tree["tree_param"]["num_nodes"])
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise ModelError(f"{about} has leaves with several values, which are not supported")
    if nodes < 1:
        raise ValueError("a tree without nodes")
    kept = {name: tree.get(name, [0] * nodes) for name in (*_WHOLE, *_REAL)}
    for name, values in kept.items():
        if len(values) != nodes:
            raise ModelError(f"{about}: {name} has {len(values)} values instead of {nodes}")
    left, right = _integers(kept["left_children"]), _integers(kept["right_children"])
    inner = left != -1
    if ((right != -1) != inner).any():
        raise ModelError(f"{about}: has a node with one child")
    children = np.concatenate([left[inner], right[inner]])
    check_tree(about, children, _integers(kept["split_indices"])[inner], nodes, columns)
    if not np.isin(_integers(kept["default_left"]), (0, 1)).all():
        raise ValueError("default_left is neither 0 nor 1")
    for name in _REAL:
        if np.asarray(kept[name]).dtype.kind not in "iuf":
            raise ValueError(f"{name} holds something else than numbers")
    parents = np.full(nodes, _NO_PARENT)
    parents[children] = np.tile(np.flatnonzero(inner), 2)
    categorical = inner & (_integers(kept["split_type"]) == 1)
    return {
        **kept,
        **_checked_categories(about, tree, np.flatnonzero(categorical), nodes),
        "split_type": categorical.astype(int).tolist(),
        "parents": parents.tolist(),
        "id": number,
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(columns),
            "num_nodes": str(nodes),
            "size_leaf_vector": "1",
        },
    }


def _checked_categories(
    about: str, tree: Mapping[str, Any], splits: np.ndarray, nodes: int
) -> dict[str, list[int]]:
    names = ("categories", "categories_nodes", "categories_segments", "categories_sizes")
    values, places, starts, sizes = (_integers(tree.get(name, [])) for name in names)
    right = (
        len(places) == len(starts) == len(sizes)
        and np.isin(splits, places).all()
        and (np.diff(places) > 0).all()
        and ((places >= 0) & (places < nodes)).all()
        and ((starts >= 0) & (sizes > 0) & (starts + sizes <= len(values))).all()
        and ((values >= 0) & (values < _MOST_CATEGORIES)).all()
    )
    if not right:
        raise ModelError(f"{about}: its categories are not where its splits look for them")
    return {name: tree.get(name, []) for name in names}


def _written(
    values: Mapping[str, Any], groups: int, model: Mapping[str, Any], trees: list[dict[str, Any]]
) -> bytes:
    """The model anew, of what was checked."""
    learner = values["learner"]
    shape = learner["learner_model_param"]
    numbers = json.loads(shape["base_score"].lower())
    if len(numbers if isinstance(numbers, list) else [numbers]) not in (1, groups):
        raise ValueError("base_score is not one number for each class")
    kept = {
        "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
        "gbtree_model_param": {
            "num_parallel_tree": str(int(model["gbtree_model_param"].get("num_parallel_tree", 1))),
            "num_trees": str(len(trees)),
        },
        "tree_info": model["tree_info"],
        "trees": trees,
    }
    if "iteration_indptr" in model:
        kept["iteration_indptr"] = model["iteration_indptr"]
    booster: dict[str, Any] = {"model": kept, "name": "gbtree"}
    if learner["gradient_booster"]["name"] == "dart":
        weights = [float(weight) for weight in learner["gradient_booster"]["weight_drop"]]
        booster = {"gbtree": booster, "name": "dart", "weight_drop": weights}
    anew = {
        "attributes": {},
        "feature_names": [],
        "feature_types": [],
        "gradient_booster": booster,
        "learner_model_param": {
            "base_score": shape["base_score"],
            "boost_from_average": "1",
            "num_class": str(int(shape["num_class"])),
            "num_feature": str(int(shape["num_feature"])),
            "num_target": "1",
        },
        "objective": learner["objective"],
    }
    return json.dumps({"learner": anew, "version": values["version"]}).encode()


def _integers(values: Sequence[int]) -> np.ndarray:
    found = np.asarray(values)
    if found.size and found.dtype.kind not in "iu":
        raise ValueError("a number that is not whole")
    return found.astype(np.int64)
