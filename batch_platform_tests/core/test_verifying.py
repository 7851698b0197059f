"""`verify` finds what was changed behind the platform's back, each thing by its file, and nothing else."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pytest

from batch_platform.core import featurizing, landing, scoring
from batch_platform.core.data.files import sealed
from batch_platform.core.data.lake import Slot
from batch_platform.core.data.ledger import ShardLedger
from batch_platform.core.data.staging import stage
from batch_platform.core.publishing import publish
from batch_platform.core.slice import Run, Slice
from batch_platform.core.verifying import Verification, verify
from batch_platform_tests.mini import DAYS, Mini, good_row

ROWS = 20
BAD = {"id": "bad", "amount": -1, "age": 20, "plan": "pro"}


@pytest.fixture
def lake(mini: Mini) -> Mini:
    """Two days scored, the second one twice, with a row in quarantine each."""
    model = mini.register()
    engine = scoring.load_engine(model, mini.spec, mini.settings.root)
    for round_ in range(2):
        for day in DAYS[:2]:
            rows = [good_row(day, number) for number in range(ROWS + round_)]
            mini.write(day, [*rows, BAD])
            partition = mini.spec.partitions.calendar().partition(day)
            slice_ = Slice(mini.spec, partition, mini.settings, mini.folder, Run(f"r{round_}"))
            landing.land_partition(slice_)
            featurizing.featurize_partition(slice_)
            scoring.score_partition(slice_, model, engine, lambda line: None)
    return mini


def look(mini: Mini, day: str | None = None, rebuild: bool = False) -> Verification:
    return verify(mini.spec, mini.settings, mini.folder, day, rebuild)


def files(mini: Mini, pattern: str) -> list[Path]:
    found = sorted(mini.settings.root.glob(pattern))  # type: ignore[arg-type]
    assert found, pattern
    return found


def flip(path: Path, at: bytes = b"") -> Path:
    """Flip a bit: of the first byte of `at`, or in the middle."""
    content = bytearray(path.read_bytes())
    content[content.index(at) if at else len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_all_is_well(lake: Mini) -> None:
    found = look(lake)
    assert (found.ok, found.problems, found.notes) == (True, (), ())
    assert found.partitions == 2
    # Each table: two days twice; the quarantine's rows changed with the source's, so it has as many.
    assert found.files == len(files(lake, "lake/mini/*/**/*.parquet"))
    assert found.rows["raw"] == found.rows["features"] == found.rows["predictions"] == 2 * (ROWS + 1)
    assert found.rows["quarantine"] == 2
    assert found.chain["predictions"]["version"] == 4
    assert look(lake, DAYS[0]).partitions == 1


PLANTED: dict[str, Callable[[Mini], Path]] = {
    "a flipped byte in predictions": lambda m: flip(
        files(m, "lake/mini/predictions/*2026-01-02/*.parquet")[-1]
    ),
    "a flipped byte in history": lambda m: flip(files(m, "lake/mini/predictions/*2026-01-02/*.parquet")[0]),
    "a flipped byte in raw": lambda m: flip(files(m, "lake/mini/raw/*2026-01-02/*.parquet")[0]),
    "a flipped byte in quarantine": lambda m: flip(
        files(m, "lake/mini/quarantine/*2026-01-02/*/*.parquet")[0]
    ),
    "an altered commit": lambda m: flip(files(m, "lake/mini/features/_delta_log/*2.json")[0]),
    "the last commit altered": lambda m: flip(
        files(m, "lake/mini/features/_delta_log/*.json")[-1], b"run_id"
    ),
    "the last commit broken": lambda m: flip(files(m, "lake/mini/features/_delta_log/*.json")[-1], b"{"),
    "an altered receipt": lambda m: flip(files(m, "receipts/mini/predictions/2026-01-02/*.json")[0]),
}


@pytest.mark.parametrize("name", PLANTED)
def test_one_planted_change_is_found_by_its_file(lake: Mini, name: str) -> None:
    altered = PLANTED[name](lake)
    found = look(lake)
    assert not found.ok
    assert {problem.file for problem in found.problems} == {str(altered)}
    assert "altered" in found.problems[0].problem


def test_files_taken_away_and_put_in(lake: Mini) -> None:
    gone = files(lake, "lake/mini/features/*2026-01-01/*.parquet")[0]
    gone.unlink()
    receipt = files(lake, "receipts/mini/raw/2026-01-01/*.json")[0]
    receipt.unlink()
    extra = files(lake, "lake/mini/raw/*2026-01-01/*.parquet")[0].with_name("extra.parquet")
    extra.write_bytes(b"x")
    forged = receipt.with_name("all-99.json")
    forged.write_text("{}")
    found = look(lake)
    assert {(p.file, p.problem.split(";")[0]) for p in found.problems} == {
        (str(gone), "is missing"),
        (str(receipt), "is missing"),
        (str(extra), "is in no receipt"),
        (str(forged), "is the receipt of no commit"),
    }


def test_receipts_are_rebuilt_from_the_commits(lake: Mini) -> None:
    places = files(lake, "receipts/mini/predictions/*/*.json")
    before = [place.read_bytes() for place in places]
    flip(places[0])
    places[1].unlink()
    found = look(lake, rebuild=True)
    assert (found.ok, len(found.rebuilt)) == (True, 2)
    assert [place.read_bytes() for place in places] == before
    assert look(lake).ok


def test_a_commit_with_its_receipt_rewritten_breaks_the_chain(lake: Mini) -> None:
    """Someone who changes the commit and the copy alike is betrayed by the commit after it."""
    commit = files(lake, "lake/mini/predictions/_delta_log/*3.json")[0]
    commit.write_text(commit.read_text().replace('\\"r1\\"', '\\"r9\\"'))
    (place,) = files(lake, "receipts/mini/predictions/2026-01-01/all-2.json")
    values = json.loads(place.read_bytes())
    forged = {
        "receipt": {**values["receipt"], "run_id": "r9"},
        "commit": sha256(commit.read_bytes()).hexdigest(),
    }
    place.write_bytes(sealed(forged))
    found = look(lake)
    assert {problem.file for problem in found.problems} == {str(commit)}


def test_a_source_with_more_rows_than_were_landed(lake: Mini) -> None:
    path = lake.write(DAYS[0], ROWS + 5)
    found = look(lake)
    (problem,) = found.problems
    assert (problem.partition_key, problem.file) == (DAYS[0], f"data/{DAYS[0]}.csv")
    assert f"has {ROWS + 5} rows, and had {ROWS + 2}" in problem.problem
    path.unlink()
    assert look(lake).ok
    assert any("not there any more" in note for note in look(lake).notes)


def test_rows_that_do_not_add_up(lake: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result published past the gate: a row lost, another one twice."""
    slice_ = Slice(
        lake.spec, lake.spec.partitions.calendar().partition(DAYS[0]), lake.settings, lake.folder, Run("r")
    )
    slot = Slot("predictions", DAYS[0])
    head = slice_.lake.head(slot)
    assert head is not None
    rows = pa.Table.from_batches(slice_.lake.batches("predictions", DAYS[0]))
    wrong = pa.concat_tables([rows.slice(0, 1), rows.slice(0, 1), rows.slice(2)]).combine_chunks()
    attempt = slice_.lake.begin(slot)
    staged = stage(wrong.to_batches(), wrong.schema, slice_.layout.scratch("x"), "predictions")
    what = {k: v for k, v in head.receipt.items() if k in ("work", "features_fingerprint", "signature")}
    publish(slice_, "predictions", staged, wrong.schema, [], "other", attempt, **what)
    (problem,) = look(lake).problems
    assert problem.partition_key == DAYS[0]
    assert "1 are missing, 1 are doubled or unknown" in problem.problem


def test_altered_staging_of_unfinished_work(lake: Mini) -> None:
    folder = lake.layout.staging(DAYS[2]) / "f00"
    ledger = ShardLedger(folder, lake.layout.scratch(DAYS[2]))
    ledger.record(0, pa.table({"a": [1]}), {})
    entry_of_one = ledger.record(1, pa.table({"a": [1]}), {})
    assert look(lake).ok
    entry = folder / "shard-000000.json"
    values = json.loads(entry.read_bytes())
    entry.write_text(json.dumps({**values, "notes": {"failures": []}}))
    assert entry_of_one.file is not None
    flip(entry_of_one.file.path)  # type: ignore[arg-type]
    found = look(lake)
    assert {problem.file for problem in found.problems} == {str(entry), str(entry_of_one.file.path)}
    assert {problem.partition_key for problem in found.problems} == {DAYS[2]}
