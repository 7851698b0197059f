"""Stage `performance`: the predictions of one partition held against the labels that have arrived.

Labels come late: the stage is run again and judges with what is there. It holds keys, scores and labels of one
partition, no features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batch_platform.core.data.partitions import Partition
from batch_platform.core.data.sources import read_files
from batch_platform.core.gate import CheckResult
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.monitoring.performance import Performance, classification, regression
from batch_platform.core.provenance.fingerprint import fingerprint
from batch_platform.core.provenance.receipts import inherited, read_from
from batch_platform.core.slice import Slice, StageResult, commit_small
from batch_platform.core.spec import LabelsSpec
from batch_platform.errors import SignatureError, SourceMissingError

# Fewer labelled rows than this say little about a model.
_ENOUGH_ROWS = 30
_LABELS = pa.schema([("row_key", pa.string()), ("label", pa.string())])


def evaluate_partition(slice_: Slice) -> StageResult:
    """Compare one partition's predictions with its labels.

    Raises:
        UpstreamMissingError: the partition has not been scored.
        SourceError: labels are there and cannot be read.
        SignatureError: the model makes embeddings or texts, which no label can be held against.
        StorageError: the lake cannot be written.
    """
    labels_spec = slice_.spec.labels
    assert labels_spec is not None  # the stage exists only with labels
    predictions = slice_.committed("predictions")
    signature = ModelSignature.from_dict(predictions.receipt["signature"])
    if signature.task in ("embedding", "generation"):
        raise SignatureError(
            f"{slice_.about}: labels cannot be compared with the outputs of a model for {signature.task}; remove `labels` "
            "from the pipeline file"
        )
    labels = _labels(slice_, labels_spec)
    identity = fingerprint({"predictions": predictions.fingerprint, "labels": sorted(labels.items())})
    what = {**inherited(predictions.receipt), **read_from("predictions", predictions.receipt)}
    _commit_labels(slice_, labels, identity, what)
    measured = _measure(signature, *_join(slice_, signature, labels))
    performance = measured.performance
    rows = pa.RecordBatch.from_pylist(
        [{"metric": name, "value": value} for name, value in performance.metrics.items()],
        pa.schema([("metric", pa.string()), ("value", pa.float64())]),
    )
    commit_small(slice_, "performance", rows, identity, **what, rows_in=len(labels))
    expected = sum(file["rows"] for file in predictions.receipt["files"])
    return StageResult(
        table="performance",
        rows=performance.rows,
        data_version=identity,
        reused=False,
        checks=(_judge(slice_, labels_spec, measured, expected),),
        metadata={
            "labelled": performance.rows,
            "predictions": expected,
            "labels_without_prediction": len(labels) - performance.rows - measured.unknown,
            "labels_unknown_to_the_model": measured.unknown,
            **performance.metrics,
        },
        markdown=_markdown(performance, expected),
        trend=slice_.layout.trend,
    )


# -- labels -----------------------------------------------------------------------------------------------


def _labels(slice_: Slice, spec: LabelsSpec) -> dict[str, str]:
    """Row key -> label as text. Of several labels for one row the last one read counts: corrections come later."""
    columns: dict[str, Any] = {spec.row_key: "text", spec.column: "text"}
    if spec.partition_column is not None:
        columns[spec.partition_column] = "text"
    uri = spec.uri.replace("{partition}", slice_.key)
    found: dict[str, str] = {}
    try:
        for read in read_files(uri, spec.format, columns, slice_.base):
            for row in read.batch.to_pylist():
                if spec.partition_column is not None and not _names(
                    row[spec.partition_column], slice_.partition
                ):
                    continue
                key, label = row[spec.row_key], row[spec.column]
                if key is not None and label is not None:
                    found[key] = label
    except SourceMissingError:
        return {}  # they have not arrived; the check says when they should have
    return found


def _names(value: str | None, partition: Partition) -> bool:
    """Whether a partition column's text names the partition: its key, or the time at which it starts."""
    if value is None:
        return False
    start = f"{partition.start:%Y-%m-%d %H:%M}:00"
    return value == partition.key or value.replace("T", " ").startswith(start)


def _commit_labels(slice_: Slice, labels: dict[str, str], identity: str, what: Mapping[str, Any]) -> None:
    rows = pa.RecordBatch.from_pydict({"row_key": list(labels), "label": list(labels.values())}, _LABELS)
    commit_small(slice_, "labels", rows, identity, **what, rows_in=len(labels))


# -- measuring --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """Performance on the usable labels; `unknown` labels are none of the model's, or no numbers."""

    performance: Performance
    unknown: int


def _join(
    slice_: Slice, signature: ModelSignature, labels: dict[str, str]
) -> tuple[NDArray[np.float64], list[str]]:
    """Outputs and labels of the labelled rows: (rows, labels or 1) float64, and (rows,) texts."""
    is_classifier = signature.task == "classification"
    column, width = ("scores", len(signature.labels)) if is_classifier else ("prediction", 1)
    outputs, truth = [np.empty((0, width))], list[str]()
    for batch in slice_.lake.batches("predictions", slice_.key, ["row_key", column]):
        known = [labels.get(key) for key in batch["row_key"].to_pylist()]
        rows = pa.array([row for row, label in enumerate(known) if label is not None], pa.int64())
        values = batch[column].take(rows)
        flat = values.flatten() if is_classifier else values
        outputs.append(flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, width))
        truth += [label for label in known if label is not None]
    return np.concatenate(outputs), truth


def _measure(signature: ModelSignature, outputs: NDArray[np.float64], truth: list[str]) -> _Measured:
    if signature.task == "classification":
        usable = [row for row, label in enumerate(truth) if label in signature.labels]
        kept = [truth[row] for row in usable]
        found = classification(outputs[usable], kept, signature.labels, signature.positive_class)
        return _Measured(found, len(truth) - len(usable))
    numbers = np.array([_number(label) for label in truth], np.float64)
    finite = np.isfinite(numbers)
    return _Measured(regression(outputs[finite, 0], numbers[finite]), int((~finite).sum()))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


# -- judging ----------------------------------------------------------------------------------------------


def _judge(slice_: Slice, spec: LabelsSpec, measured: _Measured, expected: int) -> CheckResult:
    """Red where labels do not fit the model, are overdue, or show the model to be of no use."""
    performance = measured.performance
    values = {"labelled": performance.rows, "predictions": expected, **performance.metrics}
    if measured.unknown:
        words = f"{measured.unknown} labels are none that the model knows; check labels.column"
        return CheckResult("performance", False, words, values)
    if not performance.rows:
        due = slice_.partition.end + timedelta(days=spec.horizon_days)
        overdue = expected > 0 and datetime.now(UTC) >= due
        words = f"no labels yet; they are due by {due:%Y-%m-%d}" if expected else "no predictions to judge"
        return CheckResult("performance", not overdue, words, values, severity="warn")
    useless = _useless(performance)
    words = f"{performance.rows} of {expected} predictions labelled"
    return CheckResult("performance", useless is None, useless or words, values)


def _useless(performance: Performance) -> str | None:
    """Say why the model is of no use: worse than chance or than the mean, beyond what noise explains."""
    auc_high, r2_high = performance.metrics.get("auc_high"), performance.metrics.get("r2_high")
    if performance.rows < _ENOUGH_ROWS:
        return None
    if auc_high is not None and auc_high < 0.5:
        return (
            f"AUC is below 0.5 with confidence (at most {auc_high:.3f}): the scores order rows the wrong way"
        )
    if r2_high is not None and r2_high < 0:
        return f"R2 is below 0 with confidence (at most {r2_high:.3f}): the mean of the labels would predict better"
    return None


def _markdown(performance: Performance, expected: int) -> str:
    lines = [
        f"{performance.rows} of {expected} predictions have labels.",
        "",
        "| metric | value |",
        "|---|---|",
    ]
    lines += [
        f"| {name} | {'' if value is None else f'{value:.4f}'} |"
        for name, value in performance.metrics.items()
    ]
    return "\n".join([*lines, "", *performance.notes])
