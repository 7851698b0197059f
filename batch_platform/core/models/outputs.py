"""From a model's raw numbers to named columns, and which rows of them are no answer.

It decides label, score and scores of a classification, and what counts as out of range. The same for
every flavor; it knows neither devices nor batches.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.models.signature import ModelSignature
from batch_platform.errors import SignatureError

# In rows of token ids: nothing more was generated; the model's scores were no numbers.
END_OF_TEXT, NOT_FINITE = -1, -2


def columns(raw: np.ndarray, signature: ModelSignature, are_probabilities: bool = False) -> pa.RecordBatch:
    """Name a model's outputs; those of a generation need its tokenizer, and its predictor names them.

    Args:
        raw: (rows, width) float32 or float64: logits in the order of the labels, one prediction, or an embedding.
        signature: says which of these they are.
        are_probabilities: of the labels, instead of logits; they are given on as they are.

    Returns:
        `rows` rows of `signature.output_schema()`.

    Raises:
        SignatureError: the width is not the signature's.
    """
    check_width(raw.shape[1], signature)
    if signature.task == "classification":
        probabilities = raw.astype(np.float64, copy=False) if are_probabilities else softmax(raw)
        return _classification(probabilities, raw.argmax(axis=1), signature)
    schema = signature.output_schema()
    if signature.task == "regression":
        return pa.record_batch([pa.array(raw[:, 0].astype(np.float64))], schema=schema)
    return pa.record_batch([_lists(raw)], schema=schema)


def check_width(width: int, signature: ModelSignature) -> None:
    """Refuse a model whose outputs are more or fewer than the signature says.

    Raises:
        SignatureError: says both numbers.
    """
    asked = {"classification": len(signature.labels), "regression": 1}.get(
        signature.task, signature.output_size
    )
    if asked is not None and asked != width:
        raise SignatureError(
            f"the model gives {width} numbers a row, its signature ({signature.task}) says {asked}: "
            "correct the signature's labels or output_size, or register the right files"
        )


def ranked(raw: np.ndarray, items: pa.Array, signature: ModelSignature) -> pa.RecordBatch:
    """Name the outputs of a ranking.

    Args:
        raw: (rows, 2 * top_k) float32: places of a row's items in the catalogue, the best first, then their probabilities.
        items: the catalogue, (items,) strings.
        signature: of the ranking.

    Returns:
        `rows` rows of `signature.output_schema()`: label and score are those of the first item.
    """
    places, chances = np.split(raw, 2, axis=1)  # (rows, top_k) each
    finite = np.isfinite(places)  # the others are no answer, which `bad_rows` says
    taken = items.take(pa.array(np.where(finite, places, 0).astype(np.int64).reshape(-1)))
    scores = _lists(chances)
    lists = pa.ListArray.from_arrays(scores.offsets, taken)
    first = taken.take(pa.array(np.arange(len(raw)) * places.shape[1]))
    arrays = [first, pa.array(chances[:, 0].astype(np.float64)), lists, scores]
    return pa.record_batch(arrays, schema=signature.output_schema())


def ranking_faults(
    items: pa.Array, item_scores: pa.Array, signature: ModelSignature
) -> list[tuple[str, np.ndarray]]:
    """What can be wrong with ranked lists, each with the rows, (rows,) bool, of which it is true."""
    count = signature.top_k or 0
    short = np.zeros(len(items), np.bool_)
    for column in (items, item_scores):
        short |= pc.fill_null(pc.not_equal(pc.list_value_length(column), count), True).to_numpy(
            zero_copy_only=False
        )
    whole = np.flatnonzero(~short)
    scores = item_scores.take(pa.array(whole)).flatten().to_numpy(zero_copy_only=False).reshape(-1, count)
    names = items.take(pa.array(whole)).flatten().dictionary_encode().indices.fill_null(-1)
    ordered = np.sort(names.to_numpy(zero_copy_only=False).reshape(-1, count), axis=1)  # (whole rows, top_k)
    twice, odd = np.zeros_like(short), np.zeros_like(short)
    twice[whole] = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1) | (ordered[:, :1] < 0).any(axis=1)
    with np.errstate(invalid="ignore"):
        inside = ((scores >= 0) & (scores <= 1)).all(axis=1)
        odd[whole] = ~inside | (np.diff(scores, axis=1) > 0).any(axis=1)
    return [
        (f"items are not {count}, each with a score", short),
        ("an item is there twice, or is none", twice),
        ("item_scores are not probabilities, the best first", odd),
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits as probabilities, (rows, labels) float64."""
    with np.errstate(invalid="ignore"):  # rows with NaN or inf are found by `bad_rows`
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
        exponents = np.exp(shifted)
        return exponents / exponents.sum(axis=1, keepdims=True)


def _classification(probabilities: np.ndarray, best: np.ndarray, signature: ModelSignature) -> pa.RecordBatch:
    if signature.positive_class is not None:
        score = probabilities[:, signature.labels.index(signature.positive_class)]
    else:
        score = np.take_along_axis(probabilities, best[:, None], axis=1)[:, 0]
    label = pa.array(signature.labels, pa.string()).take(pa.array(best, pa.int64()))
    arrays = [label, pa.array(score, pa.float64()), _lists(probabilities.astype(np.float32))]
    return pa.record_batch(arrays, schema=signature.output_schema())


def _lists(values: np.ndarray) -> pa.ListArray:
    rows, width = values.shape
    offsets = (
        np.arange(0, (rows + 1) * width, width, dtype=np.int32) if width else np.zeros(rows + 1, np.int32)
    )
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1), pa.float32()))


def bad_rows(raw: np.ndarray, named: pa.RecordBatch, signature: ModelSignature) -> dict[int, str]:
    """Which rows hold no usable answer.

    Args:
        raw: (rows, width) what the model computed; of a generation, token ids.
        named: the same rows as columns of `signature.output_schema()`.
        signature: says which values are possible.

    Returns:
        By row number, what is wrong with it; empty where all is well.
    """
    bad: dict[int, str] = {}
    for name, is_bad in _faults(raw, named, signature):
        for row in np.flatnonzero(is_bad):
            bad.setdefault(int(row), name)
    return bad


def _faults(
    raw: np.ndarray, named: pa.RecordBatch, signature: ModelSignature
) -> list[tuple[str, np.ndarray]]:
    faults = [("the model's output is NaN or infinite", ~np.isfinite(raw).all(axis=1))]
    if signature.task == "classification":
        score = named.column("score").to_numpy(zero_copy_only=False)
        labels = pc.is_in(named.column("label"), value_set=pa.array(signature.labels, pa.string()))
        faults.append(("score is not within 0 and 1", ~((score >= 0) & (score <= 1))))
        faults.append(("label is not one of the signature's", ~labels.to_numpy(zero_copy_only=False)))
        faults.append(
            (
                "scores are not one number for each label",
                _length_is_not(named, "scores", len(signature.labels)),
            )
        )
    elif signature.task == "regression":
        prediction = named.column("prediction").to_numpy(zero_copy_only=False)
        faults.append(("prediction is NaN or infinite", ~np.isfinite(prediction)))
    elif signature.task == "ranking":
        faults += ranking_faults(named.column("items"), named.column("item_scores"), signature)
    elif signature.task == "generation":
        faults = [("the model's output is NaN or infinite", (raw == NOT_FINITE).any(axis=1))]
    elif signature.output_size is not None:
        faults.append(
            (
                f"embedding length is not {signature.output_size}",
                _length_is_not(named, "embedding", signature.output_size),
            )
        )
    return faults


def _length_is_not(named: pa.RecordBatch, name: str, length: int) -> np.ndarray:
    lists = named.column(name)
    return np.diff(lists.offsets.to_numpy()) != length
