from typing import get_args

import pyarrow as pa
import pytest

from batch_platform.core.models.signature import ARROW_TYPES, InputColumn, ModelSignature
from batch_platform.core.spec import ColumnType
from batch_platform.errors import SignatureError
from batch_platform_tests.tiny_models import TEXT_SIGNATURE

TABULAR = ModelSignature((InputColumn("a", "float64"), InputColumn("b", "string")), "regression")


def test_the_types_are_those_of_the_contract():
    assert tuple(ARROW_TYPES) == get_args(ColumnType)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int32(), pa.int64()])
def test_numbers_may_stand_for_wider_numbers(kind):
    TABULAR.check_features(pa.schema([("a", kind), ("b", pa.string()), ("more", pa.binary())]))


def test_strings_may_be_large_or_dictionaries():
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        TABULAR.check_features(pa.schema([("a", pa.float64()), ("b", kind)]))


def test_every_unfit_column_is_named_with_what_to_do():
    with pytest.raises(SignatureError) as error:
        TABULAR.check_features(pa.schema([("a", pa.string()), ("c", pa.string())]))
    message = str(error.value)
    assert "'a' is string, the model reads float64" in message
    assert "'b' (string) is missing" in message
    assert "Change the recipe" in message
    assert "a, c" in message


def test_a_column_that_is_there_twice_is_refused():
    schema = pa.schema([("a", pa.float64()), ("b", pa.string()), ("b", pa.string())])
    with pytest.raises(SignatureError, match=r"'b' .* is there 2 times"):
        TABULAR.check_features(schema)


def test_a_float_is_no_integer():
    signature = ModelSignature((InputColumn("a", "int32"),), "regression")
    with pytest.raises(SignatureError):
        signature.check_features(pa.schema([("a", pa.float64())]))


def test_output_columns_of_each_task():
    embedding = ModelSignature((InputColumn("a", "string"),), "embedding")
    assert TEXT_SIGNATURE.output_schema() == pa.schema(
        [("label", pa.string()), ("score", pa.float64()), ("scores", pa.list_(pa.float32()))]
    )
    assert TABULAR.output_schema() == pa.schema([("prediction", pa.float64())])
    assert embedding.output_schema() == pa.schema([("embedding", pa.list_(pa.float32()))])


def test_a_signature_survives_json(tmp_path):
    import json

    path = tmp_path / "signature.json"
    path.write_text(json.dumps(TEXT_SIGNATURE.to_dict()))
    assert ModelSignature.read(path) == TEXT_SIGNATURE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["one"]}, "at least two labels"),
        ({"labels": ["x", "x"]}, "distinct"),
        ({"labels": ["x", 3]}, "wrong type"),
        ({"positive_class": "other"}, "is not a label"),
        ({"labels": ["a", "b", "c"], "positive_class": "a"}, "needs two labels"),
        ({"text_column": "body"}, "is not among"),
        ({"task": "poetry"}, "use one of classification"),
        ({"task": "regression"}, "no meaning"),
        ({"inputs": []}, "names no inputs"),
        ({"inputs": [{"name": "text"}]}, "is {name, type}"),
        ({"inputs": [{"name": "text", "type": "text"}]}, "use one of string"),
        ({"max_tokens": True}, "wrong type"),
        ({"max_tokens": 0}, "at least 1"),
        ({"maxtokens": 3}, "unknown field 'maxtokens'"),
        ({"pooling": "max"}, "use mean or cls"),
    ],
)
def test_a_wrong_signature_is_refused_by_field(change, message):
    with pytest.raises(SignatureError, match=message):
        ModelSignature.from_dict(TEXT_SIGNATURE.to_dict() | change)


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "signature.json"
    path.write_text("{")
    with pytest.raises(SignatureError, match=r"signature\.json: cannot be read"):
        ModelSignature.read(path)


def test_the_positive_class_can_be_another():
    assert TEXT_SIGNATURE.with_positive_class("ham").positive_class == "ham"
    with pytest.raises(SignatureError, match="is not a label"):
        TEXT_SIGNATURE.with_positive_class("eggs")
