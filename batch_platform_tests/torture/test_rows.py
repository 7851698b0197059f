"""Rows that cannot be used, among very many that can: exactly they are in quarantine, whatever is wrong with them."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from batch_platform_tests.mini import good_row
from batch_platform_tests.torture.bench import Bench, day, record

# What a row becomes, by what is wrong with it. The model computes in float32: 1e39 is infinite there.
KINDS: dict[str, dict[str, Any]] = {
    "no key": {"id": ""},
    "age is text": {"age": "old"},
    "age is missing": {"age": ""},
    "age is negative": {"age": -1},
    "age is too high": {"age": 151},
    "age has a fraction": {"age": "20.5"},
    "age does not fit 64 bits": {"age": "99999999999999999999"},
    "age in hexadecimal": {"age": "0x14"},
    "age with a unit": {"age": "20 years"},
    "age is infinite": {"age": "inf"},
    "amount is negative": {"amount": -0.5},
    "amount is text": {"amount": "much"},
    "amount with a comma": {"amount": "1,5"},
    "amount is NaN": {"amount": "nan"},
    "amount is infinite": {"amount": "inf"},
    "amount is minus infinite": {"amount": "-inf"},
    "amount overflows": {"amount": "1e999"},
    "plan is unknown": {"plan": "platinum"},
    "plan in capitals": {"plan": "PRO"},
    "poison for the model": {"amount": "1e39"},
}


@pytest.mark.parametrize(
    "rows", [pytest.param(20_000, id="few"), pytest.param(100_000, id="many", marks=pytest.mark.torture)]
)
@pytest.mark.timeout(1800)
def test_twenty_kinds_of_bad_rows_at_one_in_a_thousand(tmp_path: Path, rows: int) -> None:
    bench = Bench(tmp_path / "bench", attributes={"inference": {"shard_rows": 8192, "max_error_share": 0.01}})
    source = [good_row("row", number) for number in range(rows)]
    bad: dict[int, str] = {}
    for place, number in enumerate(range(500, rows, 1000)):
        kind = list(KINDS)[place % len(KINDS)]
        source[number] |= KINDS[kind]
        bad[number] = kind
    bench.write(day(0), source)
    made = bench.make(day(0))
    assert made.code == 0, made.lines
    quarantine = bench.table("quarantine")
    found = dict(quarantine.select("source_row", "stage").rows())
    stages = {number: "predictions" if kind.startswith("poison") else "raw" for number, kind in bad.items()}
    assert found == stages
    predictions = bench.table("predictions")
    assert predictions.height == rows - len(bad) == predictions["row_key"].n_unique()
    assert bench.verify().problems == ()
    record(
        f"{len(KINDS)} kinds of bad rows at 1 in 1,000",
        rows,
        f"exactly the {len(bad)} bad rows in quarantine",
    )


@pytest.mark.parametrize(
    "rows", [pytest.param(10_000, id="few"), pytest.param(100_000, id="many", marks=pytest.mark.torture)]
)
@pytest.mark.timeout(1800)
def test_one_poison_row(tmp_path: Path, rows: int) -> None:
    bench = Bench(tmp_path / "bench", attributes={"inference": {"shard_rows": 8192}})
    source = [good_row("row", number) for number in range(rows)]
    bench.write(day(0), source)
    assert bench.make(day(0)).code == 0
    poisoned = rows * 7 // 10
    source[poisoned] |= KINDS["poison for the model"]
    bench.write(day(1), source)
    assert bench.make(day(1)).code == 0
    (row,) = bench.table("quarantine").to_dicts()
    assert (row["row_key"], row["stage"], row["source_row"]) == (f"row-{poisoned}", "predictions", poisoned)
    others = bench.values(day(0)).filter(pl.col("row_key") != f"row-{poisoned}")
    assert bench.values(day(1)).equals(others)
    record("a poison row", rows, "it alone in quarantine; all other values as without it")
