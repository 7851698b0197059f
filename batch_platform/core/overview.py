"""The state of a pipeline at a glance: which partitions are done, failed, missing or drifting, and what to type next.

Reads the outcomes of the last tries, the tables' logs and the registry. Decides only the next command.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from croniter import croniter

from batch_platform.core import outcomes
from batch_platform.core.data.lake import Lake
from batch_platform.core.data.partitions import Partition, contiguous
from batch_platform.core.layout import Layout
from batch_platform.core.models.card import expiry
from batch_platform.core.models.registry import Registry
from batch_platform.core.reviewing import decisions, reference_words
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.staleness import code_versions, digests_now, stale_stages
from batch_platform.core.watching import QUALITY_CHECKS
from batch_platform.errors import ModelError
from batch_platform.settings import Settings


@dataclass(frozen=True)
class Overview:
    """What there is of a pipeline.

    Attributes:
        partitions: partitions that have ended by now.
        done: of these, those whose every stage ended well.
        failed: key -> "stage: cause" of the last try.
        missing: ranges of keys never tried, or not in every stage.
        late: of these, keys that the schedule should have brought by now.
        quarantined: key -> rows in quarantine.
        stale: key -> stages that were made of something that is another now, and of what.
        reference: what the drift of new partitions is held against, or that there is not enough history.
        drifting: key -> what the drift checks of the last try say.
        decisions: key -> what owners decided on the drift, of the drifting partitions.
        quality_decisions: key -> what they decided on the data quality, of the partitions where it is unusual.
        warnings: key -> what other checks say that did not stop anything.
        rows: rows that stand, by table.
        model: what is wrong with the model that the next run would score with; empty where nothing is known.
        next_command: what to type; empty where everything is done.
    """

    pipeline: str
    partitions: int
    done: int
    failed: Mapping[str, str]
    missing: tuple[tuple[str, str], ...]
    late: tuple[str, ...]
    quarantined: Mapping[str, int]
    stale: Mapping[str, str]
    reference: str
    drifting: Mapping[str, str]
    decisions: Mapping[str, str]
    quality_decisions: Mapping[str, str]
    warnings: Mapping[str, str]
    rows: Mapping[str, int]
    model: str
    next_command: str


def overview(spec: PipelineSpec, settings: Settings, now: datetime) -> Overview:
    """Look at all partitions of a pipeline that have ended by `now` (aware)."""
    layout = Layout.of(settings, spec.name)
    stages = stage_names(spec)
    model, promotion, digests = _model(spec, settings, now)
    versions = code_versions(spec, stages)
    failed: dict[str, str] = {}
    stale: dict[Partition, str] = {}
    drifting: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    missing = []
    done = 0
    partitions = list(spec.partitions.calendar().partitions(now))
    for partition in partitions:
        known = outcomes.recall(layout, partition.key)
        for stage, outcome in known.items():
            place = drifting if stage == "drift_report" else warnings
            said = [f"{check}: {words}" for check, words in outcome.warnings.items()]
            place.setdefault(partition.key, []).extend(said)
        old = stale_stages(known, versions, digests)
        if old:
            stale[partition] = "; ".join(f"{stage}: {why}" for stage, why in old.items())
        bad = next((stage for stage in stages if stage in known and known[stage].state == "failed"), None)
        if bad is not None:
            failed[partition.key] = f"{bad}: {known[bad].cause}"
        elif all(stage in known and known[stage].state == "done" for stage in stages):
            done += 1
        else:
            missing.append(partition)
    drifts, warned = _joined(drifting), _joined(warnings)
    gaps = tuple((first.key, last.key) for first, last in contiguous(missing))
    lake = Lake(layout)
    tables = ["raw", "predictions", "quarantine"]
    tables += ["challenger_predictions"] if spec.model.challenger is not None else []
    rows = {table: sum(lake.partition_rows(table).values()) for table in tables}
    due = _last_tick(spec, now)
    decided = decisions(layout, list(drifts))
    undecided = [each for each in partitions if each.key in drifts and each.key not in decided]
    return Overview(
        pipeline=spec.name,
        partitions=len(partitions),
        done=done,
        failed=failed,
        missing=gaps,
        late=tuple(partition.key for partition in missing if due is not None and partition.end <= due),
        quarantined=lake.partition_rows("quarantine"),
        stale={partition.key: why for partition, why in stale.items()},
        reference=reference_words(layout, spec.drift.reference_partitions),
        drifting=drifts,
        decisions=decided,
        quality_decisions=decisions(layout, _unusual({**warned, **failed}), "quality"),
        warnings=warned,
        rows=rows,
        model=model,
        next_command=promotion
        or _next(spec, failed, gaps, list(contiguous(undecided)), list(contiguous(list(stale)))),
    )


def _joined(said: Mapping[str, list[str]]) -> dict[str, str]:
    """One sentence a partition; what raw and features both say is said once."""
    return {key: "; ".join(dict.fromkeys(words)) for key, words in said.items() if words}


def _unusual(said: Mapping[str, str]) -> list[str]:
    """Keys of partitions of which a check of data quality is not green."""
    names = [f"{check}: " for checks in QUALITY_CHECKS.values() for check in checks]
    return [key for key, words in said.items() if any(name in words for name in names)]


def _model(spec: PipelineSpec, settings: Settings, now: datetime) -> tuple[str, str, dict[str, str]]:
    """What is wrong with the model behind the alias, the command that has to come before any run, and `digests_now`."""
    name, alias = spec.model.name, spec.model.alias
    try:
        digests = digests_now(spec, settings.root)
        if spec.model.is_of_mlflow or "model" not in digests:  # nothing was trained yet, which a run says
            return "", "", digests
        version = Registry(settings.root).pointed(name, alias)
    except ModelError as error:
        return str(error), "" if spec.model.is_of_mlflow else "batch-platform models verify", {}
    about = f"{name} {alias} -> {version.version}"
    if version.suspended is not None:
        command = f"batch-platform models promote {name} VERSION --alias {alias} --by WHO --why TEXT"
        return f"{about}: {version.suspended}", command, digests
    expired = expiry(version.card, now.astimezone(UTC).date())
    return (f"{about}: {expired}" if expired else ""), "", digests


def _last_tick(spec: PipelineSpec, now: datetime) -> datetime | None:
    """When the schedule was due last; None without one."""
    if spec.automation.trigger != "schedule":
        return None
    tick: datetime = croniter(spec.automation.cron, now.astimezone(spec.zone)).get_prev(datetime)
    return tick


def stage_names(spec: PipelineSpec) -> list[str]:
    """The stages that a partition goes through, in order."""
    wanted = {
        "delivered": bool(spec.sinks),
        "performance": spec.labels is not None,
        "challenger_predictions": spec.model.challenger is not None,
    }
    names = ("raw", "features", "predictions", "delivered", "drift_report", "performance")
    # The challenger comes last: it is compared on the labels, and nothing depends on it.
    return [name for name in (*names, "challenger_predictions") if wanted.get(name, True)]


def _next(
    spec: PipelineSpec,
    failed: Mapping[str, str],
    gaps: tuple[tuple[str, str], ...],
    undecided: Sequence[tuple[Partition, Partition]],
    stale: Sequence[tuple[Partition, Partition]],
) -> str:
    if failed:
        return f"dg launch --job {spec.name} --partition {next(iter(failed))}"
    if gaps:
        first, last = gaps[-1]
        return f"dg launch --job {spec.name} --partition-range {first}...{last}"
    if undecided:
        # From where the newest alarms began on: an acceptance speaks of later ones with the same causes.
        choice = "(--accept | --reject | --new-reference)"
        return f"batch-platform drift review {spec.name} {undecided[-1][0].key} {choice} --by WHO --why TEXT"
    if stale:
        return f"dg launch --job {spec.name} --partition-range {stale[-1][0].key}...{stale[-1][1].key}"
    return ""
