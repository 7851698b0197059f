"""Putting a partition together: copied rows, scored rows and their twins, in the order of the features.

Copied rows keep their values, run and time; a twin has another row's values under its own key. Rows that come in the
order in which they are wanted are streamed; the others go through files of this machine, by place. It does not know why
a row is where it is: `reusing` does.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batch_platform.core.data.files import writing
from batch_platform.core.reusing import OWN, SCORED, TWIN_OF_SCORED, TWIN_OF_STANDING, Numbers, RowPlan

Batches = Callable[[], Iterable[pa.RecordBatch]]
_Placed = tuple[pa.Table, Numbers]  # rows, and the place of each in the order of the features

WINDOW_ROWS = 65_536


def together(
    plan: RowPlan,
    standing: Batches,
    fresh: Batches,
    failed: Numbers,
    feature_keys: Iterable[pa.Array],
    schema: pa.Schema,
    folder: Path,
) -> Iterator[pa.RecordBatch]:
    """The rows of the result in the order of the features.

    Args:
        plan: where each comes from.
        standing: gives the snapshot's rows, in their order; asked for once or twice.
        fresh: gives the rows that were scored, in their order, without those that failed.
        failed: numbers, among the rows to score, of those that failed, ascending.
        feature_keys: row keys of all features, in order.
        schema: the columns of the result.
        folder: of this machine, for rows that come out of order.
    """
    sources = [
        _Source(standing, plan, OWN, TWIN_OF_STANDING),
        _Source(fresh, plan, SCORED, TWIN_OF_SCORED, failed),
    ]
    streams: list[Iterator[_Placed]] = []
    for number, source in enumerate(sources):
        if source.is_in_order:
            streams.append(source.rows(schema))
        else:
            streams.append(_sorted(source.rows(schema), schema, folder / f"rows-{number}"))
    for number, source in enumerate(sources):
        if source.has_twins:
            streams.append(_sorted(source.twins(schema), schema, folder / f"twins-{number}"))
    yield from _merged(streams, plan, feature_keys, schema)


class _Source:
    """Rows of one origin, each with the places that it goes to.

    Args:
        batches: the rows, in the order of their numbers.
        own, twin: kinds of the plan's rows that come from here, under the row's own key or another.
        absent: numbers that `batches` leaves out, ascending.
    """

    def __init__(
        self, batches: Batches, plan: RowPlan, own: int, twin: int, absent: Numbers | None = None
    ) -> None:
        self._batches = batches
        self._plan = plan
        self._own, self._twin = own, twin
        absent = np.zeros(0, np.int64) if absent is None else absent
        self._absent_before = absent - np.arange(len(absent))
        self.is_in_order = self._is_in_order()
        self.has_twins = plan.count(twin) > 0

    def rows(self, schema: pa.Schema) -> Iterator[_Placed]:
        """The rows that go to one place under their own key, in the order of the source."""
        places = self._plan.positions(self._own) if self.is_in_order else self._by_source(self._own)
        yield from self._placed(schema, places)

    def twins(self, schema: pa.Schema) -> Iterator[_Placed]:
        """A copy of a row for each of its twins."""
        yield from self._placed(schema, self._by_source(self._twin))

    def _is_in_order(self) -> bool:
        before = -1
        for places in self._plan.positions(self._own):
            source = self._plan.source[places]
            if np.any(np.diff(source, prepend=before) <= 0):
                return False
            before = int(source[-1]) if len(source) else before
        return True

    def _by_source(self, kind: int) -> Iterator[Numbers]:
        """Places of a kind in the order of the rows that go there; for rows out of order alone: holds all of them."""
        places = np.concatenate([part.astype(self._plan.source.dtype) for part in self._plan.positions(kind)])
        yield places[np.argsort(self._plan.source[places], kind="stable")]

    def _placed(self, schema: pa.Schema, places: Iterator[Numbers]) -> Iterator[_Placed]:
        waiting = _Waiting(places, self._plan.source)
        start = 0
        for batch in self._batches():
            numbers = np.arange(start, start + batch.num_rows)
            start += batch.num_rows
            numbers = numbers + np.searchsorted(self._absent_before, numbers, side="right")
            if not len(numbers):
                continue
            found = waiting.below(int(numbers[-1]) + 1)
            wanted = self._plan.source[found]
            inside = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
            there = numbers[inside] == wanted  # what failed has no row
            if there.any():
                table = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
                yield table.take(pa.array(inside[there])), found[there]


class _Waiting:
    """Places in the order of the rows that go there, taken by the row's number."""

    def __init__(self, places: Iterator[Numbers], source: Numbers) -> None:
        self._places = places
        self._source = source
        self._held: Numbers = np.zeros(0, np.int64)

    def below(self, number: int) -> Numbers:
        """The next places, of rows whose numbers are below `number`."""
        parts = []
        while True:
            cut = int(np.searchsorted(self._source[self._held], number))
            parts.append(self._held[:cut])
            self._held = self._held[cut:]
            if len(self._held) or (following := next(self._places, None)) is None:
                return np.concatenate(parts)
            self._held = following


def _sorted(rows: Iterator[_Placed], schema: pa.Schema, folder: Path) -> Iterator[_Placed]:
    """Rows in the order of their places, through a file for each window of places."""
    writers: dict[int, pa.RecordBatchFileWriter] = {}
    full = schema.append(pa.field(_PLACE, pa.int64()))
    with writing(folder):
        folder.mkdir(parents=True)
        for table, places in rows:
            window = places // WINDOW_ROWS
            for number in np.unique(window).tolist():
                if number not in writers:
                    writers[number] = pa.ipc.new_file(folder / f"{number}.arrow", full)
                chosen = np.flatnonzero(window == number)
                part = table.take(pa.array(chosen)).append_column(_PLACE, pa.array(places[chosen]))
                writers[number].write_table(part.cast(full))
        for writer in writers.values():
            writer.close()
    for number in sorted(writers):
        path = folder / f"{number}.arrow"
        with pa.OSFile(str(path)) as stream:
            table = pa.ipc.open_file(stream).read_all().sort_by(_PLACE)
        path.unlink()
        yield table.drop_columns([_PLACE]), table[_PLACE].to_numpy()


_PLACE = "\0place"  # no column of a table can have this name


def _merged(
    streams: list[Iterator[_Placed]], plan: RowPlan, feature_keys: Iterable[pa.Array], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    cursors = [_Cursor(stream) for stream in streams]
    is_twin = np.isin(plan.kind, (TWIN_OF_STANDING, TWIN_OF_SCORED))
    start = 0
    for keys in feature_keys:
        end = start + len(keys)
        parts = [part for cursor in cursors for part in cursor.below(end)]
        if parts:
            places = np.concatenate([place for _, place in parts])
            order = np.argsort(places, kind="stable")
            table = pa.concat_tables([table for table, _ in parts]).take(pa.array(order))
            table = _renamed(table, keys, places[order] - start, is_twin[places[order]])
            yield from table.cast(schema).combine_chunks().to_batches()
        start = end


def _renamed(table: pa.Table, keys: pa.Array, places: Numbers, is_twin: npt.NDArray[np.bool_]) -> pa.Table:
    """Twins under their own keys; all other rows bear theirs already, which the gate compares."""
    if not is_twin.any():
        return table
    own = keys.take(pa.array(places))
    column = pa.compute.if_else(pa.array(is_twin), own, table["row_key"].combine_chunks())
    return table.set_column(table.schema.get_field_index("row_key"), table.schema.field("row_key"), column)


class _Cursor:
    """Rows taken from a stream by place."""

    def __init__(self, rows: Iterator[_Placed]) -> None:
        self._rows = rows
        self._held: _Placed | None = None

    def below(self, end: int) -> Iterator[_Placed]:
        """The next rows whose places are below `end`."""
        while True:
            if self._held is None or not len(self._held[1]):
                self._held = next(self._rows, None)
                if self._held is None:
                    return
            table, places = self._held
            cut = int(np.searchsorted(places, end))
            if not cut:
                return
            self._held = (table.slice(cut), places[cut:])
            yield table.slice(0, cut), places[:cut]
