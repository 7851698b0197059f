"""The pipeline's calendar as Dagster's partitions."""

import dagster as dg

from batch_platform.core.spec import PartitionsSpec

_BY_CADENCE = {
    "hourly": dg.HourlyPartitionsDefinition,
    "daily": dg.DailyPartitionsDefinition,
    "weekly": dg.WeeklyPartitionsDefinition,
    "monthly": dg.MonthlyPartitionsDefinition,
}


def partitions_definition(spec: PartitionsSpec) -> dg.TimeWindowPartitionsDefinition:
    """The same windows and keys as `spec.calendar()`."""
    calendar = spec.calendar()
    return _BY_CADENCE[spec.cadence](
        start_date=calendar.start,
        end_date=calendar.end,
        timezone=spec.timezone,
    )
