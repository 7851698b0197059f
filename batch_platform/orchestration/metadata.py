"""Plain values as Dagster shows them. Decides the form only."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.slice import StageResult
from batch_platform.settings import Settings

if TYPE_CHECKING:
    from batch_platform.core.models.registry import RegisteredVersion


def as_metadata(values: Mapping[str, Any]) -> dict[str, dg.MetadataValue]:
    """Numbers, strings, lists and mappings as metadata; nothing else is accepted."""
    return {name: _value(value) for name, value in values.items() if value is not None}


def stage_metadata(result: StageResult, settings: Settings) -> dict[str, dg.MetadataValue]:
    """What a person sees of a stage's result beside the asset."""
    shown = {"dagster/partition_row_count": result.rows, "reused": result.reused, **result.metadata}
    metadata = as_metadata(shown)
    if result.markdown:
        metadata["summary"] = dg.MetadataValue.md(result.markdown)
    if result.report is not None:
        metadata["report"] = link(result.report, settings)
        metadata["report_file"] = dg.MetadataValue.path(str(result.report))
    if result.trend is not None:
        metadata["trend"] = link(result.trend, settings)
    return metadata


def link(page: Location, settings: Settings) -> dg.MetadataValue:
    """A page as a link that opens from the UI."""
    # Browsers refuse links from the UI to files, so the link goes to the server of the reports.
    place = files.relative(page, settings.root / "reports")
    return dg.MetadataValue.url(f"{settings.reports_url}/{quote(place)}")


def model_metadata(model: "RegisteredVersion") -> dict[str, dg.MetadataValue]:
    """A registered version with its card."""
    shown = {"version": model.version, "digest": model.digest, "flavor": model.flavor}
    return as_metadata({**shown, "registered_at": model.registered_at, "card": model.card})


def _value(value: Any) -> dg.MetadataValue:
    if isinstance(value, dg.MetadataValue):
        return value
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    if isinstance(value, float):
        return dg.MetadataValue.float(value)
    if isinstance(value, str):
        return dg.MetadataValue.text(value)
    if isinstance(value, Mapping | list | tuple):
        return dg.MetadataValue.json(value if isinstance(value, Mapping) else list(value))
    raise TypeError(f"no metadata for {type(value).__name__}: {value!r}")
