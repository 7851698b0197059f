"""What each strictness of the drift decision would have done to a pipeline: on its reference, and since.

Decides what is replayed: each half of the reference, judged by days of the other, where every alarm counts as false;
and the partitions after it as they were judged, where an alarm may be true. It reads profiles alone, and writes nothing.
"""

from dataclasses import dataclass

from batch_platform.core.layout import Layout
from batch_platform.core.monitoring.back_test import IN_TIME, Detection, Trial, trial_of
from batch_platform.core.monitoring.decision import STRICTNESS
from batch_platform.core.monitoring.drift import Calibration, DriftMonitor
from batch_platform.core.monitoring.judging import moment_of, monitor_of
from batch_platform.core.monitoring.reference import Reference, ReferenceStore
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import MonitoringError
from batch_platform.settings import Settings


@dataclass(frozen=True)
class GroupBackTest:
    """One group of columns.

    Attributes:
        group: features or predictions.
        calibration: how the decision is set.
        reference: each strictness on the later days of the reference.
        detections: how soon each finds changes, put into `changed`.
        changed: partitions since the reference, or, before there are enough, the later half of the reference.
        since: each strictness on the partitions after the reference.
        alarms_since: partitions after the reference that alarm at the strictness which is set.
    """

    group: str
    calibration: Calibration
    reference: tuple[Trial, ...]
    detections: tuple[Detection, ...]
    changed: str
    since: tuple[Trial, ...]
    alarms_since: tuple[str, ...]


@dataclass(frozen=True)
class PipelineBackTest:
    """A pipeline's back-test."""

    pipeline: str
    reference: Reference
    groups: tuple[GroupBackTest, ...]


def back_test(spec: PipelineSpec, settings: Settings) -> PipelineBackTest:
    """Try every strictness on a pipeline's history.

    Raises:
        MonitoringError: there is no reference yet, or a profile cannot be read.
    """
    store = ReferenceStore(Layout.of(settings, spec.name).monitoring)
    reference = store.current()
    if reference is None:
        raise MonitoringError(
            f"pipeline {spec.name}: not enough history: no reference yet, which needs "
            f"{spec.drift.reference_partitions} partitions with rows and a drift report: materialize drift_report"
        )
    names = [group for group, _ in reference.digests]
    budget = spec.drift.false_alarms_per_quarter / len(names)
    groups = tuple(_group(store, reference, group, budget) for group in names)
    return PipelineBackTest(spec.name, reference, groups)


def _group(store: ReferenceStore, reference: Reference, group: str, budget: float) -> GroupBackTest:
    monitor = monitor_of(store, reference, group, budget)
    later = {key: store.load_profile(group, key) for key in store.keys(group) if key > reference.keys[-1]}
    with_rows = [(moment_of(key), profile) for key, profile in later.items() if profile.rows]
    false_alarms, found = monitor.back_test(with_rows)
    judged = {}
    for strictness in STRICTNESS:
        replayed = monitor.at(strictness)
        verdicts = {key: replayed.judge(moment_of(key), profile) for key, profile in later.items()}
        judged[strictness] = {key: v.alert for key, v in verdicts.items() if v.status in ("ok", "alert")}
    set_at = monitor.calibration.strictness
    return GroupBackTest(
        group,
        monitor.calibration,
        tuple(false_alarms),
        tuple(found),
        "partitions since the reference" if len(with_rows) >= IN_TIME else "the later half of the reference",
        tuple(_since(monitor, strictness, list(alerts.values())) for strictness, alerts in judged.items()),
        tuple(key for key, alert in judged[set_at].items() if alert),
    )


def _since(monitor: DriftMonitor, strictness: float, alerts: list[bool]) -> Trial:
    return trial_of(strictness, alerts, monitor.calibration.judgements_per_quarter)
