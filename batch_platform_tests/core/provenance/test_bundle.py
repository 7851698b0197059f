"""The audit bundle: complete, the same bytes each time, its digests those of its files, and no values of rows."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from batch_platform.core.monitoring.reviews import ReviewStore
from batch_platform.core.provenance.bundle import audit_bundle
from batch_platform.errors import PartitionKeyError, StorageError
from batch_platform_tests.core.provenance.made import make
from batch_platform_tests.mini import DAYS, Mini, good_row


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def scored(mini: Mini) -> Mini:
    columns: dict[str, Any] = mini.spec.model_dump(exclude_none=True)["source"]["columns"]
    columns["plan"]["sensitive"] = True
    mini.change(source={"columns": columns}, inference={"max_error_share": 0.5}, owners=["team:growth"])
    rows = [good_row(DAYS[0], number) for number in range(20)]
    rows[3]["plan"] = "a secret plan"
    for day in DAYS[:3]:
        mini.write(day, rows)
        make(mini, day)
    mini.register(seed=1)
    make(mini, DAYS[1], "run-2")
    for day in DAYS[:3]:
        ReviewStore(mini.layout.monitoring).record(day, "accept", "the owner", f"a sale of {day}", [], 1)
    return mini


def test_everything_is_there_and_the_same_each_time(scored: Mini, tmp_path: Path) -> None:
    names = audit_bundle(scored.spec, scored.settings, DAYS[0], DAYS[1], tmp_path / "a.zip")
    audit_bundle(scored.spec, scored.settings, DAYS[0], DAYS[1], tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    found = contents(tmp_path / "a.zip")
    assert sorted(found) == names

    listed = dict(line.split("  ")[::-1] for line in found["SHA256SUMS"].decode().splitlines())
    assert listed == {
        name: hashlib.sha256(content).hexdigest() for name, content in found.items() if name != "SHA256SUMS"
    }
    receipts = {name for name in found if name.startswith("receipts/")}
    assert {f"receipts/predictions/{DAYS[1]}/{attempt}.json" for attempt in (1, 2)} <= receipts
    assert f"receipts/quarantine/{DAYS[0]}/raw-1.json" in receipts
    assert not any(DAYS[2] in name for name in found)
    receipt = json.loads(found[f"receipts/predictions/{DAYS[1]}/2.json"])
    assert (receipt["run_id"], receipt["model_version"]) == ("run-2", "2")
    for version in ("1", "2"):
        assert json.loads(found[f"models/churn/{version}/card.json"])
        assert json.loads(found[f"models/churn/{version}/record.json"])["files"]
    assert [review["why"] for review in json.loads(found["reviews.json"])] == [
        f"a sale of {day}" for day in DAYS[:2]
    ]
    (first, _) = json.loads(found["quarantine.json"])
    assert (first["stage"], first["error_type"], first["rows"]) == ("raw", "not_allowed", 1)
    assert len(json.loads(found["run_stats.json"])) == 2

    index = found["index.md"].decode()
    assert f"# mini: {DAYS[0]} to {DAYS[1]}" in index and "team:growth" in index
    assert f"| {DAYS[1]} | 19 | 0 | churn | 2 |" in index
    assert "churn version 2 promoted as champion by tests: a test" in index
    assert f"how often: {DAYS[1]} (1)" in index
    assert b"secret plan" not in b"".join(found.values())


def test_hostile_words_stay_words(scored: Mini, tmp_path: Path) -> None:
    from batch_platform.core.models.registry import Registry

    why = "| <script>alert(1)</script> [x](http://evil)\n# heading"
    Registry(scored.settings.root).promote("churn", "1", "champion", "me", why)
    audit_bundle(scored.spec, scored.settings, DAYS[0], DAYS[0], tmp_path / "a.zip")
    index = contents(tmp_path / "a.zip")["index.md"].decode()
    assert "<script>" not in index.replace("\\<", "") and "\n# heading" not in index


def test_nothing_there(mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing was ever committed"):
        audit_bundle(mini.spec, mini.settings, DAYS[0], DAYS[1], tmp_path / "a.zip")
    with pytest.raises(PartitionKeyError):
        audit_bundle(mini.spec, mini.settings, DAYS[1], DAYS[0], tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
