"""The signature: what a model reads, what it returns, and how its outputs are called.

It decides whether features fit a model and which columns a task gives. It knows neither weights nor
devices. It needs the standard library and pyarrow only, so that the engine runs where the rest of the
platform is not installed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import pyarrow as pa

from batch_platform.core.data.files import Location
from batch_platform.errors import SignatureError

Task = Literal["classification", "regression", "embedding", "generation", "ranking"]
Pooling = Literal["mean", "cls"]

# The types of the contract (`ColumnType`), as Arrow types.
ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "list<float32>": pa.list_(pa.float32()),
    "binary": pa.binary(),
}

# Numbers that may stand where another number type is asked for. int64 in a float64 is exact up to 2**53.
_WIDENED = {
    "int64": ("int32",),
    "float32": ("int32",),
    "float64": ("int32", "int64", "float32"),
}


@dataclass(frozen=True)
class InputColumn:
    """A feature that the model reads: its name and its type, one of those of the contract."""

    name: str
    type: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SignatureError(f"an input of the signature has no name: {self.name!r}")
        if self.type not in ARROW_TYPES:
            raise SignatureError(
                f"input {self.name!r} of the signature has the type {self.type!r}: "
                f"use one of {', '.join(ARROW_TYPES)}"
            )


@dataclass(frozen=True)
class ModelSignature:
    """What a model reads and returns.

    Attributes:
        inputs: the feature columns that the model reads; others are ignored.
        task: classification, regression, embedding, generation or ranking.
        labels: classification only, in the order of the logits.
        positive_class: of two labels, the one whose probability is the score.
        text_column: for text models, the string column to read.
        max_tokens: for text models, a text is cut to so many tokens, or fewer where the tokenizer says so.
        pooling: embeddings of text; None: as the model folder says, else mean.
        normalize: scale embeddings to length 1; None: as the model folder says, else not.
        output_size: length of an embedding; None where it is not known before loading.
        max_new_tokens: generation only, a text gets at most so many tokens.
        top_k: ranking only, a row gets so many items.
    """

    inputs: tuple[InputColumn, ...]
    task: Task
    labels: tuple[str, ...] = ()
    positive_class: str | None = None
    text_column: str | None = None
    max_tokens: int | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    output_size: int | None = None
    max_new_tokens: int | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        # Lists and mappings, as JSON has them, are taken as well.
        object.__setattr__(self, "inputs", tuple(_input(item) for item in self.inputs))
        object.__setattr__(self, "labels", tuple(self.labels))
        self._check_columns()
        self._check_outputs()

    def _check_columns(self) -> None:
        names = [column.name for column in self.inputs]
        if not names:
            raise SignatureError(
                "the signature names no inputs: list the feature columns that the model reads"
            )
        if len(set(names)) < len(names):
            raise SignatureError(f"the signature names an input twice: {', '.join(sorted(names))}")
        if self.text_column is not None and InputColumn(self.text_column, "string") not in self.inputs:
            raise SignatureError(
                f"text_column {self.text_column!r} is not among the signature's inputs as a string"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise SignatureError(f"max_tokens {self.max_tokens} of the signature must be at least 1")

    def _check_outputs(self) -> None:
        if self.task not in get_args(Task):
            raise SignatureError(
                f"task {self.task!r} of the signature: use one of {', '.join(get_args(Task))}"
            )
        if self.pooling is not None and self.pooling not in get_args(Pooling):
            raise SignatureError(f"pooling {self.pooling!r} of the signature: use mean or cls")
        if self.task != "classification" and (self.labels or self.positive_class is not None):
            raise SignatureError(f"labels and positive_class have no meaning for the task {self.task}")
        if self.task == "classification" and len(self.labels) < 2:
            raise SignatureError("a classification needs at least two labels, in the order of the logits")
        if len(set(self.labels)) < len(self.labels) or not all(self.labels):
            raise SignatureError(f"the labels of the signature are not distinct names: {list(self.labels)}")
        if self.positive_class is not None:
            self._check_positive_class(self.positive_class)
        self._check_generation()
        if (self.top_k is not None) != (self.task == "ranking") or (self.top_k or 1) < 1:
            raise SignatureError(
                "a ranking, and nothing else, needs top_k: how many items a row gets, at least 1"
            )

    def _check_generation(self) -> None:
        if self.task != "generation":
            if self.max_new_tokens is not None:
                raise SignatureError(f"max_new_tokens has no meaning for the task {self.task}")
        elif self.text_column is None or self.max_new_tokens is None or self.max_new_tokens < 1:
            raise SignatureError("a generation needs a text_column, and max_new_tokens of at least 1")

    def _check_positive_class(self, label: str) -> None:
        if label not in self.labels:
            raise SignatureError(
                f"positive_class {label!r} is not a label of the model: use one of {', '.join(self.labels)}"
            )
        if len(self.labels) != 2:
            raise SignatureError(
                f"positive_class {label!r} needs two labels; the model has {len(self.labels)}: leave it out"
            )

    def with_positive_class(self, label: str) -> "ModelSignature":
        """The same signature, with the score being the probability of `label`.

        Raises:
            SignatureError: it is no label of the model, or there are not two labels.
        """
        return replace(self, positive_class=label)

    def check_features(self, schema: pa.Schema) -> None:
        """Check that features of this schema can be read by the model.

        Raises:
            SignatureError: names each missing or mistyped column and what to do.
        """
        problems = []
        for column in self.inputs:
            count = len(schema.get_all_field_indices(column.name))
            if count != 1:
                what = "is missing" if count == 0 else f"is there {count} times"
                problems.append(f"column {column.name!r} ({column.type}) {what}")
            elif not _fits(schema.field(column.name).type, column.type):
                found = schema.field(column.name).type
                problems.append(f"column {column.name!r} is {found}, the model reads {column.type}")
        if problems:
            raise SignatureError(
                "the features do not fit the model: "
                + "; ".join(problems)
                + ". Change the recipe or the contract so that it gives these columns, or choose another "
                f"model version; the features have: {', '.join(schema.names)}"
            )

    def output_schema(self) -> pa.Schema:
        """The model's own output columns, none of them null."""
        if self.task == "classification":
            columns = {
                "label": pa.string(),
                "score": pa.float64(),
                "scores": pa.list_(pa.float32()),
            }
        elif self.task == "regression":
            columns = {"prediction": pa.float64()}
        elif self.task == "generation":
            columns = {"generated_text": pa.string()}
        elif self.task == "ranking":
            columns = {
                "label": pa.string(),
                "score": pa.float64(),
                "items": pa.list_(pa.string()),
                "item_scores": pa.list_(pa.float32()),
            }
        else:
            columns = {"embedding": pa.list_(pa.float32())}
        return pa.schema([pa.field(name, kind) for name, kind in columns.items()])

    def to_dict(self) -> dict[str, Any]:
        """The signature as JSON has it; `from_dict` reads it back."""
        values = json.loads(json.dumps(asdict(self)))
        # Digests of versions are made of this: a field that came later stays out where it says nothing.
        return {name: value for name, value in values.items() if name not in _LATER or value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSignature":
        """Read a signature from a mapping that nobody has checked.

        Raises:
            SignatureError: names the field that is absent, unknown or wrong.
        """
        if not isinstance(values, Mapping):
            raise SignatureError("a signature is a JSON object with inputs and task")
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise SignatureError(f"unknown field {sorted(unknown)[0]!r} in the signature: check the spelling")
        for name in ("inputs", "task"):
            if name not in values:
                raise SignatureError(f"the signature has no {name}")
        _check_json_types(values)
        return cls(**values)

    @classmethod
    def read(cls, path: Location) -> "ModelSignature":
        """Read a signature from a JSON file.

        Raises:
            SignatureError: names the file and what is wrong in it.
        """
        try:
            return cls.from_dict(json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise SignatureError(f"{path}: cannot be read as a signature: {error}") from None
        except SignatureError as error:
            raise SignatureError(f"{path}: {error}") from None


_LATER = ("max_new_tokens", "top_k")
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "inputs": (list, tuple),
    "labels": (list, tuple),
    "task": (str,),
    "positive_class": (str, type(None)),
    "text_column": (str, type(None)),
    "max_tokens": (int, type(None)),
    "pooling": (str, type(None)),
    "normalize": (bool, type(None)),
    "output_size": (int, type(None)),
    "max_new_tokens": (int, type(None)),
    "top_k": (int, type(None)),
}


def _check_json_types(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        right = isinstance(value, _JSON_TYPES[name]) and not (isinstance(value, bool) and name != "normalize")
        if right and name == "labels":
            right = all(isinstance(label, str) for label in value)
        if not right:
            raise SignatureError(f"{name} of the signature has a value of the wrong type: {value!r}")


def _input(item: InputColumn | Mapping[str, Any]) -> InputColumn:
    if isinstance(item, InputColumn):
        return item
    if not isinstance(item, Mapping) or set(item) != {"name", "type"}:
        raise SignatureError(f"an input of the signature is {{name, type}}, not {item!r}")
    return InputColumn(item["name"], item["type"])


def _fits(found: pa.DataType, asked: str) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    if asked == "string":
        return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    if asked == "timestamp":
        return pa.types.is_timestamp(found)
    if asked == "list<float32>":
        return _is_float_list(found)
    return any(found == ARROW_TYPES[name] for name in (asked, *_WIDENED.get(asked, ())))


def _is_float_list(found: pa.DataType) -> bool:
    is_list = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    return is_list and found.value_type == pa.float32()
