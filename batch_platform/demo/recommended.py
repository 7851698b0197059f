"""Shows what was recommended to a household: `python -m batch_platform.demo.recommended HOUSEHOLD --day 2017-07-10`.

Beside each product stands whether the household bought it in the seven days after. It reads the tables and the data of the
pipeline `recommendations` with DuckDB, as anybody may.
"""

import argparse
import sys
from dataclasses import dataclass

from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import BatchPlatformError, UpstreamMissingError
from batch_platform.settings import Settings, project_root

PIPELINE = "recommendations"


@dataclass(frozen=True)
class Shown:
    """A product of a list: its rank from 1, probability, name, and whether it was bought before and after."""

    rank: int
    score: float
    product_id: str
    name: str
    before: int
    after: bool


def recommended(spec: PipelineSpec, settings: Settings, household: str, day: str) -> list[Shown]:
    """The list of a household on a day, the best first; empty where it did not shop on it.

    Raises:
        UpstreamMissingError: nothing was recommended yet.
    """
    import duckdb
    from deltalake import DeltaTable

    lake = settings.root / "lake" / spec.name
    if not (lake / "predictions" / "_delta_log").is_dir():
        raise UpstreamMissingError(f"{spec.name} has no predictions yet: run make demo-all first")
    data = project_root() / ".demo_data" / spec.name
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("predictions", DeltaTable(str(lake / "predictions")).to_pyarrow_dataset())
        for name in ("purchases", "products"):
            connection.read_parquet(str(data / f"{name}.parquet")).create_view(name)
        return [Shown(*row) for row in connection.execute(_LIST, [household, day]).fetchall()]


_LIST = """
WITH list AS (
    SELECT unnest(items) AS product_id, unnest(item_scores) AS score, generate_subscripts(items, 1) AS rank
    FROM predictions WHERE row_key = $1 AND partition_key = $2
), own AS (
    SELECT product_id, (bought_at AT TIME ZONE 'UTC')::DATE AS day FROM purchases WHERE household_id = $1
)
SELECT rank, score, product_id, coalesce(name, '(no name)'),
    (SELECT count(*) FROM own WHERE own.product_id = list.product_id AND day <= $2::DATE AND day > $2::DATE - 84),
    EXISTS (FROM own WHERE own.product_id = list.product_id AND day > $2::DATE AND day <= $2::DATE + 7)
FROM list LEFT JOIN products USING (product_id) ORDER BY rank
"""


def main() -> int:
    """Print a list; 1 where the household has none on the day, 2 where nothing can be shown."""
    parser = argparse.ArgumentParser(
        prog="python -m batch_platform.demo.recommended", description=recommended.__doc__
    )
    parser.add_argument("household")
    parser.add_argument("--day", default="2017-07-10", help="partition key (default: 2017-07-10)")
    asked = parser.parse_args()
    try:
        spec = find_pipeline(defs_folder(), PIPELINE)
        shown = recommended(spec, Settings.from_env(), asked.household, asked.day)
    except BatchPlatformError as error:
        print(error, file=sys.stderr)
        return 2
    if not shown:
        print(
            f"household {asked.household} has no list on {asked.day}: it did not shop on it", file=sys.stderr
        )
        return 1
    print(
        "rank  score  product                                       in 12 weeks before  in the 7 days after"
    )
    for each in shown:
        bought = "bought" if each.after else "-"
        print(f"{each.rank:4}  {each.score:.3f}  {each.name[:44]:44}  {each.before:18}  {bought}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
