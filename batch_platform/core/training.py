"""What trainings share: labelled rows, read and featurized exactly as for scoring, and honest measures.

Decides how source, contract, recipe and labels come together over a range of days. A row that scoring would
quarantine is no training row. It does not know models, and writes nothing.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batch_platform.core.data.intake import read_partition
from batch_platform.core.data.partitions import Partition, PartitionCalendar
from batch_platform.core.data.sources import read_table
from batch_platform.core.features.lookups import beside, join_lookups
from batch_platform.core.features.recipe import Recipe
from batch_platform.core.featurizing import recipe_with
from batch_platform.core.models.registry import Registry
from batch_platform.core.spec import LabelsSpec, PipelineSpec
from batch_platform.errors import ModelError, PipelineFileError, SourceError, SourceMissingError
from batch_platform.settings import Settings


@dataclass(frozen=True)
class LabelledRows:
    """Feature rows that have a label.

    Attributes:
        features: the recipe's output, (rows, features).
        labels: (rows,) the true label of each row, as text; of several the last.
        partitions: (rows,) the partition key of each row.
        all_labels: (rows,) all labels of each row, which for a ranking are its right items; or none, where not needed.
    """

    features: pa.Table
    labels: list[str]
    partitions: list[str]
    all_labels: list[list[str]] = field(default_factory=list)

    def between(self, first: str, end: str) -> "LabelledRows":
        """The rows of partitions from `first` up to, but not including, `end`."""
        return self.where([first <= key < end for key in self.partitions])

    def where(self, chosen: Sequence[bool]) -> "LabelledRows":
        """The rows for which `chosen`, (rows,), is true, in their order."""
        mask = pa.array(chosen, pa.bool_())
        return LabelledRows(
            self.features.filter(mask).combine_chunks(),
            list(compress(self.labels, chosen)),
            list(compress(self.partitions, chosen)),
            list(compress(self.all_labels, chosen)),
        )


def labelled_rows(spec: PipelineSpec, base: Path, first: str, end: str) -> LabelledRows:
    """Read all labelled rows of a range of partitions.

    Args:
        spec: the pipeline; it must have `labels`.
        base: the project's folder, from which relative uris start.
        first: first partition, which may lie before those that the pipeline scores.
        end: first partition that is not read any more.

    Raises:
        PipelineFileError: the pipeline has no labels.
        SourceError: rows or labels cannot be read, or there is no labelled row in the range.
        RecipeError: the recipe cannot be loaded, or fails on a row.
    """
    if spec.labels is None:
        raise PipelineFileError(f"{spec.name}: training needs labels: add the field labels")
    calendar = PartitionCalendar.of(spec.partitions.cadence, first, end, spec.partitions.timezone)
    assert calendar.end is not None
    features: list[pa.RecordBatch] = []
    labels: list[list[str]] = []
    partitions: list[str] = []
    for partition in calendar.partitions(calendar.end):
        truth = _labels(spec.labels, partition, base)
        for raw, recipe in _raw(spec, partition, base):
            known = [truth.get(key) for key in raw.column("row_key").to_pylist()]
            is_known = pa.array([label is not None for label in known], pa.bool_())
            features.append(recipe.apply(raw.filter(is_known)))
            labels += [label for label in known if label is not None]
            partitions += [partition.key] * features[-1].num_rows
    if not labels:
        raise SourceError(
            f"{spec.name}: no labelled rows from {first} to {end}: check source.uri and labels.uri"
        )
    table = pa.Table.from_batches(features).combine_chunks()
    return LabelledRows(table, [found[-1] for found in labels], partitions, labels)


def _raw(spec: PipelineSpec, partition: Partition, base: Path) -> Iterator[tuple[pa.RecordBatch, Recipe]]:
    """The good rows of a partition with the columns of the lookups, and the recipe for them."""
    batches = [raw for raw, _ in read_partition(spec.source, partition, base)]

    def columns(names: list[str]) -> Iterator[pa.RecordBatch]:
        return (batch.select(names) for batch in batches)

    with tempfile.TemporaryDirectory(prefix="batch_platform-training-") as folder:
        joined = join_lookups(spec, partition, columns, base, Path(folder))
        recipe = recipe_with(spec, joined)
        for batch in beside(batches, joined):
            for name in (name for each in joined for name in each.required):
                batch = batch.filter(batch[name].is_valid())  # noqa: PLW2901 - what is left of it
            yield batch, recipe


def need_sklearn(pipeline: str) -> None:
    """Refuse a training whose baseline could not be made, before minutes are spent on it.

    Raises:
        ModelError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ModelError(
            f"{pipeline}: the training compares its model with a scikit-learn baseline: install the extra `demo` "
            "(pip install 'batch_platform[demo]')"
        )


def progress(pipeline: str, text: str) -> None:
    """Say how far a training is, at once."""
    sys.stdout.write(f"[{pipeline}] {text}\n")
    sys.stdout.flush()


def say_threshold(spec: PipelineSpec, threshold: float) -> None:
    """Say which threshold the held-out rows ask for, beside the one that the pipeline file decides by."""
    if spec.decision is not None and spec.decision.rules is None:
        progress(
            spec.name,
            f"training: the held-out rows ask for the threshold {threshold}; decision.threshold in the pipeline "
            f"file is {spec.decision.threshold}",
        )


def _labels(spec: LabelsSpec, partition: Partition, base: Path) -> dict[str, list[str]]:
    """The labels of a partition by row key, in the order read; empty where none have arrived."""
    found: dict[str, list[str]] = {}
    try:
        for batch in read_table(spec, partition, {spec.row_key: "text", spec.column: "text"}, base):
            columns = (batch.batch.column(name).to_pylist() for name in (spec.row_key, spec.column))
            for key, label in zip(*columns, strict=True):
                if key and label:
                    found.setdefault(key, []).append(label)
    except SourceMissingError:
        return {}
    return found


def binary_metrics(
    truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], threshold: float
) -> dict[str, float]:
    """How well scores tell two classes apart.

    Args:
        truth: (rows,) whether a row is of the positive class; both classes must be there.
        scores: (rows,) its probability.
        threshold: scores at or above it count as positive.

    Returns:
        accuracy, precision, recall, f1 at the threshold, and auc (area under the ROC curve), to 4 digits.
    """
    from scipy.stats import rankdata

    flagged = scores >= threshold
    right = int((flagged & truth).sum())
    positives, negatives = int(truth.sum()), int((~truth).sum())
    ranks = rankdata(scores)[truth].sum()
    values = {
        "accuracy": (flagged == truth).mean(),
        "precision": right / max(int(flagged.sum()), 1),
        "recall": right / positives,
        "f1": 2 * right / (int(flagged.sum()) + positives),
        "auc": (ranks - positives * (positives + 1) / 2) / (positives * negatives),
    }
    return {name: round(float(value), 4) for name, value in values.items()}


def precise_threshold(
    truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], precision: float
) -> float:
    """The lowest threshold at which at least this share of the flagged held-out rows is positive.

    Where no threshold reaches it, the highest score.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    reached = np.cumsum(truth[order]) / np.arange(1, len(ranked) + 1) >= precision
    # Equal scores fall on the same side of any threshold, so that only the last of them counts.
    reached[:-1] &= ranked[:-1] > ranked[1:]
    places = np.flatnonzero(reached)
    return float(ranked[places[-1]] if len(places) else ranked[0])


def base_rate_threshold(truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    """The threshold that flags as many held-out rows as are positive, so that precision equals recall."""
    return float(np.quantile(scores, 1.0 - truth.mean()))


def alias_of_new(spec: PipelineSpec, settings: Settings) -> str:
    """The alias that a version just trained gets: the pipeline's; where it has a champion and a challenger, the latter's.

    Such a version becomes champion through the promotion gate (`batch-platform models promote`).
    """
    champion = Registry(settings.root).aliases(spec.model.name).get(spec.model.alias)
    return spec.model.challenger if champion and spec.model.challenger else spec.model.alias


def unreviewed() -> dict[str, str]:
    """What the card of a model says that only its own training has measured: so, and that it holds for a year."""
    expires = datetime.now(UTC).date() + timedelta(days=365)
    return {
        "validator": "nobody: measured by its own training, on rows that it held out",
        "expires": expires.isoformat(),
    }
