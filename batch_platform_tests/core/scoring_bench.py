"""One partition with features, ready to be scored without Dagster, again and again."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from batch_platform.core import featurizing, landing, scoring
from batch_platform.core.inference.engine import Engine
from batch_platform.core.models.registry import RegisteredVersion
from batch_platform.core.slice import Run, Slice, StageResult
from batch_platform.settings import Settings
from batch_platform_tests.mini import DAYS, Mini

DAY = DAYS[0]
ROWS = 20  # three shards of 8, 8 and 4 rows
OUTPUTS = ["row_key", "label", "score", "scores", "input_hash", "model_digest"]


class Bench:
    """One partition with features, ready to be scored."""

    def __init__(self, mini: Mini) -> None:
        self.mini = mini
        self.model = mini.register()
        self.scored: list[int] = []
        self.said: list[str] = []
        mini.write(DAY, ROWS)
        self.prepare()

    def prepare(self) -> None:
        landing.land_partition(self.slice())
        featurizing.featurize_partition(self.slice())

    def slice(self, run: str = "first", settings: Settings | None = None) -> Slice:
        partition = self.mini.spec.partitions.calendar().partition(DAY)
        return Slice(self.mini.spec, partition, settings or self.mini.settings, self.mini.folder, Run(run))

    def engine(self, model: RegisteredVersion | None = None) -> Engine:
        """A loaded engine that remembers the rows of each shard that it scores."""
        engine = scoring.load_engine(model or self.model, self.mini.spec, self.mini.settings.root)
        stream = engine.score_stream

        def counting(shards: Iterator[pa.Table], tolerated: int) -> Iterator[Any]:
            for result in stream(shards, tolerated):
                self.scored.append(result.outputs.num_rows)
                yield result

        engine.score_stream = counting  # type: ignore[method-assign]
        return engine

    def score(
        self,
        run: str = "first",
        model: RegisteredVersion | None = None,
        progress: Callable[[str], None] | None = None,
        redrive: bool = False,
        poison: Sequence[str] = (),
    ) -> StageResult:
        """Score; rows with keys in `poison` get NaN."""
        self.scored.clear()
        engine = self.engine(model)
        if poison:
            spoil(engine, poison)
        return scoring.score_partition(
            self.slice(run), model or self.model, engine, progress or self.said.append, redrive
        )

    def killed_after(self, shards: int, run: str = "first") -> None:
        """Score, and be interrupted when so many shards are in the ledger."""
        done = 0

        def interrupt(_line: str) -> None:
            nonlocal done
            done += 1
            if done == shards:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.score(run, progress=interrupt)

    def predictions(self) -> pl.DataFrame:
        frame = self.mini.table("predictions")
        return frame if frame.is_empty() else frame.sort("row_key")


def spoil(engine: Engine, keys: Sequence[str]) -> None:
    """Let the model give NaN for rows of these keys."""
    compute, prepare = engine._compute, engine._prepare
    spoiled: dict[int, list[int]] = {}

    def note(table: pa.Table) -> Any:
        shard = prepare(table)
        spoiled[id(shard)] = [n for n, key in enumerate(table["row_key"].to_pylist()) if key in keys]
        return shard

    def spoil(shard: Any) -> Any:
        forward = engine.predictor.forward

        def poisoned(prepared: Any, rows: Any) -> Any:
            raw = forward(prepared, rows)
            raw[[place for place, row in enumerate(rows) if row in spoiled[id(shard)]]] = float("nan")
            return raw

        engine.predictor.forward = poisoned  # type: ignore[method-assign]
        try:
            return compute(shard)
        finally:
            engine.predictor.forward = forward  # type: ignore[method-assign]

    engine._prepare, engine._compute = note, spoil  # type: ignore[method-assign]
