import pytest

from batch_platform.core.inference.stats import RunStats

ONE = RunStats(rows=10, failed_rows=1, tokens=90, padded_tokens=100, wall_seconds=2.0, peak_memory_bytes=7)
TWO = RunStats(rows=30, tokens=10, padded_tokens=100, wall_seconds=2.0, peak_memory_bytes=5)


def test_parts_add_up_and_the_highest_peak_counts():
    both = RunStats.combine([ONE, TWO])
    assert (both.rows, both.failed_rows, both.peak_memory_bytes) == (40, 1, 7)
    assert both.padding_waste == 0.5
    assert both.rows_per_second == 10


def test_nothing_is_nothing():
    assert RunStats.combine([]) == RunStats()
    assert RunStats().to_dict()["rows_per_second"] == 0


def test_numbers_survive_json():
    assert RunStats.from_dict(ONE.to_dict()) == ONE


def test_what_an_older_release_did_not_count_is_nothing():
    old = {name: value for name, value in ONE.to_dict().items() if name not in ("retries", "timeouts")}
    assert RunStats.from_dict(old) == ONE


def test_what_a_thousand_rows_cost():
    stats = RunStats(rows=500, wall_seconds=90.0, forward_seconds=45.0)
    assert stats.cost_per_1000_rows(hourly_rate=4.0) == pytest.approx(0.2)
    assert stats.to_dict()["device_seconds_per_1000_rows"] == 90.0
    assert RunStats().cost_per_1000_rows(4.0) == 0.0
