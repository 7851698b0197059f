"""A Delta table, file by file of one version.

Decides which files can hold rows of the partition, by the table's partition columns and statistics, and in what order they
are read: by name. The version is taken once and stands in every row's `source_file`. What a table needs of its reader
(deletion vectors, say) and deltalake cannot do is refused by it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from batch_platform.core.data.cells import CellType
from batch_platform.core.data.contract import SourceBatch
from batch_platform.core.data.finding import place_of, source_name
from batch_platform.core.data.objects import ObjectPath, told
from batch_platform.core.data.readers.opening import BATCH_ROWS
from batch_platform.core.data.readers.parquet import check_types, source_batch
from batch_platform.core.data.window import Window
from batch_platform.errors import SourceError, SourceMissingError


def delta_version(uri: str, base: Path) -> int:
    """The version of a Delta table as it stands.

    Raises:
        SourceMissingError: there is no table.
        SourceError: it cannot be read.
    """
    place = place_of(uri, base)
    options = place.bucket.delta_options if isinstance(place, ObjectPath) else None
    try:
        return int(DeltaTable(str(place), storage_options=options).version())
    except TableNotFoundError:
        raise SourceMissingError(f"{source_name(place, base)}: no Delta table is there") from None
    except (DeltaError, OSError) as error:
        raise SourceError(
            f"{source_name(place, base)}: the Delta table cannot be read ({told(error)}): mend it, then run it again"
        ) from error


def read_delta(
    uri: str,
    columns: Mapping[str, CellType],
    base: Path,
    window: Window | None,
    optional: frozenset[str] = frozenset(),
) -> Iterator[SourceBatch]:
    """The rows of a Delta table, a few megabytes at a time; files without rows of the window are left out.

    Raises:
        SourceMissingError: there is no table.
        SourceError: it cannot be read, or needs what this reader cannot do.
        ContractError: columns are missing, or of a type that cannot stand for the contract's.
    """
    place = place_of(uri, base)
    options = place.bucket.delta_options if isinstance(place, ObjectPath) else None
    name = source_name(place, base)
    try:
        table = DeltaTable(str(place), storage_options=options)
        dataset = table.to_pyarrow_dataset()
        columns = check_types(dataset.schema, name, columns, optional)
        for fragment in sorted(
            dataset.get_fragments(_filter(dataset.schema, window)), key=lambda file: file.path
        ):
            file = f"{name}@{table.version()}/{fragment.path}"
            yield from _rows(fragment, file, columns, dataset.schema)
    except TableNotFoundError:
        raise SourceMissingError(
            f"{name}: no Delta table is there. Check the uri and whether the data has arrived; where a partition may "
            "have none, set source.allow_empty: true"
        ) from None
    except (DeltaError, pa.ArrowInvalid, OSError) as error:
        raise SourceError(
            f"{name}: the Delta table cannot be read ({told(error)}): mend it, then run it again"
        ) from error


def _filter(schema: pa.Schema, window: Window | None) -> Any:
    """What a file's statistics must allow; None where every file is to be read."""
    if window is None:
        return None
    kind = schema.field(window.column).type
    if not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        return None
    import pyarrow.dataset as pds  # which imports pandas, too much for showing definitions

    start, end = window.limits(kind)
    column = pds.field(window.column)
    return (column >= start) & (column < end)


def _rows(
    fragment: Any, name: str, columns: Mapping[str, CellType], schema: pa.Schema
) -> Iterator[SourceBatch]:
    import pyarrow.dataset as pds

    # Pages are streamed; Arrow's default would load whole row groups ahead.
    streamed = pds.ParquetFragmentScanOptions(use_buffered_stream=True, buffer_size=1 << 20, pre_buffer=False)
    first = 0
    for batch in fragment.to_batches(
        schema=schema,
        columns=list(columns),
        batch_size=BATCH_ROWS,
        batch_readahead=0,
        fragment_readahead=0,
        fragment_scan_options=streamed,
        use_threads=False,
    ):
        yield source_batch(batch, first, name, columns, schema.names)
        first += batch.num_rows
