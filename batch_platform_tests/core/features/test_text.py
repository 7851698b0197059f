"""Steps for texts."""

import pyarrow as pa
import pytest

from batch_platform.core.features.recipe import Recipe, Step
from batch_platform.core.features.text import clean_text, compose_text, truncate_characters
from batch_platform.errors import RecipeError


def run(made: Step, output: str, **columns: list[str | None]) -> list[str | None]:
    batch = pa.record_batch({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return Recipe("r", [made], pa.schema([(output, pa.string())])).apply(batch)[output].to_pylist()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a \t\r\n b  ", "a b"),
        ("a\u00a0\u2003\u2028b", "a b"),
        ("a\x0bb\x1cc\x85d", "a b c d"),
        ("a\x00\x07b\x7f", "ab"),
        ("e\u0301", "é"),
        ("👩\u200d🔬 क्षि", "👩\u200d🔬 क्षि"),
        ("\x00 \x00", ""),
        ("", ""),
        (None, None),
    ],
)
def test_clean_text(text: str | None, clean: str | None) -> None:
    assert run(clean_text(column="t"), "t", t=[text]) == [clean]


def test_clean_text_into_another_column() -> None:
    assert run(clean_text(column="t", output="u"), "u", t=[" a"]) == ["a"]
    assert run(clean_text(column="t", output="u"), "t", t=[" a"]) == [" a"]


def test_compose_text_takes_null_for_empty() -> None:
    made = compose_text(template="{s}\n{b}!")
    assert run(made, "text", s=["a", None, ""], b=["b", "c", None]) == ["a\nb!", "\nc!", "\n!"]
    assert run(compose_text(template="{{{s}}}"), "text", s=["a"]) == ["{a}"]


def test_long_texts_are_joined_and_cut() -> None:
    long = "ä" * 1_000_000
    assert run(compose_text(template="{s}{s}"), "text", s=[long]) == [long * 2]
    assert run(truncate_characters(column="s", characters=3), "s", s=[long, "a", None]) == ["äää", "a", None]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (compose_text(template="{s"), "template '{s'"),
        (compose_text(template="none"), "names no column"),
        (compose_text(template="{zz}"), "step compose_text: no column 'zz'; there are: s"),
        (clean_text(column="zz"), "step clean_text: no column 'zz'"),
        (truncate_characters(column="s", characters=0), "characters is 0"),
    ],
)
def test_mistakes_are_named(made: Step, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        run(made, "text", s=["a"])
