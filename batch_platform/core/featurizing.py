"""Stage `features`: the recipe applied to one partition of raw rows.

Reads the committed raw rows batch by batch, sets rows aside that the recipe cannot use, passes the gate,
commits once. It does not know what the features mean.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core import gate
from batch_platform.core.data.cells import arrow_type
from batch_platform.core.data.contract import Contract, Rejected
from batch_platform.core.data.files import Location
from batch_platform.core.data.lake import Commit, Slot
from batch_platform.core.data.staging import read_files, stage
from batch_platform.core.features.chunks import ROWS_AT_ONCE, chunk_keys
from batch_platform.core.features.lookups import Joined, beside, join_lookups
from batch_platform.core.features.recipe import Recipe, load_recipe, passthrough
from batch_platform.core.features.steps import recipe_of_steps
from batch_platform.core.provenance.fingerprint import code_version, fingerprint
from batch_platform.core.provenance.receipts import read_from
from batch_platform.core.publishing import publish, publishable, settle
from batch_platform.core.quarantine import payload_of, standing_quarantine
from batch_platform.core.slice import Slice, StageResult
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.watching import Watch
from batch_platform.errors import SourceError

# Content of a file of the model that scores, by its path in the model's folder.
ModelFile = Callable[[str], bytes]
# Gives the raw rows of a partition: these columns of them, or all.
RawRows = Callable[[list[str] | None], Iterable[pa.RecordBatch]]


def recipe_of(spec: PipelineSpec) -> Recipe:
    """The pipeline's recipe, without the model's files; without a recipe, the contract's columns pass through.

    Raises:
        RecipeError: the named recipe cannot be loaded, or a step is wrong.
    """
    if spec.features is None:
        return passthrough(spec.source.columns)
    if spec.features.recipe is not None:
        return load_recipe(spec.features.recipe)
    assert spec.features.steps is not None  # one of the two is there
    return recipe_of_steps(spec.features.steps, _seen_by_steps(spec))


def _seen_by_steps(spec: PipelineSpec) -> pa.Schema:
    """The raw table's columns and those of the lookups."""
    raw = Contract(spec.source.columns, spec.source.row_key).schema
    taken = [field for lookup in spec.lookups for field in (lookup.taken() or {}).items()]
    return pa.schema([*raw, *(pa.field(name, arrow_type(kind)) for name, kind in taken)])


def recipe_with(spec: PipelineSpec, joined: Sequence[Joined]) -> Recipe:
    """The recipe of `recipe_of`; where columns pass through, those of the lookups do too.

    Raises:
        RecipeError: the named recipe cannot be loaded.
    """
    recipe = recipe_of(spec)
    if spec.features is not None:
        return recipe
    return recipe.passing(pa.schema([field for each in joined for field in each.schema]))


def features_schema(recipe: Recipe) -> pa.Schema:
    """Columns of the features table: `row_key`, then the recipe's output."""
    return pa.schema([pa.field("row_key", pa.string(), nullable=False), *recipe.output])


def featurize_partition(slice_: Slice, model_file: ModelFile | None = None) -> StageResult:
    """Make the features of one partition.

    Args:
        model_file: gives the files of the model that steps of the recipe read.

    Raises:
        UpstreamMissingError: the partition has not been landed.
        SourceError: a lookup is not there, cannot be read, or contradicts the pipeline file.
        RecipeError: the recipe cannot be loaded or breaks its promise.
        GateError: too many bad rows, or features that break the recipe's schema; nothing was committed.
        StorageError: the lake cannot be written.
    """
    raw = slice_.committed("raw")
    with featurizer(slice_, partial(landed, slice_), model_file) as made:
        return _featurize(slice_, raw, made)


def landed(slice_: Slice, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The committed raw rows of a slice."""
    return slice_.lake.batches("raw", slice_.key, columns)


@dataclass(frozen=True)
class Featurizer:
    """What makes features of the raw rows of one partition, ready to be applied.

    Attributes:
        raw: gives the raw rows, whenever it is called.
        joined: the lookups' columns for them.
        recipe: with the files of the model that it reads.
    """

    slice_: Slice
    raw: RawRows
    joined: Sequence[Joined]
    recipe: Recipe

    @property
    def schema(self) -> pa.Schema:
        return features_schema(self.recipe)

    def identity(self, raw_fingerprint: str) -> str:
        """Identity of the features of raw rows with that fingerprint."""
        made_of: dict[str, Any] = {
            "raw": raw_fingerprint,
            "recipe": self.recipe.version,
            "code": code_version(),
        }
        if self.joined:
            made_of["lookups"] = [[each.schema.names, each.digests] for each in self.joined]
        return fingerprint(made_of)

    def rows(self, rejected: list[Rejected]) -> Iterator[pa.RecordBatch]:
        """The features; the raw rows that cannot be used are added to `rejected`."""
        return _features(self, rejected)


@contextmanager
def featurizer(slice_: Slice, raw: RawRows, model_file: ModelFile | None = None) -> Iterator[Featurizer]:
    """Join the lookups and load the recipe; files in the making are gone at the end of the block.

    The lookups are joined anew each time: only so is it known whether one has changed.

    Raises:
        SourceError, RecipeError: as `featurize_partition`.
    """
    with slice_.workspace("lookups", 0) as folder:
        try:
            joined = join_lookups(slice_.spec, slice_.partition, raw, slice_.base, folder)
        except SourceError as error:
            raise type(error)(f"{slice_.about}: {error}") from None
        recipe = recipe_with(slice_.spec, joined)
        if recipe.reads and model_file is not None:
            recipe = recipe.with_files(model_file)
        yield Featurizer(slice_, raw, joined, recipe)


def _featurize(slice_: Slice, raw: Commit, made: Featurizer) -> StageResult:
    lake, slot = slice_.lake, Slot("features", slice_.key)
    recipe, schema, identity = made.recipe, made.schema, made.identity(raw.fingerprint)
    entering = raw.rows
    standing = lake.head(slot)
    if standing is not None and standing.fingerprint == identity:
        # The same rows and recipe: what stands is judged again, nothing is made again.
        settle(slice_, "features", standing)
        known = standing_quarantine(slice_, "features")
        watch = Watch.of_features(slice_, schema.names)
        checks = _judge(slice_, watch, lake.paths("features", slice_.key), schema, known, entering)
        with watch.explaining_refusal():
            publishable(slice_, "features", checks, known)
        watch.keep()
        return _result(standing, checks, reused=True)

    attempt = lake.begin(slot)
    rejected: list[Rejected] = []
    with slice_.workspace("features", attempt) as folder:
        staged = stage(made.rows(rejected), schema, folder, "features")
        watch = Watch.of_features(slice_, schema.names)
        checks = _judge(slice_, watch, (file.path for file in staged), schema, rejected, entering)
        with watch.explaining_refusal():
            publishable(slice_, "features", checks, rejected)
        what = {
            "recipe": recipe.name,
            "recipe_version": recipe.version,
            "code_version": code_version(),
            "raw_fingerprint": raw.fingerprint,
            "contract_version": raw.receipt.get("contract_version"),
            **read_from("raw", raw.receipt),
            "rows_in": entering,
            "lookups": [each.describe() for each in made.joined],
            "model_files": recipe.file_digests,
            "expands": recipe.expands,
            "profile": watch.digest,
            "owners_decisions": watch.owners_decisions,
        }
        commit = publish(slice_, "features", staged, schema, rejected, identity, attempt, **what)
    watch.keep()
    return _result(commit, checks, reused=False)


def _judge(
    slice_: Slice,
    watch: Watch,
    paths: Iterable[Location],
    schema: pa.Schema,
    rejected: list[Rejected],
    entering: int,
) -> tuple[gate.CheckResult, ...]:
    return (
        *gate.judge_features(watch.passing(read_files(paths)), schema),
        gate.quarantined_share(rejected, entering, slice_.spec.inference.max_error_share),
        *watch.checks(),
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


def _features(made: Featurizer, rejected: list[Rejected]) -> Iterator[pa.RecordBatch]:
    slice_, recipe, schema = made.slice_, made.recipe, made.schema
    masked = bool(slice_.spec.sensitive_columns)
    required = [name for each in made.joined for name in sorted(each.required)]
    for whole in beside(_raw_batches(made), made.joined):
        raw = _with_required(slice_, whole, required, rejected)
        features, kept, failures = recipe.apply_with_failures(raw, mask_values=masked)
        for failure in failures:
            rejected.append(_rejected(slice_, raw, failure.row, failure.error_type, failure.message))
        keys = chunk_keys(raw["row_key"], kept) if recipe.expands else raw["row_key"].take(kept)
        columns = pa.RecordBatch.from_arrays([keys, *features.columns], schema=schema)
        # With one piece of a row all of its pieces go: a raw row is either in the features or in quarantine.
        broken: dict[int, str] = {}
        for place in pc.indices_nonzero(pc.invert(_finite_rows(columns))).to_pylist():
            names = [name for name in schema.names if gate.count_not_finite(columns[name].slice(place, 1))]
            broken.setdefault(kept[place].as_py(), names[0])
        for row, name in broken.items():
            rejected.append(_rejected(slice_, raw, row, "not_finite", f"infinite or NaN in feature {name!r}"))
        yield columns.filter(pc.invert(pc.is_in(kept, value_set=pa.array(broken, pa.int64()))))


def _raw_batches(made: Featurizer) -> Iterator[pa.RecordBatch]:
    for batch in made.raw(None):
        size = ROWS_AT_ONCE if made.recipe.expands else max(1, batch.num_rows)
        for first in range(0, batch.num_rows, size):
            yield batch.slice(first, size)


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
