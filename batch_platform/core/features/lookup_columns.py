"""Which columns of a lookup are read, of which types, and what they add to the raw ones.

Decides it from the pipeline file, or from the first of the lookup's Parquet files where that leaves it open. It reads
no rows.
"""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.data.cells import arrow_type
from batch_platform.core.data.finding import find_files, source_name
from batch_platform.core.data.readers.opening import open_searchable
from batch_platform.core.spec import LANDED_COLUMNS, ColumnSpec, ColumnType, LookupSpec
from batch_platform.errors import ContractError, SourceError


def lookup_columns(lookup: LookupSpec, key: ColumnSpec, uri: str, base: Path) -> dict[str, ColumnSpec]:
    """The contract of a lookup's rows: key, event time, and the columns that are taken or aggregated.

    Args:
        key: the contract's column that the lookup is joined on.
        uri: of the lookup, for one partition.
        base: folder that relative uris start from.

    Raises:
        SourceMissingError: there is no file to take the columns from.
        SourceError: the file cannot be read.
        ContractError: it has not the columns that the pipeline file speaks of.
    """
    if lookup.columns is not None:
        known = {name: spec.model_copy(update={"required": False}) for name, spec in lookup.columns.items()}
        if lookup.event_time not in known:
            known[lookup.event_time] = ColumnSpec(type=_type_of_time(lookup, uri, base))
    else:
        found = _types_in_file(lookup, uri, base)
        wanted = {each.column for each in lookup.aggregates.values()} if lookup.aggregates else set(found)
        known = {name: spec for name, spec in found.items() if name in {*wanted, lookup.event_time}}
    return {lookup.on: ColumnSpec(type=key.type, sensitive=key.sensitive), **known}


def added_columns(lookup: LookupSpec, columns: dict[str, ColumnSpec]) -> pa.Schema:
    """What the recipe sees of a lookup.

    Args:
        columns: as `lookup_columns` gives them.

    Raises:
        ContractError: nothing is taken, the event time is no time, or an aggregate is made of no number.
    """
    for name, aggregate in lookup.aggregates.items():
        column = None if aggregate.column is None else columns.get(aggregate.column)
        if aggregate.column is not None and column is None:
            raise ContractError(f"aggregates.{name}: {lookup.place} has no column {aggregate.column}")
        if column is not None and aggregate.refuses(column.type):
            raise ContractError(
                f"aggregates.{name}: {aggregate.column} is {column.type}, of which there is no {aggregate.function}"
            )
    taken = lookup.taken()
    if taken is None:
        names = [name for name in columns if name not in (lookup.on, lookup.event_time)]
        taken = {f"{lookup.prefix}{name}": columns[name].type for name in names}
    if not taken:
        raise ContractError(f"{lookup.place} has no columns but key and event time: name an aggregate")
    return pa.schema([(name, arrow_type(kind)) for name, kind in taken.items()])


def _types_in_file(lookup: LookupSpec, uri: str, base: Path) -> dict[str, ColumnSpec]:
    name, schema = _first_file(uri, base)
    found: dict[str, ColumnSpec] = {}
    for column in schema:
        kind = _contract_type(column.type)
        if column.name == lookup.on or column.name in LANDED_COLUMNS:
            continue
        if kind is not None:
            found[column.name] = ColumnSpec(type=kind)
        elif not lookup.aggregates:
            raise ContractError(
                f"{name}: column {column.name} is of type {column.type}, which cannot be taken: name the columns to "
                "take under columns"
            )
    _check_time(lookup, name, found.get(lookup.event_time))
    return found


def _type_of_time(lookup: LookupSpec, uri: str, base: Path) -> ColumnType:
    if lookup.format != "parquet":
        return "timestamp"
    name, schema = _first_file(uri, base)
    place = schema.get_field_index(lookup.event_time)
    kind = None if place < 0 else _contract_type(schema.field(place).type)
    _check_time(lookup, name, None if kind is None else ColumnSpec(type=kind))
    assert kind is not None
    return kind


def _check_time(lookup: LookupSpec, name: str, time: ColumnSpec | None) -> None:
    if time is None or time.type not in ("date", "timestamp"):
        raise ContractError(
            f"{name}: there is no column {lookup.event_time} of dates or timestamps: correct event_time, or the file"
        )


def _first_file(uri: str, base: Path) -> tuple[str, pa.Schema]:
    path = find_files(uri, "parquet", base)[0]
    name = source_name(path, base)
    try:
        return name, pq.read_schema(open_searchable(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{name} is not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _contract_type(kind: pa.DataType) -> ColumnType | None:
    """The contract type that holds the values of an Arrow type; None where there is none."""
    if pa.types.is_dictionary(kind):
        return _contract_type(kind.value_type)
    return next((name for is_one, name in _CONTRACT_TYPES if is_one(kind)), None)


_CONTRACT_TYPES: tuple[tuple[Callable[[pa.DataType], bool], ColumnType], ...] = (
    (pa.types.is_string, "string"),
    (pa.types.is_large_string, "string"),
    (pa.types.is_string_view, "string"),
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_int32, "int32"),
    (pa.types.is_integer, "int64"),
    (pa.types.is_float32, "float32"),
    (pa.types.is_floating, "float64"),
    (pa.types.is_date, "date"),
    (pa.types.is_timestamp, "timestamp"),
)
