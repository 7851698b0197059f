"""Data quality of a stage's rows: profiled while the gate reads them, judged by the partitions before.

Decides which columns are watched, what the history is, and how a verdict becomes a check. The profiles are kept, so that
neither the drift report nor a later partition reads the rows again. What is unusual `monitoring/quality.py` decides.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    judge_quality,
)
from batch_platform.core.monitoring.reference import ReferenceStore
from batch_platform.core.monitoring.reviews import Cause, ReviewedQuality, ReviewStore, reviewed_quality
from batch_platform.core.slice import Slice
from batch_platform.core.spec import LANDED_COLUMNS, PipelineSpec
from batch_platform.errors import GateError, MonitoringError, PartitionKeyError

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
        """The verdicts on the rows that have passed, after the owners' decisions."""
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
            CheckResult(
                check, found.verdict.status != "alert", found.verdict.message, _values(found), severity
            )
            for check, found in verdicts.items()
        )

    @contextmanager
    def explaining_refusal(self) -> Iterator[None]:
        """What the gate refuses in this block for its quality is kept for the owner to decide on, and says how.

        Raises:
            GateError: as raised in the block.
        """
        try:
            yield
        except GateError as error:
            refused = {check.name for check in error.checks if not check.passed and check.severity == "error"}
            if not any(causes for check, causes in self._causes().items() if check in refused):
                raise
            slice_ = self._slice
            files.replace(refused_file(slice_.layout, slice_.key, self._stage), self._told())
            raise GateError(
                f"{error}; where this is expected: batch-platform drift review {slice_.spec.name} {slice_.key} "
                "--about quality --accept --by WHO --why TEXT, then materialize the partition again",
                error.checks,
            ) from None

    def keep(self) -> None:
        """Keep profile and verdicts of rows that stand now.

        Raises:
            StorageError: they cannot be written.
        """
        ReferenceStore(self._slice.layout.monitoring).save_content(self._stage, self._slice.key, self.content)
        path, content = quality_file(self._slice.layout, self._slice.key, self._stage), self._told()
        if files.read_if_there(path) != content:
            files.replace(path, content)
        files.remove(refused_file(self._slice.layout, self._slice.key, self._stage))

    @property
    def owners_decisions(self) -> list[int]:
        """Numbers of the decisions on what is unusual, for the receipt."""
        try:
            return sorted({review.number for found in self._verdicts.values() for review in found.reviews})
        except MonitoringError:
            return []  # the checks say so

    def _told(self) -> bytes:
        """The verdicts as JSON."""
        causes = self._causes()
        told = {
            check.name: {
                "passed": check.passed,
                "message": check.description,
                "causes": causes.get(check.name, []),
                **check.values,
            }
            for check in self.checks()
        }
        return json.dumps(told, indent=1, ensure_ascii=False).encode()

    def _causes(self) -> dict[str, list[dict[str, Any]]]:
        """What is unusual, accepted or not, by check; empty where it cannot be judged, as the checks say."""
        try:
            return {name: [vars(cause) for cause in found.causes] for name, found in self._verdicts.items()}
        except MonitoringError:
            return {}

    @cached_property
    def _verdicts(self) -> dict[str, ReviewedQuality]:
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
        verdicts = judge_quality(known, now, QUALITY_CHECKS[self._stage], budget)
        # A decision speaks as long as its partition is in the history: then that knows what is usual.
        reviews = (
            ReviewStore(self._slice.layout.monitoring).all()
            if any(v.findings for v in verdicts.values())
            else []
        )
        speaking = [
            each for each in reviews if each.about == "quality" and each.partition_key in {key, *keys}
        ]
        return {
            check: reviewed_quality(self._stage, verdict, speaking) for check, verdict in verdicts.items()
        }


def quality_file(layout: Layout, partition_key: str, stage: WatchedStage) -> Location:
    """Where the verdicts on a partition's quality are."""
    return layout.report(partition_key) / f"quality-{stage}.json"


def refused_file(layout: Layout, partition_key: str, stage: WatchedStage) -> Location:
    """Where the verdicts are on rows that were not published for their quality; gone when others are."""
    return refused_folder(layout, stage) / f"{partition_key}.json"


def refused_folder(layout: Layout, stage: WatchedStage) -> Location:
    """Where those of all partitions are, by partition key."""
    return layout.monitoring / "refused" / stage


def quality_causes(layout: Layout, partition_key: str) -> tuple[Cause, ...] | None:
    """What is unusual in a partition's quality, accepted or not: of what was refused last, else of what stands.

    None where it was not judged.

    Raises:
        MonitoringError: the verdicts cannot be read.
    """
    found: list[Cause] | None = None
    for stage in QUALITY_CHECKS:
        for path in (
            refused_file(layout, partition_key, stage),
            quality_file(layout, partition_key, stage),
        ):
            content = files.read_if_there(path)
            if content is None:
                continue
            try:
                # Verdicts without causes are of an earlier version, and have to be made again.
                causes = [Cause(**cause) for told in json.loads(content).values() for cause in told["causes"]]
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise _unreadable(layout, partition_key, stage, path, error) from None
            found = [*(found or ()), *causes]
            break
    return None if found is None else tuple(found)


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
            raise _unreadable(layout, partition_key, stage, path, error) from None
    return found


def _unreadable(
    layout: Layout, partition_key: str, stage: str, path: Location, error: Exception
) -> MonitoringError:
    return MonitoringError(
        f"{path}: cannot be read ({error!r}); materialize {layout.pipeline}/{stage} for {partition_key} again"
    )


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


def _values(found: ReviewedQuality) -> dict[str, Any]:
    verdict = found.verdict
    values: dict[str, Any] = {
        "status": verdict.status,
        "partitions_before": verdict.partitions,
        "statistics": verdict.statistics,
        "season": verdict.season,
    }
    if found.words:
        values["owner's decision"] = found.words
    shown = verdict.findings[:_SHOWN_FINDINGS]
    return values | {f"{each.column} {each.statistic}".strip(): each.words for each in shown}


def _masked(column: pa.Array) -> pa.Array:
    """Of a sensitive column whether there is a value, and nothing of the value."""
    return pc.if_else(column.is_valid(), True, pa.scalar(None, pa.bool_()))
