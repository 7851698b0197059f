"""Steps for texts: tidy them, join them, shorten them.

Decides nothing about any language: no lower-casing, no stemming, no stop words, because a model's tokenizer was
trained on text as people write it. A null stays null, except where several columns are joined.
"""

from string import Formatter

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.features.columns import column_of, with_column
from batch_platform.core.features.recipe import step
from batch_platform.errors import RecipeError

# Separators of every kind, also the control characters that separate lines or fields.
_SPACE = r"[\s\p{Z}\x0b\x1c-\x1f\x{85}]+"
_CONTROL = r"\p{Cc}+"


@step
def clean_text(batch: pa.RecordBatch, *, column: str, output: str | None = None) -> pa.RecordBatch:
    """Compose characters (NFC), make every run of white space one space, drop control characters, trim.

    Args:
        batch: rows.
        column: a string column.
        output: where the result goes; default: the same column.
    """
    composed = pc.utf8_normalize(column_of(batch, "clean_text", column, pa.string()), form="NFC")
    spaced = pc.replace_substring_regex(composed, _SPACE, " ")
    clean = pc.utf8_trim(pc.replace_substring_regex(spaced, _CONTROL, ""), " ")
    return with_column(batch, output or column, clean)


@step
def compose_text(batch: pa.RecordBatch, *, template: str, output: str = "text") -> pa.RecordBatch:
    r"""One text of several columns.

    Args:
        batch: rows.
        template: text with columns in braces, e.g. `"{subject}\n{body}"`; null counts as empty.
        output: the column to make.
    """
    pieces = [piece for literal, column in _pieces(template) for piece in _values(batch, literal, column)]
    joined = pc.binary_join_element_wise(*pieces, "", null_handling="replace", null_replacement="")
    return with_column(batch, output, joined)


@step
def truncate_characters(
    batch: pa.RecordBatch, *, column: str, characters: int, output: str | None = None
) -> pa.RecordBatch:
    """Keep the first `characters` characters (code points) of a string column."""
    if characters < 1:
        raise RecipeError(f"step truncate_characters: characters is {characters}; it must be at least 1")
    values = column_of(batch, "truncate_characters", column, pa.string())
    return with_column(batch, output or column, pc.utf8_slice_codeunits(values, 0, characters))


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """The template's literals, each with the column that follows it."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise RecipeError(f"step compose_text: template {template!r}: {error}") from None
    if not any(column for _, column, _, _ in parsed):
        raise RecipeError(f"step compose_text: template {template!r} names no column, as in {{subject}}")
    return [(literal, column) for literal, column, _, _ in parsed]


def _values(batch: pa.RecordBatch, literal: str, column: str | None) -> list[pa.Array]:
    fixed = [pa.repeat(literal, batch.num_rows)] if literal else []
    return fixed if column is None else [*fixed, column_of(batch, "compose_text", column, pa.string())]
