"""Stage `raw`: the source's rows of one partition, under contract, landed in the lake.

Reads the source in bounded memory, sets bad rows aside, passes the gate, commits once.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_platform.core import gate
from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.intake import PartitionReader
from batch_platform.core.data.lake import Commit, Slot
from batch_platform.core.data.sources import source_digests
from batch_platform.core.data.staging import StagedFile, read_files, stage
from batch_platform.core.provenance.fingerprint import contract_version, fingerprint
from batch_platform.core.publishing import publish, publishable, settle
from batch_platform.core.slice import Slice, StageResult
from batch_platform.core.watching import Watch
from batch_platform.errors import DuplicateKeysError, GateError, SourceError, SourceMissingError


def land_partition(slice_: Slice) -> StageResult:
    """Land one partition of the source.

    Raises:
        SourceError: the source is unreadable, or contradicts the contract as a whole.
        GateError: too many bad rows, repeated keys, or nothing there; nothing was committed.
        StorageError: the lake cannot be written.
    """
    spec, lake, slot = slice_.spec, slice_.lake, Slot("raw", slice_.key)
    reader = PartitionReader(spec.source, slice_.partition, slice_.base, slice_.settings.root)
    schema = reader.contract.schema
    attempt = lake.begin(slot)
    rejected: list[Rejected] = []
    with slice_.workspace("raw", attempt) as folder:
        staged = _stage_good_rows(slice_, reader, folder, rejected)
        counts = reader.counts
        watch = Watch.of_raw(slice_)
        checks = (
            *gate.judge_raw(watch.passing(read_files(file.path for file in staged)), schema, spec.source),
            gate.quarantined_share(rejected, counts.rows_in, spec.inference.max_error_share),
            *watch.checks(),
        )
        with watch.explaining_refusal():
            publishable(slice_, "raw", checks, rejected)

        places = [[row.source_file, row.source_row, row.message] for row in rejected]
        identity = fingerprint({"files": [file.sha256 for file in staged], "rejected": places})
        standing = lake.head(slot)
        reused = standing is not None and standing.fingerprint == identity
        if standing is not None and reused:
            settle(slice_, "raw", standing)
        else:
            what = {
                "source": spec.source.place,
                "counts": counts.describe(),
                "inputs": _inputs(slice_, counts.files),
                "contract_version": contract_version(spec.source.model_dump(mode="json")),
                "rows_in": counts.rows_in,
                "owners_decisions": watch.owners_decisions,
            }
            publish(slice_, "raw", staged, schema, rejected, identity, attempt, **what)
    watch.keep()
    return StageResult(
        table="raw",
        rows=sum(file.rows for file in staged),
        data_version=identity,
        reused=reused,
        checks=checks,
        metadata=counts.describe(),
    )


def is_landed_as_it_is(slice_: Slice, raw: Commit) -> bool:
    """Whether landing the source again would give the rows of a commit: the same files, under the same contract.

    Raises:
        SourceError: the source cannot be looked at.
    """
    if raw.receipt.get("contract_version") != contract_version(slice_.spec.source.model_dump(mode="json")):
        return False
    if slice_.spec.source.format in ("sql", "delta"):
        return False  # only reading tells
    known = {each["name"]: each["sha256"] for each in raw.receipt.get("inputs") or ()}
    found = source_digests(slice_.spec.source, slice_.partition, slice_.base, slice_.settings.root)
    # Of a source with a partition column, other files may have no rows of this partition, and gain some.
    return known == found if None not in known.values() else False


def _inputs(slice_: Slice, rows: Mapping[str, int]) -> list[dict[str, Any]]:
    """The files that rows came from. Without a digest: not a file, or gone since it was read."""
    try:
        digests = source_digests(slice_.spec.source, slice_.partition, slice_.base, slice_.settings.root)
    except FileNotFoundError:
        digests = {}
    return [{"name": name, "rows": count, "sha256": digests.get(name)} for name, count in rows.items()]


def _stage_good_rows(
    slice_: Slice, reader: PartitionReader, folder: Path, rejected: list[Rejected]
) -> list[StagedFile]:
    def good() -> Iterator[pa.RecordBatch]:
        for batch, bad in reader:
            rejected.extend(bad)
            yield batch

    try:
        return stage(good(), reader.contract.schema, folder, "raw")
    except DuplicateKeysError as error:
        check = gate.CheckResult("duplicates", False, str(error))
        raise GateError(f"{slice_.about}: {error}", (check,)) from None
    except SourceMissingError as error:
        raise GateError(
            f"{slice_.about}: {error}", (gate.CheckResult("volume", False, str(error)),)
        ) from None
    except SourceError as error:
        raise type(error)(f"{slice_.about}: {error}") from None
