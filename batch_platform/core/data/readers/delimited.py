"""CSV: commas, double quotes, UTF-8 (a byte-order mark is skipped), a header line; also compressed (.gz, .bz2, .xz, .zst).

Decides which lines make a record and which cannot be one. Python's parser is used, in strict mode, because
Arrow's loses count of the rows where it skips a bad one. An empty cell is null for every type, quoted or not.
Blank lines are no records. A quote that is left open costs its own line only: what it swallowed is read
again.
"""

import csv
import io
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TextIO

import numpy as np
import pyarrow as pa

from batch_platform.core.data.cells import CellType, parse_text
from batch_platform.core.data.contract import BadCell, Rejected, SourceBatch
from batch_platform.core.data.files import Location
from batch_platform.core.data.readers.opening import (
    BATCH_BYTES,
    BATCH_ROWS,
    LONGEST_LINE,
    bad_cells,
    batch_of,
    columns_there,
    is_utf8,
    line_too_long,
    open_bytes,
    readable,
    unparsable,
)
from batch_platform.errors import ContractError


class _Lines:
    """The physical lines, remembering those of the record in hand so that they can be read again."""

    def __init__(self, text: TextIO, name: str) -> None:
        self._text, self._name = text, name
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.characters = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._text.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        if len(line) == LONGEST_LINE:
            raise line_too_long(self._name)
        self.taken.append(line)
        self.characters += len(line)
        return line

    def begin_record(self) -> None:
        self.taken.clear()

    def keep_first_only(self) -> None:
        """Give back all lines of the record but its first."""
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]

    @property
    def record(self) -> str:
        return "".join(self.taken)


@dataclass(frozen=True)
class _Record:
    """The fields of one record, or what is wrong with it."""

    fields: list[str]
    error_type: str = ""
    reason: str = ""


class _Records:
    """The parsed records of one file."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        # The limit is the process's own setting; 1 MB strings exceed its default.
        csv.field_size_limit(LONGEST_LINE)
        self._parser = csv.reader(lines, strict=True)

    def next(self, width: int | None = None) -> _Record | None:
        """The next record, judged; None at the end of the file. `width`: how many fields it must have."""
        fields: list[str] = []
        while not fields:
            self._lines.begin_record()
            try:
                fields = next(self._parser)
            except StopIteration:
                return None
            except csv.Error as error:
                self._lines.keep_first_only()
                return _Record([], "unparsable", f"the line is not valid CSV ({error})")
        if not is_utf8(self._lines.record):
            return _Record([], "invalid_utf8", "the line is not valid UTF-8")
        if width is not None and len(fields) != width:
            return _Record(
                [], "unparsable", f"the line has {len(fields)} fields where the header has {width}"
            )
        return _Record(fields)


def read_csv(
    path: Location,
    name: str,
    columns: Mapping[str, CellType],
    show_lines: bool,
    optional: frozenset[str] = frozenset(),
) -> Iterator[SourceBatch]:
    """The rows of a CSV file, a few megabytes at a time.

    Args:
        path: the file.
        name: what it is called in messages and in `source_file`.
        columns: the columns wanted and their types.
        show_lines: whether a line that cannot be parsed may be shown in quarantine.
        optional: columns that the file may lack; they are not in its batches then.

    Raises:
        SourceError: the file cannot be read or a line is too long to be one.
        ContractError: it has no header, or columns are missing or there twice.
    """
    with readable(name), open_bytes(path) as raw:
        text = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
        lines = _Lines(text, name)
        records = _Records(lines)
        header = _header(records.next(), name)
        there = columns_there(name, columns, header, optional)
        yield from _batches(records, lines, _Block(name, header, there), show_lines)


def _header(record: _Record | None, name: str) -> list[str]:
    if record is None:
        raise ContractError(
            f"{name} is empty, without even a header line that names its columns: check whether the file is "
            "complete, then run the partition again"
        )
    if record.error_type:
        raise ContractError(
            f"{name}: the header cannot be read: {record.reason}. Correct the file, or source.format in the "
            "pipeline file"
        )
    return record.fields


def _batches(records: _Records, lines: _Lines, block: "_Block", show_lines: bool) -> Iterator[SourceBatch]:
    place = 0
    while (record := records.next(len(block.header))) is not None:
        if record.error_type:
            line = _escaped(lines.record) if show_lines else None
            block.rejected.append(unparsable(block.name, place, record.reason, line, record.error_type))
        else:
            block.rows.append(record.fields)
            block.places.append(place)
        place += 1
        if len(block.rows) + len(block.rejected) == BATCH_ROWS or lines.characters > BATCH_BYTES:
            lines.characters = 0
            yield block.drain()
    if block.rows or block.rejected:
        yield block.drain()


class _Block:
    """Records on their way into one batch."""

    def __init__(self, name: str, header: list[str], columns: Mapping[str, CellType]) -> None:
        self.name, self.header, self._columns = name, header, columns
        self.rows: list[list[str]] = []
        self.places: list[int] = []
        self.rejected: list[Rejected] = []

    def drain(self) -> SourceBatch:
        """All records as a batch; the block is empty afterwards."""
        parsed: dict[str, pa.Array] = {}
        bad: list[BadCell] = []
        for column, kind in self._columns.items():
            index = self.header.index(column)
            cells = [row[index] for row in self.rows]
            parsed[column], marks = parse_text(pa.array(cells, pa.string()), kind)
            bad += bad_cells(column, marks, cells, "wrong_type")
        batch = SourceBatch(
            batch=batch_of(parsed),
            source_file=self.name,
            source_rows=np.array(self.places, np.int64),
            bad_cells=bad,
            unparsable=self.rejected,
            columns_seen=frozenset(self.header),
        )
        self.rows, self.places, self.rejected = [], [], []
        return batch


def _escaped(line: str) -> str:
    r"""Bytes that are no UTF-8 written as \xXX."""
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
