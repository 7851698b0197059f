"""Stage `features`: the recipe applied to one partition of raw rows.

Reads the committed raw rows batch by batch, sets rows aside that the recipe cannot use, passes the gate,
commits once. It does not know what the features mean.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core import gate
from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import Commit, Slot
from batch_platform.core.data.staging import read_files, stage
from batch_platform.core.features.lookups import Joined, beside, join_lookups
from batch_platform.core.features.recipe import Recipe, load_recipe, passthrough
from batch_platform.core.provenance.fingerprint import code_version, fingerprint
from batch_platform.core.publishing import publish, publishable, settle
from batch_platform.core.quarantine import payload_of, standing_quarantine
from batch_platform.core.slice import Slice, StageResult
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import SourceError


def recipe_of(spec: PipelineSpec) -> Recipe:
    """The pipeline's recipe; without one, the contract's columns pass through.

    Raises:
        RecipeError: the named recipe cannot be loaded.
    """
    if spec.features is None or spec.features.recipe is None:
        return passthrough(spec.source.columns)
    return load_recipe(spec.features.recipe)


def recipe_with(spec: PipelineSpec, joined: Sequence[Joined]) -> Recipe:
    """The recipe of `recipe_of`; where columns pass through, those of the lookups do too.

    Raises:
        RecipeError: the named recipe cannot be loaded.
    """
    recipe = recipe_of(spec)
    passes = spec.features is None or spec.features.recipe is None
    return (
        recipe.passing(pa.schema([field for each in joined for field in each.schema])) if passes else recipe
    )


def features_schema(recipe: Recipe) -> pa.Schema:
    """Columns of the features table: `row_key`, then the recipe's output."""
    return pa.schema([pa.field("row_key", pa.string(), nullable=False), *recipe.output])


def featurize_partition(slice_: Slice) -> StageResult:
    """Make the features of one partition.

    Raises:
        UpstreamMissingError: the partition has not been landed.
        SourceError: a lookup is not there, cannot be read, or contradicts the pipeline file.
        RecipeError: the recipe cannot be loaded or breaks its promise.
        GateError: too many bad rows, or features that break the recipe's schema; nothing was committed.
        StorageError: the lake cannot be written.
    """
    raw = slice_.committed("raw")
    with slice_.workspace("lookups", 0) as folder:
        return _featurize(slice_, raw, _joined(slice_, folder))


def _joined(slice_: Slice, folder: Path) -> list[Joined]:
    """The lookups' columns for the raw rows, made anew each time: only so is it known whether a lookup has changed."""

    def raw(columns: list[str]) -> Iterator[pa.RecordBatch]:
        return slice_.lake.batches("raw", slice_.key, columns)

    try:
        return join_lookups(slice_.spec, slice_.partition, raw, slice_.base, folder)
    except SourceError as error:
        raise type(error)(f"{slice_.about}: {error}") from None


def _featurize(slice_: Slice, raw: Commit, joined: Sequence[Joined]) -> StageResult:
    lake, slot = slice_.lake, Slot("features", slice_.key)
    recipe = recipe_with(slice_.spec, joined)
    schema = features_schema(recipe)
    made_of: dict[str, Any] = {"raw": raw.fingerprint, "recipe": recipe.version, "code": code_version()}
    if joined:
        made_of["lookups"] = [[each.schema.names, each.digests] for each in joined]
    identity = fingerprint(made_of)
    entering = raw.rows
    standing = lake.head(slot)
    if standing is not None and standing.fingerprint == identity:
        # The same rows and recipe: what stands is judged again, nothing is made again.
        settle(slice_, "features", standing)
        known = standing_quarantine(slice_, "features")
        checks = _judge(slice_, lake.paths("features", slice_.key), schema, known, entering)
        publishable(slice_, "features", checks, known)
        return _result(standing, checks, reused=True)

    attempt = lake.begin(slot)
    rejected: list[Rejected] = []
    with slice_.workspace("features", attempt) as folder:
        staged = stage(_features(slice_, recipe, schema, joined, rejected), schema, folder, "features")
        checks = _judge(slice_, (file.path for file in staged), schema, rejected, entering)
        publishable(slice_, "features", checks, rejected)
        what = {
            "recipe": recipe.name,
            "recipe_version": recipe.version,
            "code_version": code_version(),
            "raw_fingerprint": raw.fingerprint,
            "rows_in": entering,
            "lookups": [each.describe() for each in joined],
        }
        commit = publish(slice_, "features", staged, schema, rejected, identity, attempt, **what)
    return _result(commit, checks, reused=False)


def _judge(
    slice_: Slice, paths: Iterable[Location], schema: pa.Schema, rejected: list[Rejected], entering: int
) -> tuple[gate.CheckResult, ...]:
    return (
        *gate.judge_features(read_files(paths), schema),
        gate.quarantined_share(rejected, entering, slice_.spec.inference.max_error_share),
    )


def _result(commit: Commit, checks: tuple[gate.CheckResult, ...], reused: bool) -> StageResult:
    receipt = commit.receipt
    return StageResult(
        table="features",
        rows=commit.rows,
        data_version=commit.fingerprint,
        reused=reused,
        checks=checks,
        metadata={
            **{name: receipt[name] for name in ("rows_in", "quarantined", "recipe", "recipe_version")},
            **{f"lookup {each['uri']}": each for each in receipt.get("lookups", ())},
        },
    )


def _features(
    slice_: Slice, recipe: Recipe, schema: pa.Schema, joined: Sequence[Joined], rejected: list[Rejected]
) -> Iterator[pa.RecordBatch]:
    masked = bool(slice_.spec.sensitive_columns)
    required = [name for each in joined for name in sorted(each.required)]
    for whole in beside(slice_.lake.batches("raw", slice_.key), joined):
        raw = _with_required(slice_, whole, required, rejected)
        features, kept, failures = recipe.apply_with_failures(raw, mask_values=masked)
        for failure in failures:
            rejected.append(_rejected(slice_, raw, failure.row, failure.error_type, failure.message))
        keys = raw["row_key"].take(kept)
        columns = pa.RecordBatch.from_arrays([keys, *features.columns], schema=schema)
        finite = _finite_rows(columns)
        for row in pc.indices_nonzero(pc.invert(finite)).to_pylist():
            names = [name for name in schema.names if gate.count_not_finite(columns[name].slice(row, 1))]
            rejected.append(
                _rejected(
                    slice_, raw, kept[row].as_py(), "not_finite", f"infinite or NaN in feature {names[0]!r}"
                )
            )
        yield columns.filter(finite)


def _with_required(
    slice_: Slice, raw: pa.RecordBatch, required: Iterable[str], rejected: list[Rejected]
) -> pa.RecordBatch:
    """The rows that have a value in every column that a lookup must give; the others are rejected."""
    for name in required:
        for row in pc.indices_nonzero(raw[name].is_null()).to_pylist():
            words = f"column {name} is required, and the lookup knows no value of it in its lookback"
            rejected.append(_rejected(slice_, raw, row, "lookup_missing", words))
        raw = raw.filter(raw[name].is_valid())
    return raw


def _finite_rows(batch: pa.RecordBatch) -> pa.Array:
    """(rows,) bool: rows in which every float is finite or null."""
    good = pa.repeat(True, batch.num_rows)
    for column in batch.columns:
        if pa.types.is_floating(column.type):
            good = pc.and_(good, pc.fill_null(pc.is_finite(column), True))
        elif pa.types.is_list(column.type) and gate.count_not_finite(column):
            good = pc.and_(
                good, pa.array([gate.count_not_finite(column.slice(i, 1)) == 0 for i in range(len(column))])
            )
    return good


def _rejected(slice_: Slice, raw: pa.RecordBatch, row: int, error_type: str, message: str) -> Rejected:
    values = raw.slice(row, 1).to_pylist()[0]
    return Rejected(
        row_key=values["row_key"],
        error_type=error_type,
        message=message,
        source_file=values["source_file"],
        source_row=values["source_row"],
        payload=payload_of(slice_, values),
    )
