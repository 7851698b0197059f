"""Reads files out of downloaded archives (tar, zip, wheel) without trusting the names in them.

Decides what a member may be: a plain file below the target. It does not know what the files mean.
"""

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from batch_platform.errors import SourceError


def members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The wanted plain files of an archive, in its order, one in memory at a time.

    Args:
        archive: a tar (of any compression), zip or wheel.
        wanted: says by its name whether a member is read.

    Yields:
        A member's name and content.

    Raises:
        SourceError: a member's name leads outside, a wanted member is a link or a device, or the archive
            cannot be read.
    """
    try:
        yield from _zipped(archive, wanted) if zipfile.is_zipfile(archive) else _tarred(archive, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise SourceError(f"{archive.name} cannot be read: {error}; delete {archive} and run again") from None


def unpack(archive: Path, into: Path, target: Callable[[str], str | None]) -> list[Path]:
    """Write members of an archive below a folder.

    Args:
        archive: a tar, zip or wheel.
        into: the folder; created when absent.
        target: gives the path below `into` of a member's name, or None to leave it out.

    Returns:
        The files written.

    Raises:
        SourceError: as `members`, or a target that leads outside of `into`.
    """
    written = []
    for name, content in members(archive, lambda member: target(member) is not None):
        path = into / safe_name(target(name) or "", archive)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(path)
    return written


def safe_name(name: str, archive: Path) -> PurePosixPath:
    """A member's name as a relative path that stays below its folder.

    Raises:
        SourceError: it is empty, absolute, climbs with `..`, or carries a drive or a backslash.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise SourceError(
            f"{archive.name}: the member {name!r} leads outside of the archive; it was not used"
        )
    return path


def _tarred(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            safe_name(member.name, archive)
            if not wanted(member.name) or member.isdir():
                continue
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is None:
                raise SourceError(f"{archive.name}: the member {member.name!r} is no plain file")
            yield member.name, stream.read()


def _zipped(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            safe_name(member.filename, archive)
            if not wanted(member.filename) or member.is_dir():
                continue
            if (member.external_attr >> 28) == 0xA:  # the Unix mode of a symbolic link
                raise SourceError(f"{archive.name}: the member {member.filename!r} is no plain file")
            yield member.filename, file.read(member)
