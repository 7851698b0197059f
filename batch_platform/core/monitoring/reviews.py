"""The owners' decisions on alarms: recorded once, in order, and held against later verdicts.

Decides how long a decision speaks: the last one on a cause (a column, a statistic, a direction) counts, from its
partition on, only against the reference that the alarm was raised against, and only up to twice the size that was
accepted. It knows neither the lake nor how an alarm is found.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.monitoring.decision import FLOORS
from batch_platform.core.monitoring.drift import Finding, Verdict
from batch_platform.core.monitoring.quality import QualityFinding, QualityVerdict
from batch_platform.errors import MonitoringError

Decision = Literal["accept", "reject", "new_reference"]
About = Literal["drift", "quality"]

WORDS: Mapping[Decision, str] = {
    "accept": "accepted as expected",
    "reject": "rejected",
    "new_reference": "answered by a new reference",
}
_LONGEST_TEXT = 2_000
_NAMED = 5
# A mean of several days may be accepted when little more than half of them have moved: it grows 1.75 times by itself.
_GROWN = 2.0

F = TypeVar("F")


@dataclass(frozen=True)
class Cause:
    """What an alarm rests on; the same cause may be of another size.

    Attributes:
        group: features or predictions; of data quality `raw quality` or `features quality`.
        column, statistic, direction: as in the finding.
        size: of the effect, without a sign; None where it has none, or none was recorded.
    """

    group: str
    column: str
    statistic: str
    direction: str
    size: float | None = field(default=None, compare=False)

    @classmethod
    def of(cls, group: str, finding: Finding) -> "Cause":
        return cls(group, finding.column, finding.statistic, finding.direction, abs(finding.effect))

    @classmethod
    def of_quality(cls, stage: str, finding: QualityFinding) -> "Cause":
        """Of the quality of a stage's rows; other new values are another cause."""
        statistic = f"{finding.statistic} {finding.values}".rstrip()
        return cls(f"{stage} quality", finding.column, statistic, finding.direction, finding.size)

    def __str__(self) -> str:
        what = f"{self.statistic} {self.direction}"
        return f"{self.column} ({what})" if self.column else what


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
        about: whether it speaks of the partition's drift, or of its data quality.
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
    about: About = "drift"

    @property
    def words(self) -> str:
        """The decision as one sentence."""
        retraining = "; a training was asked for" if self.retrain else ""
        what = f" (version {self.made_reference})" if self.made_reference is not None else ""
        what += " (data quality)" if self.about == "quality" else ""
        return f"{WORDS[self.decision]}{what} by {self.by} on {self.at[:10]}: {self.why}{retraining}"


@dataclass(frozen=True)
class Split(Generic[F]):
    """Findings after the owners' decisions.

    Attributes:
        left: those that are an alarm still.
        accepted: those that were accepted, each with the decision.
        rejected: of those left the ones that were rejected, each with the decision.
        grown: of those left the ones that are larger now than what was accepted, each with the decision.
        note: which were accepted and which have grown, in words; empty for none.
    """

    left: tuple[F, ...]
    accepted: tuple[tuple[F, Review], ...] = ()
    rejected: tuple[tuple[F, Review], ...] = ()
    grown: tuple[tuple[F, Review], ...] = ()
    note: str = ""

    @property
    def reviews(self) -> list[Review]:
        """The decisions on these findings, oldest first."""
        told = {review.number: review for _, review in (*self.accepted, *self.rejected, *self.grown)}
        return [told[number] for number in sorted(told)]

    @property
    def words(self) -> str:
        """What was decided on the causes, one sentence a decision; empty where nothing was."""
        return "; ".join(review.words for review in self.reviews)


@dataclass(frozen=True)
class Reviewed(Split[Finding]):
    """A verdict after the owners' decisions: an alarm only where a cause is left that nobody accepted."""

    verdict: Verdict = field(kw_only=True)


@dataclass(frozen=True)
class ReviewedQuality(Split[QualityFinding]):
    """The same of the quality of a stage's rows; `causes` are those of all findings."""

    verdict: QualityVerdict = field(kw_only=True)
    causes: tuple[Cause, ...] = field(kw_only=True)


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
        about: About = "drift",
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
            about,
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
    speaking = [
        review
        for review in reviews
        if review.reference == reference and review.partition_key <= partition_key
    ]
    return {group: _reviewed(group, verdict, speaking) for group, verdict in verdicts.items()}


def reviewed_quality(stage: str, verdict: QualityVerdict, reviews: Iterable[Review]) -> ReviewedQuality:
    """Hold a verdict on a stage's rows against the decisions that speak for the partition, oldest first."""

    def cause_of(finding: QualityFinding) -> Cause:
        return Cause.of_quality(stage, finding)

    causes = tuple(map(cause_of, verdict.findings))
    parts = split(verdict.findings, cause_of, reviews)
    if parts.note:
        left = _few([finding.words for finding in parts.left], "; ") or "nothing else is unusual"
        status = verdict.status if parts.left else "ok"
        verdict = replace(verdict, status=status, findings=parts.left, message=f"{left}; {parts.note}")
    return ReviewedQuality(**vars(parts), verdict=verdict, causes=causes)


def split(findings: Sequence[F], cause_of: Callable[[F], Cause], reviews: Iterable[Review]) -> Split[F]:
    """Part what was accepted from what is an alarm still.

    Args:
        findings: of an alarm.
        cause_of: the cause of a finding.
        reviews: the decisions that speak for the partition, oldest first.
    """
    standing = _standing(reviews)
    accepted, rejected, grown = list[tuple[F, Review]](), list[tuple[F, Review]](), list[tuple[F, Review]]()
    for finding in findings:
        cause = cause_of(finding)
        found = standing.get(cause) or _followed(cause, standing)
        if found is None:
            continue
        review, size = found
        place = accepted
        if review.decision == "reject":
            place = rejected
        elif size is not None and (cause.size or 0.0) > _GROWN * size:
            place = grown
        place.append((finding, review))
    taken = [finding for finding, _ in accepted]
    notes = (
        ("accepted by an owner", taken),
        ("more than twice as large as what an owner accepted", [finding for finding, _ in grown]),
    )
    note = "; ".join(f"{words}: {_few([str(cause_of(f)) for f in some])}" for words, some in notes if some)
    left = tuple(finding for finding in findings if finding not in taken)
    return Split(left, tuple(accepted), tuple(rejected), tuple(grown), note)


def _standing(reviews: Iterable[Review]) -> dict[Cause, tuple[Review, float | None]]:
    """The last word on each cause, and the largest size that was accepted since it was rejected last."""
    standing: dict[Cause, tuple[Review, float | None]] = {}
    for review in reviews:
        for cause in review.causes:
            size, before = cause.size, standing.get(cause)
            if before is not None and before[0].decision == "accept" and size is not None:
                size = None if before[1] is None else max(size, before[1])
            standing[cause] = review, size
    return standing


def _followed(
    cause: Cause, standing: Mapping[Cause, tuple[Review, float | None]]
) -> tuple[Review, float | None] | None:
    """The acceptance of a change that this cause follows from, and the size that follows; None where there is none.

    What one day's evidence was too little for is found by the days after: ranks that have shifted by e spread by about
    e² more, and where a value's share grows those of others of the column fall.
    """
    shift = cause.statistic.replace("spread of ranks", "mean rank")
    for other, (review, size) in standing.items():
        if review.decision == "reject" or (other.group, other.column) != (cause.group, cause.column):
            continue
        if cause.statistic != shift == other.statistic and cause.direction == "up":
            return review, None if size is None else max(size**2, FLOORS["spread of ranks"])
        are_shares = cause.statistic.startswith("share of ") and other.statistic.startswith("share of ")
        directions = {cause.direction, other.direction}
        if are_shares and cause.statistic != other.statistic and directions == {"up", "down"}:
            return review, size
    return None


def _reviewed(group: str, verdict: Verdict, reviews: Iterable[Review]) -> Reviewed:
    parts = split(verdict.findings, lambda finding: Cause.of(group, finding), reviews)
    if parts.note:
        message = f"{verdict.message if parts.left else 'no new drift'}; {parts.note}"
        status = verdict.status if parts.left else "ok"
        verdict = replace(verdict, status=status, findings=parts.left, message=message)
    return Reviewed(**vars(parts), verdict=verdict)


def _few(words: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return between.join(words[:_NAMED]) + more


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
