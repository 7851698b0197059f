"""The owners' decisions on alarms: recorded once, in order, and held against later verdicts.

Decides how long a decision speaks: the last one on a cause (a column, a statistic, a direction) counts, from its
partition on, and only against the reference that the alarm was raised against. It knows neither the lake nor how
an alarm is found.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.monitoring.drift import Finding, Verdict
from batch_platform.errors import MonitoringError

Decision = Literal["accept", "reject", "new_reference"]

WORDS: Mapping[Decision, str] = {
    "accept": "accepted as expected",
    "reject": "rejected",
    "new_reference": "answered by a new reference",
}
_LONGEST_TEXT = 2_000
_NAMED = 5


@dataclass(frozen=True)
class Cause:
    """What an alarm rests on, without its size.

    Attributes:
        group: features or predictions.
        column, statistic, direction: as in the finding.
    """

    group: str
    column: str
    statistic: str
    direction: str

    @classmethod
    def of(cls, group: str, finding: Finding) -> "Cause":
        return cls(group, finding.column, finding.statistic, finding.direction)

    def __str__(self) -> str:
        return f"{self.column} ({self.statistic} {self.direction})"


@dataclass(frozen=True)
class Review:
    """One decision of an owner.

    Attributes:
        number: counts up, from 1.
        partition_key: the partition whose alarm was looked at.
        by: who decided.
        why: in their words.
        at: ISO 8601, UTC.
        causes: what the alarm rested on when it was decided; empty for a new reference made without an alarm.
        reference: version of the reference that the alarm was raised against; 0 where there was none.
        made_reference: version of the new reference; None for other decisions.
        retrain: whether a training was asked for.
    """

    number: int
    partition_key: str
    decision: Decision
    by: str
    why: str
    at: str
    causes: tuple[Cause, ...]
    reference: int
    made_reference: int | None = None
    retrain: bool = False

    @property
    def words(self) -> str:
        """The decision as one sentence."""
        retraining = "; a training was asked for" if self.retrain else ""
        reference = f" (version {self.made_reference})" if self.made_reference is not None else ""
        return f"{WORDS[self.decision]}{reference} by {self.by} on {self.at[:10]}: {self.why}{retraining}"


@dataclass(frozen=True)
class Reviewed:
    """A verdict after the owners' decisions.

    Attributes:
        verdict: an alarm only where a cause is left that nobody accepted.
        accepted: causes that are there and were accepted, each with the decision.
        rejected: causes of the alarm that were rejected before, each with the decision.
    """

    verdict: Verdict
    accepted: tuple[tuple[Finding, Review], ...] = ()
    rejected: tuple[tuple[Finding, Review], ...] = ()

    @property
    def words(self) -> str:
        """What was decided on the causes, one sentence a decision; empty where nothing was."""
        told = {review.number: review.words for _, review in (*self.accepted, *self.rejected)}
        return "; ".join(told[number] for number in sorted(told))


@dataclass(frozen=True)
class ReviewStore:
    """The decisions on one pipeline, as files `reviews/<number>.json` in its monitoring folder."""

    monitoring: Location

    @cached_property
    def folder(self) -> Location:
        return self.monitoring / "reviews"

    def all(self) -> list[Review]:
        """Every decision, oldest first.

        Raises:
            MonitoringError: one was altered or cannot be read.
        """
        return [_read(path) for path in files.entries(self.folder, "*.json")]

    def record(
        self,
        partition_key: str,
        decision: Decision,
        by: str,
        why: str,
        causes: Sequence[Cause],
        reference: int,
        made_reference: int | None = None,
        retrain: bool = False,
    ) -> Review:
        """Write a decision down, durably, under the next number. None is ever changed.

        Raises:
            MonitoringError: who or why is missing or too long.
            StorageError: it cannot be written.
        """
        for name, text in (("who decides", by), ("the reason", why)):
            if not text.strip() or len(text) > _LONGEST_TEXT:
                raise MonitoringError(
                    f"{partition_key}: {name} must be given, in at most {_LONGEST_TEXT} characters"
                )
        at = datetime.now(UTC).isoformat(timespec="microseconds")
        made = Review(
            0,
            partition_key,
            decision,
            by.strip(),
            why.strip(),
            at,
            tuple(causes),
            reference,
            made_reference,
            retrain,
        )
        number = max((int(path.stem) for path in files.entries(self.folder, "*.json")), default=0)
        while True:  # of two at the same moment one is first, the other takes the next number
            number += 1
            made = replace(made, number=number)
            if files.create_once(self.folder / f"{number:06d}.json", files.sealed(asdict(made))):
                return made


def reviewed(
    verdicts: Mapping[str, Verdict], reviews: Iterable[Review], partition_key: str, reference: int
) -> dict[str, Reviewed]:
    """Hold verdicts against the decisions that speak for the partition.

    Args:
        verdicts: by group.
        reviews: oldest first.
        partition_key: the judged partition.
        reference: version of the reference it was judged against.
    """
    standing = {
        cause: review
        for review in reviews
        if review.reference == reference and review.partition_key <= partition_key
        for cause in review.causes
    }
    return {group: _reviewed(group, verdict, standing) for group, verdict in verdicts.items()}


def _reviewed(group: str, verdict: Verdict, standing: Mapping[Cause, Review]) -> Reviewed:
    decided = [(finding, standing.get(Cause.of(group, finding))) for finding in verdict.findings]
    accepted = tuple((f, r) for f, r in decided if r is not None and r.decision != "reject")
    rejected = tuple((f, r) for f, r in decided if r is not None and r.decision == "reject")
    if not accepted:
        return Reviewed(verdict, (), rejected)
    names = [str(Cause.of(group, finding)) for finding, _ in accepted]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    words = f"accepted by an owner: {', '.join(names[:_NAMED])}{more}"
    taken = {finding for finding, _ in accepted}
    left = tuple(finding for finding in verdict.findings if finding not in taken)
    if left:
        return Reviewed(
            replace(verdict, findings=left, message=f"{verdict.message}; {words}"), accepted, rejected
        )
    return Reviewed(replace(verdict, status="ok", findings=(), message=f"no new drift; {words}"), accepted)


def _read(path: Location) -> Review:
    values: dict[str, Any] | None = files.unsealed(path.read_bytes())
    try:
        if values is None:
            raise ValueError("its seal is broken")
        return Review(**{**values, "causes": tuple(Cause(**cause) for cause in values["causes"])})
    except (ValueError, KeyError, TypeError) as error:
        raise MonitoringError(
            f"{path}: not a decision as it was recorded ({error}): restore it from a backup"
        ) from None
