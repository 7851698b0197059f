"""What a run of the engine cost and met, as numbers that can be added up.

It decides what is counted; who shows or stores it does not matter here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class RunStats:
    """Counts and seconds of one shard, or of many.

    Attributes:
        rows: rows given.
        failed_rows: of these, rows without an output.
        tokens: tokens computed, without padding; rows for tabular models.
        padded_tokens: tokens computed, with padding.
        batches: forward passes that succeeded.
        back_offs: batches that were halved because memory ran out.
        bisections: batches that were halved because computing failed.
        retries: batches that were tried again after an error that may pass.
        timeouts: batches that were stopped because they took too long.
        prepare_seconds: time in preparing rows; it may overlap with `forward_seconds`.
        forward_seconds: time on the device.
        finish_seconds: time in naming and checking outputs.
        wall_seconds: time until the results were there.
        peak_memory_bytes: most memory held so far by the process, or on the CUDA device.
    """

    rows: int = 0
    failed_rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    back_offs: int = 0
    bisections: int = 0
    retries: int = 0
    timeouts: int = 0
    prepare_seconds: float = 0.0
    forward_seconds: float = 0.0
    finish_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def padding_waste(self) -> float:
        """Share of the computed tokens that was padding."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def device_seconds_per_1000_rows(self) -> float:
        return 1000 * self.forward_seconds / self.rows if self.rows else 0.0

    def cost_per_1000_rows(self, hourly_rate: float) -> float:
        """What 1,000 rows cost, by the time until the results were there.

        Args:
            hourly_rate: price of an hour of the device.
        """
        return 1000 * self.wall_seconds / 3600 * hourly_rate / self.rows if self.rows else 0.0

    @classmethod
    def combine(cls, parts: Iterable["RunStats"]) -> "RunStats":
        """The parts as one: sums, and the highest peak."""
        held = list(parts)
        totals: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in held]
            # From the default, so that nothing summed up keeps the field's type.
            biggest = field.name == "peak_memory_bytes"
            totals[field.name] = max(values, default=0) if biggest else sum(values, start=field.default)  # type: ignore[arg-type]
        return cls(**totals)

    def to_dict(self) -> dict[str, int | float]:
        """The numbers by name, with those that follow from them."""
        derived = {
            "device_seconds_per_1000_rows": round(self.device_seconds_per_1000_rows, 4),
            "padding_waste": round(self.padding_waste, 4),
            "rows_per_second": round(self.rows_per_second, 2),
        }
        plain = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        return plain | derived

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunStats":
        """Read what `to_dict` gave, of a release that counted less too; derived numbers are computed again."""
        return cls(**{field.name: values.get(field.name, field.default) for field in fields(cls)})
