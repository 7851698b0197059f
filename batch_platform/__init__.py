"""Batch machine-learning inference as a lineage graph of Dagster assets.

The component is exported here under the name that pipeline files use; it is imported when asked for, so
that the core runs without Dagster.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batch_platform.orchestration.component import BatchInferencePipeline

__all__ = ["BatchInferencePipeline"]


def __getattr__(name: str) -> Any:
    if name == "BatchInferencePipeline":
        from batch_platform.orchestration.component import BatchInferencePipeline

        return BatchInferencePipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
