"""What texts are made of, whatever their language: how long their tokens are, and how much is no letter.

Decides what is measured of a text. A token is a run of characters without ASCII white space; a letter is an ASCII
letter or anything beyond ASCII. Only the beginning of a text is looked at, so that a book costs no more than a page.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.monitoring.histogram import Integers

CHARACTER_BINS = 128
_LOOKED_AT = 1000  # bytes
_LONGEST_TOKEN = 64.0
_QUARTERS = 4
_PARTS = 64

_SPACE, _SYMBOL = 1, 2
_CLASSES = np.zeros(256, np.uint8)
_CLASSES[:128] = _SYMBOL
for _letters in (range(ord("a"), ord("z") + 1), range(ord("A"), ord("Z") + 1)):
    _CLASSES[_letters] = 0
_CLASSES[list(b" \t\n\v\f\r")] = _SPACE


@dataclass(frozen=True)
class TextMeasures:
    """Of each text, (texts,) int64.

    Attributes:
        token_lengths: mean length of its tokens in quarters of a byte, 0 without a token.
        symbols: share of digits and signs in the bytes that are no white space, in 64ths, 0 without such.
    """

    token_lengths: Integers
    symbols: Integers


def text_measures(texts: pa.Array) -> TextMeasures:
    """Measure texts; (texts,) strings without nulls."""
    content = pc.binary_slice(texts.cast(pa.binary()), 0, _LOOKED_AT)
    _, offsets, content_bytes = content.buffers()
    starts = np.frombuffer(offsets, np.int32)[: len(texts) + 1].astype(np.int64)
    measures = np.zeros((2, len(texts)), np.int64)
    if not len(texts) or starts[0] == starts[-1]:
        return TextMeasures(*measures)
    there = np.flatnonzero(np.diff(starts))
    first = starts[:-1][there]
    classes = _CLASSES[np.frombuffer(content_bytes, np.uint8)[: starts[-1]]]
    solid = classes != _SPACE
    begins = solid.copy()
    begins[1:] &= ~solid[:-1]
    begins[first] = solid[first]
    bytes_, tokens, symbols = (
        np.add.reduceat(flags, first, dtype=np.int64) for flags in (solid, begins, classes == _SYMBOL)
    )
    measures[0, there] = _QUARTERS * np.minimum(bytes_ / np.maximum(tokens, 1), _LONGEST_TOKEN)
    measures[1, there] = _PARTS * symbols // np.maximum(bytes_, 1)
    return TextMeasures(*measures)
