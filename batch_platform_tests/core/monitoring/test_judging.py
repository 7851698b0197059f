"""Judging partitions: the reference is frozen once, and nothing judged later changes an earlier answer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core.monitoring import judging
from batch_platform.core.monitoring.drift import Verdict
from batch_platform.core.monitoring.judging import DriftJudgement, judge_partition, moment_of
from batch_platform.core.monitoring.profile import Profile, profile_table
from batch_platform.core.monitoring.reference import Reference, ReferenceStore
from batch_platform.errors import MonitoringError

DAYS = {day.isoformat(): day for day in (date(2026, 1, 5) + timedelta(days=place) for place in range(40))}
KEYS = list(DAYS)
WANTED = 8


def profile(place: int, shift: float = 0.0, rows: int = 200) -> Profile:
    random = np.random.default_rng(place)
    return profile_table(pa.table({"x": random.normal(shift, 1, rows), "y": random.normal(size=rows)}))


def judge(store: ReferenceStore, place: int, shift: float = 0.0, rows: int = 200) -> DriftJudgement:
    profiles = {"features": profile(place, shift, rows), "predictions": profile(place + 500, 0.0, rows)}
    return judge_partition(store, KEYS[place], DAYS, profiles, WANTED, 1.0)


def verdict(store: ReferenceStore, place: int, shift: float = 0.0) -> Verdict:
    return judge(store, place, shift).verdicts["features"]


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return ReferenceStore(tmp_path)


@pytest.fixture
def started(store: ReferenceStore) -> ReferenceStore:
    """A store with just enough partitions for the next one to be judged."""
    for place in range(WANTED):
        judge(store, place)
    return store


def test_before_there_is_a_reference_the_count_is_told(store: ReferenceStore) -> None:
    for place in range(WANTED):
        judgement = judge(store, place, shift=4.0 * place)
        assert judgement.reference is None
        assert {v.status for v in judgement.verdicts.values()} == {"not enough history"}
        assert f"{place} of {WANTED} reference partitions" in judgement.verdicts["features"].message


def test_the_earliest_partitions_become_the_reference(started: ReferenceStore) -> None:
    judgement = judge(started, WANTED)
    assert judgement.reference is not None
    assert judgement.reference.keys == tuple(KEYS[:WANTED])
    assert {v.status for v in judgement.verdicts.values()} == {"ok"}


def test_the_judged_partition_is_never_in_its_own_reference(started: ReferenceStore) -> None:
    for _ in range(2):
        assert verdict(started, WANTED, shift=3.0).status == "alert"
    reference = started.current()
    assert reference is not None
    assert KEYS[WANTED] not in reference.keys


def test_partitions_without_rows_do_not_count_as_history(store: ReferenceStore) -> None:
    for place in range(WANTED):
        judge(store, place, rows=0 if place == 3 else 200)
    assert f"{WANTED - 1} of {WANTED}" in verdict(store, WANTED).message
    judgement = judge(store, WANTED + 1)
    assert judgement.reference is not None
    assert KEYS[3] not in judgement.reference.keys


def test_judging_again_gives_the_same_whatever_came_after(started: ReferenceStore) -> None:
    shifts = {WANTED: 0.0, WANTED + 1: 0.25, WANTED + 2: 0.25, WANTED + 3: 2.0, WANTED + 4: 0.0}
    first = {place: verdict(started, place, shift) for place, shift in shifts.items()}
    for place in range(WANTED + 5, WANTED + 12):
        verdict(started, place, 5.0)
    assert {place: verdict(started, place, shifts[place]) for place in reversed(shifts)} == first
    assert {v.status for v in first.values()} == {"ok", "alert"}


def test_a_process_that_judges_one_date_remembers_the_days_before(started: ReferenceStore) -> None:
    """The two-of-three rule holds across processes: a fresh store over the same files gives the same verdict."""
    verdicts = [verdict(started, place, 0.45) for place in range(WANTED, WANTED + 4)]
    folder = started.folder
    again = [verdict(ReferenceStore(folder), place, 0.45) for place in range(WANTED, WANTED + 4)]
    assert again == verdicts


def test_a_date_that_is_judged_twice_in_a_process_does_not_confirm_itself(started: ReferenceStore) -> None:
    def statuses(shift: float) -> list[str]:
        return [verdict(started, place, shift).status for place in (WANTED, WANTED + 1)]

    weak = next(shift for shift in np.arange(0.2, 2.0, 0.05) if statuses(shift) == ["ok", "alert"])
    assert [verdict(started, WANTED, weak).status for _ in range(3)] == ["ok"] * 3


def test_dates_of_the_reference_and_before_it_are_not_judged(started: ReferenceStore) -> None:
    judge(started, WANTED)
    late = verdict(started, 2, shift=9.0)
    assert late.status == "not enough history"
    assert "reference 1" in late.message


def test_a_reference_date_that_is_redone_changes_no_verdict(started: ReferenceStore) -> None:
    first = verdict(started, WANTED, 0.2)
    judge(started, 2, shift=9.0)
    assert verdict(started, WANTED, 0.2) == first


def test_a_backfill_in_reverse_ends_with_the_same_reference_rules(store: ReferenceStore) -> None:
    for place in reversed(range(WANTED + 1)):
        assert judge(store, place).reference is None
    judgement = judge(store, WANTED)
    assert judgement.reference is not None
    assert judgement.reference.keys == tuple(KEYS[:WANTED])


def test_a_store_gives_back_what_it_was_given(store: ReferenceStore) -> None:
    store.save_profiles("2026-01-05-03:00", {"features": profile(1)})
    assert store.load_profile("features", "2026-01-05-03:00") == profile(1)
    assert store.keys("features") == ["2026-01-05-03:00"]
    with pytest.raises(MonitoringError, match="2026-01-06"):
        store.load_profile("features", "2026-01-06")


def test_references_are_numbered_and_keep_who_and_why(started: ReferenceStore) -> None:
    judge(started, WANTED)
    second = started.freeze(KEYS[3:6], ["features"], "ana", "the season changed", started.current())
    assert (second.version, second.by, second.why) == (2, "ana", "the season changed")
    assert started.current() == second


def test_a_damaged_reference_is_an_error_and_no_verdict(started: ReferenceStore) -> None:
    reference = judge(started, WANTED).reference
    assert reference is not None
    path = started.folder / "references" / "profiles" / f"{dict(reference.digests)['features'][2]}.profile"
    content = path.read_bytes()
    # Each time as in another process: this one remembers what it fitted.
    for damaged in (content[:40], content[:-1] + b"x"):
        path.write_bytes(damaged)
        judging._fitted.cache_clear()
        with pytest.raises(MonitoringError, match="altered"):
            judge(started, WANTED + 1)
    path.unlink()
    judging._fitted.cache_clear()
    with pytest.raises(MonitoringError, match=f"lost the profile of {KEYS[2]}"):
        judge(started, WANTED + 1)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"version": 1, "keys": []}', b"\xff"])
def test_a_reference_that_cannot_be_read_names_its_file(started: ReferenceStore, content: bytes) -> None:
    judge(started, WANTED)
    path = started.folder / "references" / "000001.json"
    path.write_bytes(content)
    with pytest.raises(MonitoringError, match=f"{path}.*remove the folder"):
        judge(started, WANTED + 1)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"batch_platform profile 1 rows 5\n"])
def test_a_profile_that_cannot_be_read_names_its_file_and_what_to_do(
    started: ReferenceStore, content: bytes
) -> None:
    path = started.folder / "profiles" / "features" / f"{KEYS[3]}.profile"
    path.write_bytes(content)
    with pytest.raises(MonitoringError, match=f"{path}.*materialize drift_report for {KEYS[3]}"):
        judge(started, WANTED)


def test_processes_that_freeze_at_once_agree_on_one_reference(started: ReferenceStore) -> None:
    """Each sees other profiles for the same dates, as when a date lands again meanwhile."""
    gate = threading.Barrier(4)

    def freeze(number: int) -> Reference:
        store = ReferenceStore(started.folder)
        gate.wait()
        store.save_profiles(KEYS[1], {"features": profile(1, shift=number)})
        return store.freeze(KEYS[number : number + 4], ["features"], f"process {number}", "at once", None)

    with ThreadPoolExecutor(4) as pool:
        frozen = list(pool.map(freeze, range(4)))
    assert len(set(frozen)) == 1
    assert started.current() == frozen[0]
    assert frozen[0].version == 1
    for key in frozen[0].keys:
        started.reference_profile(
            frozen[0], "features", key
        )  # raises where it is not the one that was frozen


def test_a_process_that_found_no_reference_adopts_the_one_that_was_made_since(
    started: ReferenceStore,
) -> None:
    """However much later it comes: two processes that judge their first dates never make two references."""
    first = started.freeze(KEYS[0:4], ["features"], "one", "first", None)
    late = started.freeze(KEYS[1:5], ["features"], "another", "first", None)
    assert late == first
    assert started.all() == [first]


def test_a_frozen_profile_outlives_the_one_that_it_was_made_of(started: ReferenceStore) -> None:
    reference = judge(started, WANTED).reference
    assert reference is not None
    started.save_profiles(KEYS[2], {"features": profile(2, shift=9.0), "predictions": profile(2)})
    judging._fitted.cache_clear()
    assert started.reference_profile(reference, "features", KEYS[2]) == profile(2)
    assert verdict(started, WANTED).status == "ok"


def test_a_date_of_which_only_one_table_was_profiled_is_no_history(store: ReferenceStore) -> None:
    for place in range(WANTED):
        judge(store, place)
    (store.folder / "profiles" / "predictions" / f"{KEYS[2]}.profile").unlink()  # killed between the two
    assert f"{WANTED - 1} of {WANTED}" in verdict(store, WANTED).message


def test_predictions_that_were_all_quarantined_are_no_history_but_no_error(store: ReferenceStore) -> None:
    empty = profile_table(pa.table({"x": pa.array([], pa.float64())}))
    for place in range(WANTED + 2):
        profiles = {"features": profile(place), "predictions": empty}
        judgement = judge_partition(store, KEYS[place], DAYS, profiles, WANTED, 1.0)
    assert judgement.verdicts["features"].status == "ok"
    assert judgement.verdicts["predictions"].status == "not enough history"
    assert "0 reference days, 3 are needed" in judgement.verdicts["predictions"].message


def test_an_empty_day_between_is_no_rows_and_does_not_count_as_a_quiet_one(started: ReferenceStore) -> None:
    assert verdict(started, WANTED, 0.45).status == "ok"
    assert judge(started, WANTED + 1, rows=0).verdicts["features"].status == "no rows"
    with_gap = verdict(started, WANTED + 2, 0.45)
    other = ReferenceStore(started.folder.with_name("other"))
    for place in range(WANTED):
        judge(other, place)
    verdict(other, WANTED, 0.45)
    assert with_gap == verdict(other, WANTED + 2, 0.45)


def test_a_long_history_is_not_read_again_for_each_partition(
    started: ReferenceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in range(WANTED, WANTED + 20):
        judge(started, place)
    read = []
    load = ReferenceStore.load_profile
    monkeypatch.setattr(
        ReferenceStore, "load_profile", lambda self, table, key: read.append(key) or load(self, table, key)
    )
    judge(started, WANTED + 20)
    assert set(read) == set(KEYS[WANTED + 7 : WANTED + 20])


def test_a_judgement_says_how_the_decision_is_set(started: ReferenceStore) -> None:
    judgement = judge(started, WANTED)
    calibration = judgement.calibrations["features"]
    assert calibration.judgements_per_quarter == 91
    assert calibration.budget == 0.5  # two groups share one false alarm a quarter
    assert "not back-tested" in calibration.sentence()
    assert {each.column for each in calibration.detectable} == {"x", "y"}


@pytest.mark.parametrize(
    ("key", "moment"),
    [("2026-01-31", datetime(2026, 1, 31)), ("2026-01-31-23:00", datetime(2026, 1, 31, 23))],
)
def test_a_key_tells_the_moment(key: str, moment: datetime) -> None:
    assert moment_of(key) == moment
