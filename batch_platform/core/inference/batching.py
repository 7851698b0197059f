"""How the rows of a shard are cut into batches.

Rows are sorted by token count, so that a batch holds rows of nearly one length, and cut where the padded
batch would exceed the budget. Measured on package descriptions: padding 67 % in arrival order with 32
rows a batch, 0.5 % sorted; budgets of about 1,000 tokens are fastest on a CPU, larger ones lose its caches.
It knows counts of tokens, not models.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batch_platform.core.inference.device import resolve_device, resolve_dtype
from batch_platform.core.models.signature import ModelSignature

if TYPE_CHECKING:
    # The engine runs where what the pipeline file needs is not installed.
    from batch_platform.core.spec import InferenceSpec

# Measured on an H200: MiniLM 3.4, 6.0, 9.9 and 10.2 million tokens a second with 16,384 to 131,072 a batch, BERT-base 2.2
# with any of them. What is generated is held beside what was read, for each layer: less fits.
_AUTO_TOKENS = {"cpu": 1024, "cuda": 131_072}
_AUTO_TOKENS_GENERATING = {"cpu": 1024, "cuda": 32_768}
_AUTO_ROWS = {"cpu": 4096, "cuda": 65_536}
# Models that compute on rows one by one, on all processors: a batch is as large as a shard of `auto` rows.
_ROWS_OF_FLAVOR = {"lightgbm": 262_144, "xgboost": 262_144, "onnx": 65_536}
# A shard is what is scored again after a kill, and between two shards a fast device waits for a moment.
_TEXT_SHARD_ROWS = {"cpu": 8192, "cuda": 32_768}
# Of a tabular model: so many numbers, within these bounds.
_SHARD_NUMBERS = 2**23
_SHARD_ROWS = (8192, 262_144)


@dataclass(frozen=True)
class BatchPlan:
    """Everything about batches and device that can change the bits of an output.

    Attributes:
        device: cpu or cuda.
        dtype: float32, bfloat16 or float16.
        batch_tokens: most tokens of a batch, padding included; a longer row is a batch of its own. None for
            tabular models.
        batch_rows: most rows of a batch.
    """

    device: str
    dtype: str
    batch_tokens: int | None
    batch_rows: int

    @classmethod
    def of(
        cls,
        signature: ModelSignature,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | str = "auto",
        batch_rows: int | str = "auto",
        flavor: str = "torch",
    ) -> "BatchPlan":
        """Choose for this machine and this flavor of model what is `auto`.

        Raises:
            InferenceError: the device is absent, or a name is not known.
        """
        place = resolve_device(device, flavor)
        is_text = signature.text_column is not None
        auto = _AUTO_TOKENS_GENERATING if signature.task == "generation" else _AUTO_TOKENS
        tokens = auto[place] if isinstance(batch_tokens, str) else batch_tokens
        return cls(
            device=place,
            dtype=resolve_dtype(dtype, place, is_text),
            batch_tokens=tokens if is_text else None,
            batch_rows=_auto_rows(place, flavor) if isinstance(batch_rows, str) else batch_rows,
        )

    @classmethod
    def from_spec(
        cls,
        spec: "InferenceSpec",
        signature: ModelSignature,
        device: str | None = None,
        flavor: str = "torch",
    ) -> "BatchPlan":
        """The plan that a pipeline file asks for.

        Args:
            spec: the pipeline's `inference` section.
            signature: of the model; text is cut by tokens, tabular rows by rows.
            device: instead of the section's.
            flavor: of the model.

        Raises:
            InferenceError: the device is absent.
        """
        return cls.of(
            signature, device or spec.device, spec.dtype, spec.batch_tokens, spec.batch_rows, flavor
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        return asdict(self)


def _auto_rows(device: str, flavor: str) -> int:
    return _ROWS_OF_FLAVOR.get(flavor, _AUTO_ROWS[device])


def shard_rows(asked: int | str, signature: ModelSignature, device: str = "cpu") -> int:
    """Rows of a shard: those asked for, or for `auto` what suits the model and the device.

    Libraries for trees start all threads for each batch: with 30 columns, shards of 8,192 rows took a
    quarter longer than shards of 262,144.
    """
    if not isinstance(asked, str):
        return asked
    if signature.text_column is not None:
        return _TEXT_SHARD_ROWS[device]
    least, most = _SHARD_ROWS
    return max(least, min(most, _SHARD_NUMBERS // len(signature.inputs)))


def cut(costs: np.ndarray, rows: np.ndarray, plan: BatchPlan) -> list[np.ndarray]:
    """Cut rows into batches, the longest first, so that a batch too large for the memory shows early.

    Args:
        costs: (all rows,) int64 tokens of each row of the shard; 1 for tabular rows.
        rows: (n,) int64 numbers of the rows to compute.
        plan: the budget.

    Returns:
        Row numbers of each batch; together they are `rows`. Tabular rows (all of cost 1) keep their order.
    """
    order = rows[np.argsort(-costs[rows], kind="stable")]
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(costs[order[start]]))
        fitting = plan.batch_rows if plan.batch_tokens is None else plan.batch_tokens // longest
        size = max(1, min(fitting, plan.batch_rows))
        batches.append(order[start : start + size])
        start += size
    return batches
