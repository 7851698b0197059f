"""Turns Complete Journey into what a shop knows at the end of each day, and what was bought in the week after.

Decides what a household is asked for: a recommendation at the end of every day on which it shopped. What it bought goes
into one table of dated purchases, sorted by time, for point-in-time lookups; what it bought in the seven days after the
day into the labels. It does not know the pipeline that reads the files.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# What a household buys within so many days after the day is what should have been recommended.
HORIZON_DAYS = 7
TABLES = ("transactions", "products")

_ROW_GROUP = 25_000


def table_of(member: str) -> str | None:
    """The table that a member of the archive holds, or None for another file."""
    name = Path(member)
    return name.stem if name.suffix == ".parquet" and name.stem in TABLES else None


def write_days(tables: Path, folder: Path) -> int:
    """Write `raw/{day}.parquet`, `labels/{day}.parquet`, `purchases.parquet` and `products.parquet`.

    Args:
        tables: folder with `transactions.parquet` and `products.parquet` of Complete Journey.
        folder: receives the files.

    Returns:
        The number of purchases.
    """
    import duckdb

    for name in ("raw", "labels"):
        (folder / name).mkdir(parents=True)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name in TABLES:
            connection.read_parquet(str(tables / f"{name}.parquet")).create_view(name)
        connection.execute(_PURCHASES)
        connection.table("purchases").order("bought_at, household_id, product_id").to_parquet(
            str(folder / "purchases.parquet"), row_group_size=_ROW_GROUP
        )
        connection.sql(_PRODUCTS).to_parquet(str(folder / "products.parquet"))
        connection.execute(_VISITS)
        _write_by_day(connection.sql("FROM visits ORDER BY ALL").to_arrow_table(), folder / "raw")
        _write_by_day(connection.sql(_LABELS, params=[HORIZON_DAYS]).to_arrow_table(), folder / "labels")
        ((count,),) = connection.execute("SELECT count(*) FROM purchases").fetchall()
    return int(count)


def _write_by_day(table: pa.Table, folder: Path) -> None:
    """A file for each value of the first column, `day`, by which the rows are sorted."""
    runs = pc.run_end_encode(table["day"].combine_chunks())
    start = 0
    for day, end in zip(runs.values, runs.run_ends.to_pylist(), strict=True):
        pq.write_table(table.slice(start, end - start).drop_columns("day"), folder / f"{day}.parquet")
        start = end


# The hours of the first of January 2018 are the end of the last night.
_PURCHASES = """
CREATE TEMP TABLE purchases AS
SELECT DISTINCT household_id::VARCHAR AS household_id, product_id::VARCHAR AS product_id, basket_id,
    (transaction_timestamp::TIMESTAMP) AT TIME ZONE 'UTC' AS bought_at
FROM transactions WHERE transaction_timestamp < TIMESTAMP '2018-01-01'
"""
_PRODUCTS = """
SELECT product_id::VARCHAR AS product_id, coalesce(product_type, product_category, department) AS name, brand
FROM products ORDER BY 1
"""
_VISITS = """
CREATE TEMP TABLE visits AS
SELECT (bought_at AT TIME ZONE 'UTC')::DATE AS day, household_id, count(DISTINCT basket_id)::INTEGER AS baskets
FROM purchases GROUP BY ALL
"""
_LABELS = """
WITH bought AS (SELECT DISTINCT household_id, product_id, (bought_at AT TIME ZONE 'UTC')::DATE AS day FROM purchases)
SELECT DISTINCT v.day, v.household_id, p.product_id
FROM visits v JOIN bought p ON p.household_id = v.household_id AND p.day > v.day AND p.day <= v.day + $1::INTEGER
WHERE v.day <= (SELECT max(day) FROM visits) - $1::INTEGER  -- later weeks are not over
ORDER BY ALL
"""
