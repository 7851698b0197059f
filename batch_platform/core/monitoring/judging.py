"""The judgement on one partition: its profiles against the pipeline's reference.

Decides when there is enough history, what the reference is, and which days are looked back at. The same
partition gets the same judgement whatever was judged after it. It does not know the lake.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import islice

from batch_platform.core.monitoring.drift import DriftMonitor, Verdict
from batch_platform.core.monitoring.profile import Profile
from batch_platform.core.monitoring.reference import Reference, ReferenceStore

# Days before the judged one that the two-of-three rule remembers.
_LOOK_BACK = 2


@dataclass(frozen=True)
class DriftJudgement:
    """What was decided on a partition.

    Attributes:
        verdicts: by group of columns: features, predictions.
        reference: None while there is none.
    """

    verdicts: Mapping[str, Verdict]
    reference: Reference | None


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
        days: day of every partition key of the pipeline up to this one.
        profiles: by group.
        reference_partitions: size of the reference.
        false_alarms_per_quarter: for the whole pipeline; the groups share it.
    """
    store.save_profiles(partition_key, dict(profiles))
    group = next(iter(profiles))
    before = [key for key in store.keys(group) if key in days and key < partition_key]
    reference = store.current()
    # A profile is read only where its rows decide something: a long history would cost seconds a partition.
    if reference is None:
        earlier = list(islice(_with_rows(store, group, before), reference_partitions))
        if len(earlier) >= reference_partitions:
            why = "the first partitions with rows"
            reference = store.freeze(earlier, list(profiles), "batch_platform", why)
    if reference is not None:
        after = [key for key in before if key > reference.keys[-1]]
        earlier = list(islice(_with_rows(store, group, reversed(after)), _LOOK_BACK))[::-1]
    budget = false_alarms_per_quarter / len(profiles)
    verdicts = {
        name: _judge(
            store, name, partition_key, days, profile, reference, earlier, reference_partitions, budget
        )
        for name, profile in profiles.items()
    }
    return DriftJudgement(verdicts, reference)


def _with_rows(store: ReferenceStore, group: str, keys: Iterable[str]) -> Iterator[str]:
    return (key for key in keys if store.load_profile(group, key).rows)


def _judge(
    store: ReferenceStore,
    group: str,
    partition_key: str,
    days: Mapping[str, date],
    profile: Profile,
    reference: Reference | None,
    earlier: Sequence[str],
    wanted: int,
    budget: float,
) -> Verdict:
    if reference is None:
        words = (
            f"not enough history: {len(earlier)} of {wanted} reference partitions with rows before this one"
        )
        return Verdict("not enough history", (), profile.rows, 0, {}, words)
    if partition_key <= reference.keys[-1]:
        words = f"not enough history: not after reference {reference.version} ({reference.keys[0]} to {reference.keys[-1]})"
        return Verdict("not enough history", (), profile.rows, len(reference.keys), {}, words)
    monitor = _fitted(store, reference, group, tuple(days[key] for key in reference.keys), budget).restarted()
    for key in earlier:
        monitor.judge(days[key], store.load_profile(group, key))
    return monitor.judge(days[partition_key], profile)


# A frozen reference never changes; fitting one of 56 days costs half a second, which each date would pay.
@lru_cache(maxsize=32)
def _fitted(
    store: ReferenceStore, reference: Reference, group: str, days: tuple[date, ...], budget: float
) -> DriftMonitor:
    profiles = (store.reference_profile(reference, group, key) for key in reference.keys)
    return DriftMonitor.fit(list(zip(days, profiles, strict=True)), budget)
