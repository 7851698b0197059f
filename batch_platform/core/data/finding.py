"""The files that a uri names, on a disk and in object storage.

A uri is a file, a glob, or a folder, of which all files of the format are read, those in folders below it
too, except where a name begins with `.` or `_`. Relative ones start from the project's folder, `s3://bucket/...` is a
place in object storage, where a prefix counts as a folder. `**` in a glob stands for any number of folders. Nothing
here opens a file.
"""

import glob
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from batch_platform.core.data.contract import printable
from batch_platform.core.data.files import Location
from batch_platform.core.data.objects import ObjectPath, bucket
from batch_platform.core.data.readers.opening import COMPRESSIONS
from batch_platform.errors import NotYetSupportedError, SourceError, SourceMissingError, StorageError

_PACKED = ("", *COMPRESSIONS)
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "csv": tuple(f".csv{packed}" for packed in _PACKED),
    "documents": ("",),  # a file of another kind is a row that cannot be read, and not overlooked
    "jsonl": tuple(f"{suffix}{packed}" for suffix in (".jsonl", ".ndjson") for packed in _PACKED),
}


def is_url(uri: str) -> bool:
    return "://" in uri


def place_of(uri: str, base: Path) -> Location:
    """The place of a uri without wildcards.

    Raises:
        SourceError: it is a URL of something else than S3.
    """
    if not is_url(uri):
        return base / uri
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise SourceError(f"{uri}: only s3://bucket/key is known; correct the uri")
    return ObjectPath(bucket(parts.netloc), parts.path.strip("/"))


def folder_of(uri: str, base: Path) -> Location:
    """The folder that all files of a uri lie in: itself, or what comes before its wildcards."""
    parts = uri.split("/")
    fixed = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    place = place_of("/".join(parts[:fixed]), base)
    return place.parent if fixed == len(parts) and place.is_file() else place


def find_files(uri: str, file_format: str, base: Path) -> list[Location]:
    """The files that a uri names, sorted by path.

    Raises:
        SourceMissingError: there are none.
        SourceError: a folder or bucket may not be looked into.
        NotYetSupportedError: files of that format are not read.
    """
    if file_format not in _SUFFIXES:
        raise NotYetSupportedError(f"{uri} ({file_format}): reading it comes with a later release")
    found: list[Location]
    try:
        if is_url(uri):
            found = sorted(_objects(uri, file_format), key=str)
        else:
            found = sorted({file for path in _matches(uri, base) for file in _files(path, file_format)})
    except StorageError as error:
        raise SourceError(str(error)) from None
    except OSError as error:
        raise SourceError(f"{uri} cannot be looked into ({error.strerror}): check its permissions") from error
    except ValueError as error:
        raise SourceError(f"{uri} is no usable path or glob ({error}): correct source.uri") from error
    if not found:
        where = "" if is_url(uri) else f" below {base}"
        raise SourceMissingError(
            f"{uri}: no such {file_format} file{where}. Check the uri and whether the data has "
            "arrived; where a partition may have none, set source.allow_empty: true"
        )
    return found


def source_name(path: Location, base: Path) -> str:
    """What a file is called in tables and messages: relative to `base` where it lies inside, an object by its URL."""
    if isinstance(path, ObjectPath):
        return printable(str(path))
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


# -- object storage ---------------------------------------------------------------------------------------


def _objects(uri: str, file_format: str) -> Iterator[ObjectPath]:
    """Objects by the same rules as files; keys end in no folder of their own."""
    parts = uri.split("/")
    fixed = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    root, pattern = place_of("/".join(parts[:fixed]), Path()), parts[fixed:]
    assert isinstance(root, ObjectPath)
    if not pattern and root.is_file():
        yield root
        return
    shows_hidden = any(map(_hidden, pattern))
    for location, _, _ in root.walk_files():
        names = location.key.removeprefix(root.key).strip("/").split("/")
        depths = [depth for depth in range(len(names) + 1) if _fits(names[:depth], pattern)]
        if not depths or (any(map(_hidden, names[: depths[0]])) and not shows_hidden):
            continue
        inside = names[depths[0] :]
        if not inside or (not any(map(_hidden, inside)) and names[-1].endswith(_SUFFIXES[file_format])):
            yield location


def _fits(names: list[str], pattern: list[str]) -> bool:
    """Whether names of folders fit a glob, one name a part, `**` any number of them."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_fits(names[skipped:], pattern[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])
