import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from batch_platform.demo.archives import members, unpack
from batch_platform.errors import SourceError


def tar_of(path: Path, entries: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return path


def zip_of(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


MAKERS = {"a.tgz": tar_of, "a.whl": zip_of}


@pytest.mark.parametrize("kind", MAKERS)
def test_wanted_members_are_unpacked_where_the_target_says(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](tmp_path / kind, {"package/data/a.txt": b"one", "package/setup.py": b"no"})

    def target(name: str) -> str | None:
        return name.removeprefix("package/data/") if name.startswith("package/data/") else None

    written = unpack(archive, tmp_path / "out", target)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == ["a.txt"]
    assert (tmp_path / "out" / "a.txt").read_bytes() == b"one"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "a\\..\\evil.txt"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_member_that_leads_outside_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    archive = MAKERS[kind](tmp_path / kind, {name: b"x"})
    with pytest.raises(SourceError, match="leads outside"):
        unpack(archive, tmp_path / "deep" / "out", lambda member: member)
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_target_that_leads_outside_is_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.whl", {"good/name.txt": b"x"})
    with pytest.raises(SourceError, match="leads outside"):
        unpack(archive, tmp_path / "out", lambda member: "../" + member)


def test_a_link_is_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tgz", {}, link="package/link.txt")
    with pytest.raises(SourceError, match="no plain file"):
        list(members(archive, lambda name: True))


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    archive.write_bytes(b"not an archive")
    with pytest.raises(SourceError, match=r"a\.tgz cannot be read"):
        list(members(archive, lambda name: True))
