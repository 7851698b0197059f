"""The judgement on one partition: its profiles against the pipeline's reference.

Decides when there is enough history, what the reference is, and which days are looked back at. The same
partition gets the same judgement whatever was judged after it. It does not know the lake.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from itertools import islice

from batch_platform.core.monitoring.drift import Calibration, DriftMonitor, Verdict
from batch_platform.core.monitoring.evidence import LONGEST_WINDOW
from batch_platform.core.monitoring.profile import Profile
from batch_platform.core.monitoring.reference import Reference, ReferenceStore

_LOOK_BACK = LONGEST_WINDOW - 1


@dataclass(frozen=True)
class DriftJudgement:
    """What was decided on a partition.

    Attributes:
        verdicts: by group of columns: features, predictions.
        reference: None while there is none.
        calibrations: by group: how the decision is set, its false-alarm rate, the smallest change that it finds;
            only of groups that were judged.
    """

    verdicts: Mapping[str, Verdict]
    reference: Reference | None
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)


def judge_partition(
    store: ReferenceStore,
    partition_key: str,
    days: Mapping[str, date],
    profiles: Mapping[str, Profile],
    reference_partitions: int,
    false_alarms_per_quarter: float,
) -> DriftJudgement:
    """Keep the partition's profiles, and judge them.

    The first `reference_partitions` partitions with rows become the reference once there are so many before
    a judged partition. Until then, and for partitions of the reference or before it: not enough history.

    Args:
        store: the pipeline's monitoring files.
        partition_key: the partition to judge.
        days: day of every partition key that has profiles or is in the reference.
        profiles: by group; the rows of the first one tell whether a partition has rows.
        reference_partitions: size of the reference.
        false_alarms_per_quarter: for the whole pipeline; the groups share it.

    Raises:
        MonitoringError: a profile or the reference cannot be read.
    """
    store.save_profiles(partition_key, dict(profiles))
    before = [key for key in store.keys(*profiles) if key < partition_key]
    first_group = next(iter(profiles))
    reference = store.current()
    if reference is None:
        history = list(islice(_with_rows(store, first_group, before), reference_partitions))
        if len(history) < reference_partitions:
            return DriftJudgement(_waiting(profiles, len(history), reference_partitions), None)
        why = "the first partitions with rows"
        reference = store.freeze(history, list(profiles), "batch_platform", why, standing=None)
    if partition_key <= reference.keys[-1]:
        return DriftJudgement(_inside(profiles, reference), reference)
    after = [key for key in before if key > reference.keys[-1]]
    earlier = list(islice(_with_rows(store, first_group, reversed(after)), _LOOK_BACK))[::-1]
    budget = false_alarms_per_quarter / len(profiles)
    verdicts, calibrations = {}, {}
    for group, profile in profiles.items():
        reference_days = tuple(days[key] for key in reference.keys)
        monitor = _fitted(store, reference, group, reference_days, budget).restarted()
        for key in earlier:
            monitor.remember(days[key], store.load_profile(group, key))
        verdicts[group] = monitor.judge(days[partition_key], profile)
        calibrations[group] = monitor.calibration
    return DriftJudgement(verdicts, reference, calibrations)


def moment_of(partition_key: str) -> datetime:
    """Beginning of a partition, as its key tells it: of every cadence a date, of hourly ones the hour too."""
    day, hour = partition_key[:10], partition_key[11:]
    return datetime.fromisoformat(f"{day}T{hour}" if hour else day)


def monitor_of(store: ReferenceStore, reference: Reference, group: str, budget: float) -> DriftMonitor:
    """The monitor of one group of a reference, which has judged no day yet.

    Raises:
        MonitoringError: a profile of the reference cannot be read.
    """
    days = tuple(moment_of(key) for key in reference.keys)
    return _fitted(store, reference, group, days, budget).restarted()


@lru_cache(maxsize=8)
def _fitted(
    store: ReferenceStore, reference: Reference, group: str, days: tuple[date, ...], budget: float
) -> DriftMonitor:
    """The monitor of a reference. A reference never changes, so a range of dates fits it once."""
    profiles = [store.reference_profile(reference, group, key) for key in reference.keys]
    return DriftMonitor.fit(list(zip(days, profiles, strict=True)), budget)


def _with_rows(store: ReferenceStore, group: str, keys: Iterable[str]) -> Iterator[str]:
    return (key for key in keys if store.rows(group, key))


def _waiting(profiles: Mapping[str, Profile], found: int, wanted: int) -> dict[str, Verdict]:
    words = f"not enough history: {found} of {wanted} reference partitions with rows before this one"
    return {group: Verdict("not enough history", (), p.rows, 0, {}, words) for group, p in profiles.items()}


def _inside(profiles: Mapping[str, Profile], reference: Reference) -> dict[str, Verdict]:
    days = len(reference.keys)
    span = f"{reference.keys[0]} to {reference.keys[-1]}"
    words = f"not enough history: not after reference {reference.version} ({span})"
    return {
        group: Verdict("not enough history", (), p.rows, days, {}, words) for group, p in profiles.items()
    }
