"""The diagnosis of one partition's alarm, from what is committed: who changed, since when, and which rows show it.

Reads receipts, the verdicts before, and of the partition only the columns in question. Made for alarms alone, so
that quiet partitions cost nothing. The wording is that of `monitoring/diagnosis.py`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data.lake import Slot
from batch_platform.core.monitoring import diagnosis
from batch_platform.core.monitoring.diagnosis import Change, Diagnosis, SourceShare
from batch_platform.core.monitoring.drift import Finding, Verdict
from batch_platform.core.monitoring.reference import Reference, ReferenceStore
from batch_platform.core.monitoring.reviews import Cause
from batch_platform.core.quarantine import locate
from batch_platform.core.reviewing import GROUPS, alarm_of
from batch_platform.core.slice import Slice

MASK = "(masked)"
_MOST_CHANGES = 12
_SEGMENTED_CHANGES = 3
_EXAMPLES = 5
_EXAMPLE_COLUMNS = 4
_CELL_CHARACTERS = 60
# Unusual rows whose source is looked up; more would tell the files' shares no better.
_TRACED_ROWS = 2_000
_LOOK_BACK = 100
_FILES = 5


class Samples(NamedTuple):
    """Rows of the partition and of the reference: features and outputs by their names in findings."""

    current: pa.Table
    reference: pa.Table


# By group: column of the table -> its name in findings.
Watched = Mapping[str, Mapping[str, str]]


def diagnose(
    slice_: Slice, verdicts: Mapping[str, Verdict], watched: Watched, samples: Samples, compared: Reference
) -> Diagnosis | None:
    """Say what an alarm is about; None where there is none.

    Args:
        verdicts: by group, after the owners' decisions.
        watched: the columns that were judged.
        samples: to measure the changes by.
        compared: the reference.

    Raises:
        StorageError, MonitoringError: the lake or a verdict cannot be read.
    """
    changes = list(_changes(slice_, verdicts, watched, samples))
    if not changes:
        return None
    before = _partition_before(slice_, min(change.since for change in changes))
    ours, with_it, unknown = _our_side(slice_, compared.keys[-1], before)
    files, examples = _unusual_rows(slice_, changes, watched, samples.reference)
    return Diagnosis(
        tuple(changes),
        tuple(diagnosis.prediction_words(*samples)),
        ours,
        with_it,
        tuple(files),
        tuple(examples),
        unknown,
    )


# -- the columns ------------------------------------------------------------------------------------------


def _changes(
    slice_: Slice, verdicts: Mapping[str, Verdict], watched: Watched, samples: Samples
) -> Iterator[Change]:
    """The shift of each column, or else its strongest finding: features first, as outputs follow them."""
    seen: set[str] = set()
    keys = _keys_before(slice_)
    among = [name for name in watched["features"].values() if name in samples.reference.column_names]
    for group in GROUPS:
        for finding in _shifts_first(verdicts[group].findings):
            if finding.column in seen or len(seen) == _MOST_CHANGES:
                continue
            seen.add(finding.column)
            segments = ""
            if len(seen) <= _SEGMENTED_CHANGES:
                segments = diagnosis.segment_words(finding, *samples, among)
            measured = diagnosis.measure(finding, *samples)
            yield Change(group, finding, _since(slice_, keys, Cause.of(group, finding)), measured, segments)


def _shifts_first(findings: Sequence[Finding]) -> list[Finding]:
    """The findings in the order of their columns; of a column its shift before the rest, which often follows from it."""
    columns = list(dict.fromkeys(finding.column for finding in findings))
    return sorted(
        findings,
        key=lambda finding: (columns.index(finding.column), not finding.statistic.startswith("mean rank")),
    )


def _keys_before(slice_: Slice) -> list[str]:
    """Judged partitions before this one, newest first."""
    known = ReferenceStore(slice_.layout.monitoring).keys(*GROUPS)
    return [key for key in reversed(known) if key < slice_.key]


def _since(slice_: Slice, keys: Sequence[str], cause: Cause) -> str:
    """First partition of the run of alarms with this cause; a single quiet one in between does not end it."""
    since, quiet = slice_.key, 0
    for key in keys[:_LOOK_BACK]:
        alarm = alarm_of(slice_.layout, key)
        if alarm is not None and cause in alarm.causes:
            since, quiet = key, 0
        elif quiet or alarm is None:
            break
        else:
            quiet += 1
    return since


def _partition_before(slice_: Slice, since: str) -> str | None:
    known = ReferenceStore(slice_.layout.monitoring).keys(*GROUPS)
    return max((key for key in known if key < since), default=None)


# -- who changed ------------------------------------------------------------------------------------------


def _our_side(
    slice_: Slice, reference_key: str, before: str | None
) -> tuple[dict[str, str], frozenset[str], tuple[str, ...]]:
    """What of ours differs from the reference's last partition, and of that, what differs from the day before too."""
    now, then = _facts(slice_, slice_.key), _facts(slice_, reference_key)
    just_before = then if before is None else _facts(slice_, before)
    ours, with_it, unknown = dict[str, str](), set[str](), list[str]()
    for name, value in now.items():
        if name not in then:
            unknown.append(f"{name} of {reference_key} was not recorded")
        elif then[name] != value:
            ours[name] = f"{then[name]} -> {value}"
            if just_before.get(name, then[name]) != value:
                with_it.add(name)
    return ours, frozenset(with_it), tuple(unknown)


def _facts(slice_: Slice, partition_key: str) -> dict[str, str]:
    """What made a partition, by its receipts; nothing where they are not there."""
    facts: dict[str, str] = {}
    predictions = slice_.lake.head(Slot("predictions", partition_key))
    if predictions is not None:
        receipt = predictions.receipt
        shown = {
            "model": " ".join(str(receipt.get(name, "")) for name in ("model", "model_version")),
            "recipe": receipt.get("recipe_version"),
            "code": receipt.get("code_version"),
            "decision": (receipt.get("parameters") or {}).get("decision"),
        }
        facts |= {
            name: str(value) for name, value in shown.items() if value is not None and str(value).strip()
        }
    raw = slice_.lake.head(Slot("raw", partition_key))
    if raw is not None:
        counts: Mapping[str, Any] = raw.receipt.get("counts", {})
        facts["source"] = str(raw.receipt.get("source"))
        facts["source files"] = str(len(counts.get("files", {})))
        facts["columns that the contract leaves out"] = (
            ", ".join(sorted(counts.get("ignored_columns", []))) or "none"
        )
        if raw.receipt.get("contract_version") is not None:
            facts["contract"] = str(raw.receipt["contract_version"])
    return facts


# -- rows -------------------------------------------------------------------------------------------------


def _unusual_rows(
    slice_: Slice, changes: Sequence[Change], watched: Watched, reference: pa.Table
) -> tuple[list[SourceShare], list[dict[str, str]]]:
    """Source files and example rows of the strongest change that rows can show."""
    for change in changes:
        name = next((n for n, shown in watched[change.group].items() if shown == change.finding.column), None)
        keys = [] if name is None else _unusual_keys(slice_, change, name, reference)
        if keys:
            places = locate(slice_, set(keys))
            return _shares_of_files(slice_, places), list(_examples(slice_, changes, watched, keys, places))
    return [], []


def _unusual_keys(slice_: Slice, change: Change, name: str, reference: pa.Table) -> list[str]:
    """Row keys of unusual rows: all, or so many that are spread over the partition."""
    found: list[str] = []
    every = 1
    met = 0
    for batch in slice_.lake.batches(change.group, slice_.key, ["row_key", name]):
        if name not in batch.schema.names:
            return []
        is_unusual = diagnosis.unusual(change.finding, batch[name], reference)
        if is_unusual is None:
            return []
        for key in batch["row_key"].take(pa.array(np.flatnonzero(is_unusual))).to_pylist():
            if met % every == 0:
                found.append(key)
            met += 1
        while len(found) > _TRACED_ROWS:
            found, every = found[::2], every * 2
    return found


def _shares_of_files(slice_: Slice, places: Mapping[str, tuple[str, int]]) -> list[SourceShare]:
    """Files with more of the unusual rows than of all rows, the most telling first."""
    if not places:
        return []
    rows: Counter[str] = Counter()
    for batch in slice_.lake.batches("raw", slice_.key, ["source_file"]):
        for entry in batch["source_file"].value_counts().to_pylist():
            rows[entry["values"]] += entry["counts"]
    unusual = Counter(file for file, _ in places.values())
    counted = unusual.total()
    shares = [
        SourceShare(file, count / rows.total(), unusual[file] / counted, counted)
        for file, count in rows.items()
    ]
    return sorted(shares, key=lambda share: (share.rows - share.unusual, -share.rows, share.file))[:_FILES]


def _examples(
    slice_: Slice,
    changes: Sequence[Change],
    watched: Watched,
    keys: Sequence[str],
    places: Mapping[str, tuple[str, int]],
) -> Iterator[dict[str, str]]:
    """A few unusual rows: key, place, the columns that moved, and what was predicted."""
    chosen = [keys[place] for place in np.linspace(0, len(keys) - 1, min(_EXAMPLES, len(keys))).astype(int)]
    moved = [change.finding.column for change in changes][:_EXAMPLE_COLUMNS]
    values: dict[str, dict[str, str]] = {key: {} for key in chosen}
    for group, shown_as in watched.items():
        wanted = {
            name: shown
            for name, shown in shown_as.items()
            if shown in moved or (group == "predictions" and name in ("label", "score", "prediction"))
        }
        for row in _rows(slice_, group, list(wanted), chosen):
            values[row["row_key"]] |= {shown: _cell(row.get(name)) for name, shown in wanted.items()}
    source = slice_.spec.source
    is_masked = source.columns[source.row_key].sensitive
    for key in chosen:
        file, number = places.get(key, ("", -1))
        place = f"{file} row {number}" if file else ""
        yield {"row_key": MASK if is_masked else _cell(key), "source": place, **values[key]}


def _rows(slice_: Slice, table: str, columns: list[str], keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    wanted = pa.array(keys, pa.string())
    for batch in slice_.lake.batches(table, slice_.key, ["row_key", *columns]):
        yield from batch.filter(pc.is_in(batch["row_key"], value_set=wanted)).to_pylist()


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "(no value)" if value is None else str(value)
    return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"
