"""What every flavor of model can do: prepare rows, compute, name the outputs.

The three are separate so that the engine can prepare the next rows while the device computes. It decides
which flavors there are; it does not know how batches are cut.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from batch_platform.core.models import outputs
from batch_platform.core.models.signature import ModelSignature, Pooling, Task
from batch_platform.errors import BatchPlatformError, ModelError, SignatureError

Flavor = Literal["transformers", "torch", "lightgbm", "xgboost", "onnx"]
FLAVORS: tuple[str, ...] = get_args(Flavor)
SIGNATURE_FILE = "signature.json"


@dataclass(frozen=True)
class Refusal:
    """A row that cannot be scored, known before computing: its number in the shard, and why."""

    row: int
    error_type: str
    message: str


@dataclass(frozen=True)
class Prepared:
    """Rows ready for the device; each flavor adds its arrays.

    Attributes:
        costs: (rows,) int64, tokens of each row; 1 for tabular rows.
        refused: rows that must not be computed.
    """

    costs: np.ndarray
    refused: tuple[Refusal, ...]


class Predictor(ABC):
    """A loaded model.

    A batch is computed by `forward`, or in two steps, `launch` and `collect`, where the device works while this machine
    makes the next batch ready.

    Attributes:
        in_flight: batches that may be launched before the first of them is collected.
        signature: complete: what the model folder decides is filled in.
        device: cpu or cuda.
        dtype: name of the floating-point type that it computes in.
        backend: what computes it, where there is a choice that acts on the last bits; else empty.
    """

    backend: str = ""
    in_flight: int = 1
    signature: ModelSignature
    device: str
    dtype: str

    @abstractmethod
    def prepare(self, batch: pa.RecordBatch) -> Prepared:
        """Turn feature rows into arrays on the host. Safe beside a `forward` in another thread."""

    @abstractmethod
    def forward(self, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        """Compute some of the prepared rows as one batch.

        Args:
            prepared: what `prepare` gave.
            rows: (n,) int64, numbers of the rows, in any order.

        Returns:
            (n, width) float32 or float64, in the order of `rows`; of a generation, int32 token ids.
        """

    def launch(self, prepared: Prepared, rows: np.ndarray) -> Any:
        """Begin to compute a batch as `forward` does; returns what `collect` takes."""
        return self.forward(prepared, rows)

    def collect(self, launched: Any) -> np.ndarray:
        """The outputs of a batch that was launched, when they are there; in the order of launching."""
        raw: np.ndarray = launched
        return raw

    def finish(self, raw: np.ndarray) -> pa.RecordBatch:
        """Name the outputs: (rows, width) as `forward` gave them -> rows of `signature.output_schema()`."""
        return outputs.columns(raw, self.signature)

    def release(self) -> None:
        """Give cached device memory back, after memory ran out."""
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()


@dataclass(frozen=True)
class SignatureRequest:
    """What a person says about a model that carries no signature; None: as the folder says."""

    task: Task | None = None
    labels: tuple[str, ...] | None = None
    text_column: str | None = None
    max_tokens: int | None = None
    pooling: Pooling | None = None
    positive_class: str | None = None
    max_new_tokens: int | None = None

    @property
    def given(self) -> list[str]:
        """Names of what was said."""
        return [name for name, value in vars(self).items() if value is not None]


def load_predictor(
    folder: Path, flavor: str, signature: ModelSignature, device: str = "cpu", dtype: str = "float32"
) -> Predictor:
    """Load a model's files onto a device.

    Args:
        folder: the model's files.
        flavor: one of `FLAVORS`.
        signature: of the model.
        device: cpu or cuda.
        dtype: float32, bfloat16 or float16.

    Raises:
        ModelError: the files cannot be loaded, or are not what the signature says.
    """
    check_flavor(flavor)
    if not folder.is_dir():
        raise ModelError(f"{folder}: is not a folder; give the folder with the model's files")
    _check_ranking(flavor, signature)
    try:
        return _module(flavor).load(folder, signature, device, dtype)
    except BatchPlatformError:
        raise
    except Exception as error:  # the files are untrusted and libraries raise anything; nothing is swallowed
        raise ModelError(
            f"{folder}: cannot be loaded as a {flavor} model ({type(error).__name__}: {_first_line(error)}); "
            "check that the folder is complete, and register it again"
        ) from error


def describe(folder: Path, flavor: str, request: SignatureRequest) -> ModelSignature:
    """The signature in the folder's `signature.json`, or made of the folder's own files; loads no model.

    Raises:
        ModelError: the folder is not of this flavor, or does not say enough.
        SignatureError: the request does not suit the model.
    """
    check_flavor(flavor)
    if not folder.is_dir():
        raise ModelError(f"{folder}: is not a folder; give the folder with the model's files")
    path = folder / SIGNATURE_FILE
    if not path.is_file():
        return _module(flavor).describe(folder, request)
    signature = ModelSignature.read(path)
    for name in request.given:
        asked, said = getattr(request, name), getattr(signature, name)
        if asked != said:
            raise SignatureError(f"{path} says {name} {said!r}, not {asked!r}: change the one or the other")
    return signature


def check_folder(folder: Path, flavor: str, signature: ModelSignature) -> None:
    """Check that the files are there and agree with the signature, without loading the model.

    Raises:
        ModelError: a file is missing or unreadable.
        SignatureError: the files and the signature say different things.
    """
    check_flavor(flavor)
    _check_ranking(flavor, signature)
    _module(flavor).check_folder(folder, signature)


def check_flavor(flavor: str) -> None:
    """Refuse a flavor that there is no code for.

    Raises:
        ModelError: lists the flavors.
    """
    if flavor not in FLAVORS:
        raise ModelError(f"flavor {flavor!r} is not supported: use one of {', '.join(FLAVORS)}")


def _check_ranking(flavor: str, signature: ModelSignature) -> None:
    if signature.task == "ranking" and flavor != "torch":
        raise SignatureError(f"a {flavor} model gives no ranking: the flavor torch does, by an ItemRanker")


def _module(flavor: str) -> Any:
    # Imported when asked for: the libraries cost seconds.
    return import_module(f"batch_platform.core.models.flavor_{flavor}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
