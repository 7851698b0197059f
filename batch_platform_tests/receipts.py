"""What every receipt of every commit of a pipeline must say."""

from collections.abc import Iterator
from typing import Any

from batch_platform.core.data.lake import Lake
from batch_platform.core.layout import Layout
from batch_platform.core.provenance.receipts import FIELDS

_ALWAYS = {
    *(
        "pipeline",
        "partition_key",
        "run_id",
        "attempt",
        "triggered_by",
        "started_at",
        "committed_at",
        "table",
    ),
    *("lock_digest", "hardware", "files", "fingerprint", "version", "previous", "inputs", "rows_in"),
    "contract_version",
}
_OF_THE_MODEL = {
    *("model", "model_version", "model_digest", "model_alias", "model_files", "card_digest", "approved_by"),
    *("code_version", "recipe_version", "device", "dtype", "table_versions"),
}
# What must not be null, by table; of the quarantine, by the stage that decided it.
NOT_NULL: dict[str, set[str]] = {
    "raw": _ALWAYS | {"quarantined"},
    "features": _ALWAYS | {"table_versions", "recipe_version", "code_version", "quarantined"},
    "predictions": _ALWAYS | _OF_THE_MODEL | {"rows_scored", "rows_reused", "quarantined"},
    "challenger_predictions": _ALWAYS | _OF_THE_MODEL | {"rows_scored", "rows_reused"},
    "delivered": _ALWAYS | _OF_THE_MODEL,
    "drift_metrics": _ALWAYS | _OF_THE_MODEL | {"drift"},
    "performance": _ALWAYS | _OF_THE_MODEL,
    "labels": _ALWAYS | _OF_THE_MODEL,
    "run_stats": _ALWAYS | _OF_THE_MODEL,
}


def receipts(layout: Layout) -> Iterator[dict[str, Any]]:
    """The receipts in the commits of all tables, as the tables' logs have them."""
    lake = Lake(layout)
    for table in lake.tables():
        yield from lake.receipts(table)


def gaps(receipt: dict[str, Any]) -> set[str]:
    """Fields that a receipt lacks, or has as null where its table must have a value."""
    stage = receipt["stage"] if receipt["table"] == "quarantine" else receipt["table"]
    needed = NOT_NULL[stage] - (
        {"quarantined", "rows_scored", "rows_reused"} if "stage" in receipt else set()
    )
    return (FIELDS.keys() - receipt.keys()) | {name for name in needed if receipt.get(name) is None}
