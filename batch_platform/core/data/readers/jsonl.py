"""JSON Lines: one JSON object a line, UTF-8; also compressed (.gz, .bz2, .xz, .zst).

Decides which lines are rows. A line that is no JSON object, or no UTF-8, or has a lone surrogate in a string
of the contract, is a row that cannot be read. A field that a line does not have is null, because that is
how JSON writes null. NaN and Infinity are read as the numbers they name, for the contract to judge. Blank
lines are no rows.
"""

import json
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from batch_platform.core.data.cells import CellType, parse_json
from batch_platform.core.data.contract import BadCell, Rejected, SourceBatch, printable
from batch_platform.core.data.files import Location
from batch_platform.core.data.readers.opening import (
    BATCH_BYTES,
    BATCH_ROWS,
    LONGEST_LINE,
    bad_cells,
    batch_of,
    is_utf8,
    line_too_long,
    open_bytes,
    readable,
    unparsable,
)

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Names of fields are data in JSON: a file may have any number of them.
_MOST_NAMES = 1_000


def read_jsonl(
    path: Location, name: str, columns: Mapping[str, CellType], show_lines: bool
) -> Iterator[SourceBatch]:
    """The rows of a JSON Lines file, a few megabytes at a time.

    Args and raises as `read_csv`; a column that no line has is not an error here but comes up in none of the
    batches' `columns_seen`.
    """
    block = _Block(name, columns, show_lines)
    with readable(name), open_bytes(path) as raw:
        for line in _lines(raw, name):
            block.add(line)
            if block.full:
                yield block.drain()
    if block.places or block.rejected:
        yield block.drain()


def _lines(raw: BinaryIO, name: str) -> Iterator[bytes]:
    first = True
    while line := raw.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise line_too_long(name)
        line = line.removeprefix(_BYTE_ORDER_MARK) if first else line
        first = False
        if line.strip():
            yield line


class _UnreadableError(Exception):
    """Why a line is no row."""

    def __init__(self, error_type: str, reason: str) -> None:
        super().__init__(reason)
        self.error_type = error_type


class _Block:
    """Rows on their way into one batch."""

    def __init__(self, name: str, columns: Mapping[str, CellType], show_lines: bool) -> None:
        self._name, self._columns, self._show_lines = name, columns, show_lines
        self._place = 0
        self._seen: set[str] = set()
        self._empty()

    def _empty(self) -> None:
        self._cells: dict[str, list[object]] = {column: [] for column in self._columns}
        self.places: list[int] = []
        self.rejected: list[Rejected] = []
        self._bytes = 0

    @property
    def full(self) -> bool:
        return len(self.places) + len(self.rejected) >= BATCH_ROWS or self._bytes > BATCH_BYTES

    def add(self, line: bytes) -> None:
        try:
            fields = _fields(line, self._columns)
        except _UnreadableError as error:
            shown = line.decode("utf-8", "backslashreplace") if self._show_lines else None
            self.rejected.append(unparsable(self._name, self._place, str(error), shown, error.error_type))
        else:
            self.places.append(self._place)
            for column, cells in self._cells.items():
                cells.append(fields.get(column))
            if len(self._seen) < _MOST_NAMES:
                self._seen.update(fields)
        self._place += 1
        self._bytes += len(line)

    def drain(self) -> SourceBatch:
        """All rows as a batch; the block is empty afterwards."""
        parsed: dict[str, pa.Array] = {}
        bad: list[BadCell] = []
        for column, kind in self._columns.items():
            values = self._cells[column]
            parsed[column], marks = parse_json(values, kind)
            texts = {row: _text(values[row]) for row in np.flatnonzero(marks).tolist()}
            bad += bad_cells(column, marks, texts, "wrong_type")
        batch = SourceBatch(
            batch=batch_of(parsed),
            source_file=self._name,
            source_rows=np.array(self.places, np.int64),
            bad_cells=bad,
            unparsable=self.rejected,
            columns_seen=frozenset(printable(column) for column in self._seen),
        )
        self._empty()
        return batch


def _fields(line: bytes, columns: Mapping[str, CellType]) -> dict[str, object]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise _UnreadableError("invalid_utf8", f"the line is not valid UTF-8 (byte {error.start})") from None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _UnreadableError("unparsable", f"the line is not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise _UnreadableError("unparsable", "the line is JSON, but not an object")
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(fields, columns)
    return fields


def _check_surrogates(fields: dict[str, object], columns: Mapping[str, CellType]) -> None:
    for column in columns:
        value = fields.get(column)
        if isinstance(value, str) and not is_utf8(value):
            raise _UnreadableError(
                "invalid_utf8", f"column {column} holds a lone surrogate, which is no character"
            )


def _text(value: object) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        return "a deeply nested value"
