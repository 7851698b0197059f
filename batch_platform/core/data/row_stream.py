"""Rows of a stream of batches, so many at a time as somebody asks for."""

from collections.abc import Iterator

import pyarrow as pa


class RowStream:
    """Batches of any size, taken in other sizes.

    Args:
        batches: the rows.
        schema: their columns.
    """

    def __init__(self, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> None:
        self._batches, self._schema = batches, schema
        self._held = self._nothing()

    def take(self, rows: int) -> pa.RecordBatch:
        """The next rows; fewer where the stream ends."""
        parts: list[pa.RecordBatch] = []
        while rows:
            if not self._held.num_rows:
                following = next(self._batches, None)
                if following is None:
                    break
                self._held = following
                continue
            parts.append(self._held.slice(0, rows).cast(self._schema))
            self._held = self._held.slice(parts[-1].num_rows)
            rows -= parts[-1].num_rows
        return pa.concat_batches(parts) if parts else self._nothing()

    def _nothing(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays(
            [pa.array([], kind) for kind in self._schema.types], schema=self._schema
        )
