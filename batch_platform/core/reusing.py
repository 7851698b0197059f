"""Which rows of a partition have to be scored, why, and which are there already.

A row is there already where the partition's current snapshot has one of equal input, made under equal conditions:
the model's digest, the recipe's version, the parameters and the code. It is copied with its run and its time. Equal
inputs within a partition are scored once. Rows are compared by hashes, which go through files of this machine, so that a
bucket of rows at a time is in memory; what stays are 5 bytes a row. It reads no model; `arranging` puts the result together.
"""

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batch_platform.core.data.record_file import Buckets, RecordFile, Records
from batch_platform.core.provenance.fingerprint import input_hashes

Numbers = npt.NDArray[np.signedinteger[Any]]
Hashes = npt.NDArray[np.uint64]

# What becomes of a row of the features.
OWN = 0  # its row of the snapshot is copied
SCORED = 1
TWIN_OF_STANDING = 2  # another row of the snapshot with the same input is copied, under this row's key
TWIN_OF_SCORED = 3  # a row with the same input is scored
LEFT_OUT = 4  # it stays in quarantine, untried

# Why a row is scored, the first that applies. `forced`: somebody asked for exactly this row.
CONDITIONS = ("model", "recipe", "parameters", "code")
REASONS = ("forced", "new", "quarantined", *CONDITIONS, "changed")


@dataclass(frozen=True)
class Origin:
    """Rows of a snapshot that were made under the same conditions.

    Attributes:
        conditions: value by name of `CONDITIONS`.
        run_ids: the runs that scored them; a run scores a partition under one set of conditions.
    """

    conditions: Mapping[str, Any]
    run_ids: tuple[str, ...]

    def differs_in(self, conditions: Mapping[str, Any]) -> str | None:
        """The first condition that is not the same; None where all are."""
        return next((name for name in CONDITIONS if self.conditions.get(name) != conditions[name]), None)


@dataclass(frozen=True)
class Standing:
    """The current snapshot, as far as it decides what is scored.

    Attributes:
        batches: its rows with the columns row_key, input_hash and run_id, in their order.
        origins: of its rows, from its receipt.
        quarantined: keys that are in its quarantine.
    """

    batches: Iterable[pa.RecordBatch]
    origins: Sequence[Origin]
    quarantined: frozenset[str]


# Rows of the partition that are looked at together.
WINDOW_ROWS = 65_536

_HASH = np.dtype([("low", "<u8"), ("high", "<u8")])
# A row of the features, by number: hashes of its input and its key, whether somebody wants it scored, whether it is in
# quarantine.
_ROW = np.dtype([("number", "<i8"), *_HASH.descr, ("key", "<u8"), ("wanted", "?"), ("quarantined", "?")])
# A row of the snapshot, by number; `reason` counts from 1 the first of `CONDITIONS` that differs, 0 where none does.
_STANDING = np.dtype([("number", "<i8"), *_HASH.descr, ("key", "<u8"), ("reason", "u1")])
_KEY = np.dtype([("key", "<u8"), ("reason", "u1")])


@dataclass(frozen=True)
class RowPlan:
    """Where each row of the result comes from, in the order of the features.

    Attributes:
        kind: (rows,) uint8, such as `OWN`.
        source: (rows,) int32, or int64 where numbers are that large: number of the row in the snapshot, or among those
            to score; -1 for `LEFT_OUT`.
        reasons: rows to score by reason.
        mends: whether a row is kept that was made under other conditions or of another input.
    """

    kind: npt.NDArray[np.uint8]
    source: Numbers
    reasons: Mapping[str, int]
    mends: bool
    _hashes: RecordFile = field(repr=False)

    @property
    def to_score(self) -> int:
        return self.count(SCORED)

    @property
    def reused(self) -> int:
        """Rows copied from the snapshot."""
        return self.count(OWN) + self.count(TWIN_OF_STANDING)

    @property
    def twins(self) -> int:
        """Rows whose equal is scored in their place."""
        return self.count(TWIN_OF_SCORED)

    def count(self, kind: int) -> int:
        return int(np.count_nonzero(self.kind == kind))

    def positions(self, *kinds: int) -> Iterator[Numbers]:
        """Numbers of the features' rows of these kinds, ascending, a window of rows at a time."""
        for first in range(0, len(self.kind), WINDOW_ROWS):
            yield first + np.flatnonzero(np.isin(self.kind[first : first + WINDOW_ROWS], kinds))

    def hashes_of(self, positions: Numbers) -> pa.Array:
        """Input hashes of some rows, ascending, as text: (positions,) strings of 32 hex digits."""
        window = positions // WINDOW_ROWS
        parts = [np.zeros(0, _HASH)]
        for number in np.unique(window).tolist():
            first = number * WINDOW_ROWS
            parts.append(self._hashes.read(first, WINDOW_ROWS)[positions[window == number] - first])
        found = np.concatenate(parts)
        digits = np.stack([found["high"], found["low"]], axis=1).astype(">u8").tobytes().hex().encode()
        offsets = np.arange(len(positions) + 1, dtype=np.int32) * 32
        return pa.StringArray.from_buffers(len(positions), pa.py_buffer(offsets), pa.py_buffer(digits))


def plan_rows(
    features: Iterable[pa.RecordBatch],
    inputs: Sequence[str],
    conditions: Mapping[str, Any],
    standing: Standing | None,
    folder: Path,
) -> RowPlan:
    """Decide what becomes of each row.

    Args:
        features: rows with `row_key` and the inputs; read once.
        inputs: the model's input columns.
        conditions: what the rows to score would be made under.
        standing: the snapshot; None where there is none.
        folder: of this machine, for hashes; must stay as long as the plan is used.

    Raises:
        StorageError: the folder cannot be written.
    """
    rows = Buckets(folder, "rows", _ROW)
    hashes = RecordFile(folder / "hashes", _HASH)
    for part in _rows_of(features, inputs, hashes):
        rows.add(part["low"], part)
    known, known_keys = Buckets(folder, "known", _STANDING), Buckets(folder, "known-keys", _KEY)
    for part in () if standing is None else _standing_of(standing, conditions):
        known.add(part["low"], part)
        known_keys.add(part["key"], _keys_of(part))
    to_score = Buckets(folder, "keys", _KEY)
    table = _Table(len(hashes), len(known))
    for bucket, standing_bucket in zip(rows, known, strict=True):
        scored = _reuse(bucket, standing_bucket, table)
        to_score.add(scored["key"], _keys_of(scored))
    table.number()
    reasons = Counter({"new": table.count(SCORED)})
    if standing is not None:
        reasons = sum(
            (_reasons(*pair, standing.quarantined) for pair in zip(to_score, known_keys, strict=True)),
            Counter(),
        )
    return RowPlan(table.kind, table.source, _told(reasons), False, hashes)


def _reuse(rows: Records, standing: Records, table: "_Table") -> Records:
    """Say of a bucket's rows which are reused, which are twins, and which are to be scored; returns these.

    Rows made under other conditions are not reused. Equal low halves of different inputs are all but never met: such a
    row is scored again, which is right too.
    """
    usable = standing[standing["reason"] == 0]
    own = _find(rows["low"] ^ rows["key"], usable["low"] ^ usable["key"], rows, usable)
    table.put(rows[own >= 0], OWN, usable["number"][own[own >= 0]])
    rest = rows[own < 0]
    twin = _find(rest["low"], usable["low"], rest, usable)
    table.put(rest[twin >= 0], TWIN_OF_STANDING, usable["number"][twin[twin >= 0]])
    table.put_once(rest[twin < 0])
    return rest[table.kind[rest["number"]] == SCORED]


def plan_exactly(
    features: Iterable[pa.RecordBatch],
    inputs: Sequence[str],
    conditions: Mapping[str, Any],
    standing: Standing,
    wanted: pa.Array,
    folder: Path,
) -> RowPlan:
    """Decide to score these rows and to keep all others as they are, whatever they were made of.

    Args:
        wanted: (rows,) strings, keys of the rows to score.
        folder: as for `plan_rows`.

    Raises:
        KeyError: a key that is wanted is no row's, or a row is neither wanted nor in the snapshot or its quarantine, or
            a row of the snapshot has no features any more. The argument says which.
        StorageError: the folder cannot be written.
    """
    rows = Buckets(folder, "rows", _ROW)
    hashes = RecordFile(folder / "hashes", _HASH)
    unknown = set(wanted.to_pylist())
    for part in _rows_of(features, inputs, hashes, unknown, standing.quarantined):
        rows.add(part["key"], part)
    if unknown:
        raise KeyError(f"no row has the key {min(unknown)!r}")
    known = Buckets(folder, "known", _STANDING)
    for part in _standing_of(standing, conditions):
        known.add(part["key"], part)
    to_score = Buckets(folder, "scored", _ROW)
    table = _Table(len(hashes), len(known))
    strange = len(hashes)
    forced = 0
    mends = gone = False
    for bucket, there in zip(rows, known, strict=True):
        scored = bucket[bucket["wanted"]]
        to_score.add(scored["low"], scored)
        forced += len(scored)
        place = _find(bucket["key"], there["key"])
        gone = gone or len(there) != np.count_nonzero(place >= 0)
        others = ~bucket["wanted"]
        kept = others & (place >= 0)
        found = there[place[kept]]
        table.put(bucket[kept], OWN, found["number"])
        same = (found["low"] == bucket["low"][kept]) & (found["high"] == bucket["high"][kept])
        mends = mends or not bool(np.all(same & (found["reason"] == 0)))
        left = bucket[others & (place < 0)]
        table.put(left, LEFT_OUT, -1)
        strange = min(strange, *left["number"][~left["quarantined"]].tolist(), len(hashes))
    if strange < len(hashes):
        raise KeyError(f"row {strange} of the features was never scored")
    if gone:
        raise KeyError("rows of the predictions have no features any more")
    for bucket in to_score:
        table.put_once(bucket[np.argsort(bucket["number"], kind="stable")])
    table.number()
    return RowPlan(table.kind, table.source, _told({"forced": forced}), mends, hashes)


def _told(reasons: Mapping[str, int]) -> dict[str, int]:
    return {name: reasons[name] for name in REASONS if reasons.get(name)}


class _Table:
    """Kind and source of each row, while they are found out."""

    def __init__(self, rows: int, standing: int) -> None:
        self.kind = np.full(rows, SCORED, np.uint8)
        self.source: Numbers = np.zeros(rows, np.int32 if max(rows, standing) < 2**31 else np.int64)

    def count(self, kind: int) -> int:
        return int(np.count_nonzero(self.kind == kind))

    def put(self, rows: Records, kind: int, source: Any) -> None:
        self.kind[rows["number"]] = kind
        self.source[rows["number"]] = source

    def put_once(self, rows: Records) -> None:
        """Of rows to score, ascending by number, let those of equal input be twins of the first."""
        order = np.lexsort((rows["high"], rows["low"]))  # stable: of equal rows the first stays the first
        ordered = rows[order]
        begins = np.ones(len(rows), np.bool_)
        begins[1:] = (ordered["low"][1:] != ordered["low"][:-1]) | (
            ordered["high"][1:] != ordered["high"][:-1]
        )
        firsts = ordered["number"][np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))]
        self.put(ordered[begins], SCORED, 0)
        self.put(ordered[~begins], TWIN_OF_SCORED, firsts[~begins])

    def number(self) -> None:
        """Number the rows to score; twins, which knew the place of their first, get its number."""
        before = 0
        for first in range(0, len(self.kind), WINDOW_ROWS):
            kind, source = (column[first : first + WINDOW_ROWS] for column in (self.kind, self.source))
            scored = kind == SCORED
            source[scored] = before + np.arange(np.count_nonzero(scored))
            before += int(np.count_nonzero(scored))
            twins = kind == TWIN_OF_SCORED
            source[twins] = self.source[source[twins]]


def _find(
    wanted: Hashes, known: Hashes, rows: Records | None = None, there: Records | None = None
) -> Numbers:
    """(wanted,) place of the first equal hash in `known`; -1 where there is none.

    Args:
        rows, there: the records of both sides, where the high halves of their hashes have to be equal too.
    """
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(known, kind="stable")
    place = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
    found = known[place] == wanted
    if rows is not None and there is not None:
        found &= there["high"][place] == rows["high"]
    return np.where(found, place, -1)


def _reasons(rows: Records, known: Records, quarantined: frozenset[str]) -> Counter[str]:
    """Count why the rows are scored."""
    place = _find(rows["key"], known["key"])
    differs = known["reason"][place[place >= 0]]
    counts = Counter({name: int((differs == 1 + n).sum()) for n, name in enumerate(CONDITIONS)})
    counts["changed"] = int((differs == 0).sum())
    failed = _key_hashes(pa.array(sorted(quarantined), pa.string()))
    counts["quarantined"] = int(np.isin(rows["key"][place < 0], failed).sum())
    counts["new"] = int((place < 0).sum()) - counts["quarantined"]
    return counts


def _rows_of(
    features: Iterable[pa.RecordBatch],
    inputs: Sequence[str],
    hashes: RecordFile,
    unknown: set[str] | None = None,
    quarantined: frozenset[str] = frozenset(),
) -> Iterator[Records]:
    """Records of the features' rows; their hashes are appended to `hashes`.

    Args:
        unknown: keys of the rows that somebody wants scored; those that are found are taken away.
    """
    wanted = frozenset(unknown or ())
    for batch in features:
        records = np.zeros(batch.num_rows, _ROW)
        low, high = _halves(input_hashes(pa.Table.from_batches([batch]), inputs))
        records["number"] = len(hashes) + np.arange(batch.num_rows)
        records["low"], records["high"] = low, high
        records["key"] = _key_hashes(batch["row_key"])
        if unknown is not None:
            records["wanted"] = _among(batch["row_key"], wanted)
            records["quarantined"] = _among(batch["row_key"], quarantined)
            unknown.difference_update(batch["row_key"].filter(pa.array(records["wanted"])).to_pylist())
        halves = np.zeros(batch.num_rows, _HASH)
        halves["low"], halves["high"] = low, high
        hashes.append(halves)
        yield records


def _standing_of(standing: Standing, conditions: Mapping[str, Any]) -> Iterator[Records]:
    """Records of the snapshot's rows."""
    reason_of_run = {
        run_id: 0 if (name := origin.differs_in(conditions)) is None else 1 + CONDITIONS.index(name)
        for origin in standing.origins
        for run_id in origin.run_ids
    }
    unknown = 1 + CONDITIONS.index("code")  # made by a release that did not write down its conditions
    rows = 0
    for batch in standing.batches:
        if not batch.num_rows:
            continue
        runs = batch["run_id"].dictionary_encode()
        reasons = [reason_of_run.get(run_id, unknown) for run_id in runs.dictionary.to_pylist()]
        records = np.zeros(batch.num_rows, _STANDING)
        records["number"] = rows + np.arange(batch.num_rows)
        records["low"], records["high"] = _halves(batch["input_hash"])
        records["key"] = _key_hashes(batch["row_key"])
        records["reason"] = np.array(reasons, np.uint8)[runs.indices.to_numpy()]
        rows += batch.num_rows
        yield records


def _keys_of(records: Records) -> Records:
    keys = np.zeros(len(records), _KEY)
    keys["key"] = records["key"]
    if "reason" in (records.dtype.names or ()):
        keys["reason"] = records["reason"]
    return keys


def _halves(hashes: pa.Array) -> tuple[Hashes, Hashes]:
    """Low and high half of hashes that are given as 32 hex digits."""
    digits = hashes.cast(pa.binary()).cast(pa.binary(32))
    text = digits.buffers()[1].slice(digits.offset * 32, len(digits) * 32).to_pybytes().decode()
    pairs = np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64).reshape(-1, 2)
    return pairs[:, 1].copy(), pairs[:, 0].copy()


def _key_hashes(keys: pa.Array) -> Hashes:
    """(keys,) uint64, by a key of this process's own. A collision would show in the gate's reconciliation."""
    from pandas.util import hash_array

    texts = keys.to_numpy(zero_copy_only=False).astype(object)
    return hash_array(texts, hash_key=_seed(), categorize=False)


@cache
def _seed() -> str:
    return secrets.token_hex(8)


def _among(keys: pa.Array, wanted: frozenset[str]) -> npt.NDArray[np.bool_]:
    return np.fromiter((key in wanted for key in keys.to_pylist()), np.bool_, len(keys))
