import numpy as np
import pytest

from batch_platform.core.data import record_file
from batch_platform.core.data.record_file import Buckets, RecordFile
from batch_platform.errors import StorageError

_RECORD = np.dtype([("number", "<i8"), ("flag", "?")])


def _records(first, count):
    records = np.zeros(count, _RECORD)
    records["number"] = np.arange(first, first + count)
    records["flag"] = records["number"] % 3 == 0
    return records


@pytest.mark.parametrize("held_bytes", [0, 200, 10_000])
def test_records_are_read_as_they_were_appended(held_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(record_file, "HELD_BYTES", held_bytes)
    file = RecordFile(tmp_path / "some" / "records", _RECORD)
    assert len(file.read()) == 0
    for first, count in ((0, 5), (5, 40), (45, 0), (45, 3)):
        file.append(_records(first, count))
    whole = _records(0, 48)
    assert len(file) == 48
    assert np.array_equal(file.read(), whole)
    for first in range(0, 48, 7):
        for count in (1, 10, 48):
            assert np.array_equal(file.read(first, count), whole[first : first + count])
    assert (tmp_path / "some").exists() == (held_bytes < 10_000)


@pytest.mark.parametrize("held_bytes", [0, 10_000])
def test_equal_hashes_meet_in_one_bucket_in_their_order(held_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(record_file, "HELD_BYTES", held_bytes)
    buckets = Buckets(tmp_path, "b", _RECORD)
    hashes = np.random.default_rng(0).integers(0, 2**64, 300, dtype=np.uint64)
    hashes = np.concatenate([hashes, hashes])
    for first in range(0, 600, 50):
        buckets.add(hashes[first : first + 50], _records(first, 50))
    parts = list(buckets)
    assert len(buckets) == sum(map(len, parts)) == 600
    for part in parts:
        assert np.all(np.diff(part["number"]) > 0)
        assert set(hashes[part["number"]]) == set(hashes[part["number"] % 300])
    numbers = np.concatenate([part["number"] for part in parts])
    assert np.array_equal(np.sort(numbers), np.arange(600))
    place = np.empty(600, int)
    for number, part in enumerate(parts):
        place[part["number"]] = number
    assert np.array_equal(place[:300], place[300:])


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(record_file, "HELD_BYTES", 0)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match="taken"):
        RecordFile(tmp_path / "taken" / "records", _RECORD).append(_records(0, 1))
