import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from batch_platform.demo import fetch, registries
from batch_platform.demo.fetch import DataSet
from batch_platform.demo.registries import Package, archive_of, verify
from batch_platform.errors import SourceError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ".demo_data"


def data_set(folder: Path, content: bytes = b"one") -> DataSet:
    """A data set whose archive has been downloaded already."""
    archives = folder / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archives / "tiny.whl", "w") as file:
        file.writestr(zipfile.ZipInfo("data/a.txt"), content)
    digest = hashlib.sha256((archives / "tiny.whl").read_bytes()).hexdigest()
    package = Package("pypi", "tiny", "1", "tiny.whl", digest, 1)
    return DataSet("tiny", package, 1, lambda archive, into: f"{len(fetch.unpack(archive, into, str))} files")


def run(folder: Path, *data_sets: DataSet) -> list[str]:
    said: list[str] = []
    fetch.fetch(folder, said.append, data_sets)
    return said


def test_only_what_is_missing_is_made(folder: Path) -> None:
    tiny = data_set(folder)
    assert run(folder, tiny) == ["[tiny] preparing", "[tiny] 1 files"]
    assert (folder / "tiny" / "data" / "a.txt").read_bytes() == b"one"
    (folder / "archives" / "tiny.whl").unlink()  # not needed any more
    assert run(folder, tiny) == ["[tiny] there"]


def test_a_data_set_with_a_file_missing_is_made_anew(folder: Path) -> None:
    tiny = data_set(folder)
    run(folder, tiny)
    (folder / "tiny" / "data" / "a.txt").unlink()
    assert run(folder, tiny)[-1] == "[tiny] 1 files"


def test_a_file_that_was_changed_is_kept_and_said(folder: Path) -> None:
    tiny = data_set(folder)
    run(folder, tiny)
    (folder / "tiny" / "data" / "a.txt").write_text("mine")
    assert "1 of its files changed" in run(folder, tiny)[0]
    assert (folder / "tiny" / "data" / "a.txt").read_text() == "mine"


def test_another_preparation_makes_it_anew(folder: Path) -> None:
    tiny = data_set(folder)
    run(folder, tiny)
    newer = DataSet(tiny.name, tiny.package, 2, tiny.make)
    assert run(folder, newer)[-1] == "[tiny] 1 files"
    assert json.loads((folder / "tiny" / fetch.MARKER).read_text())["version"] == 2


def test_an_interrupted_preparation_leaves_nothing_that_looks_complete(folder: Path) -> None:
    tiny = data_set(folder)

    def interrupted(archive: Path, into: Path) -> str:
        tiny.make(archive, into)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, DataSet(tiny.name, tiny.package, 1, interrupted))
    assert not (folder / "tiny").exists()
    assert run(folder, tiny)[-1] == "[tiny] 1 files"


def test_a_folder_of_someone_else_is_not_touched(folder: Path) -> None:
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "precious").touch()
    with pytest.raises(SourceError, match="move it away"):
        run(folder, data_set(folder))
    assert (folder / "tiny" / "precious").exists()


def test_two_fetches_at_once_are_refused(folder: Path) -> None:
    tiny = data_set(folder)
    with fetch._only_one(folder), pytest.raises(SourceError, match="another fetch"):
        run(folder, tiny)


def test_an_archive_with_another_digest_is_refused(folder: Path) -> None:
    package = data_set(folder).package
    archive = folder / "archives" / "tiny.whl"
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(SourceError, match=r"tiny\.whl has sha256 .* it was not used"):
        verify(archive, package)


def test_an_altered_archive_is_downloaded_again_and_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = data_set(folder).package
    archive = folder / "archives" / "tiny.whl"
    good = archive.read_bytes()
    archive.write_bytes(b"rotten")

    def download(package: Package, into: Path) -> None:
        (into / package.file).write_bytes(good)

    monkeypatch.setattr(registries, "_pip_download", download)
    assert archive_of(package, folder / "archives", print).read_bytes() == good


def test_pip_is_given_the_digest_before_it_may_run_anything(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = data_set(folder).package
    seen: list[str] = []

    def client(command: list[str], **_: object) -> subprocess.CompletedProcess:
        requirement = Path(command[command.index("--requirement") + 1])
        seen.extend([*command, requirement.read_text()])
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network")

    monkeypatch.setattr(subprocess, "run", client)
    (folder / "archives" / "tiny.whl").unlink()
    with pytest.raises(SourceError, match=r"tiny 1 could not be downloaded: ERROR: no network"):
        archive_of(package, folder / "archives", print)
    assert "--require-hashes" in seen and f"sha256:{package.sha256}" in seen[-1]


NPM = Package("npm", "@tiny/mails", "1", "tiny.tgz", "0" * 64, 1)


def test_without_npm_and_pip_one_sentence_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")

    def no_pip(command: list[str], **_: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", f"{sys.executable}: No module named pip")

    monkeypatch.setattr(subprocess, "run", no_pip)
    with pytest.raises(SourceError, match=r"npm is not installed.*install Node\.js.*ensurepip"):
        archive_of(NPM, folder / "archives", print)


def test_the_command_prints_a_sentence_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "workspace.yaml").touch()
    monkeypatch.chdir(tmp_path)

    def refuse(package: Package, folder: Path, say: object) -> Path:
        raise SourceError("npm is not installed: install Node.js")

    monkeypatch.setattr(fetch, "archive_of", refuse)
    assert fetch.main() == 1
    error = capsys.readouterr().err
    assert error == "the demo data could not be fetched: npm is not installed: install Node.js\n"


def test_the_pinned_packages_are_whole() -> None:
    for package in (registries.EMAILS, registries.FLIGHTS, registries.MINILM):
        assert len(package.sha256) == 64 and package.version in package.file
