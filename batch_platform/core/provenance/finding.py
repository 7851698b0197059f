"""Finding one row by its key: in which partition, file and row group it stands.

Files are pruned by the range of keys that their Parquet footers know; of the others only the column `row_key` is
read, several files at a time, the newest partitions first. It does not know what the rows mean.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import Lake

KEY = "row_key"
_READERS = 8
_AT_ONCE = 32  # partitions; a key that comes back every day is found in the first of these


@dataclass(frozen=True)
class Place:
    """Where a row stands: its file, row group, and number in the row group."""

    file: Location
    row_group: int
    row: int


def newest_partition_with(lake: Lake, table: str, key: str) -> str | None:
    """The newest partition of a table in which a key stands; None where it stands in none."""
    standing = sorted(lake.standing_files(table).items(), reverse=True)
    with ThreadPoolExecutor(_READERS) as readers:
        for first in range(0, len(standing), _AT_ONCE):
            some = standing[first : first + _AT_ONCE]
            for (partition_key, _), place in zip(
                some, readers.map(lambda item: find(item[1], key), some), strict=True
            ):
                if place is not None:
                    return partition_key
    return None


def find(places: Iterable[Location], key: str) -> Place | None:
    """The first row with a key in these files."""
    for place in places:
        with open_parquet(place) as file:
            for group in groups_that_may_hold(file, KEY, key):
                column = file.read_row_group(group, columns=[KEY], use_threads=False)[KEY]
                row = pc.index(column, key).as_py()
                if row >= 0:
                    return Place(place, group, row)
    return None


def read(place: Place) -> pa.Table:
    """The row itself, as a table of one."""
    with open_parquet(place.file) as file:
        return file.read_row_group(place.row_group).slice(place.row, 1)


@contextmanager
def open_parquet(location: Location) -> Iterator[pq.ParquetFile]:
    """A Parquet file on a disk or in object storage."""
    with pq.ParquetFile(location if isinstance(location, Path) else location.open()) as file:
        yield file


def groups_that_may_hold(file: pq.ParquetFile, column: str, value: str) -> list[int]:
    """Row groups whose range of a text column does not exclude a value."""
    return [
        group
        for group in range(file.num_row_groups)
        if may_be_within(value, value_range(file, group, column))
    ]


def value_range(file: pq.ParquetFile, group: int, column: str) -> tuple[str, str] | None:
    """Smallest and largest value of a text column in a row group; None where the file does not say."""
    place = file.schema_arrow.names.index(column)
    metadata = file.metadata.row_group(group)
    # Columns of lists come as one leaf each, so that places of flat columns are the schema's.
    chunk = metadata.column(place)
    assert chunk.path_in_schema == column
    statistics = chunk.statistics
    if statistics is None or not statistics.has_min_max:
        return None
    return statistics.min, statistics.max


def may_be_within(value: str, known: tuple[str, str] | None) -> bool:
    """Whether a value may be in a range; one that is not known excludes nothing."""
    # Code points compare as their UTF-8 bytes do, by which the footers' ranges are made.
    return known is None or known[0] <= value <= known[1]
