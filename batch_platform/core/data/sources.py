"""The files of a source, and the rows in them that belong to a partition.

Decides which files a uri names and in what order they are read, and leaves out the rows of other partitions.
The formats are in `readers`, the judgement of rows in `contract`; `intake` puts them together. Nothing here
holds more than a batch of rows at a time.

A uri is a file, a glob, or a folder, of which all files of the format are read, those in folders below it
too, except where a name begins with `.` or `_`. Relative ones start from the project's folder.
"""

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from batch_platform.core.data.cells import CellType
from batch_platform.core.data.contract import SourceBatch, printable
from batch_platform.core.data.files import sha256_of
from batch_platform.core.data.partitions import Partition
from batch_platform.core.data.readers.delimited import read_csv
from batch_platform.core.data.readers.jsonl import read_jsonl
from batch_platform.core.data.readers.parquet import read_parquet
from batch_platform.core.data.window import Window
from batch_platform.core.spec import SourceSpec
from batch_platform.errors import ContractError, NotYetSupportedError, SourceError, SourceMissingError

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".csv.gz"),
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
}

_TEXT_READERS = {"csv": read_csv, "jsonl": read_jsonl}


def read_source(source: SourceSpec, partition: Partition, base: Path) -> Iterator[SourceBatch]:
    """The rows of a source that belong to a partition, file by file in the order of their names.

    Args:
        source: the source; its format one of parquet, csv and jsonl.
        partition: the partition; its key stands for `{partition}` in the uri.
        base: the project's folder.

    Raises:
        SourceMissingError: there is no such file.
        SourceError: a file cannot be read.
        ContractError: a file has not the columns of the contract.
    """
    types: dict[str, CellType] = {name: spec.type for name, spec in source.columns.items()}
    shown = not any(spec.sensitive for spec in source.columns.values())
    uri = source.uri.replace("{partition}", partition.key)
    window = None if source.partition_column is None else Window(source.partition_column, partition)
    return read_files(uri, source.format, types, base, window=window, show_lines=shown)


def read_files(
    uri: str,
    file_format: str,
    columns: Mapping[str, CellType],
    base: Path,
    *,
    window: Window | None = None,
    show_lines: bool = True,
) -> Iterator[SourceBatch]:
    """The rows of all files that a uri names.

    Args:
        uri: file, folder or glob without placeholders.
        file_format: parquet, csv or jsonl.
        columns: the columns wanted and their types; `text` takes any scalar as its text.
        base: folder that relative uris start from.
        window: rows outside it are left out.
        show_lines: whether lines that cannot be parsed may be quoted in `unparsable`.

    Raises:
        As `read_source`, and NotYetSupportedError for another format.
    """
    for path in find_files(uri, file_format, base):
        name = source_name(path, base)
        if file_format == "parquet":
            batches = read_parquet(path, name, columns, window)
        else:
            batches = _TEXT_READERS[file_format](path, name, columns, show_lines)
        yield from batches if window is None else _within(batches, window, name)


def find_files(uri: str, file_format: str, base: Path) -> list[Path]:
    """The files that a uri names, sorted by path.

    Raises:
        SourceMissingError: there are none.
        SourceError: a folder may not be looked into.
        NotYetSupportedError: the format or the place is one of a later release.
    """
    if file_format not in _SUFFIXES or "://" in uri:
        raise NotYetSupportedError(f"{uri} ({file_format}): reading it comes with a later release")
    try:
        found = sorted({file for path in _matches(uri, base) for file in _files(path, file_format)})
    except OSError as error:
        raise SourceError(f"{uri} cannot be looked into ({error.strerror}): check its permissions") from error
    except ValueError as error:
        raise SourceError(f"{uri} is no usable path or glob ({error}): correct source.uri") from error
    if not found:
        raise SourceMissingError(
            f"{uri}: no such {file_format} file below {base}. Check the uri and whether the data has "
            "arrived; where a partition may have none, set source.allow_empty: true"
        )
    return found


def source_digests(source: SourceSpec, partition: Partition, base: Path) -> dict[str, str]:
    """SHA-256 of the files of a source that may hold rows of a partition, by the name that they have in tables.

    A file is read once a process, as long as its size, time and inode stay.
    """
    uri = source.uri.replace("{partition}", partition.key)
    try:
        found = find_files(uri, source.format, base)
    except SourceMissingError:
        return {}
    return {source_name(path, base): _digest(path) for path in found}


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_once(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@cache
def _digest_once(path: Path, _size: int, _modified: int, _inode: int) -> str:
    return sha256_of(path)


def source_name(path: Path, base: Path) -> str:
    """What a file is called in tables and messages: relative to `base` where it lies inside."""
    absolute, root = (Path(os.path.normpath(place.absolute())) for place in (path, base))
    name = absolute.relative_to(root) if absolute.is_relative_to(root) else path
    return printable(name.as_posix())


def _matches(uri: str, base: Path) -> list[Path]:
    """What the uri names, as it stands or else as a glob."""
    literal = base / uri
    if _is_there(literal):
        return [literal]
    if not glob.has_magic(uri):
        return []
    parts = Path(uri).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = base.joinpath(*parts[:fixed])
    if not _is_there(root):
        return []
    # glob takes a folder that it may not read for an empty one; listing it tells the two apart.
    next(root.iterdir(), None)
    found = list(root.glob(str(Path(*parts[fixed:]))))
    if any(map(_hidden, parts[fixed:])):
        return found
    return [match for match in found if not any(map(_hidden, match.relative_to(root).parts))]


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _hidden(name: str) -> bool:
    return name[0] in "._"


def _files(path: Path, file_format: str) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders[:] = [name for name in folders if not _hidden(name)]
        wanted = [name for name in names if not _hidden(name) and name.endswith(_SUFFIXES[file_format])]
        yield from (Path(folder) / name for name in wanted)


def _raise(error: OSError) -> None:
    raise error


def _within(batches: Iterator[SourceBatch], window: Window, name: str) -> Iterator[SourceBatch]:
    rows, seen = 0, False
    for batch in batches:
        rows += batch.batch.num_rows
        seen = seen or window.column in batch.columns_seen
        yield _filtered(batch, window)
    if rows and not seen:
        # A file of JSON lines has no header that could be checked beforehand.
        raise ContractError(
            f"{name}: no line has the partition column {window.column}, so that no row belongs to any "
            "partition. Correct the file, or source.partition_column in the pipeline file"
        )


def _filtered(source: SourceBatch, window: Window) -> SourceBatch:
    """The rows inside the window; the others only counted where they belong to no window at all."""
    column = source.batch.column(window.column)
    inside = window.inside(column)
    kept = np.flatnonzero(inside)
    place = {row: index for index, row in enumerate(kept.tolist())} if source.bad_cells else {}
    return replace(
        source,
        batch=source.batch.take(pa.array(kept)),
        source_rows=source.source_rows[kept],
        bad_cells=[replace(cell, row=place[cell.row]) for cell in source.bad_cells if cell.row in place],
        unparsable=[],
        unplaced=source.unplaced + column.null_count + len(source.unparsable),
    )
