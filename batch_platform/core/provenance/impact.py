"""The blast radius of a model, recipe, source file, code version or run: which predictions it made.

Receipts, and the ranges that the files' footers know, leave out what cannot be concerned; in what is left, the rows are
counted by what they say themselves, as they stream by. It changes nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.data.keys import SeenKeys
from batch_platform.core.data.lake import Lake, Slot
from batch_platform.core.data.staging import read_files
from batch_platform.core.features.chunks import parent_keys
from batch_platform.core.layout import Layout
from batch_platform.core.provenance.finding import KEY, open_parquet, value_range
from batch_platform.core.provenance.trail import Receipt, Trail
from batch_platform.settings import Settings

_READERS = 8
_TABLE = "predictions"
_COLUMNS = {"recipe": "recipe_version", "run": "run_id"}
# What a row must say: column -> values that it may have. Nothing: every row.
Says = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Question:
    """What is asked for.

    Attributes:
        by: what made the rows; None for all rows of the range.
        value: name of the model, version of recipe or code, id of the run, or the file as the table `raw` names it.
        version: of the model; None for all.
        first: first partition key, included; a beginning of keys (a date for hourly ones) does.
        last: last partition key, included.
        history: also rows that were replaced since; a row of a partition counts once.
    """

    by: Literal["model", "recipe", "source_file", "code", "run"] | None
    value: str = ""
    version: str | None = None
    first: str | None = None
    last: str | None = None
    history: bool = False

    def covers(self, partition_key: str) -> bool:
        after = self.first is None or partition_key >= self.first
        return after and (self.last is None or partition_key[: len(self.last)] <= self.last)


@dataclass(frozen=True)
class Affected:
    """Rows of one partition."""

    pipeline: str
    partition_key: str
    rows: int


@dataclass(frozen=True)
class Impact:
    """The answer.

    Attributes:
        partitions: those with rows, by pipeline and key.
        seconds: what scoring the rows again would take, by the time that each partition took when it was scored last.
        notes: what could not be counted.
    """

    partitions: tuple[Affected, ...]
    seconds: float
    notes: tuple[str, ...]

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)


def affected(settings: Settings, question: Question, pipelines: Iterable[str] | None = None) -> Impact:
    """Count the rows that were made by something.

    Args:
        pipelines: names; by default all that have predictions under the root, also without a pipeline file.

    Raises:
        StorageError: a table, receipt or file is missing or unreadable.
    """
    names = pipelines_under(settings) if pipelines is None else pipelines
    partitions: list[Affected] = []
    notes: list[str] = []
    seconds = 0.0
    for name in names:
        for found in _partitions(Lake(Layout.of(settings, name)), question):
            notes += found.notes
            if found.rows:
                partitions.append(Affected(name, found.partition_key, found.rows))
                seconds += found.rows * found.seconds_per_row
    return Impact(tuple(partitions), seconds, tuple(notes))


def affected_keys(lake: Lake, question: Question, partition_key: str) -> pa.Array:
    """Keys of the rows of one partition that stand and were made by something: (rows,) strings, in their order."""
    head = lake.head(Slot(_TABLE, partition_key))
    if head is None:
        return pa.array([], pa.string())
    parts = [keys for _, keys in _Partition(lake, question, [head.receipt]).matching(head.receipt)]
    return pa.chunked_array(parts, pa.string()).combine_chunks()


def count_in(lake: Lake, question: Question, receipt: Receipt) -> int:
    """Rows of one commit of predictions that were made by something, also where it was replaced.

    Raises:
        FileNotFoundError: its files were removed since.
    """
    return _Partition(lake, question, [receipt]).count().rows


def pipelines_under(settings: Settings) -> list[str]:
    """Names of the pipelines that have predictions."""
    return [place.name for place in files.entries(settings.root / "lake") if (place / _TABLE).is_dir()]


def _partitions(lake: Lake, question: Question) -> "Iterator[_Partition]":
    """The partitions in range, counted, by key; several are read at a time."""
    known = _heads(lake) if question.by == "source_file" else {}
    with ThreadPoolExecutor(_READERS) as readers:
        for counting in [
            readers.submit(_Partition(lake, question, receipts, known).count)
            for receipts in _commits(lake, question)
        ]:
            yield counting.result()


def _heads(lake: Lake) -> dict[tuple[str, str], Receipt]:
    """What stands of features and raw rows, by table and partition: read at once, with one look at each log."""
    return {
        (table, slot.partition_key): head.receipt
        for table in ("features", "raw")
        for slot, head in lake.heads(table)
    }


def _commits(lake: Lake, question: Question) -> list[list[Receipt]]:
    """The receipts of the commits that count, by partition, newest first."""
    found: dict[str, list[Receipt]] = {}
    if question.history:
        for receipt in lake.receipts(_TABLE):
            found.setdefault(receipt["partition_key"], []).append(receipt)
    else:
        for slot, head in lake.heads(_TABLE):
            found[slot.partition_key] = [head.receipt]
    return [found[key] for key in sorted(found) if question.covers(key)]


class _Partition:
    """The rows of one partition that the question is about.

    Attributes:
        rows: their number once they are counted; each key once.
        notes: what could not be counted because it was removed since.
    """

    def __init__(
        self,
        lake: Lake,
        question: Question,
        receipts: list[Receipt],
        known: Mapping[tuple[str, str], Receipt] | None = None,
    ) -> None:
        self._lake, self._question, self._receipts = lake, question, receipts
        self._known = known or {}
        self._raws: dict[int, Receipt | None] = {}
        self.rows = 0
        self.notes: list[str] = []

    @property
    def partition_key(self) -> str:
        return self._receipts[0]["partition_key"]

    @property
    def seconds_per_row(self) -> float:
        """Of the last scoring."""
        stats = self._receipts[0]["stats"]
        return stats["wall_seconds"] / stats["rows"] if stats["rows"] else 0.0

    def count(self) -> "_Partition":
        if len(self._receipts) == 1:
            self.rows = self._count(self._receipts[0])
            return self
        seen = SeenKeys()
        for receipt in self._receipts:
            try:
                for _, keys in self.matching(receipt):
                    self.rows += int((~seen.add(keys)).sum())
            except FileNotFoundError:
                if receipt is self._receipts[0]:
                    raise
                rows = sum(file["rows"] for file in receipt["files"])
                self.notes.append(
                    f"pipeline {self._lake.layout.pipeline}, partition {self.partition_key}: the {rows} rows of "
                    f"{receipt['committed_at']} were removed since and are not counted"
                )
        return self

    def _count(self, receipt: Receipt) -> int:
        says = self._says(receipt)
        if says is None:
            return 0
        if self._question.by == "source_file" and not self._is_only_file(receipt):
            return sum(len(keys) for _, keys in self.matching(receipt))
        return sum(_count_in(place, says) for place in self._places(receipt))

    def matching(self, receipt: Receipt) -> Iterator[tuple[Location, pa.Array]]:
        """Keys of the rows, batch by batch, each with its file."""
        says = self._says(receipt)
        if says is None:
            return
        if self._question.by == "source_file" and not self._is_only_file(receipt):
            yield from self._of_source_file(receipt)
            return
        for place in self._places(receipt):
            for batch in read_files([place], [KEY, *says]):
                yield place, batch[KEY].filter(pa.array(_matches(batch, says)))

    def _places(self, receipt: Receipt) -> list[Location]:
        return [self._lake.location(Slot.of(receipt), file["path"]) for file in receipt["files"]]

    # -- what a row must say ------------------------------------------------------------------------------

    def _says(self, receipt: Receipt) -> Says | None:
        """What the rows of a commit must say; None where the receipt says that none of them can be meant."""
        question = self._question
        if question.by in _COLUMNS:
            return {_COLUMNS[question.by]: frozenset({question.value})}
        if question.by == "code":
            origins = _origins(receipt)
            meant = [origin for origin in origins if origin.code == question.value]
            if len(meant) == len(origins):
                return {}
            return {"run_id": frozenset().union(*(origin.run_ids for origin in meant))} if meant else None
        if question.by == "model":
            models = [origin.model for origin in _origins(receipt) if self._is_meant(origin.model)]
            return {"model_digest": frozenset(digest for _, _, digest in models)} if models else None
        if question.by == "source_file":
            raw = self._raw(receipt)
            return {} if raw is not None and question.value in raw["counts"]["files"] else None
        return {}

    def _is_meant(self, model: tuple[str, str, str]) -> bool:
        name, version, _ = model
        return name == self._question.value and self._question.version in (None, version)

    # -- source files -------------------------------------------------------------------------------------

    def _raw(self, receipt: Receipt) -> Receipt | None:
        """The raw rows that a commit was made of."""
        attempt = receipt["attempt"]
        if attempt not in self._raws:
            self._raws[attempt] = (
                self._known_raw(receipt) or Trail(self._lake, self.partition_key, receipt).raw
            )
        return self._raws[attempt]

    def _known_raw(self, receipt: Receipt) -> Receipt | None:
        """The raw rows that stand, where a commit was made of these: most were."""
        features = self._known.get(("features", self.partition_key))
        raw = self._known.get(("raw", self.partition_key))
        if features is None or features["fingerprint"] != receipt["features_fingerprint"]:
            return None
        return raw if raw is not None and raw["fingerprint"] == features["raw_fingerprint"] else None

    def _is_only_file(self, receipt: Receipt) -> bool:
        raw = self._raw(receipt)
        assert raw is not None  # asked for after `_says`
        return list(raw["counts"]["files"]) == [self._question.value]

    def _of_source_file(self, receipt: Receipt) -> Iterator[tuple[Location, pa.Array]]:
        raw = self._raw(receipt)
        assert raw is not None
        slot = Slot.of(raw)
        places = [self._lake.location(slot, file["path"]) for file in raw["files"]]
        of_file = (
            batch[KEY].filter(pc.equal(batch["source_file"], self._question.value))
            for batch in read_files(places, [KEY, "source_file"])
        )
        if Trail(self._lake, receipt["partition_key"], receipt).is_of_pieces:
            wanted = pa.chunked_array(of_file, pa.string()).combine_chunks()
            for place in self._places(receipt):
                for batch in read_files([place], [KEY]):
                    yield place, batch[KEY].filter(pc.is_in(parent_keys(batch[KEY]), value_set=wanted))
            return
        meant = SeenKeys()
        for keys in of_file:
            meant.add(keys)
        for place in self._places(receipt):
            for batch in read_files([place], [KEY]):
                yield place, batch[KEY].filter(pa.array(meant.add(batch[KEY])))


@dataclass(frozen=True)
class _Origin:
    """What rows of a commit were made by: model as name, version, digest; code version; the runs that scored them."""

    model: tuple[str, str, str]
    code: str
    run_ids: frozenset[str]


def _origins(receipt: Receipt) -> list[_Origin]:
    if "origins" not in receipt:  # of a release that scored whole partitions by one model and code
        model = (receipt["model"], receipt["model_version"], receipt["model_digest"])
        return [_Origin(model, receipt["code_version"], frozenset({receipt["run_id"]}))]
    return [
        _Origin(tuple(made["conditions"]["model"]), made["conditions"]["code"], frozenset(made["run_ids"]))
        for made in receipt["origins"]
    ]


# -- files ------------------------------------------------------------------------------------------------


def _count_in(place: Location, says: Says) -> int:
    with open_parquet(place) as file:
        return sum(_count_group(file, group, says) for group in range(file.num_row_groups))


def _count_group(file: pq.ParquetFile, group: int, says: Says) -> int:
    """Rows of a row group that say so; read only where its ranges do not decide it."""
    rows = file.metadata.row_group(group).num_rows
    open_ = {}
    for column, values in says.items():
        known = value_range(file, group, column)
        if known is not None and known[0] == known[1]:
            if known[0] not in values:
                return 0
        elif known is not None and not any(known[0] <= value <= known[1] for value in values):
            return 0
        else:
            open_[column] = values
    if not open_:
        return rows
    table = file.read_row_group(group, columns=list(open_), use_threads=False)
    return int(_matches(table, open_).sum())


def _matches(rows: pa.Table | pa.RecordBatch, says: Says) -> npt.NDArray[np.bool_]:
    matches = np.ones(rows.num_rows, np.bool_)
    for column, values in says.items():
        wanted: Any = pa.array(sorted(values), pa.string())
        matches &= pc.is_in(rows[column], value_set=wanted).to_numpy(zero_copy_only=False)
    return matches
