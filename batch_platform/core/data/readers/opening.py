"""Opening files of text and columns, and the words for what can be wrong with them.

Decides how long a line may be, how many rows are held at once, and what an unreadable file is called. It does
not know what the lines mean.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

from batch_platform.core.data.cells import BoolArray, CellType
from batch_platform.core.data.contract import SHOWN_PAYLOAD, BadCell, Rejected, cut, printable
from batch_platform.core.data.files import Location
from batch_platform.core.data.objects import ObjectPath
from batch_platform.errors import ContractError, SourceError, StorageError

# A batch is closed at whichever comes first, so that rows of 1 MB do not add up to gigabytes.
BATCH_ROWS = 16_384
BATCH_BYTES = 8 << 20
LONGEST_LINE = 32 << 20
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
# Object storage is asked for so much at a time.
_REQUEST_BYTES = 4 << 20


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what the operating system or a decompressor says about a file into a SourceError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise _damaged(name, error) from error
    except StorageError as error:
        raise SourceError(str(error)) from None
    except OSError as error:
        if error.errno is None and not error.strerror:  # Arrow's, about bytes that make no sense
            raise _damaged(name, error) from error
        reason = error.strerror or str(error)
        raise SourceError(f"{name} cannot be read ({reason}): check the file and its permissions") from error


def _damaged(name: str, error: Exception) -> SourceError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return SourceError(
        f"{name} is damaged or cut off ({reason}): fetch it again, then run the partition again"
    )


def open_bytes(path: Location) -> BinaryIO:
    """The file's bytes, unpacked where its name says that it is compressed."""
    raw = cast(BinaryIO, path.open("rb", _REQUEST_BYTES))
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if path.name.endswith(".bz2"):
        return cast(BinaryIO, bz2.BZ2File(raw))
    if path.name.endswith(".xz"):
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if path.name.endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(raw, "zstd")))
    return raw


def open_searchable(path: Location) -> "str | BinaryIO":
    """The file for a reader that jumps about in it."""
    return cast(BinaryIO, path.open("rb", _REQUEST_BYTES)) if isinstance(path, ObjectPath) else str(path)


def line_too_long(name: str) -> SourceError:
    return SourceError(
        f"{name} has a line longer than {LONGEST_LINE >> 20} MiB: "
        "check that it is of the format that the pipeline names"
    )


def columns_there(
    name: str, wanted: Mapping[str, CellType], found: Iterable[str], optional: frozenset[str] = frozenset()
) -> dict[str, CellType]:
    """The columns of the contract that a file has. One that lacks others than optional ones, or has one twice, is refused.

    Also where a column's cells may be empty: a column that came up null without a word would be wrong data.

    Raises:
        ContractError: names the file, the columns, and those that are there.
    """
    counts = Counter(found)
    missing = [column for column in wanted if column not in counts and column not in optional]
    if missing:
        there = cut(", ".join(counts), 300) or "none"
        raise ContractError(
            f"{name} lacks column {', '.join(missing)} of the contract; it has: {there}. "
            "Correct the file, or source.columns in the pipeline file (optional: true for a column that older files lack)"
        )
    twice = [column for column in wanted if counts[column] > 1]
    if twice:
        raise ContractError(f"{name} has column {twice[0]} more than once: rename or remove one of them")
    return {column: kind for column, kind in wanted.items() if column in counts}


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8, that is, holds no lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unparsable(
    name: str, row: int, reason: str, line: str | None, error_type: str = "unparsable"
) -> Rejected:
    """A row that could not be read; `line` is its text, or None where it must not be shown."""
    payload = None if line is None else cut(printable(line.rstrip("\r\n")), SHOWN_PAYLOAD)
    return Rejected(None, error_type, reason, name, row, payload)


def bad_cells(
    column: str, bad: BoolArray, texts: Mapping[int, str] | list[str], error_type: str
) -> list[BadCell]:
    """The marked cells with their texts, cut to what is ever shown."""
    rows = np.flatnonzero(bad).tolist()
    return [BadCell(row, column, error_type, cut(texts[row], SHOWN_PAYLOAD)) for row in rows]


def batch_of(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
