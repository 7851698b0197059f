"""Recipes that a pipeline file writes itself: a list of steps by name.

Decides which names there are, and what columns come out: the steps are run once over no rows when the file loads, so
that a wrong name, parameter or column is found then. It does not know what the steps do.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from batch_platform.core.features.chunks import chunk
from batch_platform.core.features.encoders import encode
from batch_platform.core.features.recipe import Recipe, Step
from batch_platform.core.features.tabular import date_parts, select
from batch_platform.core.features.text import clean_text, compose_text, truncate_characters
from batch_platform.core.spec import LANDED_COLUMNS
from batch_platform.errors import RecipeError

BUILT_IN: dict[str, Callable[..., Step]] = {
    maker.__name__: maker
    for maker in (clean_text, compose_text, truncate_characters, date_parts, select, chunk, encode)
}


def recipe_of_steps(steps: Sequence[Mapping[str, Any]], raw: pa.Schema) -> Recipe:
    """The recipe that a list of steps describes; all columns that are left at its end are features.

    Args:
        steps: each a mapping of one name (of `BUILT_IN`, or `module:name` of a function decorated with `@step`) to its
            parameters.
        raw: what the first step sees.

    Raises:
        RecipeError: begins with the place of the wrong step.
    """
    batch = pa.RecordBatch.from_arrays([pa.nulls(0, kind) for kind in raw.types], schema=raw)
    made: list[Step] = []
    for place, entry in enumerate(steps):
        ((name, params),) = entry.items()
        try:
            if not isinstance(params or {}, dict):
                raise RecipeError(f"step {name}: its parameters are a mapping, not {params!r}")
            made.append(_maker(name)(**(params or {})))
            batch = _columns_after(made[-1], batch)
        except (RecipeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RecipeError(f"features.steps.{place}: {error}") from None
    kept = [column for column in batch.schema if column.name not in LANDED_COLUMNS]
    return Recipe("steps", made, pa.schema(kept))


def _maker(name: str) -> Callable[..., Step]:
    if ":" not in name:
        if name not in BUILT_IN:
            raise RecipeError(
                f"there is no step {name!r}; there are: {', '.join(BUILT_IN)}, and functions as module:name"
            )
        return BUILT_IN[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise RecipeError(f"step {name}: {module} cannot be imported: {error}") from None
    if not callable(found):
        raise RecipeError(f"step {name}: {module} has no function {attribute!r}")
    return found


def _columns_after(step: Step, batch: pa.RecordBatch) -> pa.RecordBatch:
    if not isinstance(step, Step):
        raise RecipeError("is no step: decorate the function with @step")
    result = step.function(batch, *((b"",) if step.file is not None else ()), **step.params)
    after = result[0] if step.expands else result
    if not isinstance(after, pa.RecordBatch):
        raise RecipeError(f"step {step.name} returned {type(after).__name__}, and no pyarrow.RecordBatch")
    return after
