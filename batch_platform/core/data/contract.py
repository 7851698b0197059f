"""The contract of a source: which rows are good, and why the others are not.

Decides, for rows whose cells were read already, whether keys are there, required values present, numbers
finite and within bounds, values among the allowed ones; and what the raw table looks like. A number that is
NaN or infinite is always rejected: no model or statistic downstream can tell it from a mistake. It knows
neither files (`sources`) nor other rows (`keys` finds duplicates).

Sensitive columns are masked in messages and payloads. `Rejected.row_key` keeps the key as it is, because the
tables keep it too; whoever shows it masks it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.data.cells import BoolArray, arrow_type, text_of
from batch_platform.core.spec import ColumnSpec
from batch_platform.errors import ContractError

MASK = "***"
SHOWN_VALUE = 80
SHOWN_PAYLOAD = 2_000
_FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class Rejected:
    """A row of the source that goes to quarantine.

    Attributes:
        row_key: the row's key as text; None where it has none or none can be read.
        error_type: unparsable, invalid_utf8, wrong_type, null_key, missing_value, not_finite, out_of_range,
            not_allowed or duplicate_key: the first thing wrong with the row.
        message: everything that is wrong with it, by column; values of sensitive columns left out.
        source_file: the file as `SourceBatch.source_file` names it.
        source_row: data row in that file, from 0.
        payload: the row as JSON with sensitive columns masked (or the line as it stands), cut to about 2,000
            characters; None where a line that nobody could parse may hold sensitive values.
    """

    row_key: str | None
    error_type: str
    message: str
    source_file: str
    source_row: int
    payload: str | None


@dataclass(frozen=True)
class BadCell:
    """A cell that holds no value of its column's type; the batch has null in its place."""

    row: int
    column: str
    error_type: str
    text: str


@dataclass(frozen=True)
class SourceBatch:
    """Some rows of one file, in the file's order.

    Attributes:
        batch: the contract's columns in the contract's types; null where a cell is empty or bad.
        source_file: path relative to the project's folder where it lies inside it, else as given.
        source_rows: (rows,) int64, each row's place among the file's data rows, from 0.
        bad_cells: cells that did not fit their type, by row of the batch.
        unparsable: rows that could not be read at all, so that they are not in the batch.
        columns_seen: names of the columns that the source has, whether the contract names them or not.
        unplaced: rows left out because their partition column is null or unreadable.
    """

    batch: pa.RecordBatch
    source_file: str
    source_rows: npt.NDArray[np.int64]
    bad_cells: list[BadCell] = field(default_factory=list)
    unparsable: list[Rejected] = field(default_factory=list)
    columns_seen: frozenset[str] = frozenset()
    unplaced: int = 0


@dataclass(frozen=True)
class _Violation:
    column: str
    error_type: str
    rows: BoolArray
    reason: str


class Contract:
    """What the rows of a source must look like.

    Args:
        columns: the contract's columns by name, in the order of the raw table.
        row_key: the column among them that identifies a row.

    Raises:
        ContractError: the allowed values of a column do not fit its type.
    """

    def __init__(self, columns: Mapping[str, ColumnSpec], row_key: str) -> None:
        self.columns = dict(columns)
        self.row_key = row_key
        self._allowed = {name: _allowed(name, spec) for name, spec in columns.items() if spec.allowed}
        self._order = [row_key, *(name for name in columns if name != row_key)]

    @property
    def schema(self) -> pa.Schema:
        """The raw table: `row_key`, the contract's columns, `source_file`, `source_row`."""
        columns = [(name, arrow_type(spec.type)) for name, spec in self.columns.items() if name != "row_key"]
        places = [("source_file", pa.string()), ("source_row", pa.int64())]
        return pa.schema([("row_key", pa.string()), *columns, *places])

    @property
    def has_sensitive(self) -> bool:
        return any(spec.sensitive for spec in self.columns.values())

    def enforce(self, source: SourceBatch) -> tuple[pa.RecordBatch, list[Rejected]]:
        """Split rows into those that keep the contract, in `schema`, and those that do not.

        Every row of the batch and every unparsable row is in exactly one of the two, in source order.
        """
        raw = self._raw(source)
        violations = [found for name in self._order for found in self._check(name, source)]
        if not violations:
            return raw, source.unparsable
        bad = np.logical_or.reduce([violation.rows for violation in violations])
        rejected = self._rejections(raw, np.flatnonzero(bad), violations, source.bad_cells)
        rejected = sorted([*rejected, *source.unparsable], key=lambda row: row.source_row)
        return raw.filter(pa.array(~bad)), rejected

    def reject(self, raw: pa.RecordBatch, error_type: str, reason: str) -> list[Rejected]:
        """Reject every row of a batch in `schema` for one reason, which concerns its key."""
        rows = np.arange(raw.num_rows)
        everything = _Violation(self.row_key, error_type, np.ones(raw.num_rows, np.bool_), reason)
        return self._rejections(raw, rows, [everything], [])

    def _raw(self, source: SourceBatch) -> pa.RecordBatch:
        batch = source.batch
        keys = text_of(batch.column(self.row_key))
        columns = [batch.column(name) for name in self.columns if name != "row_key"]
        files = pa.repeat(pa.scalar(source.source_file, pa.string()), batch.num_rows)
        arrays = [keys, *columns, files, pa.array(source.source_rows, pa.int64())]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _check(self, name: str, source: SourceBatch) -> list[_Violation]:
        spec, column = self.columns[name], source.batch.column(name)
        bad = _bad_rows(name, source)
        tests: list[tuple[str, BoolArray, str]] = [
            (kind, rows, f"is {_kind_reason(kind, spec)}") for kind, rows in bad.items()
        ]
        unreadable = np.logical_or.reduce([np.zeros(len(column), np.bool_), *bad.values()])
        if name == self.row_key:
            tests.append(("null_key", _empty(column) & ~unreadable, "is the row key and is empty"))
        elif spec.required and column.null_count:
            tests.append(("missing_value", _mask(column.is_null()) & ~unreadable, "is required and empty"))
        tests += self._value_tests(name, spec, column)
        return [_Violation(name, kind, rows, reason) for kind, rows, reason in tests if rows.any()]

    def _value_tests(self, name: str, spec: ColumnSpec, column: pa.Array) -> list[tuple[str, BoolArray, str]]:
        tests = []
        if spec.type in _FLOATS:
            tests.append(("not_finite", ~_mask(pc.is_finite(column), empty=True), "is not a finite number"))
        if spec.type == "list<float32>":
            tests.append(("not_finite", _broken_lists(column), "holds something that is no finite number"))
        if spec.min is not None:
            rows = _mask(pc.less(column, bound(spec.min, column.type, up=True)))
            tests.append(("out_of_range", rows, f"is below the minimum {spec.min:g}"))
        if spec.max is not None:
            rows = _mask(pc.greater(column, bound(spec.max, column.type, up=False)))
            tests.append(("out_of_range", rows, f"is above the maximum {spec.max:g}"))
        if name in self._allowed:
            among = _mask(pc.is_in(column, value_set=self._allowed[name])) | _mask(column.is_null())
            tests.append(("not_allowed", ~among, f"is not one of {_shown(spec.allowed)}"))
        return tests

    def _rejections(
        self,
        raw: pa.RecordBatch,
        rows: npt.NDArray[np.int64],
        violations: list[_Violation],
        bad_cells: list[BadCell],
    ) -> list[Rejected]:
        texts: dict[int, dict[str, str]] = {}
        for cell in bad_cells:
            texts.setdefault(cell.row, {})[cell.column] = cell.text
        rejected = []
        for row in rows.tolist():
            values = self._values(raw, row) | texts.get(row, {})
            broken = [violation for violation in violations if violation.rows[row]]
            rejected.append(
                Rejected(
                    row_key=raw.column("row_key")[row].as_py(),
                    error_type=broken[0].error_type,
                    message="; ".join(self._message(violation, values) for violation in broken),
                    source_file=raw.column("source_file")[row].as_py(),
                    source_row=raw.column("source_row")[row].as_py(),
                    payload=self._payload(values),
                )
            )
        return rejected

    def _values(self, raw: pa.RecordBatch, row: int) -> dict[str, object]:
        return {name: raw.column(name)[row].as_py() for name in self.columns}

    def _message(self, violation: _Violation, values: dict[str, object]) -> str:
        value = values[violation.column]
        if value is None or self.columns[violation.column].sensitive:
            return f"column {violation.column} {violation.reason}"
        return f"column {violation.column} {violation.reason}: {_shown(value)}"

    def _payload(self, values: dict[str, object]) -> str:
        shown = {
            name: MASK if self.columns[name].sensitive and value is not None else _json_value(value)
            for name, value in values.items()
        }
        return cut(json.dumps(shown, ensure_ascii=False), SHOWN_PAYLOAD)


def cut(text: str, length: int) -> str:
    """The text, or its first `length` characters and a mark that something was left out."""
    return text if len(text) <= length else text[:length] + "…"


def printable(text: str) -> str:
    r"""The text with lone surrogates written as \udXXX, so that it can be stored as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def bound(value: float, kind: pa.DataType, up: bool) -> pa.Scalar:
    """A `min` (`up`) or `max` in the column's own type, for comparing.

    So 0.1 in float32 is not above a maximum of 0.1, and integers beyond 2**53, which Arrow refuses to compare
    with a float, can be compared.
    """
    if pa.types.is_floating(kind):
        return pa.scalar(value, pa.float64()).cast(kind, safe=False)
    limit = 1 << (kind.bit_width - 1)
    if not math.isfinite(value):
        return pa.scalar(limit - 1 if value > 0 else -limit, kind)
    whole = math.ceil(value) if up else math.floor(value)
    return pa.scalar(min(max(whole, -limit), limit - 1), kind)


def _bad_rows(name: str, source: SourceBatch) -> dict[str, BoolArray]:
    found: dict[str, BoolArray] = {}
    for cell in source.bad_cells:
        if cell.column == name:
            rows = found.setdefault(cell.error_type, np.zeros(source.batch.num_rows, np.bool_))
            rows[cell.row] = True
    return found


def _kind_reason(error_type: str, spec: ColumnSpec) -> str:
    return "not valid UTF-8" if error_type == "invalid_utf8" else f"no {spec.type}"


def _allowed(name: str, spec: ColumnSpec) -> pa.Array:
    kind = arrow_type(spec.type)
    try:
        values = pa.array(spec.allowed)
        if pa.types.is_boolean(values.type) != pa.types.is_boolean(kind):
            raise pa.ArrowInvalid("truth values and others do not mix")
        if pa.types.is_string(values.type) != pa.types.is_string(kind):
            raise pa.ArrowInvalid("texts and others do not mix")
        return values.cast(kind, safe=not pa.types.is_floating(kind))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        raise ContractError(
            f"source.columns.{name}.allowed: {_shown(spec.allowed)} are not all of type {spec.type}; "
            "write values of that type"
        ) from None


def _broken_lists(column: pa.ListArray) -> BoolArray:
    flat = column.flatten()
    broken = ~_mask(pc.is_finite(flat)) if len(flat) else np.zeros(0, np.bool_)
    rows = np.zeros(len(column), np.bool_)
    rows[pc.list_parent_indices(column).to_numpy()[broken]] = True
    return rows


def _empty(column: pa.Array) -> BoolArray:
    empty = _mask(column.is_null())
    return empty | _mask(pc.equal(column, "")) if pa.types.is_string(column.type) else empty


def _mask(truth: pa.BooleanArray, empty: bool = False) -> BoolArray:
    return truth.fill_null(empty).to_numpy(zero_copy_only=False)


def _shown(value: object) -> str:
    text = value.isoformat() if isinstance(value, date | datetime) else str(value)
    return cut(repr(text) if isinstance(value, str) else text, SHOWN_VALUE)


def _json_value(value: object) -> object:
    if isinstance(value, str):
        return cut(value, SHOWN_PAYLOAD)
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, list):
        return [_json_value(item) for item in value[:SHOWN_PAYLOAD]]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
