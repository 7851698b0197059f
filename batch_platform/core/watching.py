"""Data quality of a stage's rows: profiled while the gate reads them, judged by the partitions before.

Decides which columns are watched, what the history is, and how a verdict becomes a check. The profiles are kept, so that
neither the drift report nor a later partition reads the rows again. What is unusual `monitoring/quality.py` decides.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.data.partitions import PartitionCalendar
from batch_platform.core.features.chunks import PARENT_KEY
from batch_platform.core.gate import CheckResult
from batch_platform.core.layout import Layout
from batch_platform.core.monitoring.facts import Facts, facts_of
from batch_platform.core.monitoring.profile import Profile, Profiler
from batch_platform.core.monitoring.quality import (
    FRESHNESS,
    NULLS,
    RANGES,
    VALUES,
    VOLUME,
    Observed,
    QualityVerdict,
    judge_quality,
)
from batch_platform.core.monitoring.reference import ReferenceStore
from batch_platform.core.slice import Slice
from batch_platform.core.spec import LANDED_COLUMNS, PipelineSpec
from batch_platform.errors import MonitoringError, PartitionKeyError

WatchedStage = Literal["raw", "features"]
# The stages share the budget. Volume and freshness are the source's: features follow it.
QUALITY_CHECKS: Mapping[WatchedStage, tuple[str, ...]] = {
    "raw": (VOLUME, FRESHNESS, NULLS, RANGES, VALUES),
    "features": (NULLS, RANGES, VALUES),
}
_READERS = 8
_SHOWN_FINDINGS = 10


def watched_features(spec: PipelineSpec, names: Sequence[str]) -> list[str]:
    """Of the features, those that are watched: no keys, not sensitive, and chosen by `drift.columns`.

    Raises:
        MonitoringError: `drift.columns` names what is no feature that can be watched.
    """
    hidden = spec.sensitive_columns | {"row_key", PARENT_KEY, spec.source.row_key}
    watchable = [name for name in names if name not in hidden]
    if spec.drift.columns == "auto":
        return watchable
    if unknown := sorted(set(spec.drift.columns) - set(watchable)):
        raise MonitoringError(
            f"drift.columns names {', '.join(unknown)}; what can be watched is {', '.join(watchable)}"
        )
    return list(spec.drift.columns)


class Watch:
    """The rows of one stage of one partition: hand them to the gate through `passing`, then ask for `checks`."""

    def __init__(self, slice_: Slice, stage: WatchedStage, columns: Sequence[str]) -> None:
        """Watch these columns; of sensitive ones only whether there is a value."""
        self._slice, self._stage, self._columns = slice_, stage, columns
        self._masked = slice_.spec.sensitive_columns
        self._profiler = Profiler()

    @classmethod
    def of_raw(cls, slice_: Slice) -> "Watch":
        """Every column of the contract but the key."""
        source = slice_.spec.source
        return cls(
            slice_, "raw", [name for name in source.columns if name not in {source.row_key, *LANDED_COLUMNS}]
        )

    @classmethod
    def of_features(cls, slice_: Slice, names: Sequence[str]) -> "Watch":
        """The features that drift watches.

        Raises:
            MonitoringError: `drift.columns` names what is no feature that can be watched.
        """
        try:
            return cls(slice_, "features", watched_features(slice_.spec, names))
        except MonitoringError as error:
            raise MonitoringError(f"{slice_.about}: {error}") from None

    def passing(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches, each profiled as it passes."""
        for batch in batches:
            names = [name for name in self._columns if name in batch.schema.names]
            columns = [_masked(batch[name]) if name in self._masked else batch[name] for name in names]
            self._profiler.add(pa.table(columns, names) if names else batch.select([]))
            yield batch

    @cached_property
    def profile(self) -> Profile:
        """Of all rows that have passed."""
        return self._profiler.profile()

    @cached_property
    def content(self) -> bytes:
        """The profile's bytes."""
        return self.profile.to_bytes()

    @property
    def digest(self) -> str:
        """SHA-256 of the profile's bytes, for the receipt."""
        return hashlib.sha256(self.content).hexdigest()

    def checks(self) -> tuple[CheckResult, ...]:
        """The verdicts on the rows that have passed."""
        severity = self._slice.spec.quality.severity
        try:
            verdicts = self._verdicts
        except (
            MonitoringError
        ) as error:  # of a file of monitoring, which is no reason to lose the rows' other checks
            return tuple(
                CheckResult(check, False, f"cannot be judged: {error}", severity=severity)
                for check in QUALITY_CHECKS[self._stage]
            )
        return tuple(
            CheckResult(check, verdict.status != "alert", verdict.message, _values(verdict), severity)
            for check, verdict in verdicts.items()
        )

    def keep(self) -> None:
        """Keep profile and verdicts of rows that stand now.

        Raises:
            StorageError: they cannot be written.
        """
        ReferenceStore(self._slice.layout.monitoring).save_content(self._stage, self._slice.key, self.content)
        told = {
            check.name: {"passed": check.passed, "message": check.description, **check.values}
            for check in self.checks()
        }
        path = quality_file(self._slice.layout, self._slice.key, self._stage)
        content = json.dumps(told, indent=1, ensure_ascii=False).encode()
        if files.read_if_there(path) != content:
            files.replace(path, content)

    @cached_property
    def _verdicts(self) -> dict[str, QualityVerdict]:
        spec, key = self._slice.spec, self._slice.key
        store = ReferenceStore(self._slice.layout.monitoring)
        earlier = [each for each in store.keys(self._stage) if each < key]
        keys = earlier[-spec.quality.history_partitions :]
        with ThreadPoolExecutor(_READERS) as pool:
            contents = list(pool.map(lambda each: store.content(self._stage, each), keys))
        calendar = spec.partitions.calendar()
        past = [
            _observed(calendar, each, store.facts(self._stage, each, content))
            for each, content in zip(keys, contents, strict=True)
        ]
        budget = spec.drift.false_alarms_per_quarter / len(QUALITY_CHECKS)
        now = Observed.of(self._slice.partition.start, self._slice.partition.end, facts_of(self.profile))
        known = [each for each in past if each is not None]
        return judge_quality(known, now, QUALITY_CHECKS[self._stage], budget)


def quality_file(layout: Layout, partition_key: str, stage: WatchedStage) -> Location:
    """Where the verdicts on a partition's quality are."""
    return layout.report(partition_key) / f"quality-{stage}.json"


def quality_of(layout: Layout, partition_key: str) -> dict[str, dict[str, Any]]:
    """The verdicts on a partition's quality by `stage check`; those of a stage that was not judged are left out.

    Raises:
        MonitoringError: they cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for stage in QUALITY_CHECKS:
        path = quality_file(layout, partition_key, stage)
        content = files.read_if_there(path)
        if content is None:
            continue
        try:
            told = json.loads(content)
            for check, each in told.items():
                found[f"{stage} {check}"] = {**each, "passed": each["passed"], "message": each["message"]}
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise MonitoringError(
                f"{path}: cannot be read ({error!r}); materialize {layout.pipeline}/{stage} for {partition_key} again"
            ) from None
    return found


def unusual(layout: Layout, partition_key: str) -> dict[str, str]:
    """What is not as usual in a partition's quality: `stage check` -> what was found.

    Raises:
        MonitoringError: the verdicts cannot be read.
    """
    return {
        check: told["message"]
        for check, told in quality_of(layout, partition_key).items()
        if not told["passed"]
    }


def _observed(calendar: PartitionCalendar, partition_key: str, facts: Facts) -> Observed | None:
    """The partition; None where the pipeline has not that one any more."""
    try:
        partition = calendar.partition(partition_key)
    except PartitionKeyError:
        return None
    return Observed.of(partition.start, partition.end, facts)


def _values(verdict: QualityVerdict) -> dict[str, Any]:
    values: dict[str, Any] = {
        "status": verdict.status,
        "partitions_before": verdict.partitions,
        "statistics": verdict.statistics,
        "season": verdict.season,
    }
    shown = verdict.findings[:_SHOWN_FINDINGS]
    return values | {f"{found.column} {found.statistic}".strip(): found.words for found in shown}


def _masked(column: pa.Array) -> pa.Array:
    """Of a sensitive column whether there is a value, and nothing of the value."""
    return pc.if_else(column.is_valid(), True, pa.scalar(None, pa.bool_()))
