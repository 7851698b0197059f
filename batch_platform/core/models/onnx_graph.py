"""What an ONNX model says about itself: what it reads and gives, and whether it stays within its folder.

It decides which files onnxruntime gets to see (operators of the standard alone, external data beside the
model), which output is the answer, and that probabilities come as one matrix: a ZipMap, which makes a Python
dictionary of every row, is cut off. The graph is read, not run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_platform.core.models.signature import Task
from batch_platform.errors import ModelError

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

MODEL_FILE = "model.onnx"
MAX_BYTES = 2**31 - 1  # most that the format can hold; larger weights are external data
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
# Element types that this flavor reads and gives, by their number in the format.
ELEMENTS = {1: "float32", 6: "int32", 7: "int64", 8: "string", 9: "boolean", 11: "float64"}
_FLOATS = ("float32", "float64")
_PROBABILITIES = ("probabilities", "output_probability", "probability")
_LOGITS = "logits"


@dataclass(frozen=True)
class GraphValue:
    """An input or output: its name, the type of its elements, its shape (None: any length)."""

    name: str
    element: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class OnnxFile:
    """What a model file says.

    Attributes:
        path: the file.
        content: the model to be loaded.
        inputs: what it reads.
        answer: the output with probabilities, logits or predictions.
        is_classifier: whether it says so.
        labels: the classes that it names, in the order of the answer; empty where it names none.
    """

    path: Path
    content: bytes
    inputs: tuple[GraphValue, ...]
    answer: GraphValue
    is_classifier: bool
    labels: tuple[str, ...]

    @property
    def gives_logits(self) -> bool:
        return self.answer.name == _LOGITS

    @property
    def task(self) -> Task | None:
        """None where the file does not say."""
        return "classification" if self.is_classifier or self.gives_logits else None

    @property
    def width(self) -> int | None:
        """Numbers that it gives for a row, where the file says so."""
        return 1 if len(self.answer.shape) < 2 else self.answer.shape[1]


def read(folder: Path) -> OnnxFile:
    """Read and check the model file of a folder.

    Raises:
        ModelError: it is missing, cut short, reaches out of its folder, or needs operators that are not
            of the standard.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = folder / MODEL_FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path}: is larger than {MAX_BYTES} bytes: save its weights as external data")
        model = onnx.ModelProto.FromString(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path}: is missing; give the folder with the exported model") from None
    except (OSError, DecodeError) as error:
        raise ModelError(f"{path}: is cut short or no ONNX model ({error}): copy it again") from None
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"{path}: is no ONNX model: it has no graph that gives anything")
    _check_operators(path, model)
    for tensor in _tensors(model):
        _check_external(folder, tensor)
    classes = _cut_zip_maps(path, model)
    inputs = _inputs(path, model.graph)
    outputs = [_value(path, item) for item in model.graph.output]
    labels = classes or _classes(model.graph, outputs)
    _check_tree_columns(path, model)
    return OnnxFile(
        path=path,
        content=model.SerializeToString(),
        inputs=inputs,
        answer=_answer(path, outputs),
        is_classifier=bool(labels) or any(value.element not in _FLOATS for value in outputs),
        labels=labels,
    )


# -- what may be in it ------------------------------------------------------------------------------------


def _check_operators(path: Path, model: "ModelProto") -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for graph in (model.graph, *model.functions):
        for node in _nodes(graph):
            if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
                raise ModelError(
                    f"{path}: the operator {node.domain}.{node.op_type} is not of the ONNX standard, and code for "
                    "others is not loaded: export the model without it"
                )


def _nodes(graph: "GraphProto | FunctionProto") -> Iterator["NodeProto"]:
    """The nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                yield from _nodes(inner)


def _graphs(attribute: "AttributeProto") -> Iterator["GraphProto"]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _tensors(model: "ModelProto") -> Iterator["TensorProto"]:
    """Every constant of the model, wherever it stands."""
    for graph in (model.graph, *model.functions):
        yield from _initializers(graph)
        for node in _nodes(graph):
            for attribute in node.attribute:
                yield from _constants(attribute)
                for inner in _graphs(attribute):
                    yield from _initializers(inner)


def _initializers(graph: Any) -> Iterator["TensorProto"]:
    yield from getattr(graph, "initializer", ())  # a function has none
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)


def _constants(attribute: "AttributeProto") -> Iterator["TensorProto"]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)


def _check_external(folder: Path, tensor: "TensorProto") -> None:
    """External data is a plain file in the folder, as long as the tensor says."""
    if not tensor.external_data and tensor.data_location == 0:
        return
    said = {entry.key: entry.value for entry in tensor.external_data}
    name = said.get("location", "")
    about = f"{folder / MODEL_FILE}: the tensor {tensor.name!r} has external data in {name!r}"
    place = Path(name)
    if not name or "\\" in name or place.is_absolute() or ".." in place.parts:
        raise ModelError(
            f"{about}, which is no file of the model's folder: export the model with its data beside it"
        )
    path = folder / place
    if not path.is_file() or path.resolve() != folder.resolve() / place:
        raise ModelError(f"{about}, which is no plain file of the model's folder: copy the folder as a whole")
    try:
        end = int(said.get("offset", 0)) + int(said.get("length", 0))
        is_within = int(said.get("offset", 0)) >= 0 and int(said.get("length", 0)) >= 0
    except ValueError:
        is_within = False
        end = 0
    if not is_within or end > path.stat().st_size:
        raise ModelError(f"{about}, which is shorter than it should be: copy the folder again")


def _check_tree_columns(path: Path, model: "ModelProto") -> None:
    """Splits of trees look at columns that are there; onnxruntime reads foreign memory if they are not."""
    import onnx

    trees = [node for node in model.graph.node if node.op_type.startswith("TreeEnsemble")]
    if not trees:
        return
    try:
        known = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: its shapes do not fit each other ({_first_line(error)})") from None
    widths = {
        item.name: _value(path, item).shape[1]
        for item in (*known.input, *known.value_info)
        if item.type.HasField("tensor_type") and len(item.type.tensor_type.shape.dim) == 2
    }
    for node in trees:
        width = widths.get(node.input[0])
        for attribute in node.attribute:
            if attribute.name == "nodes_featureids" and width is not None and attribute.ints:
                read = max(attribute.ints)
                if read >= width or min(attribute.ints) < 0:
                    raise ModelError(f"{path}: a tree reads column {read}, and there are {width}")


# -- inputs and outputs -----------------------------------------------------------------------------------


def _inputs(path: Path, graph: "GraphProto") -> tuple[GraphValue, ...]:
    constants = {tensor.name for tensor in graph.initializer}
    found = tuple(_value(path, item) for item in graph.input if item.name not in constants)
    if not found:
        raise ModelError(f"{path}: reads nothing")
    for value in found:
        if len(value.shape) not in (1, 2):
            raise ModelError(
                f"{path}: the input {value.name!r} has {len(value.shape)} dimensions; a table has two"
            )
        if value.shape[0] is not None:
            raise ModelError(
                f"{path}: the input {value.name!r} is of exactly {value.shape[0]} rows: export the model with a "
                "first dimension of any length"
            )
    return found


def _value(path: Path, item: Any) -> GraphValue:
    kind = item.type.tensor_type
    if not item.type.HasField("tensor_type") or kind.elem_type not in ELEMENTS:
        raise ModelError(
            f"{path}: {item.name!r} is no tensor of numbers or strings ({', '.join(sorted(ELEMENTS.values()))})"
        )
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return GraphValue(item.name, ELEMENTS[kind.elem_type], shape)


def _answer(path: Path, outputs: list[GraphValue]) -> GraphValue:
    floats = [value for value in outputs if value.element in _FLOATS]
    named = [value for value in floats if value.name in (*_PROBABILITIES, _LOGITS)]
    found = floats if len(floats) == 1 else named
    if len(found) != 1:
        raise ModelError(
            f"{path}: which of its outputs is the answer is not clear ({', '.join(value.name for value in outputs)}): "
            f"export it with one output of floats, or call it {_PROBABILITIES[0]} or {_LOGITS}"
        )
    if len(found[0].shape) > 2:
        raise ModelError(
            f"{path}: the output {found[0].name!r} has {len(found[0].shape)} dimensions, not two"
        )
    return found[0]


def _cut_zip_maps(path: Path, model: "ModelProto") -> tuple[str, ...]:
    """Have the model give the matrix before a ZipMap instead of a dictionary for each row; returns its labels."""
    import onnx

    labels: tuple[str, ...] = ()
    graph = model.graph
    for place, output in enumerate(graph.output):
        if not output.type.HasField("sequence_type"):
            continue
        maker = next((node for node in graph.node if output.name in node.output), None)
        if maker is None or (maker.domain, maker.op_type) != ("ai.onnx.ml", "ZipMap"):
            raise ModelError(f"{path}: the output {output.name!r} is a sequence that no ZipMap makes")
        labels = _labels_of(maker)
        rows = onnx.helper.make_tensor_value_info(
            output.name, onnx.TensorProto.FLOAT, [None, len(labels) or None]
        )
        same = onnx.helper.make_node("Identity", [maker.input[0]], [output.name])
        graph.output[place].CopyFrom(rows)
        maker.CopyFrom(same)
    return labels


def _labels_of(node: "NodeProto") -> tuple[str, ...]:
    for attribute in node.attribute:
        if attribute.name == "classlabels_strings" and attribute.strings:
            return tuple(label.decode("utf-8") for label in attribute.strings)
        if attribute.name in ("classlabels_int64s", "classlabels_ints") and attribute.ints:
            return tuple(str(label) for label in attribute.ints)
    return ()


def _classes(graph: "GraphProto", outputs: list[GraphValue]) -> tuple[str, ...]:
    """Labels that a classifier in the graph names; numbers only where the model's own answer is numbers."""
    for node in graph.node:
        labels = _labels_of(node)
        numbered = not any(attribute.name == "classlabels_strings" for attribute in node.attribute)
        gives_words = any(value.element == "string" for value in outputs)
        if labels and not (numbered and gives_words):
            return labels
    return ()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
