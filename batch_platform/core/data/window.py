"""Which rows of a source without `{partition}` in its uri belong to a partition.

Decides by the partition column: a timestamp inside `[start, end)` (UTC where it names no zone), or a date
whose midnight in the pipeline's zone lies inside. A row whose partition column is null or unreadable belongs
to no partition: it is left out of all, and counted as unplaced. It does not read files.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data.cells import BoolArray
from batch_platform.core.data.partitions import Partition

_SLACK = timedelta(microseconds=1)


@dataclass(frozen=True)
class Window:
    """A partition's stretch of its partition column."""

    column: str
    partition: Partition

    def inside(self, column: pa.Array) -> BoolArray:
        """(rows,) bool for a date or timestamp column of the contract's types; nulls are outside."""
        start, end = self.limits(column.type)
        within = pc.and_(pc.greater_equal(column, start), pc.less(column, end))
        return within.fill_null(False).to_numpy(zero_copy_only=False)

    def may_hold(self, lowest: object, highest: object) -> bool:
        """Whether values from `lowest` to `highest` (as Parquet statistics give them) can lie inside."""
        if isinstance(lowest, datetime) and isinstance(highest, datetime):
            # Nanoseconds of before 1970 are cut upwards, to the microsecond after.
            return _aware(highest) >= self.partition.start - _SLACK and _aware(lowest) < self.partition.end
        if isinstance(lowest, date) and isinstance(highest, date):
            return highest >= _day(self.partition.start) and lowest < _day(self.partition.end)
        return True

    def limits(self, kind: pa.DataType) -> tuple[pa.Scalar, pa.Scalar]:
        """The window's first and first excluded value, in a type of dates or timestamps."""
        start, end = self.partition.start, self.partition.end
        if pa.types.is_date(kind):
            return pa.scalar(_day(start), kind), pa.scalar(_day(end), kind)
        return pa.scalar(start.astimezone(UTC), kind), pa.scalar(end.astimezone(UTC), kind)


def _day(moment: datetime) -> date:
    """The first calendar day whose midnight is not before a moment, in the moment's zone."""
    return moment.date() if moment.time() == time() else moment.date() + timedelta(days=1)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
