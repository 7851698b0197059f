"""What the model sees of an e-mail: its subject and the beginning of its body, as one text.

HTML is reduced to its words and the names of its tags: that an e-mail is made of fonts and tables says more
about it than their attributes, and the model reads only the first few dozen words. The other columns are
not read by the model; they are watched for drift.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.features.columns import column_of, with_column
from batch_platform.core.features.recipe import Recipe, step
from batch_platform.core.features.text import clean_text, compose_text, truncate_characters

# [^<>] and not [^>]: a body of nothing but `<` must not cost the square of its length.
_TAG = re.compile(r"<\s*(/?[A-Za-z!][A-Za-z0-9]*)[^<>]*>")
_LINK = r"(?i)https?://"


@step
def html_to_tags(
    batch: pa.RecordBatch, *, column: str, content_type: str, characters: int, output: str
) -> pa.RecordBatch:
    """Take the attributes out of the HTML tags; other texts stay as they are.

    Args:
        batch: rows.
        column: the body.
        content_type: column that says which rows are text/html.
        characters: how much of the body is looked at.
        output: the column to make.
    """
    bodies = pc.utf8_slice_codeunits(column_of(batch, "html_to_tags", column, pa.string()), 0, characters)
    kinds = column_of(batch, "html_to_tags", content_type).to_pylist()
    texts = [
        _TAG.sub(r"<\1>", body) if body is not None and kind == "text/html" else body
        for body, kind in zip(bodies.to_pylist(), kinds, strict=True)
    ]
    return with_column(batch, output, pa.array(texts, pa.string()))


@step
def watched(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Numbers that tell kinds of e-mail apart: length, links, HTML, hour of arrival, whether it is a reply."""
    body = pc.fill_null(column_of(batch, "watched", "body", pa.string()), "")
    subject = pc.fill_null(column_of(batch, "watched", "subject", pa.string()), "")
    columns = {
        "body_characters": pc.utf8_length(body),
        "links": pc.count_substring_regex(body, _LINK),
        "is_html": pc.equal(batch["content_type"], "text/html"),
        "is_reply": pc.match_substring_regex(subject, r"(?i)^\s*re:"),
        "hour": pc.hour(batch["received_at"]),
    }
    for name, values in columns.items():
        batch = with_column(batch, name, values)
    return batch


OUTPUT = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("body_characters", pa.int32(), nullable=False),
        pa.field("links", pa.int32(), nullable=False),
        pa.field("attachments", pa.int32()),
        pa.field("is_html", pa.bool_(), nullable=False),
        pa.field("is_reply", pa.bool_(), nullable=False),
        pa.field("hour", pa.int32(), nullable=False),
    ]
)

RECIPE = Recipe(
    "email_triage",
    [
        html_to_tags(column="body", content_type="content_type", characters=8000, output="tagged"),
        compose_text(template="{subject}\n{tagged}"),
        clean_text(column="text"),
        truncate_characters(column="text", characters=4000),
        watched(),
    ],
    OUTPUT,
)
