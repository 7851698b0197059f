"""Golden rows: inputs with the outputs that the model gave where it was made.

They are scored at registration on this machine; what differs beyond the tolerance is refused. It decides
the tolerance; it does not know where rows or models come from.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core.models.predictor import Predictor
from batch_platform.errors import ModelError

# A number may differ by this much, and by this share of what is expected: devices and libraries round.
TOLERANCE = 1e-3
_BATCH = 32


def check_golden(predictor: Predictor, golden: pa.Table) -> None:
    """Score the golden rows and compare.

    Args:
        predictor: the model, loaded.
        golden: its input columns, and one or more of its output columns.

    Raises:
        SignatureError: an input column is missing.
        ModelError: there is nothing to compare, or names the rows and values that differ.
    """
    signature = predictor.signature
    signature.check_features(golden.schema)
    expected = [name for name in signature.output_schema().names if name in golden.column_names]
    if not expected or not golden.num_rows:
        raise ModelError(
            "the golden rows expect nothing: give at least one row and one column of "
            + ", ".join(signature.output_schema().names)
        )
    differences = []
    inputs = golden.select([column.name for column in signature.inputs])
    for start in range(0, golden.num_rows, _BATCH):
        scored = _score(predictor, inputs.slice(start, _BATCH), start)
        for name in expected:
            wanted = golden[name].slice(start, _BATCH).to_pylist()
            pairs = zip(scored.column(name).to_pylist(), wanted, strict=True)
            differences += [
                f"row {start + place}: {name} is {_short(got)}, expected {_short(want)}"
                for place, (got, want) in enumerate(pairs)
                if not agree(got, want)
            ]
    if differences:
        raise ModelError(
            f"{len(differences)} golden values differ beyond {TOLERANCE} of {golden.num_rows} rows: "
            f"{'; '.join(differences[:3])}. These are other files than those the rows were made with, "
            "or another signature"
        )


def _score(predictor: Predictor, inputs: pa.Table, first: int) -> pa.RecordBatch:
    prepared = predictor.prepare(inputs.combine_chunks().to_batches()[0])
    if prepared.refused:
        refusal = prepared.refused[0]
        raise ModelError(f"golden row {first + refusal.row} cannot be scored: {refusal.message}")
    return predictor.finish(predictor.forward(prepared, np.arange(inputs.num_rows)))


def agree(got: Any, want: Any) -> bool:
    """Whether two values of an output are the same: texts exactly, numbers within `TOLERANCE`."""
    if want is None or isinstance(want, str):
        return got == want
    try:
        ours, theirs = np.asarray(got, np.float64), np.asarray(want, np.float64)
    except (TypeError, ValueError):
        return False
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
