"""Predictions as files: what readers find, and what the manifest says of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from batch_platform.core import delivering
from batch_platform.core.data import exports
from batch_platform.core.data.files import read_if_there
from batch_platform.core.data.finding import place_of
from batch_platform.errors import DeliveryError, StorageError, SupersededError
from batch_platform_tests.core.deliveries import SCHEMA, Shop
from batch_platform_tests.mini import DAYS

ODD = {"a": 0.5, 'b, "quoted"\nand broken': 0.25, "ünï": 1.0}


@pytest.fixture(params=["parquet", "csv"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shop(tmp_path: Path, kind: str) -> Shop:
    return Shop(tmp_path, sinks=[{"type": kind, "uri": "out/scores"}])


def scores(shop: Shop, kind: str) -> dict[str, dict[str, float]]:
    """What DuckDB reads with the line that the documentation gives."""
    found: dict[str, dict[str, float]] = {}
    line = f"SELECT partition_key, row_key, score FROM '{shop.folder}/out/scores/*.{kind}'"
    for key, row, score in duckdb.sql(line).fetchall():
        found.setdefault(str(key), {})[row] = score
    return found


def manifest(shop: Shop, day: str = DAYS[0]) -> dict[str, Any]:
    return json.loads((shop.folder / "out/scores/_manifests" / f"{day}.json").read_text())


def test_a_file_for_each_partition(shop: Shop, kind: str) -> None:
    attempt = shop.commit(ODD, "f1")
    shop.commit({"z": 0.75}, "g1", DAYS[1])
    assert (shop.deliver().reused, shop.deliver(DAYS[1]).rows) == (False, 1)
    assert scores(shop, kind) == {DAYS[0]: ODD, DAYS[1]: {"z": 0.75}}
    told, file = manifest(shop), shop.folder / f"out/scores/{DAYS[0]}.{kind}"
    assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (told["rows"], told["commit"], told["bytes"]) == (3, attempt, file.stat().st_size)
    assert told["columns"]["score"] == "double"
    read = pl.read_parquet(file) if kind == "parquet" else pl.read_csv(file)
    assert read.columns == ["partition_key", *SCHEMA.names]
    assert (
        read["scores"][0].to_list() == [0.5, 0.5] if kind == "parquet" else read["scores"][0] == "[0.5, 0.5]"
    )
    written = file.stat().st_mtime_ns
    assert shop.deliver().reused
    assert file.stat().st_mtime_ns == written


def test_a_rescored_partition_replaces_its_file(shop: Shop, kind: str) -> None:
    shop.commit({"a": 0.1, "b": 0.2}, "f1")
    shop.deliver()
    shop.commit({"a": 0.9}, "f2")
    shop.deliver()
    assert scores(shop, kind) == {DAYS[0]: {"a": 0.9}}
    (shop.folder / f"out/scores/{DAYS[0]}.{kind}").unlink()
    assert not shop.deliver().reused
    assert scores(shop, kind) == {DAYS[0]: {"a": 0.9}}
    shop.commit({}, "f3")
    shop.deliver()
    assert (scores(shop, kind), manifest(shop)["rows"]) == ({}, 0)


def test_killed_between_the_file_and_its_manifest(
    shop: Shop, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.commit({"a": 0.1}, "f1")
    shop.deliver()
    shop.commit({"a": 0.9}, "f2")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exports.files, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            shop.deliver()
    shop.deliver()
    assert (scores(shop, kind), manifest(shop)["commit"]) == ({DAYS[0]: {"a": 0.9}}, 2)
    assert [path.name for path in (shop.folder / "out/scores").iterdir() if path.suffix == ".tmp"] == []


def test_a_newer_commit_that_comes_in_between_wins(
    shop: Shop, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older run writes its file last, notices, and delivers what stands."""
    shop.commit({"a": 0.1}, "f1")
    plain = delivering.export

    def slow(*what: Any) -> Any:
        monkeypatch.setattr(delivering, "export", plain)
        shop.commit({"a": 0.9}, "f2")
        return plain(*what)

    monkeypatch.setattr(delivering, "export", slow)
    shop.deliver()
    assert (scores(shop, kind), manifest(shop)["commit"]) == ({DAYS[0]: {"a": 0.9}}, 2)


def test_what_is_not_this_pipelines_is_refused(shop: Shop, kind: str, tmp_path: Path) -> None:
    shop.commit({"a": 0.1}, "f1")
    shop.commit({"a": 0.2}, "f2")
    shop.deliver()
    other = Shop(tmp_path, "other", [{"type": kind, "uri": "out/scores"}])
    other.commit({"z": 0.9}, "g1")
    with pytest.raises(DeliveryError, match="is filled by pipeline mini"):
        other.deliver()
    (tmp_path / "root").rename(tmp_path / "away")
    shop.commit({"a": 0.3}, "f3")
    with pytest.raises(DeliveryError, match="If the lake was made anew, delete") as caught:
        shop.deliver()
    assert not isinstance(caught.value, SupersededError)
    assert scores(shop, kind) == {DAYS[0]: {"a": 0.2}}


def test_a_folder_that_cannot_be_written(shop: Shop, kind: str) -> None:
    shop.commit({"a": 0.1}, "f1")
    (shop.folder / "out").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot be written"):
        shop.deliver()


def test_files_in_object_storage(object_storage: str, tmp_path: Path, kind: str) -> None:
    shop = Shop(tmp_path, sinks=[{"type": kind, "uri": f"{object_storage}/out"}])
    shop.commit({"a": 0.1}, "f1")
    shop.deliver()
    shop.commit({"a": 0.9, "b": 0.2}, "f2")
    shop.deliver()
    folder = place_of(f"{object_storage}/out", tmp_path)
    content = read_if_there(folder / f"{DAYS[0]}.{kind}")
    assert content is not None
    told = json.loads(read_if_there(folder / "_manifests" / f"{DAYS[0]}.json") or b"")
    assert (told["rows"], told["sha256"]) == (2, hashlib.sha256(content).hexdigest())
    if kind == "parquet":
        assert pl.read_parquet(pa.BufferReader(content).read())["score"].to_list() == [0.9, 0.2]
    assert sorted(path.name for path in folder.iterdir()) == [f"{DAYS[0]}.{kind}", "_manifests"]
