"""An owner's decision on a partition's alarm: what it is about, what it makes, and which partitions feel it.

Reads the verdicts of `drift.json`, and those on data quality; the decisions themselves are kept by `monitoring/reviews.py`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from batch_platform.core.data import files
from batch_platform.core.data.partitions import Partition, contiguous
from batch_platform.core.layout import Layout
from batch_platform.core.monitoring.drift import MINIMUM_REFERENCE_DAYS
from batch_platform.core.monitoring.reference import Reference, ReferenceStore
from batch_platform.core.monitoring.reviews import About, Cause, Decision, Review, ReviewStore
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.watching import QUALITY_CHECKS, quality_causes, refused_folder
from batch_platform.errors import MonitoringError, PartitionKeyError
from batch_platform.settings import Settings

GROUPS = ("features", "predictions")


@dataclass(frozen=True)
class Alarm:
    """What `drift.json` says of a partition.

    Attributes:
        causes: of the alarm, as the rule found them; those that were accepted are among them.
        reference: version of the reference it was judged against; 0 for none.
    """

    causes: tuple[Cause, ...]
    reference: int


def alarm_of(layout: Layout, partition_key: str) -> Alarm | None:
    """The alarm of a judged partition, without causes where it was quiet; None where it was not judged yet.

    Raises:
        MonitoringError: its `drift.json` cannot be read.
    """
    path = layout.report(partition_key) / "drift.json"
    content = files.read_if_there(path)
    if content is None:
        return None
    try:
        values = json.loads(content)
        causes = tuple(
            Cause(
                group,
                finding["column"],
                finding["statistic"],
                finding["direction"],
                abs(float(finding["effect"])),
            )
            for group in GROUPS
            for finding in [*values[group]["findings"], *values[group]["accepted"]]
        )
        return Alarm(causes, int(values["reference"]))
    except (ValueError, KeyError, TypeError) as error:
        raise MonitoringError(
            f"{path}: cannot be read ({error!r}); materialize {layout.pipeline}/drift_report for {partition_key} again"
        ) from None


def decide(
    spec: PipelineSpec,
    settings: Settings,
    partition_key: str,
    decision: Decision,
    by: str,
    why: str,
    retrain: bool = False,
    since: str | None = None,
    about: About = "drift",
) -> Review:
    """Record what an owner decided on a partition's alarm.

    Args:
        decision: `accept`: the change is expected and does not fire again for the same causes. `reject`: it is not,
            and goes on firing. `new_reference`: days are compared with the newest partitions up to this one.
        retrain: with `reject`: ask for a training.
        since: with `new_reference`: its first partition; default: so many as `drift.reference_partitions` says.
        about: drift, or what is unusual in the partition's data quality.

    Raises:
        PartitionKeyError: the key is none of the pipeline's.
        MonitoringError: the partition was not judged, raised no such alarm, or is no end of a reference.
        StorageError: it cannot be recorded.
    """
    layout = Layout.of(settings, spec.name)
    for key in filter(None, (partition_key, since)):
        spec.partitions.calendar().partition(key)  # refuses a key that is none
    place = f"pipeline {spec.name}, partition {partition_key}"
    if retrain and decision != "reject":
        raise MonitoringError(f"{place}: a training can be asked for when an alarm is rejected")
    if since is not None and decision != "new_reference":
        raise MonitoringError(f"{place}: a first partition belongs to a new reference")
    if about == "quality" and decision == "new_reference":
        raise MonitoringError(
            f"{place}: a new reference is of drift; data quality is learned from the history"
        )
    alarm = _quality_alarm(layout, partition_key) if about == "quality" else alarm_of(layout, partition_key)
    if alarm is None or not (alarm.causes or decision == "new_reference"):
        raise MonitoringError(
            f"{place}: {_nothing_to_decide(spec.name, layout, partition_key, about, alarm)}"
        )
    made = None
    if decision == "new_reference":
        made = _new_reference(spec, layout, partition_key, since, by, why).version
    store = ReviewStore(layout.monitoring)
    return store.record(
        partition_key, decision, by, why, alarm.causes, alarm.reference, made, retrain=retrain, about=about
    )


def _nothing_to_decide(
    pipeline: str, layout: Layout, partition_key: str, about: About, alarm: Alarm | None
) -> str:
    """Why there is nothing to decide on, and what to do."""
    quality = _quality_alarm(layout, partition_key)
    if about == "drift" and quality is not None and quality.causes:
        return "no alarm of drift, but its data quality is not as usual: decide on that with --about quality"
    if alarm is None:
        stage = "drift_report" if about == "drift" else "raw"
        return f"no verdict to decide on; materialize {pipeline}/{stage} for it first"
    what = "drift" if about == "drift" else "data quality"
    return f"the partition raised no alarm of {what}; `batch-platform status {pipeline}` lists the alarms"


def _quality_alarm(layout: Layout, partition_key: str) -> Alarm | None:
    causes = quality_causes(layout, partition_key)
    return None if causes is None else Alarm(causes, 0)


def _new_reference(
    spec: PipelineSpec, layout: Layout, last: str, since: str | None, by: str, why: str
) -> Reference:
    """The newest partitions with rows up to `last` as the reference; the standing one where it is the same."""
    store = ReferenceStore(layout.monitoring)
    wanted = spec.drift.reference_partitions
    known = [key for key in store.keys(*GROUPS) if (since or "") <= key <= last]
    with_rows = (key for key in reversed(known) if store.rows(GROUPS[0], key))
    keys = list(islice(with_rows, wanted if since is None else None))[::-1]
    least = wanted if since is None else MINIMUM_REFERENCE_DAYS
    if len(keys) < least:
        span = f"up to {last}" if since is None else f"from {since} to {last}"
        raise MonitoringError(
            f"pipeline {spec.name}: {len(keys)} partitions with rows {span}; a reference needs {least}: accept the "
            "alarm now, and make the new reference when there are so many"
        )
    standing = store.current()
    if standing is not None and standing.keys == tuple(keys):
        return standing
    made = store.freeze(keys, list(GROUPS), by, why, standing)
    if made.keys != tuple(keys):
        raise MonitoringError(
            f"pipeline {spec.name}: reference {made.version} was made by {made.by} at the same moment; look at it, "
            "then decide again"
        )
    return made


def reference_words(layout: Layout, wanted: int) -> str:
    """The reference that stands, or how much of its history there is.

    Args:
        wanted: partitions that make the first one.

    Raises:
        MonitoringError: it cannot be read.
    """
    store = ReferenceStore(layout.monitoring)
    reference = store.current()
    if reference is None:
        known = sum(store.rows(GROUPS[0], key) > 0 for key in store.keys(*GROUPS))
        return f"not enough history: {known} of {wanted} reference partitions with rows"
    return f"{reference.words}, made {reference.at[:10]} by {reference.by}: {reference.why}"


# -- what follows -----------------------------------------------------------------------------------------


def to_judge_again(layout: Layout, review: Review) -> list[str]:
    """The partition of a decision, and later ones whose alarms it speaks of: their verdicts are to be made again.

    Of data quality those later ones that were refused: what has landed is history by now.
    """
    if review.about == "quality":
        refused = (files.entries(refused_folder(layout, stage), "*.json") for stage in QUALITY_CHECKS)
        known = sorted({path.stem for each in refused for path in each})
    else:
        known = ReferenceStore(layout.monitoring).keys(*GROUPS)
    later = (key for key in known if key > review.partition_key)
    return [review.partition_key, *(key for key in later if _feels(layout, key, review))]


def ranges_to_judge_again(
    spec: PipelineSpec, layout: Layout, review: Review
) -> list[tuple[Partition, Partition]]:
    """The same as ranges, first and last each, of partitions that the pipeline still has."""
    calendar, partitions = spec.partitions.calendar(), list[Partition]()
    for key in to_judge_again(layout, review):
        with suppress(PartitionKeyError):
            partitions.append(calendar.partition(key))
    return list(contiguous(partitions))


def _feels(layout: Layout, partition_key: str, review: Review) -> bool:
    alarm = (
        _quality_alarm(layout, partition_key)
        if review.about == "quality"
        else alarm_of(layout, partition_key)
    )
    if alarm is None or not alarm.causes or review.decision == "reject":
        return False
    return review.decision == "new_reference" or not set(alarm.causes).isdisjoint(review.causes)


def decisions(
    layout: Layout, partition_keys: Iterator[str] | list[str], about: About = "drift"
) -> dict[str, str]:
    """What owners decided on these partitions' alarms, in words; partitions without a decision are left out."""
    reviews = [review for review in ReviewStore(layout.monitoring).all() if review.about == about]
    if not reviews:
        return {}
    find = alarm_of if about == "drift" else _quality_alarm
    found = {key: _words(key, find(layout, key), reviews) for key in partition_keys}
    return {key: words for key, words in found.items() if words}


def _words(partition_key: str, alarm: Alarm | None, reviews: list[Review]) -> str:
    causes = set() if alarm is None else set(alarm.causes)
    speaking = [
        review
        for review in reviews
        if review.partition_key == partition_key
        or (
            alarm is not None
            and review.reference == alarm.reference
            and review.partition_key < partition_key
            and not causes.isdisjoint(review.causes)
        )
    ]
    return "; ".join(review.words for review in speaking)


def as_values(review: Review) -> Mapping[str, Any]:
    """A decision as JSON values."""
    return {**vars(review), "causes": [vars(cause) for cause in review.causes]}
