"""The storage interface: the same promises on a disk and in object storage."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_platform.core.data import files, objects
from batch_platform.core.data.files import Location
from batch_platform.core.data.objects import ObjectPath, object_root
from batch_platform.errors import SettingsError, StorageError
from batch_platform_tests.s3.fault_proxy import Faults, fault_proxy

HOURLY = "partition_key=2026-01-31-23:00"


def finished(folder: Path, content: bytes = b"content") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "finished"
    path.write_bytes(content)
    return path


def test_a_file_is_created_once(root: Location) -> None:
    place = root / "a" / HOURLY / "x.json"
    assert files.read_if_there(place) is None
    assert files.create_once(place, b"first")
    assert not files.create_once(place, b"second")
    assert place.read_bytes() == files.read_if_there(place) == b"first"


def test_of_many_creators_one_is_first(root: Location) -> None:
    place = root / "race"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: files.create_once(place, b"%d" % number), range(16)))
    assert won.count(True) == 1
    assert place.read_bytes() == b"%d" % won.index(True)


def test_a_file_is_replaced_whole(root: Location) -> None:
    place = root / "a" / "x"
    for content in (b"long content", b"", b"short"):
        files.replace(place, content)
        assert place.read_bytes() == content


def test_a_finished_file_is_published_and_gone_from_where_it_was_made(root: Location, tmp_path: Path) -> None:
    content = os.urandom(20 * 2**20)  # in several parts
    path = finished(tmp_path / "made", content)
    place = root / "lake" / HOURLY / "data.parquet"
    digest = files.sha256_of(path)
    files.publish(path, place)
    assert not path.exists()
    assert place.stat().st_size == len(content)
    assert files.sha256_of(place) == digest
    files.fetch(place, tmp_path / "back" / "copy")
    assert (tmp_path / "back" / "copy").read_bytes() == content


def test_what_lies_in_a_folder(root: Location) -> None:
    assert files.entries(root / "a") == []
    assert list(files.walk(root / "a")) == []
    for name in ("a/x.json", "a/y.txt", "a/deep/er/z.json", "ab/other.json"):
        files.replace(root / name, name.encode())
    assert [place.name for place in files.entries(root / "a")] == ["deep", "x.json", "y.txt"]
    assert [place.name for place in files.entries(root / "a", "*.json")] == ["x.json"]
    found = {files.relative(entry.location, root): entry.size for entry in files.walk(root / "a")}
    assert found == {"a/x.json": 8, "a/y.txt": 7, "a/deep/er/z.json": 16}
    now = datetime.now(UTC)
    assert all(abs(now - entry.modified) < timedelta(minutes=5) for entry in files.walk(root / "a"))
    assert (root / "a").is_dir() and not (root / "a").is_file()
    assert (root / "a" / "x.json").is_file() and not (root / "a" / "x.json").is_dir()
    with pytest.raises(ValueError, match="does not lie in"):
        files.relative(root / "ab", root / "a")


def test_removing(root: Location) -> None:
    files.replace(root / "a" / "x", b"x")
    files.replace(root / "a" / "b" / "y", b"y")
    files.remove(root / "a" / "x")
    files.remove(root / "a" / "x")
    assert [place.name for place in files.entries(root / "a")] == ["b"]
    files.remove_folder(root / "a")
    files.remove_folder(root / "a")
    assert files.entries(root / "a") == []


def test_parquet_is_read_in_pieces(root: Location, tmp_path: Path) -> None:
    table = pa.table({"n": list(range(100_000)), "text": [f"row {n}" for n in range(100_000)]})
    pq.write_table(table, finished(tmp_path), row_group_size=10_000)
    files.publish(tmp_path / "finished", root / "t.parquet")
    with (root / "t.parquet").open("rb") as stream, pq.ParquetFile(stream) as file:
        assert file.read_row_group(7).equals(table.slice(70_000, 10_000))
    assert files.read_table(root / "t.parquet").equals(table)


def test_a_location_means_the_same_in_another_process(root: Location) -> None:
    files.replace(root / "x", b"there")
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(root / "x"), capture_output=True, check=True
    )
    assert done.stdout.strip() == b"b'there'"


def test_scratch_of_this_machine(root: Location, tmp_path: Path) -> None:
    place = files.scratch(root)
    assert isinstance(place, Path)
    assert place.is_relative_to(tmp_path)
    if isinstance(root, Path):  # so that a file can be moved from there
        assert place.is_relative_to(root)


def test_a_sealed_document() -> None:
    content = files.sealed({"a": 1, "b": ["ü"]})
    assert files.unsealed(content) == {"a": 1, "b": ["ü"]}
    for other in (content.replace(b"1", b"2", 1), content[:-1], b"", b"[]", b"{}", b"null", b"\xff"):
        assert files.unsealed(other) is None


# -- object storage alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///prefix", "gs://bucket", "s3://bucket/a b", "s3://bucket/a?x=1", "s3://bucket/ä"]
)
def test_what_is_no_place_in_object_storage(url: str) -> None:
    with pytest.raises(SettingsError, match=r"s3://|letters"):
        object_root(url)


def test_no_path_leads_out_of_a_folder(object_storage: str) -> None:
    root = object_root(object_storage)
    for name in ("..", "a/../../b", "/etc"):
        with pytest.raises(StorageError, match="out of the folder"):
            root / name


@pytest.fixture
def fresh_buckets() -> None:
    """Buckets remember for the process how they are reached."""
    objects.bucket.cache_clear()


@pytest.mark.usefixtures("fresh_buckets")
@pytest.mark.parametrize("s3_server", ["moto"], indirect=True)  # Ceph's clients sign the condition
def test_a_store_that_ignores_conditions_is_refused(
    object_storage: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_proxy(s3_server, Faults(ignore_conditions=True)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        root = object_root(object_storage)
        with pytest.raises(StorageError, match=r"ignores conditional PUT \(If-None-Match\)"):
            files.create_once(root / "x", b"1")
        assert list(files.walk(root)) == []


@pytest.mark.usefixtures("fresh_buckets")
def test_a_lost_reply_does_not_make_a_winner_a_loser(
    object_storage: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object was created, the answer is lost, the repeated request is refused: it is still ours."""
    with fault_proxy(s3_server, Faults(), seed=3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        root = object_root(object_storage)
        assert files.create_once(root / "first", b"1")
        proxy.faults = Faults(reset=0.1, busy=0.1, lost=0.3)
        for number in range(40):
            assert files.create_once(root / f"mine-{number}", b"mine")
            assert not files.create_once(root / f"mine-{number}", b"theirs")
        assert {"reset", "busy", "lost"} <= proxy.counts.keys()
        proxy.faults = Faults()
        assert {
            entry.location.read_bytes() for entry in files.walk(root) if "mine" in entry.location.name
        } == {b"mine"}


@pytest.mark.usefixtures("fresh_buckets")
@pytest.mark.parametrize("what", ["no credentials", "no bucket"])
def test_what_is_wrong_is_said(object_storage: str, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "no credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(SettingsError, match="no AWS credentials found"):
            files.create_once(object_root(object_storage) / "x", b"")
    else:
        with pytest.raises((StorageError, FileNotFoundError), match="no-such-bucket"):
            files.create_once(object_root("s3://no-such-bucket/x") / "x", b"")


@pytest.mark.usefixtures("fresh_buckets")
def test_plain_http_only_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example.com")
    assert "AWS_ALLOW_HTTP" not in objects.bucket("b").delta_options
    objects.bucket.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert objects.bucket("b").delta_options["AWS_ALLOW_HTTP"] == "true"


def test_sorting_and_names(object_storage: str) -> None:
    root = object_root(object_storage)
    place = root / "a" / "b.tar.gz"
    assert (place.name, place.stem, place.parent) == ("b.tar.gz", "b.tar", root / "a")
    assert place.with_suffix(".html").name == "b.tar.html"
    assert sorted([root / "b", root / "a"]) == [root / "a", root / "b"]
    assert isinstance(place, ObjectPath) and str(place) == f"{object_storage}/a/b.tar.gz"
