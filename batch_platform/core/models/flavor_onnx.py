"""Flavor `onnx`: `model.onnx`, on onnxruntime.

It decides how columns reach the graph (side by side as one matrix, or each as an input of its name), that a
null number is NaN and a null of any other type fails its row, and that answers are probabilities, except for
an output called `logits`. The label is that of the highest probability.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_platform.core.models import matrix, onnx_graph, outputs
from batch_platform.core.models.onnx_graph import GraphValue, OnnxFile
from batch_platform.core.models.predictor import Predictor, Prepared, Refusal, SignatureRequest
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.errors import InferenceError, ModelError, SignatureError

_FLOATS: dict[str, type[np.floating]] = {"float32": np.float32, "float64": np.float64}
# Types of the contract that an input of each element type takes without a loss of meaning.
_TAKEN = {
    "float32": matrix.NUMBERS,
    "float64": matrix.NUMBERS,
    "int64": ("int32", "int64"),
    "int32": ("int32",),
    "boolean": ("boolean",),
    "string": ("string",),
}
_CONTRACT = {"float32": "float64"}  # any number may stand for it
_ARROW = {"int64": pa.int64(), "int32": pa.int32(), "boolean": pa.bool_(), "string": pa.string()}
_ROUNDING = 1e-5
_BLANK: dict[str, Any] = {"int64": 0, "int32": 0, "boolean": False, "string": ""}


@dataclass(frozen=True)
class PreparedInputs(Prepared):
    """By name of the graph's input, an array with a row for each row."""

    arrays: Mapping[str, np.ndarray]


class OnnxPredictor(Predictor):
    """A loaded ONNX model."""

    def __init__(self, session: Any, found: OnnxFile, signature: ModelSignature, device: str) -> None:
        self._session = session
        self._found = found
        self._columns = tuple(column.name for column in signature.inputs)
        self.signature = signature
        self.device, self.dtype = device, "float32"

    def prepare(self, batch: pa.RecordBatch) -> PreparedInputs:
        refused: dict[int, Refusal] = {}
        arrays = {}
        for value, names in _feeds(self._found, self.signature):
            if value.element in _FLOATS:
                array = matrix.matrix(batch, names, _FLOATS[value.element])
                found = matrix.infinite_rows(array, names)
            else:
                array, found = _exact(batch.column(names[0]), value)
            for refusal in found:
                refused.setdefault(refusal.row, refusal)
            arrays[value.name] = array.reshape(-1) if len(value.shape) == 1 else array
        return PreparedInputs(np.ones(batch.num_rows, np.int64), tuple(refused.values()), arrays)

    def forward(self, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        """Probabilities or logits of the labels, or predictions, (n, width) float32 or float64."""
        assert isinstance(prepared, PreparedInputs)
        feeds = {name: matrix.some_rows(array, rows) for name, array in prepared.arrays.items()}
        values = self._run(feeds)
        if self.signature.task == "classification" and not self._found.gives_logits:
            values = _within_bounds(values)
        is_one = values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)
        if self.signature.task == "classification" and is_one and len(self.signature.labels) == 2:
            values = values.reshape(-1)
            if self._found.gives_logits:
                return np.stack([np.zeros_like(values), values], axis=1)
            return matrix.two_columns(values)
        return values[:, None] if values.ndim == 1 else values

    def _run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        try:
            return self._session.run([self._found.answer.name], feeds)[0]
        except Exception as error:
            # onnxruntime's errors are of types of its own; the engine knows Python's.
            if "allocate memory" in str(error) or "bad_alloc" in str(error):
                raise MemoryError(str(error)) from None
            if "CUDA failure" in str(error):
                raise InferenceError(f"the device failed and must be restarted: {error}") from None
            raise

    def finish(self, raw: np.ndarray) -> pa.RecordBatch:
        return outputs.columns(raw, self.signature, are_probabilities=not self._found.gives_logits)


def _within_bounds(values: np.ndarray) -> np.ndarray:
    """Probabilities that adding up in single precision left beside 0 or 1 are put there; others stay."""
    near = np.clip(values, 0, 1)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(near - values) <= _ROUNDING, near, values)


def load(folder: Path, signature: ModelSignature, device: str, dtype: str) -> OnnxPredictor:
    """Load an ONNX model.

    Raises:
        ModelError: the folder is no such model, or cannot be trusted to load.
        SignatureError: files and signature say different things.
        InferenceError: a device or dtype is asked for that there is not.
    """
    found = onnx_graph.read(folder)
    _check_fit(found, signature)
    if dtype != "float32":
        raise InferenceError(
            f"an ONNX model computes in the types that it was exported with, not in {dtype}: "
            "set dtype: auto or float32"
        )
    session = _session(found, folder, device)
    given = session.get_outputs()
    width = next(
        (item.shape[1] for item in given if item.name == found.answer.name and len(item.shape) == 2), None
    )
    if isinstance(width, int):
        _check_width(found, width, signature)
    return OnnxPredictor(session, found, signature, device)


def _session(found: OnnxFile, folder: Path, device: str) -> Any:
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
        if providers[0] not in onnxruntime.get_available_providers():
            raise InferenceError(
                "device: cuda is asked for and onnxruntime is the build for CPUs: install onnxruntime-gpu in "
                "its place, or set device: cpu"
            )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        options.intra_op_num_threads = int(threads)
    # What was checked is what is loaded; its external data is looked for in the folder, nowhere else.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder.resolve())
    )
    session = onnxruntime.InferenceSession(found.content, options, providers=providers)
    if session.get_providers()[0] != providers[0]:
        raise InferenceError(f"onnxruntime cannot use {device} here: check the driver, or set device: cpu")
    return session


def describe(folder: Path, request: SignatureRequest) -> ModelSignature:
    """The signature that the model file implies.

    Raises:
        ModelError: the folder is no model of this flavor, or does not say enough.
        SignatureError: the request contradicts the file.
    """
    found = onnx_graph.read(folder)
    if any(len(value.shape) == 2 and value.shape[1] != 1 for value in found.inputs):
        raise ModelError(
            f"{found.path}: reads a matrix and does not name its columns: write signature.json into the folder, "
            "with the inputs in their order"
        )
    task = found.task or request.task
    if task is None:
        raise ModelError(f"{found.path}: does not say what its numbers are: give --task")
    inputs = [InputColumn(value.name, _CONTRACT.get(value.element, value.element)) for value in found.inputs]
    labels = request.labels or found.labels
    if task == "classification" and request.labels is None and found.labels:
        matrix.refuse_text(request)
        signature = ModelSignature(tuple(inputs), task, labels, request.positive_class)
        if request.task not in (None, task):
            raise SignatureError(f"{found.path} says task {task}, not {request.task}")
    else:
        count = len(found.labels) or len(labels)
        signature = matrix.described(str(found.path), inputs, task, count, request)
    _check_fit(found, signature)
    return signature


def check_folder(folder: Path, signature: ModelSignature) -> None:
    """Check the model file, and compare it with the signature.

    Raises:
        ModelError: the folder is no model of this flavor.
        SignatureError: files and signature say different things.
    """
    _check_fit(onnx_graph.read(folder), signature)


# -- the signature and the graph --------------------------------------------------------------------------


def _feeds(found: OnnxFile, signature: ModelSignature) -> list[tuple[GraphValue, tuple[str, ...]]]:
    """Each input of the graph with the columns that it takes."""
    names = tuple(column.name for column in signature.inputs)
    if _takes_matrix(found, names):
        return [(found.inputs[0], names)]
    return [(value, (value.name,)) for value in found.inputs]


def _takes_matrix(found: OnnxFile, names: tuple[str, ...]) -> bool:
    first = found.inputs[0]
    return len(found.inputs) == 1 and len(first.shape) == 2 and names != (first.name,)


def _check_fit(found: OnnxFile, signature: ModelSignature) -> None:
    about = str(found.path)
    if signature.task == "embedding" or found.task not in (None, signature.task):
        said = found.task or "classification or regression"
        raise SignatureError(f"{about} says {said}, the signature says {signature.task}")
    _check_inputs(found, signature)
    if found.width is not None:
        _check_width(found, found.width, signature)
    named = not all(label.lstrip("-").isdecimal() for label in found.labels)
    if found.labels and len(found.labels) != len(signature.labels):
        matrix.check_task(about, "classification", len(found.labels), signature)
    if named and found.labels != signature.labels:
        raise SignatureError(
            f"{about} says labels {list(found.labels)}, the signature says {list(signature.labels)}: "
            "they must be equal, in this order"
        )


def _check_inputs(found: OnnxFile, signature: ModelSignature) -> None:
    about = str(found.path)
    names = tuple(column.name for column in signature.inputs)
    first = found.inputs[0]
    if _takes_matrix(found, names):
        matrix.check_numeric(about, signature.inputs)
        if first.element not in _FLOATS:
            raise ModelError(f"{about}: reads a matrix of {first.element}; export it for floats")
        if first.shape[1] not in (None, len(names)):
            raise SignatureError(
                f"{about}: reads {first.shape[1]} columns, the signature has {len(names)} inputs"
            )
        return
    matrix.in_model_order(about, [value.name for value in found.inputs], signature.inputs)
    types = {column.name: column.type for column in signature.inputs}
    for value in found.inputs:
        if len(value.shape) == 2 and value.shape[1] not in (1, None):
            raise ModelError(
                f"{about}: the input {value.name!r} has {value.shape[1]} columns beside other inputs"
            )
        if types[value.name] not in _TAKEN[value.element]:
            raise SignatureError(
                f"{about}: the input {value.name!r} is {value.element}, the signature says {types[value.name]}: "
                f"it takes {', '.join(_TAKEN[value.element])}"
            )


def _check_width(found: OnnxFile, width: int, signature: ModelSignature) -> None:
    is_one_of_two = width == 1 and len(signature.labels) == 2
    if not is_one_of_two:
        outputs.check_width(width, signature)


def _exact(column: pa.Array, value: GraphValue) -> tuple[np.ndarray, tuple[Refusal, ...]]:
    """A column of whole numbers, booleans or strings, (rows, 1); its nulls are refused."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    column = pc.cast(column, _ARROW[value.element])
    message = f"column {value.name!r} is null, and the model reads it as {value.element}"
    missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
    refused = tuple(Refusal(int(row), "NullFeature", message) for row in missing)
    array = column.fill_null(_BLANK[value.element]).to_numpy(zero_copy_only=False)
    return array.reshape(-1, 1), refused
