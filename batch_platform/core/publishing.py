"""How a stage's result becomes visible: past the gate, then rows and quarantine by one decision.

The stage's commit is the decision, and its receipt names the quarantine's files, which lie in their place already.
The quarantine's own commit follows from it: whoever finds it missing, after a kill in between, makes it. It does not
know what the rows mean.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from batch_platform.core.data import files
from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.lake import Commit, Slot
from batch_platform.core.data.staging import StagedFile
from batch_platform.core.gate import CheckResult, enforce
from batch_platform.core.provenance.receipts import followed
from batch_platform.core.quarantine import SCHEMA, Stage, stage_rejected
from batch_platform.core.slice import Slice
from batch_platform.errors import GateError, StorageError, SupersededError


def publishable(
    slice_: Slice, stage_name: Stage, checks: tuple[CheckResult, ...], rejected: Sequence[Rejected]
) -> None:
    """Pass the gate; a refused result is not published, and its bad rows are kept where they can be read.

    Raises:
        GateError: names every failed check, and the file with the bad rows.
    """
    try:
        enforce(checks, slice_.about)
    except GateError as error:
        if not rejected:
            raise
        kept = slice_.layout.staging(slice_.key) / f"refused-{stage_name}.parquet"
        with slice_.workspace(f"refused-{stage_name}", 0) as folder:
            (file,) = stage_rejected(slice_, stage_name, rejected, 0, folder)
            files.publish(file.path, kept)
        raise GateError(f"{error}; the rows are in {kept}", error.checks) from None


def publish(
    slice_: Slice,
    stage_name: Stage,
    staged: Sequence[StagedFile],
    schema: pa.Schema,
    rejected: Sequence[Rejected],
    fingerprint: str,
    attempt: int,
    **what: Any,
) -> Commit:
    """Make these rows the content of the slice's stage, and the rejected ones its quarantine.

    Args:
        staged: good rows, in order; the gate has judged them.
        fingerprint: of the work, so that a twin's equal result is adopted.
        attempt: from `Lake.begin` of the stage.
        what: for the receipt.

    Returns:
        The commit that stands: this one, or a twin's.

    Raises:
        SupersededError: a newer attempt of the stage has committed.
        StorageError: the lake cannot be written.
    """
    lake, quarantine = slice_.lake, Slot("quarantine", slice_.key, stage_name)
    with slice_.workspace(f"quarantine-{stage_name}", attempt) as folder:
        rows = stage_rejected(slice_, stage_name, rejected, attempt, folder)
        placed = lake.place(quarantine, rows, fingerprint, attempt)
    receipt = slice_.receipt(
        fingerprint,
        quarantined=len(rejected),
        quarantine_files=[file.describe() for file in placed],
        **what,
    )
    try:
        commit = lake.commit(Slot(stage_name, slice_.key), staged, schema, receipt, attempt)
    except SupersededError:
        _remove(placed)
        raise
    if commit.attempt != attempt:
        _remove(placed)
    settle(slice_, stage_name, commit)
    return commit


def settle(slice_: Slice, stage_name: Stage, commit: Commit) -> None:
    """Let the quarantine of a stage be the one that its standing commit decided.

    Raises:
        StorageError: a file of it is missing, or the lake cannot be written.
    """
    lake, slot = slice_.lake, Slot("quarantine", slice_.key, stage_name)
    decided = commit.receipt["quarantine_files"]
    standing = lake.head(slot)
    if (standing is None and not decided) or (
        standing is not None and decided_by(standing) >= commit.attempt
    ):
        return
    placed = [
        StagedFile(lake.location(slot, file["path"]), file["size"], file["rows"], file["sha256"])
        for file in decided
    ]
    for file in placed:
        if not file.path.is_file():
            raise StorageError(
                f"{slice_.about}: {file.path} is missing: its rows were set aside by {stage_name}"
            )
    attempt = commit.attempt
    if standing is not None and standing.attempt >= attempt:  # an older quarantine expired meanwhile
        attempt = lake.begin(Slot(stage_name, slice_.key))
    try:
        receipt = slice_.receipt(
            commit.fingerprint,
            decided_by=commit.attempt,
            **followed(commit.receipt),
        )
        lake.commit_placed(slot, placed, SCHEMA, receipt, attempt)
    except SupersededError:
        return  # a newer attempt of the stage has decided another one meanwhile


def decided_by(quarantine: Commit) -> int:
    """The attempt of the stage whose quarantine stands."""
    return quarantine.receipt["decided_by"]


def _remove(placed: Sequence[StagedFile]) -> None:
    for file in placed:
        files.remove(file.path)
