"""Flavor `xgboost`: `model.json`, XGBoost's JSON format.

It decides how columns reach the model: numbers in single precision, as XGBoost reads them, a null as NaN;
an infinite number is refused, as XGBoost does. It computes on the CPU.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core.models import matrix, outputs, xgboost_json
from batch_platform.core.models.matrix import MatrixRows
from batch_platform.core.models.predictor import Predictor, Prepared, SignatureRequest
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.models.xgboost_json import XGBoostFile
from batch_platform.errors import ModelError, SignatureError


class XGBoostPredictor(Predictor):
    """A loaded XGBoost model."""

    def __init__(
        self, booster: Any, found: XGBoostFile, columns: tuple[str, ...], signature: ModelSignature
    ) -> None:
        self._booster = booster
        self._found = found
        self._columns = columns
        self.signature = signature
        self.device, self.dtype = "cpu", "float32"

    def prepare(self, batch: pa.RecordBatch) -> MatrixRows:
        values = matrix.matrix(batch, self._columns, np.float32)
        refused = matrix.infinite_rows(values, self._columns)
        return MatrixRows(np.ones(batch.num_rows, np.int64), refused, values)

    def forward(self, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        """Probabilities or margins of the labels, or predictions, (n, width) float32."""
        assert isinstance(prepared, MatrixRows)
        values = self._booster.inplace_predict(
            matrix.some_rows(prepared.values, rows),
            iteration_range=(0, self._found.iterations),
            predict_type="margin" if self._found.gives_margins else "value",
        )
        if values.ndim == 2:
            return values
        if self.signature.task == "regression":
            return values[:, None]
        if self._found.gives_margins:
            return np.stack([np.zeros_like(values), values], axis=1)
        return matrix.two_columns(values)

    def finish(self, raw: np.ndarray) -> pa.RecordBatch:
        return outputs.columns(raw, self.signature, are_probabilities=not self._found.gives_margins)


def load(folder: Path, signature: ModelSignature, device: str, dtype: str) -> XGBoostPredictor:
    """Load an XGBoost model.

    Raises:
        ModelError: the folder is no such model, or cannot be trusted to load.
        SignatureError: files and signature say different things.
        InferenceError: a device or dtype is asked for that there is not.
    """
    import xgboost

    found = xgboost_json.read(folder)
    columns = _fit(found, signature)
    matrix.check_place("xgboost", device, dtype)
    try:
        booster = xgboost.Booster()
        booster.load_model(bytearray(found.content))
    except xgboost.core.XGBoostError as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{found.path}: cannot be loaded ({first}): save it with this version of XGBoost"
        ) from None
    return XGBoostPredictor(booster, found, columns, signature)


def describe(folder: Path, request: SignatureRequest) -> ModelSignature:
    """The signature that the model file implies.

    Raises:
        ModelError: the folder is no model of this flavor, or does not say enough.
        SignatureError: the request contradicts the file.
    """
    found = xgboost_json.read(folder)
    if not found.columns:
        raise ModelError(
            f"{found.path}: was trained without names of columns: write signature.json into the folder, "
            "with the inputs in the order of the training columns"
        )
    return matrix.described(str(found.path), found.inputs, found.task, found.classes, request)


def check_folder(folder: Path, signature: ModelSignature) -> None:
    """Check the model file, and compare it with the signature.

    Raises:
        ModelError: the folder is no model of this flavor.
        SignatureError: files and signature say different things.
    """
    _fit(xgboost_json.read(folder), signature)


def _fit(found: XGBoostFile, signature: ModelSignature) -> tuple[str, ...]:
    """The signature's names in the model's order."""
    about = str(found.path)
    matrix.check_task(about, found.task, found.classes, signature)
    matrix.check_numeric(about, signature.inputs)
    if found.columns:
        return matrix.in_model_order(about, found.columns, signature.inputs)
    if len(signature.inputs) != found.width:
        raise SignatureError(
            f"{about}: reads {found.width} columns, the signature has {len(signature.inputs)} inputs"
        )
    return tuple(column.name for column in signature.inputs)
