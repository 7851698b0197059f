"""Feature recipes: named steps, applied to raw rows batch by batch, with a version that names the code.

Decides that a recipe keeps its promise (its output's columns and types, one row out per row in, in the same
order; or several, where a step cuts rows into pieces) and which rows a failing step fails on. A step must treat each
row by itself: it sees batches of any size, and a failing batch is halved until the rows that fail are alone. It does
not know what the features mean.
"""

import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Concatenate, ParamSpec

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batch_platform.core.data.cells import arrow_type
from batch_platform.core.data.contract import cut, printable
from batch_platform.core.features.source_code import code_of
from batch_platform.core.spec import RESERVED_COLUMNS, ColumnSpec
from batch_platform.errors import RecipeError

P = ParamSpec("P")
StepFunction = Callable[Concatenate[pa.RecordBatch, P], pa.RecordBatch]

_SHOWN_MESSAGE = 300


@dataclass(frozen=True)
class Step:
    """A function of a batch with its parameters; made by calling a function decorated with `@step`.

    Attributes:
        file: of the model's folder; the function gets its content as a second argument, and b"" with a batch
            without rows, of which it makes the columns that it would make.
        expands: the function returns the batch, and of each of its rows the place of the row it was made of,
            ascending, with one row or more for each.
    """

    name: str
    function: Callable[..., Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    expands: bool = False


@dataclass(frozen=True)
class RowFailure:
    """A row that a step could not use: its place in the batch, what kind of error it met, and the words for it."""

    row: int
    error_type: str
    message: str


class _StepError(Exception):
    """A step refused the data of a batch."""

    def __init__(self, step: str, cause: Exception) -> None:
        super().__init__(f"step {step}: {cause}")
        self.step, self.cause = step, cause


def step(function: StepFunction[P]) -> Callable[P, Step]:
    """Turn `def lower(batch: pa.RecordBatch, *, column: str) -> pa.RecordBatch` into a maker of steps.

    The function gets the raw table's columns (`row_key` among them) and what earlier steps added, and
    returns a batch with as many rows in the same order. It raises ValueError, ArithmeticError or an Arrow
    error for data it cannot use: the rows concerned go to quarantine. Parameters are JSON values.

    Returns:
        A function of the parameters: `lower(column="body")` is the step.
    """

    def make(*args: P.args, **kwargs: P.kwargs) -> Step:
        return _step(function, (None, *args), kwargs)

    make.__name__, make.__doc__, make.__module__ = function.__name__, function.__doc__, function.__module__
    return make


def step_with_file(file: str, expands: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Step]]:
    """Like `step`, for `def encode(batch: pa.RecordBatch, content: bytes, *, column: str)`, which reads a file of the model.

    Args:
        file: its path in the model's folder.
        expands: the function makes several rows of one; see `Step`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Step]:
        def make(*args: Any, **kwargs: Any) -> Step:
            made = _step(function, (None, None, *args), kwargs)
            params = dict(list(made.params.items())[1:])
            return replace(made, params=params, file=file, expands=expands)

        make.__name__, make.__doc__, make.__module__ = (
            function.__name__,
            function.__doc__,
            function.__module__,
        )
        return make

    return decorate


def _step(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Step:
    name = function.__name__
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
    except TypeError as error:
        raise RecipeError(f"step {name}: {error}; see its docstring for the parameters") from None
    params = dict(list(bound.arguments.items())[1:])
    _canonical(name, params)
    return Step(name, function, params)


# Place of a piece's first row in the batch, its features, and the places in the piece that they were made of.
_Piece = tuple[int, pa.RecordBatch, npt.NDArray[np.int64]]


class Recipe:
    """Steps that make features of raw rows.

    Args:
        name: what the recipe is called in metadata.
        steps: applied one after the other.
        output: the features, by name and type; a field that is not nullable may hold no null.
        files: content of the model's files that the steps read, by path; from `with_files`.

    Raises:
        RecipeError: the output has no columns, one twice, or one with the name of a platform column.
    """

    def __init__(
        self, name: str, steps: Sequence[Step], output: pa.Schema, files: Mapping[str, bytes] | None = None
    ) -> None:
        self.name, self.steps, self.output, self._files = name, tuple(steps), output, dict(files or {})
        if not output.names:
            raise RecipeError(f"recipe {name}: its output has no columns")
        for column in output.names:
            if column in RESERVED_COLUMNS:
                raise RecipeError(
                    f"recipe {name}: output column {column!r} has the name of a platform column"
                )
            if output.names.count(column) > 1:
                raise RecipeError(f"recipe {name}: output column {column!r} is there twice")

    @cached_property
    def version(self) -> str:
        """12 hex digits over everything that the recipe itself says about the features' values.

        Covered are each step's name and parameters, the files of the model that they were given, the source text of
        its function and of everything at the top level of the function's module that it uses, directly or through
        others (functions, classes, constants, imports as they are written), and the output's names, types and nullability.
        Not covered are the bodies of functions imported from other modules, and the versions of libraries.

        Raises:
            RecipeError: a step's source code cannot be read, because it was not defined in a file.
        """
        digest = sha256()
        for each in self.steps:
            for part in (each.name, code_of(each.name, each.function), _canonical(each.name, each.params)):
                digest.update(sha256(part.encode()).digest())
        for column in self.output:
            digest.update(sha256(f"{column.name} {column.type} {column.nullable}".encode()).digest())
        for path in sorted(self._files):
            digest.update(sha256(path.encode()).digest() + sha256(self._files[path]).digest())
        return digest.hexdigest()[:12]

    @property
    def reads(self) -> frozenset[str]:
        """Files of the model's folder that the steps need."""
        return frozenset(each.file for each in self.steps if each.file is not None)

    @property
    def file_digests(self) -> dict[str, str]:
        """SHA-256 of the files that the steps were given, by path."""
        return {path: sha256(content).hexdigest() for path, content in sorted(self._files.items())}

    @property
    def expands(self) -> bool:
        """Whether a step makes several rows of one."""
        return any(each.expands for each in self.steps)

    def with_files(self, read: Callable[[str], bytes]) -> "Recipe":
        """The recipe with the files of the model that its steps read.

        Args:
            read: gives the content of a file by its path in the model's folder.
        """
        files = {path: read(path) for path in sorted(self.reads)}
        return Recipe(self.name, self.steps, self.output, files)

    def passing(self, columns: pa.Schema) -> "Recipe":
        """The same recipe, whose output has these columns too."""
        return Recipe(self.name, self.steps, pa.schema([*self.output, *columns]), self._files)

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The features of raw rows: exactly the columns of `output`, (rows,) each, in the order of the rows.

        Raises:
            RecipeError: a step failed, or broke its promise; the message names it.
        """
        try:
            return self._run(batch)[0]
        except _StepError as error:
            raise RecipeError(f"recipe {self.name}, {error}") from error.cause

    def apply_with_failures(
        self, batch: pa.RecordBatch, *, mask_values: bool = False
    ) -> tuple[pa.RecordBatch, pa.Int64Array, list[RowFailure]]:
        """The features of all rows that have some, and why the others have none.

        Args:
            batch: raw rows.
            mask_values: leave out what a step says about a row, which may quote sensitive values.

        Returns:
            The features; the place in `batch` of the row that each was made of, ascending; and the failures. Each row
            is in exactly one of the two.

        Raises:
            RecipeError: a step broke its promise or failed in a way that no row's data explains.
        """
        pieces: list[_Piece] = []
        failures: list[RowFailure] = []
        self._bisect(batch, 0, pieces, failures, mask_values)
        features = pa.concat_batches([_empty(self.output), *(piece for _, piece, _ in pieces)])
        kept = [first + origin for first, _, origin in pieces]
        return features, pa.array(np.concatenate([np.zeros(0, np.int64), *kept]), pa.int64()), failures

    def _bisect(
        self,
        batch: pa.RecordBatch,
        first: int,
        pieces: list[_Piece],
        failures: list[RowFailure],
        mask_values: bool,
    ) -> None:
        try:
            pieces.append((first, *self._run(batch)))
        except _StepError as error:
            if batch.num_rows > 1:
                middle = batch.num_rows // 2
                self._bisect(batch.slice(0, middle), first, pieces, failures, mask_values)
                self._bisect(batch.slice(middle), first + middle, pieces, failures, mask_values)
            elif batch.num_rows == 1:
                failures.append(_row_failure(first, error, mask_values))
            else:
                raise RecipeError(f"recipe {self.name}, {error} (on a batch without rows)") from error.cause

    def _run(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
        """The output, and of each of its rows the place in `batch` of the row that it was made of."""
        current, origin = batch, np.arange(batch.num_rows)
        for each in self.steps:
            result = self._call(each, current)
            if each.expands:
                current, made_of = result
                origin = origin[made_of]
                continue
            self._check_rows(each, current, result)
            current = result
        return self._output(current), origin

    def _call(self, each: Step, batch: pa.RecordBatch) -> Any:
        try:
            return each.function(batch, *self._content(each, batch), **each.params)
        except RecipeError:
            raise
        except (ValueError, ArithmeticError, pa.ArrowInvalid) as error:
            raise _StepError(each.name, error) from error
        except (LookupError, TypeError, AttributeError, pa.ArrowException) as error:
            there = ", ".join(batch.schema.names)
            raise RecipeError(
                f"recipe {self.name}: step {each.name} failed with {type(error).__name__}: {error}. "
                f"It was given the columns {there}; correct the step or its parameters"
            ) from error

    def _content(self, each: Step, batch: pa.RecordBatch) -> tuple[bytes, ...]:
        if each.file is None:
            return ()
        if each.file not in self._files and batch.num_rows:
            raise RecipeError(
                f"recipe {self.name}: step {each.name} reads {each.file} of a registered model, and none was given"
            )
        return (self._files.get(each.file, b""),)

    def _check_rows(self, each: Step, given: pa.RecordBatch, result: object) -> None:
        broken = f"recipe {self.name}: step {each.name} "
        if not isinstance(result, pa.RecordBatch):
            raise RecipeError(
                f"{broken}returned {type(result).__name__}; it must return a pyarrow.RecordBatch"
            )
        if result.num_rows != given.num_rows:
            raise RecipeError(
                f"{broken}made {result.num_rows} rows of {given.num_rows}; it must make one of each"
            )
        with_key = "row_key" in result.schema.names and "row_key" in given.schema.names
        if with_key and not result.column("row_key").equals(given.column("row_key")):
            raise RecipeError(f"{broken}changed row_key or the order of the rows; it must keep both")

    def _output(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        missing = [name for name in self.output.names if name not in batch.schema.names]
        if missing:
            raise RecipeError(
                f"recipe {self.name}: no step makes the output column {missing[0]!r}; "
                f"there are: {', '.join(batch.schema.names)}"
            )
        columns = [self._cast(batch.column(column.name), column) for column in self.output]
        return pa.RecordBatch.from_arrays(columns, schema=self.output)

    def _cast(self, values: pa.Array, column: pa.Field) -> pa.Array:
        if values.null_count and not column.nullable:
            raise _StepError("output", ValueError(f"column {column.name} is null, and must not be"))
        try:
            return values.cast(column.type)
        except pa.ArrowInvalid as error:
            raise _StepError("output", ValueError(f"column {column.name}: {error}")) from error
        except pa.ArrowNotImplementedError as error:
            raise RecipeError(
                f"recipe {self.name}: output column {column.name} is {values.type} and cannot become {column.type}"
            ) from error


def load_recipe(path: str) -> Recipe:
    """The recipe at `module:ATTRIBUTE`.

    Raises:
        RecipeError: there is no such module or attribute, it is no recipe, or the module cannot be imported.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"features.recipe: module {error.name} is not there (for {path}); check its spelling"
        ) from error
    except Exception as error:
        raise RecipeError(
            f"features.recipe: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        raise RecipeError(f"features.recipe: module {module_name} has no {attribute!r}; define it there")
    found = getattr(module, attribute)
    if not isinstance(found, Recipe):
        raise RecipeError(f"features.recipe: {path} is of type {type(found).__name__}, not a Recipe")
    return found


def passthrough(columns: Mapping[str, ColumnSpec]) -> Recipe:
    """The recipe of a pipeline without one: the contract's columns as they are.

    Raises:
        RecipeError: the contract has no column but `row_key`, so that there is nothing to pass on.
    """
    fields = [
        pa.field(name, arrow_type(spec.type))
        for name, spec in columns.items()
        if name not in RESERVED_COLUMNS
    ]
    return Recipe("passthrough", (), pa.schema(fields))


def _row_failure(row: int, error: _StepError, mask_values: bool) -> RowFailure:
    kind = "feature_error" if error.step != "output" else "feature_type"
    words = f"step {error.step} failed with {type(error.cause).__name__}" if mask_values else str(error)
    return RowFailure(row, kind, cut(printable(words), _SHOWN_MESSAGE))


def _canonical(name: str, params: Mapping[str, Any]) -> str:
    try:
        return json.dumps(params, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"step {name}: its parameters must be JSON values ({error})") from None


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], column.type) for column in schema], schema=schema)
