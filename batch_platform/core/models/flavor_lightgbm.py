"""Flavor `lightgbm`: `model.txt`, LightGBM's text format.

It decides how columns and categories reach the model: numbers in double precision, a null as NaN, a category
as its place among the categories of the training data, as LightGBM does with pandas. It computes on the CPU.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.models import lightgbm_text, matrix, outputs
from batch_platform.core.models.lightgbm_text import LightGBMFile
from batch_platform.core.models.matrix import MatrixRows
from batch_platform.core.models.predictor import Predictor, Prepared, SignatureRequest
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.errors import ModelError, SignatureError


class LightGBMPredictor(Predictor):
    """A loaded LightGBM model."""

    def __init__(
        self,
        booster: Any,
        columns: tuple[str, ...],
        categories: dict[str, tuple[str, ...]],
        signature: ModelSignature,
    ) -> None:
        self._booster = booster
        self._columns = columns
        self._categories = categories
        self.signature = signature
        self.device, self.dtype = "cpu", "float32"

    def prepare(self, batch: pa.RecordBatch) -> MatrixRows:
        for name, words in self._categories.items():
            place = batch.schema.get_field_index(name)
            batch = batch.set_column(place, name, _codes(batch.column(name), words))
        values = matrix.matrix(batch, self._columns, np.float64)
        return MatrixRows(np.ones(batch.num_rows, np.int64), (), values)

    def forward(self, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        """Probabilities of the labels or predictions, (n, width) float64, as LightGBM gives them."""
        assert isinstance(prepared, MatrixRows)
        values = self._booster.predict(matrix.some_rows(prepared.values, rows))
        if values.ndim == 2:
            return values
        return matrix.two_columns(values) if self.signature.task == "classification" else values[:, None]

    def finish(self, raw: np.ndarray) -> pa.RecordBatch:
        return outputs.columns(raw, self.signature, are_probabilities=True)


def load(folder: Path, signature: ModelSignature, device: str, dtype: str) -> LightGBMPredictor:
    """Load a LightGBM model.

    Raises:
        ModelError: the folder is no such model, or cannot be trusted to load.
        SignatureError: files and signature say different things.
        InferenceError: a device or dtype is asked for that there is not.
    """
    import lightgbm

    found = lightgbm_text.read(folder)
    columns, categories = _fit(found, signature)
    matrix.check_place("lightgbm", device, dtype)
    try:
        booster = lightgbm.Booster(model_str=found.content)
    except lightgbm.basic.LightGBMError as error:
        raise ModelError(f"{found.path}: cannot be loaded ({error}): copy it again") from None
    return LightGBMPredictor(booster, columns, categories, signature)


def describe(folder: Path, request: SignatureRequest) -> ModelSignature:
    """The signature that the model file implies.

    Raises:
        ModelError: the folder is no model of this flavor, or does not say enough.
        SignatureError: the request contradicts the file.
    """
    found = lightgbm_text.read(folder)
    if not found.has_names:
        raise ModelError(
            f"{found.path}: was trained without names of columns: write signature.json into the folder, "
            "with the inputs in the order of the training columns"
        )
    if found.categories and len(found.categories) != len(found.categorical):
        raise ModelError(
            f"{found.path}: does not say which columns its categories belong to: write signature.json into "
            "the folder, with these inputs as string"
        )
    texts = found.categorical if found.categories else ()
    inputs = [InputColumn(name, "string" if name in texts else "float64") for name in found.columns]
    return matrix.described(str(found.path), inputs, found.task, found.outputs, request)


def check_folder(folder: Path, signature: ModelSignature) -> None:
    """Check the model file, and compare it with the signature.

    Raises:
        ModelError: the folder is no model of this flavor.
        SignatureError: files and signature say different things.
    """
    _fit(lightgbm_text.read(folder), signature)


def _fit(
    found: LightGBMFile, signature: ModelSignature
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The signature's names in the model's order, and the categories of those that are strings."""
    about = str(found.path)
    matrix.check_task(about, found.task, found.outputs, signature)
    columns = _columns(found, signature)
    types = {column.name: column.type for column in signature.inputs}
    if found.categories:
        texts = [name for name in columns if types[name] == "string"]
        if len(texts) != len(found.categories):
            raise SignatureError(
                f"{about}: has the categories of {len(found.categories)} columns, the signature has "
                f"{len(texts)} inputs of type string ({', '.join(texts) or 'none'}): they must be the same"
            )
        numeric = [column for column in signature.inputs if column.name not in texts]
        matrix.check_numeric(about, numeric)
        return columns, dict(zip(texts, found.categories, strict=True))
    matrix.check_numeric(about, signature.inputs)
    return columns, {}


def _columns(found: LightGBMFile, signature: ModelSignature) -> tuple[str, ...]:
    names = tuple(column.name for column in signature.inputs)
    if not found.has_names:
        if len(names) != len(found.columns):
            raise SignatureError(
                f"{found.path}: reads {len(found.columns)} columns, the signature has {len(names)} inputs"
            )
        return names
    # LightGBM writes a blank of a name as an underscore.
    own = {name.replace(" ", "_"): name for name in names}
    return matrix.in_model_order(
        str(found.path), [own.get(name, name) for name in found.columns], signature.inputs
    )


def _codes(column: pa.Array, words: tuple[str, ...]) -> pa.Array:
    """Places of the values among the categories; null for a null and for a value that was not trained on."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return pc.index_in(pc.cast(column, pa.string()), value_set=pa.array(words, pa.string()), skip_nulls=True)
