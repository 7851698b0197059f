"""Writing files so that they last: create once, replace whole, publish a finished file, on a disk or in object storage.

A location is a `pathlib.Path` on a disk and an `ObjectPath` in object storage; readers use what both have. What is
returned as written is durable, and a reader sees either all of a file or nothing of it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.data.objects import ObjectPath
from batch_platform.errors import StorageError

Location: TypeAlias = Path | ObjectPath

SCRATCH_VARIABLE = "BATCH_PLATFORM_SCRATCH"


@dataclass(frozen=True)
class FoundFile:
    """A file below a folder, its bytes and when it was changed last."""

    location: Location
    size: int
    modified: datetime


@contextmanager
def writing(location: Location) -> Iterator[None]:
    """Turn what the operating system says about writing a file (a full disk, say) into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{location} cannot be written ({error}): free some space or mend the permissions, then run it again"
        ) from error


# -- reading ----------------------------------------------------------------------------------------------


def read_if_there(location: Location) -> bytes | None:
    """A file's content; None where there is no such file."""
    try:
        return location.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_table(location: Location) -> pa.Table:
    """A small Parquet file, whole."""
    return pq.read_table(pa.BufferReader(location.read_bytes()))


def entries(folder: Location, pattern: str = "*") -> list[Location]:
    """What lies in a folder, by name; nothing where there is no folder."""
    found: list[Location] = list(folder.glob(pattern)) if folder.is_dir() else []
    return sorted(found, key=lambda place: place.name)


def relative(location: Location, folder: Location) -> str:
    """The path of a location below a folder, with slashes."""
    inside = str(location).removeprefix(f"{folder}/")
    if inside == str(location):
        raise ValueError(f"{location} does not lie in {folder}")
    return inside


def sha256_of(location: Location) -> str:
    """Hex digest of a file's bytes."""
    if isinstance(location, ObjectPath):
        return location.sha256()
    with location.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch(location: Location, path: Path) -> None:
    """Copy a file to this machine.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: it cannot be written here.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(location, ObjectPath):
        with writing(path):
            shutil.copyfile(location, path)
        return
    chunks = location.chunks()
    with writing(path), path.open("wb") as stream:
        stream.writelines(chunks)


def walk(folder: Location) -> Iterator[FoundFile]:
    """Every file below a folder, unfinished ones included; nothing where there is no folder."""
    if isinstance(folder, ObjectPath):
        for location, size, modified in folder.walk_files():
            yield FoundFile(location, size, modified)
        return
    for path in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):  # removed since it was listed
            stat = path.lstat()
            if not path.is_dir():
                yield FoundFile(path, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))


# -- writing ----------------------------------------------------------------------------------------------


def create_once(location: Location, content: bytes) -> bool:
    """Create a file with this content, unless it exists.

    Args:
        location: of the file; its folder is made.
        content: unique to the caller where it matters who was first: in object storage a repeated request whose
            first reply was lost is told apart from a rival's by the content alone.

    Returns:
        True where this call created it; False where another one was first (its content stands).

    Raises:
        StorageError: it cannot be written; nothing of it is left.
    """
    if isinstance(location, ObjectPath):
        return location.create(content)
    temporary = _write_beside(location, content)
    with writing(location):
        try:
            os.link(temporary, location)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        fsync_folder(location.parent)
    return True


def replace(location: Location, content: bytes) -> None:
    """Write a file whole, in the place of whatever was there.

    Raises:
        StorageError: it cannot be written; what was there still is.
    """
    if isinstance(location, ObjectPath):
        location.put(content)
        return
    temporary = _write_beside(location, content)
    with writing(location):
        temporary.replace(location)
        fsync_folder(location.parent)


def publish(finished: Location, location: Location) -> None:
    """Move a finished, fsynced file of `scratch` to where it belongs, under a name that no one else uses.

    Raises:
        StorageError: it cannot be written there.
    """
    assert isinstance(finished, Path)
    if isinstance(location, ObjectPath):
        location.put(finished)
        finished.unlink()
        return
    with writing(location):
        make_folder(location.parent)
        finished.rename(location)
        fsync_folder(location.parent)


def remove(location: Location) -> None:
    """Remove a file; it may be gone already."""
    location.unlink(missing_ok=True)


def remove_folder(folder: Location) -> None:
    """Remove everything below a folder, and the folder; it, or a part of it, may be gone already."""
    if isinstance(folder, ObjectPath):
        for found in list(walk(folder)):
            remove(found.location)
        return
    while folder.is_dir():
        with suppress(FileNotFoundError):  # another process removes it too
            shutil.rmtree(folder)


def remove_empty_folders(folder: Location, before: datetime) -> None:
    """Remove folders below that hold nothing and were left alone since then; object storage has none."""
    if isinstance(folder, ObjectPath) or not folder.is_dir():
        return
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):  # not empty, or gone
            if path.stat().st_mtime < before.timestamp():
                path.rmdir()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably: a file in a folder that a crash takes away is lost with it."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries (new names, removed names) durable."""
    _fsync(folder)


def fsync_file(path: Path) -> None:
    """Make a file's content durable."""
    _fsync(path)


def _fsync(path: Path) -> None:
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_beside(path: Path, content: bytes) -> Path:
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    with writing(path):
        make_folder(path.parent)
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return temporary


# -- this machine -----------------------------------------------------------------------------------------


def scratch(root: Location) -> Path:
    """A folder of this machine for files in the making; on the root's own disk where it has one.

    In object storage's case below `BATCH_PLATFORM_SCRATCH`, by default the system's folder for temporary files.
    """
    if isinstance(root, Path):
        return root / "staging" / ".scratch"
    below = os.environ.get(SCRATCH_VARIABLE) or f"{tempfile.gettempdir()}/batch_platform-{os.getuid()}"
    return Path(below) / hashlib.sha256(str(root).encode()).hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the other processes of this machine. It saves them tries; nothing is wrong without it.

    The lock ends with the process, however it ends.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# -- small documents --------------------------------------------------------------------------------------


def sealed(value: Mapping[str, Any]) -> bytes:
    """A JSON document that carries the hash of its content, so that an accident to it shows."""
    return canonical_json({**value, "seal": _seal(value)})


def unsealed(content: bytes) -> dict[str, Any] | None:
    """The document as it was sealed; None for anything else."""
    try:
        value = json.loads(content)
        return value if value.pop("seal") == _seal(value) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
