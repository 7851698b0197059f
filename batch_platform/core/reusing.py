"""Which rows of a partition have to be scored, why, and which are there already.

A row is there already where the partition's current snapshot has one of equal input, made under equal conditions:
the model's digest, the recipe's version, the parameters and the code. It is copied with its run and its time. Equal
inputs within a partition are scored once. Rows are compared by 16-byte hashes; measured at the peak 100 bytes a row of the
partition, whatever the rows hold. It reads no model and writes nothing; `arranging` puts the result together.
"""

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batch_platform.core.provenance.fingerprint import input_hashes

Numbers = npt.NDArray[np.int64]
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


@dataclass(frozen=True)
class RowPlan:
    """Where each row of the result comes from, in the order of the features.

    Attributes:
        kind: (rows,) uint8, such as `OWN`.
        source: (rows,) int64: number of the row in the snapshot, or among those to score; -1 for `LEFT_OUT`.
        reasons: rows to score by reason.
        mends: whether a row is kept that was made under other conditions or of another input.
    """

    kind: npt.NDArray[np.uint8]
    source: Numbers
    reasons: Mapping[str, int]
    mends: bool = False
    _low: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    _high: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)

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

    def positions(self, *kinds: int) -> Numbers:
        """Numbers of the features' rows of these kinds, ascending."""
        return np.flatnonzero(np.isin(self.kind, kinds))

    def hashes_of(self, positions: Numbers) -> pa.Array:
        """Input hashes of some rows, as text: (positions,) strings of 32 hex digits."""
        pairs = np.stack([self._high[positions], self._low[positions]], axis=1).astype(">u8")
        digits = pairs.tobytes().hex().encode()
        offsets = np.arange(len(positions) + 1, dtype=np.int32) * 32
        return pa.StringArray.from_buffers(len(positions), pa.py_buffer(offsets), pa.py_buffer(digits))


def plan_rows(
    features: Iterable[pa.RecordBatch],
    inputs: Sequence[str],
    conditions: Mapping[str, Any],
    standing: Standing | None,
) -> RowPlan:
    """Decide what becomes of each row.

    Args:
        features: rows with `row_key` and the inputs; read once.
        inputs: the model's input columns.
        conditions: what the rows to score would be made under.
        standing: the snapshot; None where there is none.
    """
    rows = _Rows.of(features, inputs)
    index = None if standing is None else _Index.of(standing, conditions)
    kind = np.full(len(rows), SCORED, np.uint8)
    source = np.zeros(len(rows), np.int64)
    if index is not None:
        own = index.own(rows)
        kind[own >= 0], source[own >= 0] = OWN, own[own >= 0]
        rest = np.flatnonzero(own < 0)
        twin = index.twin(rows.low[rest], rows.high[rest])
        kind[rest[twin >= 0]], source[rest[twin >= 0]] = TWIN_OF_STANDING, twin[twin >= 0]
    _score_once(rows, kind, source)
    reasons = {"new": int((kind == SCORED).sum())} if index is None else index.reasons(rows, kind)
    return RowPlan(kind, source, _told(reasons), False, rows.low, rows.high)


def plan_exactly(
    features: Iterable[pa.RecordBatch],
    inputs: Sequence[str],
    conditions: Mapping[str, Any],
    standing: Standing,
    wanted: pa.Array,
) -> RowPlan:
    """Decide to score these rows and to keep all others as they are, whatever they were made of.

    Args:
        wanted: (rows,) strings, keys of the rows to score.

    Raises:
        KeyError: a key that is wanted is no row's, or a row is neither wanted nor in the snapshot or its quarantine, or
            a row of the snapshot has no features any more. The argument says which.
    """
    rows = _Rows.of(features, inputs, frozenset(wanted.to_pylist()), standing.quarantined)
    index = _Index.of(standing, conditions)
    if rows.unknown:
        raise KeyError(f"no row has the key {min(rows.unknown)!r}")
    place = index.by_key(rows.key)
    kind = np.where(place >= 0, OWN, LEFT_OUT).astype(np.uint8)
    kind[rows.wanted] = SCORED
    strange = np.flatnonzero((kind == LEFT_OUT) & ~rows.set_aside)
    if len(strange):
        raise KeyError(f"row {int(strange[0])} of the features was never scored")
    if len(index) != np.count_nonzero(place >= 0):
        raise KeyError("rows of the predictions have no features any more")
    source = np.where(kind == LEFT_OUT, -1, place)
    _score_once(rows, kind, source)
    mends = bool(np.any((kind == OWN) & (index.own(rows) != place)))
    return RowPlan(kind, source, _told({"forced": int((kind == SCORED).sum())}), mends, rows.low, rows.high)


def _told(reasons: Mapping[str, int]) -> dict[str, int]:
    return {name: reasons[name] for name in REASONS if reasons.get(name)}


class _Rows:
    """Hashes of the features' rows: of their inputs, 128 bits, and of their keys, 64 bits, in their order."""

    def __init__(self) -> None:
        self.low = self.high = self.key = np.zeros(0, np.uint64)
        self.wanted = self.set_aside = np.zeros(0, np.bool_)
        self.unknown: set[str] = set()

    def __len__(self) -> int:
        return len(self.low)

    @classmethod
    def of(
        cls,
        features: Iterable[pa.RecordBatch],
        inputs: Sequence[str],
        wanted: frozenset[str] = frozenset(),
        set_aside: frozenset[str] = frozenset(),
    ) -> "_Rows":
        rows = cls()
        parts: list[tuple[Any, ...]] = []
        rows.unknown = set(wanted)
        for batch in features:
            hashes = input_hashes(pa.Table.from_batches([batch]), inputs)
            keys = batch["row_key"]
            chosen = _among(keys, wanted)
            rows.unknown.difference_update(keys.filter(pa.array(chosen)).to_pylist())
            parts.append((*_halves(hashes), _key_hashes(keys), chosen, _among(keys, set_aside)))
        if parts:
            columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
            rows.low, rows.high, rows.key, rows.wanted, rows.set_aside = columns
        return rows


class _Index:
    """The rows of the snapshot, found by input, by key, or by both."""

    def __init__(
        self,
        low: Hashes,
        high: Hashes,
        key: Hashes,
        reason: npt.NDArray[np.uint8],
        quarantined: frozenset[str],
    ) -> None:
        """`reason`: (rows,) number of the condition under which the row differs, from 1; 0 where it can be reused."""
        self._reason = reason
        self._quarantined = _key_hashes(pa.array(sorted(quarantined), pa.string()))
        reusable = np.flatnonzero(reason == 0)
        self._same = _Sorted(low[reusable] ^ key[reusable], high[reusable], reusable)
        self._inputs = _Sorted(low[reusable], high[reusable], reusable)
        self._keys = _Sorted(key, None, np.arange(len(key)))

    def __len__(self) -> int:
        return len(self._reason)

    @classmethod
    def of(cls, standing: Standing, conditions: Mapping[str, Any]) -> "_Index":
        reason_of_run = {
            run_id: 0 if (name := origin.differs_in(conditions)) is None else 1 + CONDITIONS.index(name)
            for origin in standing.origins
            for run_id in origin.run_ids
        }
        unknown = 1 + CONDITIONS.index("code")  # made by a release that did not write down its conditions
        parts: list[tuple[Any, ...]] = []
        for batch in standing.batches:
            runs = batch["run_id"].dictionary_encode()
            reasons = [reason_of_run.get(run_id, unknown) for run_id in runs.dictionary.to_pylist()]
            reason = np.array(reasons, np.uint8)[runs.indices.to_numpy()] if batch.num_rows else []
            parts.append((*_halves(batch["input_hash"]), _key_hashes(batch["row_key"]), reason))
        if not parts:
            nothing = np.zeros(0, np.uint64)
            return cls(nothing, nothing, nothing, np.zeros(0, np.uint8), standing.quarantined)
        low, high, key, reason = (np.concatenate(column) for column in zip(*parts, strict=True))
        return cls(low, high, key, reason.astype(np.uint8), standing.quarantined)

    def own(self, rows: _Rows) -> Numbers:
        """(rows,) number of the reusable row of the same key and input; -1 where there is none."""
        return self._same.find(rows.low ^ rows.key, rows.high)

    def twin(self, low: Hashes, high: Hashes) -> Numbers:
        """(hashes,) number of a reusable row of the same input; -1 where there is none."""
        return self._inputs.find(low, high)

    def by_key(self, key: Hashes) -> Numbers:
        """(keys,) number of the row of that key; -1 where there is none."""
        return self._keys.find(key, None)

    def reasons(self, rows: _Rows, kind: npt.NDArray[np.uint8]) -> dict[str, int]:
        """Count why rows are scored."""
        keys = rows.key[kind == SCORED]
        place = self.by_key(keys)
        known = self._reason[place[place >= 0]]
        counts = Counter({name: int((known == 1 + n).sum()) for n, name in enumerate(CONDITIONS)})
        counts["changed"] = int((known == 0).sum())
        counts["quarantined"] = int(np.isin(keys[place < 0], self._quarantined).sum())
        counts["new"] = int((place < 0).sum()) - counts["quarantined"]
        return dict(counts)


class _Sorted:
    """Hashes in order, with the number of the row that each belongs to; of equal ones the first row's."""

    def __init__(self, low: Hashes, high: Hashes | None, numbers: Numbers) -> None:
        order = np.argsort(low, kind="stable")
        self._low = low[order]
        self._high = None if high is None else high[order]
        self._numbers = numbers[order]

    def find(self, low: Hashes, high: Hashes | None) -> Numbers:
        """(hashes,) the row's number; -1 where there is none."""
        if not len(self._low):
            return np.full(len(low), -1, np.int64)
        place = np.minimum(np.searchsorted(self._low, low), len(self._low) - 1)
        found = self._low[place] == low
        if high is not None and self._high is not None:
            # Equal low halves of different inputs: all but never; such a row is scored again, which is right too.
            found &= self._high[place] == high
        return np.where(found, self._numbers[place], -1)


def _score_once(rows: _Rows, kind: npt.NDArray[np.uint8], source: Numbers) -> None:
    """Number the rows to score, and let those of equal input be twins of the first."""
    asked = np.flatnonzero(kind == SCORED)
    low, high = rows.low[asked], rows.high[asked]
    order = np.lexsort((high, low))  # stable: of equal rows the first stays the first
    starts = np.ones(len(order), np.bool_)
    starts[1:] = (low[order[1:]] != low[order[:-1]]) | (high[order[1:]] != high[order[:-1]])
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]] if len(order) else order
    is_first = first == np.arange(len(order))
    number = np.cumsum(is_first) - 1
    source[asked] = number[first]
    kind[asked[~is_first]] = TWIN_OF_SCORED


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
    if not wanted:
        return np.zeros(len(keys), np.bool_)
    return np.fromiter((key in wanted for key in keys.to_pylist()), np.bool_, len(keys))
