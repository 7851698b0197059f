"""Durable small-file writing on a local disk: create once, replace whole, fsync both file and folder.

What is returned as written is on the disk, and a reader sees either all of a file or nothing of it.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batch_platform.errors import StorageError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing a file (a full disk, say) into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error}): free some space or mend the permissions, then run it again"
        ) from error


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries (new names, removed names) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_once(path: Path, content: bytes) -> bool:
    """Create a file with this content, unless it exists.

    Returns:
        True where this call created it; False where another one was first (its content stands).

    Raises:
        StorageError: it cannot be written; nothing of it is left.
    """
    temporary = _write_beside(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    fsync_folder(path.parent)
    return True


def replace(path: Path, content: bytes) -> None:
    """Write a file whole, in the place of whatever was there.

    Raises:
        StorageError: it cannot be written; what was there still is.
    """
    _write_beside(path, content).replace(path)
    fsync_folder(path.parent)


def _write_beside(path: Path, content: bytes) -> Path:
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return temporary


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
