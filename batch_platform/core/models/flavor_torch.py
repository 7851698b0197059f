"""Flavor `torch`: `config.json` names a class of the allow-list, `model.safetensors` has its tensors.

It decides which classes may be built, and that these models compute in float32.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batch_platform.core.models.item_ranker_config import Bags, ItemRankerConfig, bags
from batch_platform.core.models.outputs import check_width, ranked
from batch_platform.core.models.predictor import Predictor, Prepared, Refusal, SignatureRequest
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.models.tabular import CONFIG_FILE, Encoded, TabularConfig, encode
from batch_platform.errors import InferenceError, ModelError, SignatureError

if TYPE_CHECKING:
    from batch_platform.core.models.item_ranker import ItemRanker
    from batch_platform.core.models.tabular_mlp import TabularMLP

ALLOWED_CLASSES = ("TabularMLP", "ItemRanker")


@dataclass(frozen=True)
class PreparedRows(Prepared):
    """Rows as arrays of numbers and category codes."""

    encoded: Encoded


class TabularPredictor(Predictor):
    """A loaded `TabularMLP`."""

    def __init__(self, model: "TabularMLP", signature: ModelSignature, device: str) -> None:
        self.model = model.to(device)
        self.signature = signature
        self.device = device
        self.dtype = "float32"

    def prepare(self, batch: pa.RecordBatch) -> PreparedRows:
        encoded = encode(batch, self.model.config)
        return PreparedRows(np.ones(batch.num_rows, np.int64), self._infinite(encoded.numeric), encoded)

    def _infinite(self, numeric: np.ndarray) -> tuple[Refusal, ...]:
        # Two infinities can cancel in a hidden layer and give a finite, meaningless answer.
        refused: dict[int, Refusal] = {}
        for row, column in np.argwhere(np.isinf(numeric)):
            name = self.model.config.numeric[column]
            message = f"column {name!r} is infinite (or too large for float32)"
            refused.setdefault(int(row), Refusal(int(row), "InfiniteFeature", message))
        return tuple(refused.values())

    def forward(self, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        import torch

        assert isinstance(prepared, PreparedRows)
        numeric = torch.from_numpy(prepared.encoded.numeric[rows]).to(self.device)
        categories = torch.from_numpy(prepared.encoded.categories[rows]).to(self.device)
        with torch.inference_mode():
            return self.model(numeric, categories).float().cpu().numpy()


@dataclass(frozen=True)
class PreparedBags(Prepared):
    """Rows as bags of items."""

    bags: Bags


class ItemRankerPredictor(Predictor):
    """A loaded `ItemRanker`."""

    def __init__(self, model: "ItemRanker", signature: ModelSignature, device: str) -> None:
        self.model = model.to(device)
        self.signature = signature
        self.device = device
        self.dtype = "float32"
        self._items = pa.array(model.config.items, pa.string())

    def prepare(self, batch: pa.RecordBatch) -> PreparedBags:
        return PreparedBags(np.ones(batch.num_rows, np.int64), (), bags(batch, self.model.config))

    def forward(self, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        """(n, 2 * top_k) float32: places of a row's items in the catalogue, the best first, and their probabilities."""
        import torch

        assert isinstance(prepared, PreparedBags)
        with torch.inference_mode():
            return self.model.ranked(prepared.bags.take(rows))

    def finish(self, raw: np.ndarray) -> pa.RecordBatch:
        return ranked(raw, self._items, self.signature)


def load(
    folder: Path, signature: ModelSignature, device: str, dtype: str
) -> TabularPredictor | ItemRankerPredictor:
    """Load a model of a class that is allowed.

    Raises:
        ModelError: the folder is no such model.
        SignatureError: files and signature say different things.
        InferenceError: another dtype than float32 is asked for.
    """
    from batch_platform.core.models.item_ranker import ItemRanker
    from batch_platform.core.models.tabular_mlp import TabularMLP

    check_folder(folder, signature)
    if dtype != "float32":
        raise InferenceError(f"a torch model computes in float32, not {dtype}: set dtype: auto or float32")
    if signature.task == "ranking":
        return ItemRankerPredictor(ItemRanker.load(folder), signature, device)
    return TabularPredictor(TabularMLP.load(folder), signature, device)


def describe(folder: Path, request: SignatureRequest) -> ModelSignature:
    """The signature that the folder's config implies.

    Raises:
        ModelError: the folder is no model of this flavor.
        SignatureError: the request contradicts the config.
    """
    config = _config(folder)
    of_tables = () if isinstance(config, TabularConfig) else ("positive_class",)
    for name in ("text_column", "max_tokens", "pooling", "max_new_tokens", *of_tables):
        if name in request.given:
            raise SignatureError(f"{name} has no meaning for a {config.class_name}: leave it out")
    signature = (
        config.signature(request.positive_class) if isinstance(config, TabularConfig) else config.signature()
    )
    if request.task not in (None, signature.task):
        raise SignatureError(f"{folder / CONFIG_FILE} says task {signature.task}, not {request.task}")
    if request.labels not in (None, signature.labels):
        raise SignatureError(
            f"{folder / CONFIG_FILE} says labels {', '.join(signature.labels)}, in this order: "
            "leave labels out"
        )
    return signature


def check_folder(folder: Path, signature: ModelSignature) -> None:
    """Check the config against the signature.

    Raises:
        ModelError: the folder is no model of this flavor.
        SignatureError: files and signature say different things.
    """
    config = _config(folder)
    if not (folder / "model.safetensors").is_file():
        raise ModelError(f"{folder}: no model.safetensors, which holds the weights of a torch model")
    if not isinstance(config, TabularConfig):
        if config.signature() != signature:
            raise SignatureError(
                f"{folder / CONFIG_FILE} says a ranking of the {config.top_k} best by {', '.join(config.columns)}: the "
                "signature must say the same"
            )
        return
    absent = set(config.columns) - {column.name for column in signature.inputs}
    if absent:
        raise SignatureError(f"{folder}: the model reads {sorted(absent)}, which the signature's inputs lack")
    if (signature.task, signature.labels) != (config.task, config.labels):
        raise SignatureError(
            f"{folder / CONFIG_FILE} says {config.task} {list(config.labels)}, "
            f"the signature says {signature.task} {list(signature.labels)}: they must be equal, in this order"
        )
    check_width(config.outputs, signature)


def _config(folder: Path) -> TabularConfig | ItemRankerConfig:
    name = _class_name(folder)
    if name not in ALLOWED_CLASSES:
        raise ModelError(
            f"{folder / CONFIG_FILE}: class_name {name!r} is not allowed: use one of {', '.join(ALLOWED_CLASSES)}"
        )
    return ItemRankerConfig.read(folder) if name == "ItemRanker" else TabularConfig.read(folder)


def _class_name(folder: Path) -> str:
    """What the config says, or that of a tabular model, whose config may leave it out."""
    try:
        values = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: cannot be read: {error}") from None
    return str(values.get("class_name", "TabularMLP")) if isinstance(values, dict) else "TabularMLP"
