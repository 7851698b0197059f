"""Documents, one row each: plain text, Markdown, HTML, PDF, e-mail.

Decides which files are documents, and which are not read at all: too large ones, links that lead out of the folder, and
kinds that it does not know (archives among them, which it never unpacks). A document without a text is a row for
quarantine. The text is extracted in another process (`extracting`), which is ended when it takes too long.
"""

import json
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core.data.cells import CellType, arrow_type
from batch_platform.core.data.contract import SourceBatch
from batch_platform.core.data.files import Location
from batch_platform.core.data.readers.extracting import MEDIA_TYPES
from batch_platform.core.data.readers.opening import batch_of, open_bytes, readable, unparsable
from batch_platform.core.spec import DOCUMENT_COLUMNS

_MOST_BYTES = 64 << 20
_MOST_SECONDS = 60.0


class _RefusedError(Exception):
    """Why a file is not read."""

    def __init__(self, error_type: str, reason: str) -> None:
        super().__init__(reason)
        self.error_type = error_type


class Documents:
    """Reads documents one after the other; `close` ends the process that extracts."""

    def __init__(self, root: Location, most_seconds: float = _MOST_SECONDS) -> None:
        self._root = root
        self._most_seconds = most_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: Location, name: str, columns: Mapping[str, CellType]) -> SourceBatch:
        """One document as one row.

        Raises:
            SourceError: the file cannot be read.
        """
        try:
            values = self._values(path, name)
        except _RefusedError as error:
            nothing = {column: pa.array([], arrow_type(kind)) for column, kind in columns.items()}
            bad = unparsable(name, 0, str(error), None, error.error_type)
            return SourceBatch(
                batch_of(nothing),
                name,
                np.zeros(0, np.int64),
                unparsable=[bad],
                columns_seen=frozenset(DOCUMENT_COLUMNS),
            )
        row = {column: pa.array([values[column]], arrow_type(kind)) for column, kind in columns.items()}
        return SourceBatch(
            batch_of(row), name, np.zeros(1, np.int64), columns_seen=frozenset(DOCUMENT_COLUMNS)
        )

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _values(self, path: Location, name: str) -> dict[str, Any]:
        suffix = Path(path.name).suffix.lower()
        if suffix not in MEDIA_TYPES:
            known = ", ".join(MEDIA_TYPES)
            raise _RefusedError(
                "unknown_kind", f"files ending in {suffix or 'nothing'} are not read; {known} are"
            )
        if isinstance(path, Path) and not path.resolve().is_relative_to(Path(str(self._root)).resolve()):
            raise _RefusedError("outside", "the file is a link that leads out of the source's folder")
        with readable(name), open_bytes(path) as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise _RefusedError("too_large", f"the file is larger than {_MOST_BYTES >> 20} MiB")
        answer = self._extract(suffix, content)
        if "error_type" in answer:
            raise _RefusedError(answer["error_type"], answer["reason"])
        return {**answer, "path": name, "media_type": MEDIA_TYPES[suffix], "size": len(content)}

    def _extract(self, suffix: str, content: bytes) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "batch_platform.core.data.readers.extracting"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(
                json.dumps({"suffix": suffix, "bytes": len(content)}).encode() + b"\n" + content
            )
            process.stdin.flush()
        except BrokenPipeError:
            self.close()
            raise _RefusedError("unparsable", "the process that reads documents ended") from None
        ready, _, _ = select.select([process.stdout], [], [], self._most_seconds)
        line = process.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        self.close()
        if ready:
            raise _RefusedError("unparsable", "reading it ended the process, for memory most likely")
        raise _RefusedError("too_slow", f"reading it takes longer than {self._most_seconds:g} s")


def read_documents(
    paths: list[tuple[Location, str]], root: Location, columns: Mapping[str, CellType]
) -> Iterator[SourceBatch]:
    """The documents, in the order given, one row each.

    Args:
        paths: files with what they are called.
        root: folder that they must lie in, links followed.
        columns: the columns wanted, of `DOCUMENT_COLUMNS`.

    Raises:
        SourceError: a file cannot be read.
    """
    documents = Documents(root)
    try:
        for path, name in paths:
            yield documents.read(path, name, columns)
    finally:
        documents.close()
