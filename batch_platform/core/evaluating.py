"""Stage `performance`: the predictions of one partition held against the labels that have arrived.

Labels come late: the stage is run again and judges with what is there. It holds keys, scores and labels of one
partition, no features.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batch_platform.core.data.cells import CellType
from batch_platform.core.data.finding import find_files
from batch_platform.core.data.lake import Lake, Slot
from batch_platform.core.data.partitions import Partition
from batch_platform.core.data.readers.delta import delta_version
from batch_platform.core.data.sources import read_table
from batch_platform.core.gate import CheckResult
from batch_platform.core.layout import Layout
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.monitoring import performance_words
from batch_platform.core.monitoring.calibration import BLIND_SPOT, Counts, estimate_binary
from batch_platform.core.monitoring.performance import Performance, classification, ranking, regression
from batch_platform.core.provenance.fingerprint import code_version, fingerprint
from batch_platform.core.provenance.receipts import inherited, read_from
from batch_platform.core.slice import Slice, StageResult, commit_small
from batch_platform.core.spec import LabelsSpec, PipelineSpec
from batch_platform.errors import MonitoringError, SignatureError, SourceMissingError
from batch_platform.settings import Settings

# Fewer labelled rows than this say little about a model.
_ENOUGH_ROWS = 30
_MOST_SEGMENTS = 12
_CALIBRATING_PARTITIONS = 28
_GRACE_DAYS = 7
_MOST_LOOKED_AT = 400
_ERRORS = frozenset({"log_loss", "brier", "mae", "rmse"})
_TWO_LABELS = frozenset({"accuracy", "auc", "precision", "recall", "f1", "log_loss", "brier"})
_MANY_LABELS = frozenset({"accuracy", "reciprocal_rank", "top_3_accuracy", "log_loss", "brier"})
_REGRESSION = frozenset({"mae", "rmse", "r2"})
_RANKING = frozenset({"recall", "ndcg", "hit_rate", "reciprocal_rank"})
_METRICS = pa.schema(
    [
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("segment", pa.string()),
        ("segment_value", pa.string()),
    ]
)
_LABELS = pa.schema([("row_key", pa.string()), ("label", pa.string())])


def evaluate_partition(slice_: Slice) -> StageResult:
    """Compare one partition's predictions with its labels.

    Raises:
        UpstreamMissingError: the partition has not been scored.
        SourceError: labels are there and cannot be read.
        SignatureError: the model makes embeddings or texts, which no label can be held against, or has no metric
            that `labels.floors` names.
        MonitoringError: `labels.segments` names what is no feature.
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
    _check_floors(slice_, labels_spec, signature)
    # Before they are read: a file that changes meanwhile is seen as changed afterwards.
    stamp = labels_stamp(labels_spec, slice_.partition, slice_.base)
    labels = _labels(slice_, labels_spec, signature)
    judged = {"floors": labels_spec.floors, "segments": labels_spec.segments}
    identity = fingerprint(
        {
            "predictions": predictions.fingerprint,
            "labels": sorted((key, label) for key, found in labels.items() for label in found),
            "judged": judged,
            "code": code_version("monitoring/performance.py", "monitoring/calibration.py", "evaluating.py"),
        }
    )
    what = {**inherited(predictions.receipt), **read_from("predictions", predictions.receipt)}
    _commit_labels(slice_, labels, identity, what)
    joined = _join(slice_, signature, labels)
    measured = _measure(signature, joined)
    performance = measured.performance
    segments = _segments(slice_, labels_spec, signature, joined)
    expected = predictions.rows
    estimated = {} if performance.rows >= expected else _estimate(slice_, signature)
    _commit_metrics(
        slice_,
        performance,
        estimated,
        segments,
        identity,
        {**what, "rows_in": sum(map(len, labels.values())), "labels_files": stamp},
    )
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
            **estimated,
            **({"estimate": BLIND_SPOT} if estimated else {}),
        },
        markdown=performance_words.markdown(performance, expected, estimated, segments),
        trend=slice_.layout.trend,
    )


def _commit_metrics(
    slice_: Slice,
    performance: Performance,
    estimated: Mapping[str, float | None],
    segments: Mapping[tuple[str, str], Performance],
    identity: str,
    what: Mapping[str, Any],
) -> None:
    whole = {**performance.metrics, **estimated}
    rows: list[tuple] = [(name, value, None, None) for name, value in whole.items()]
    rows += [
        (name, value, column, segment)
        for (column, segment), found in segments.items()
        for name, value in {**found.metrics, "rows": float(found.rows)}.items()
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(_METRICS)
    arrays = [pa.array(values, kind.type) for values, kind in zip(columns, _METRICS, strict=True)]
    counts = None if performance.counts is None else asdict(performance.counts)
    batch = pa.RecordBatch.from_arrays(arrays, schema=_METRICS)
    commit_small(slice_, "performance", batch, identity, calibration=counts, **what)


# -- labels -----------------------------------------------------------------------------------------------


def _labels(slice_: Slice, spec: LabelsSpec, signature: ModelSignature) -> dict[str, list[str]]:
    """Row key -> labels as texts. Of several the last one read counts: corrections come later. Of a ranking all do, once."""
    found: dict[str, list[str]] = {}
    try:
        for key, label in _pairs(spec, slice_.partition, slice_.base):
            if signature.task != "ranking":
                found[key] = [label]
            elif label not in found.setdefault(key, []):
                found[key].append(label)
    except SourceMissingError:
        return {}  # they have not arrived; the check says when they should have
    return found


def _pairs(spec: LabelsSpec, partition: Partition, base: Path) -> Iterator[tuple[str, str]]:
    """Row keys and labels of a partition as texts, in the order read."""
    columns: dict[str, CellType] = {spec.row_key: "text", spec.column: "text"}
    if spec.partition_column is not None:
        columns[spec.partition_column] = "text"
    for read in read_table(spec, partition, columns, base):
        for row in read.batch.to_pylist():
            is_ours = spec.partition_column is None or _names(row[spec.partition_column], partition)
            if is_ours and row[spec.row_key] is not None and row[spec.column] is not None:
                yield row[spec.row_key], row[spec.column]


def labels_stamp(spec: LabelsSpec, partition: Partition, base: Path) -> str:
    """What stands for the labels of a partition as they are now; empty for none.

    Of files their names, sizes and times; of a Delta table its version; of a query what it gives.

    Raises:
        SourceError: the table or the database cannot be read.
    """
    uri = (spec.uri or "").replace("{partition}", partition.key)
    try:
        if spec.format == "sql":
            given = list(_pairs(spec, partition, base))
            return fingerprint({"rows": given}) if given else ""
        if spec.format == "delta":
            return fingerprint({"version": delta_version(uri, base)})
        found = find_files(uri, spec.format, base)
        stats = [[path.name, path.stat().st_size, path.stat().st_mtime] for path in found]
    except (SourceMissingError, FileNotFoundError):
        return ""
    return fingerprint({"files": stats})


def with_new_labels(
    spec: PipelineSpec, settings: Settings, base: Path, now: datetime
) -> list[tuple[str, str]]:
    """Measured partitions whose label files are others now, with the files' stamp, oldest first.

    Args:
        now: aware; partitions that ended more than the labels' horizon and a week before are left alone.
    """
    labels = spec.labels
    if labels is None:
        return []
    calendar, lake = spec.partitions.calendar(), Lake(Layout.of(settings, spec.name))
    oldest = now - timedelta(days=labels.horizon_days + _GRACE_DAYS)
    stamps: dict[str, str] = {}
    found = []
    for partition in calendar.newest(now, _MOST_LOOKED_AT):
        measured = lake.head(Slot("performance", partition.key)) if partition.end >= oldest else None
        if measured is not None:
            # Files and tables that all partitions share are looked at once.
            shared = (labels.uri or partition.key).replace("{partition}", partition.key)
            if shared not in stamps:
                stamps[shared] = labels_stamp(labels, partition, base)
            if stamps[shared] not in ("", measured.receipt.get("labels_files")):
                found.append((partition.key, stamps[shared]))
    return found


def _names(value: str | None, partition: Partition) -> bool:
    """Whether a partition column's text names the partition: its key, or the time at which it starts."""
    if value is None:
        return False
    start = f"{partition.start:%Y-%m-%d %H:%M}:00"
    return value == partition.key or value.replace("T", " ").startswith(start)


def _commit_labels(
    slice_: Slice, labels: dict[str, list[str]], identity: str, what: Mapping[str, Any]
) -> None:
    pairs = [(key, label) for key, found in labels.items() for label in found]
    columns = {"row_key": [key for key, _ in pairs], "label": [label for _, label in pairs]}
    rows = pa.RecordBatch.from_pydict(columns, _LABELS)
    commit_small(slice_, "labels", rows, identity, **what, rows_in=len(pairs))


# -- measuring --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Joined:
    """Outputs of the labelled rows, (rows, labels or 1) float64 or (rows, top_k) texts, and (rows,) labels and keys."""

    outputs: NDArray[Any]
    truth: list[list[str]]
    keys: list[str]

    def take(self, rows: Sequence[int]) -> "_Joined":
        return _Joined(
            self.outputs[list(rows)], [self.truth[row] for row in rows], [self.keys[row] for row in rows]
        )


@dataclass(frozen=True)
class _Measured:
    """Performance on the usable labels; `unknown` labels are none of the model's, or no numbers."""

    performance: Performance
    unknown: int


def _join(slice_: Slice, signature: ModelSignature, labels: dict[str, list[str]]) -> _Joined:
    outputs, truth, keys = [_no_outputs(signature)], list[list[str]](), list[str]()
    for batch, values in _outputs(slice_, signature):
        known = [labels.get(key) for key in batch["row_key"].to_pylist()]
        rows = [row for row, label in enumerate(known) if label is not None]
        outputs.append(values[rows])
        truth += [label for label in known if label is not None]
        keys += batch["row_key"].take(pa.array(rows, pa.int64())).to_pylist()
    return _Joined(np.concatenate(outputs), truth, keys)


_MEASURED = {"classification": "scores", "ranking": "items", "regression": "prediction"}


def _outputs(slice_: Slice, signature: ModelSignature) -> Iterator[tuple[pa.RecordBatch, NDArray[Any]]]:
    """The predictions in batches, and their outputs as (rows, labels or 1) float64 or (rows, top_k) texts."""
    column, empty = _MEASURED[signature.task], _no_outputs(signature)
    for batch in slice_.lake.batches("predictions", slice_.key, ["row_key", column]):
        flat = batch[column] if signature.task == "regression" else batch[column].flatten()
        values = flat.to_numpy(zero_copy_only=False).astype(empty.dtype)
        yield batch, values.reshape(-1, empty.shape[1])


def _no_outputs(signature: ModelSignature) -> NDArray[Any]:
    if signature.task == "ranking":
        return np.empty((0, signature.top_k or 0), np.object_)
    return np.empty((0, len(signature.labels) if signature.task == "classification" else 1))


def _measure(signature: ModelSignature, joined: _Joined) -> _Measured:
    if signature.task == "ranking":
        return _Measured(ranking(joined.outputs.tolist(), joined.truth), 0)
    truth = [label for (label,) in joined.truth]
    if signature.task == "classification":
        known = [row for row, label in enumerate(truth) if label in signature.labels]
        found = classification(
            joined.outputs[known], [truth[row] for row in known], signature.labels, signature.positive_class
        )
        return _Measured(found, len(truth) - len(known))
    numbers = np.array([_number(label) for label in truth], np.float64)
    finite = np.isfinite(numbers)
    return _Measured(regression(joined.outputs[finite, 0], numbers[finite]), int((~finite).sum()))


def _segments(
    slice_: Slice, spec: LabelsSpec, signature: ModelSignature, joined: _Joined
) -> dict[tuple[str, str], Performance]:
    """Performance by (column, value) for the most frequent values of the segmenting columns."""
    if not spec.segments or not joined.keys:
        return {}
    values = _segment_values(slice_, spec.segments, joined.keys)
    found: dict[tuple[str, str], Performance] = {}
    for column, known in values.items():
        for segment, count in Counter(known).most_common(_MOST_SEGMENTS):
            if count >= _ENOUGH_ROWS:
                rows = [row for row, value in enumerate(known) if value == segment]
                found[column, segment] = _measure(signature, joined.take(rows)).performance
    return found


def _segment_values(slice_: Slice, columns: list[str], keys: list[str]) -> dict[str, list[str]]:
    """The labelled rows' values of features, as texts, in the order of the keys.

    Raises:
        MonitoringError: a column is no feature, or is sensitive.
    """
    schema = slice_.lake.schema("features")
    names = set() if schema is None else set(schema.names) - slice_.spec.sensitive_columns
    if unknown := sorted(set(columns) - names):
        raise MonitoringError(
            f"{slice_.about}: labels.segments names {', '.join(unknown)}; features that are not sensitive: "
            f"{', '.join(sorted(names - {'row_key'}))}"
        )
    place = {key: row for row, key in enumerate(keys)}
    found = {column: ["(no value)"] * len(keys) for column in columns}
    for batch in slice_.lake.batches("features", slice_.key, ["row_key", *columns]):
        rows = [place.get(key) for key in batch["row_key"].to_pylist()]
        for column in columns:
            for row, value in zip(rows, batch[column].to_pylist(), strict=True):
                if row is not None and value is not None:
                    found[column][row] = str(value)
    return found


# -- without labels ---------------------------------------------------------------------------------------


def _estimate(slice_: Slice, signature: ModelSignature) -> dict[str, float | None]:
    """What the scores of all rows promise; corrected by how they kept their word on labelled partitions before."""
    if signature.task != "classification" or not slice_.committed("predictions").rows:
        return {}
    outputs = np.concatenate([values for _, values in _outputs(slice_, signature)])
    if len(signature.labels) != 2:
        return {"estimated_accuracy": float(outputs.max(axis=1).mean())}
    positive = signature.positive_class or signature.labels[1]
    column = signature.labels.index(positive)
    counts = _counts_before(slice_)
    found = estimate_binary(counts.corrected(outputs[:, column]), outputs.argmax(axis=1) == column)
    return found | {"estimate_calibrated_on": float(sum(counts.rows))}


def _counts_before(slice_: Slice) -> Counts:
    """The calibration of the newest labelled partitions before this one that were scored by the same model."""
    model = slice_.committed("predictions").receipt.get("model_digest")
    found: list[Counts] = []
    for key in sorted(slice_.lake.partition_rows("labels"), reverse=True):
        if key < slice_.key and len(found) < _CALIBRATING_PARTITIONS:
            scored = slice_.lake.head(Slot("predictions", key))
            measured = slice_.lake.head(Slot("performance", key))
            if scored is None or measured is None or scored.receipt.get("model_digest") != model:
                continue
            if counts := measured.receipt.get("calibration"):
                found.append(Counts(tuple(counts["rows"]), tuple(counts["positives"])))
    return Counts.together(found)


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
    bad = _useless(performance) or _below_floor(performance, spec)
    words = f"{performance.rows} of {expected} predictions labelled"
    return CheckResult("performance", bad is None, bad or words, values)


def _check_floors(slice_: Slice, spec: LabelsSpec, signature: ModelSignature) -> None:
    """Refuse a floor under what the model's task does not have.

    Raises:
        SignatureError: names it.
    """
    many = len(signature.labels) != 2
    of_tasks = {"regression": _REGRESSION, "ranking": _RANKING}
    having = of_tasks.get(signature.task, _MANY_LABELS if many else _TWO_LABELS)
    if wrong := [name for name in spec.floors if name not in having]:
        raise SignatureError(
            f"{slice_.about}: labels.floors names {', '.join(wrong)}, which this model's outputs do not give; use "
            f"{', '.join(sorted(having))}"
        )


def _below_floor(performance: Performance, spec: LabelsSpec) -> str | None:
    """Say which floors are broken beyond what noise explains; None for none, or too few rows to say."""
    broken = []
    for name, floor in spec.floors.items():
        is_error = name in _ERRORS
        value = performance.metrics.get(name)
        best = performance.metrics.get(f"{name}_{'low' if is_error else 'high'}")
        if value is None or best is None or performance.rows < _ENOUGH_ROWS:
            continue
        if best > floor if is_error else best < floor:
            side = "above" if is_error else "below"
            broken.append(
                f"{name} is {value:.3f}, {side} the floor of {floor:g} with confidence (at best {best:.3f})"
            )
    return "; ".join(broken) or None


def _useless(performance: Performance) -> str | None:
    """Say why the model is of no use: worse than chance or than the mean, beyond what noise explains."""
    auc_high, r2_high = performance.metrics.get("auc_high"), performance.metrics.get("r2_high")
    if performance.rows < _ENOUGH_ROWS:
        return None
    if performance.metrics.get("top_k") and not performance.metrics["hit_rate"]:
        return f"no item of any of the {performance.rows} lists is among the labels; check labels.column"
    if auc_high is not None and auc_high < 0.5:
        return (
            f"AUC is below 0.5 with confidence (at most {auc_high:.3f}): the scores order rows the wrong way"
        )
    if r2_high is not None and r2_high < 0:
        return f"R2 is below 0 with confidence (at most {r2_high:.3f}): the mean of the labels would predict better"
    return None
