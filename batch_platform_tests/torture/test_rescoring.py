"""A partition scored again with other rows or columns: what stands is the new result, and nothing of the old."""

from pathlib import Path

import pytest
import yaml

from batch_platform_tests.torture import worker
from batch_platform_tests.torture.bench import Bench, day, record


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    attributes = {"source": {**_source(), "allow_empty": True}}
    made = Bench(tmp_path / "bench", attributes=attributes)
    for number in range(2):
        made.write(day(number))
        assert made.make(day(number)).code == 0
    return made


def _source() -> dict:
    from batch_platform_tests.mini import ATTRIBUTES

    return ATTRIBUTES["source"]


def test_with_fewer_rows_no_rows_and_more_rows(bench: Bench) -> None:
    for rows in (70, 0, 300, 1):
        bench.write(day(0), rows)
        assert bench.make(day(0)).lines[-1] == f"done {rows} False"
        for table in ("raw", "features", "predictions"):
            assert bench.table(table, day(0)).height == rows
        assert bench.values(day(1)).height == bench.rows
        assert bench.verify().problems == ()
    record("re-scored with fewer, zero and more rows", 4, "the new rows stand, and no other")


def test_with_a_new_output_column(bench: Bench) -> None:
    before = bench.values(day(1))
    path = bench.folder / worker.PIPELINE_FILE
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**document, "decision": {"positive_class": "churned", "threshold": 0.5}}))
    assert bench.make(day(0)).lines[-1] == "done 160 False"
    assert bench.values(day(0))["decision"].null_count() == 0
    after = bench.values(day(1))
    assert after["decision"].null_count() == bench.rows
    assert after.drop("decision").equals(before)
    assert bench.verify().problems == ()
    record("re-scored with a new output column", 1, "the column is added; older partitions have null there")
