"""Identity of work: equal inputs, code and parameters have the same fingerprint, all others another.

Decides what "the same work" and "the same input row" mean. Reads source code and values, no data files.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import batch_platform.core
from batch_platform.core.data.files import canonical_json

# What can change a value of a table; storage keeps values, monitoring and the gate only look at them.
_CODE_THAT_MAKES_VALUES = (
    "data/cells.py",
    "data/contract.py",
    "data/intake.py",
    "data/keys.py",
    "data/partitions.py",
    "data/readers",
    "data/sources.py",
    "data/window.py",
    "features",
    "models",
    "inference",
    "landing.py",
    "featurizing.py",
    "scoring.py",
    "work.py",
    "reusing.py",
    "arranging.py",
)


def fingerprint(parts: Mapping[str, Any]) -> str:
    """32 hex digits that stand for these JSON values (names and values both count)."""
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:32]


def contract_version(source: Mapping[str, Any]) -> str:
    """What stands for the contract of a source in receipts: 12 hex digits over columns and policies."""
    return fingerprint({name: value for name, value in source.items() if name != "uri"})[:12]


@cache
def code_version(*places: str) -> str:
    """12 hex digits over the source of parts of the core; by default of everything that makes values.

    Args:
        places: files and folders of the core.
    """
    root = Path(batch_platform.core.__file__).parent
    digest = hashlib.sha256()
    for name in places or _CODE_THAT_MAKES_VALUES:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def input_hashes(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """Hash of what the model sees of each row.

    BLAKE2b of the row's values in the order of `columns`, each with its validity and, where its size
    varies, its length. Bit-equal rows have equal hashes; -0.0 and 0.0 differ.

    Args:
        table: features, (rows, any columns).
        columns: the model's input columns.

    Returns:
        (rows,) strings of 32 hex digits.
    """
    prefix = hashlib.blake2b("\0".join(columns).encode(), digest_size=16)
    cells = [_cells(table.column(name)) for name in columns]
    hashes = []
    for row in zip(*cells, strict=True):
        state = prefix.copy()
        state.update(b"".join(row))
        hashes.append(state.hexdigest())
    return pa.array(hashes, pa.string())


def _cells(column: pa.ChunkedArray) -> list[bytes]:
    """Each value as bytes that no other value of the column shares."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        array = column.combine_chunks()
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), values.itemsize)
        valid = array.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)[:, None]
        rows = np.hstack([valid, raw])
        return [row.tobytes() for row in rows]
    return [_variable(value) for value in column.to_pylist()]


def _variable(value: Any) -> bytes:
    if value is None:
        return b"\0"
    if isinstance(value, bytes):
        content = value
    elif isinstance(value, list):
        content = np.asarray(value, np.float32).tobytes()
    else:
        content = str(value).encode()
    return b"\1" + len(content).to_bytes(8, "little") + content
