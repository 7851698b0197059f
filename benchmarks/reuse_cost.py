"""What it costs to score a partition again after 1 % of its rows changed, and whether `--rescore` leaves the others alone.

python -m benchmarks.reuse_cost                             # a cheap tabular network: a full run is really made
python -m benchmarks.reuse_cost --model email_triage        # a text model of the registry (alias champion)
python -m benchmarks.reuse_cost --rows 100000

With a text model the snapshot's outputs are made up, and a full run is taken for its computing alone, by a sample of the
same rows: the share is rather too high than too low. Afterwards a random 1 % of the rows is scored again by name, and the
rest is held against what stood before. CPU-seconds are of this process and all its threads.
"""

import argparse
import hashlib
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_platform.core import scoring, work
from batch_platform.core.data.lake import Slot
from batch_platform.core.data.staging import stage
from batch_platform.core.inference.engine import Scorer
from batch_platform.core.models.registry import Registry
from batch_platform.core.models.versions import RegisteredVersion
from batch_platform.core.provenance.fingerprint import input_hashes
from batch_platform.core.rescoring import rescore_rows
from batch_platform.core.slice import Run, Slice
from batch_platform.core.spec import PipelineSpec, parse_spec
from batch_platform.settings import Settings
from batch_platform_tests import tiny_models

SAMPLE = 1_000
BATCH = 16_384
WORDS = [
    f"{a}{b}" for a in ("con", "pre", "sub", "inter", "trans", "re") for b in ("form", "port", "act", "line")
]
Rows = Callable[[int, bool], Iterator[pa.RecordBatch]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", help="A text model of the root's registry. Default: a tabular network.")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        if arguments.model is not None:
            shutil.copytree(Settings.from_env().registry, folder / "registry")
        Bench(folder, arguments.model, arguments.rows).measure()
    finally:
        shutil.rmtree(folder)


class Bench:
    """One partition, scored, changed and scored again."""

    def __init__(self, folder: Path, text_model: str | None, rows: int) -> None:
        self.folder, self.rows, self.is_text = folder, rows, text_model is not None
        name = text_model or _register_tabular(folder)
        self.model: RegisteredVersion = Registry(folder).resolve(name, "champion")
        self.inputs = [column.name for column in self.model.signature.inputs]
        self.spec: PipelineSpec = parse_spec(
            {
                "partitions": {"start": "2026-01-01"},
                "source": {
                    "uri": "none-{partition}.csv",
                    "format": "csv",
                    "row_key": "id",
                    "columns": {"id": {"type": "string"}},
                },
                "model": {"name": name},
            },
            "bench",
        )
        self.engine: Scorer = scoring.load_engine(self.model, self.spec, folder)
        self.made = self._texts if self.is_text else _numbers

    def measure(self) -> None:
        self._commit_features(changed=False)
        if self.is_text:
            self._commit_snapshot()
            full = self._sampled()
            print(f"a full run's computing alone, by a sample of {SAMPLE} rows: {full:.0f} CPU-s")
        else:
            self._warm_up()
            full, _ = timed(lambda: self._score("first"))
            print(f"a full run over {self.rows} rows: {full:.1f} CPU-s")
        self._commit_features(changed=True)
        again, result = timed(lambda: self._score("second"))
        told = {
            name: result.metadata[name] for name in ("rows_scored", "rows_reused", "rows_equal_to_scored")
        }
        print(f"again after 1 % changed: {again:.1f} CPU-s, {again / full:.2%} of it; {told}")
        self._rescore()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"largest memory of the process: {memory:.0f} MiB")

    def _rescore(self) -> None:
        """Score 1 % again by name, and compare digests of all the other rows."""
        chance = np.random.default_rng(1)
        chosen = chance.choice(self.rows, self.rows // 100, replace=False)
        keys = pa.array([key_of(number) for number in sorted(chosen.tolist())])
        before = self._digest(frozenset(keys.to_pylist()))
        spent, told = timed(
            lambda: rescore_rows(self._slice("third"), keys, self.model, self.engine, lambda line: None)
        )
        same = before == self._digest(frozenset(keys.to_pylist()))
        print(
            f"--rescore of {told.rows} rows: {spent:.1f} CPU-s, {told.comparison.changed} changed; every byte of the "
            f"{self.rows - told.rows} others is as before: {same}"
        )

    def _digest(self, left_out: frozenset[str]) -> str:
        """Over all columns of the rows that stand, in order, without some."""
        digest = hashlib.sha256()
        for batch in self._slice("read").lake.batches("predictions", "2026-01-01"):
            kept = [key not in left_out for key in batch["row_key"].to_pylist()]
            rest = pa.Table.from_batches([batch]).filter(pa.array(kept)).combine_chunks()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rest.schema) as writer:
                writer.write_table(rest)
            digest.update(sink.getvalue())
        return digest.hexdigest()

    def _slice(self, run: str) -> Slice:
        partition = self.spec.partitions.calendar().partition("2026-01-01")
        return Slice(self.spec, partition, Settings(self.folder), self.folder, Run(run))

    def _score(self, run: str) -> Any:
        return scoring.score_partition(self._slice(run), self.model, self.engine, lambda line: None)

    def _warm_up(self) -> None:
        self.engine.score(pa.Table.from_batches(self.made(SAMPLE, False)))  # type: ignore[attr-defined]

    def _sampled(self) -> float:
        sample = pa.Table.from_batches(self.made(SAMPLE, True))
        self.engine.score(sample.slice(0, 100))  # type: ignore[attr-defined]
        spent, _ = timed(lambda: self.engine.score(sample))  # type: ignore[attr-defined]
        return spent / SAMPLE * self.rows

    # -- rows ---------------------------------------------------------------------------------------------

    def _texts(self, rows: int, changed: bool) -> Iterator[pa.RecordBatch]:
        """Texts of 41 words; with `changed`, one in a hundred is another."""
        chance = np.random.default_rng(0)
        words = np.array(WORDS)
        for start in range(0, rows, BATCH):
            size = min(BATCH, rows - start)
            chosen = words[chance.integers(0, len(words), (size, 40))]
            said = [" ".join([str(start + n), *line]) for n, line in enumerate(chosen)]
            if changed:
                said = [f"{text} again" if (start + n) % 100 == 0 else text for n, text in enumerate(said)]
            keys = [key_of(number) for number in range(start, start + size)]
            yield pa.RecordBatch.from_pydict({"row_key": keys, self.inputs[0]: said})

    # -- commits ------------------------------------------------------------------------------------------

    def _commit_features(self, changed: bool) -> None:
        here = self._slice("features")
        first = next(self.made(1, False))
        slot = Slot("features", here.key)
        attempt = here.lake.begin(slot)
        with here.workspace("features", attempt) as place:
            staged = stage(self.made(self.rows, changed), first.schema, place, "features")
            receipt = here.receipt(f"features_{changed}", recipe_version="r", quarantined=0)
            here.lake.commit(slot, staged, first.schema, receipt, attempt)

    def _commit_snapshot(self) -> None:
        """The rows of a run that scored everything, with made-up outputs."""
        here = self._slice("first")
        pinned = work.pin(here, self.model, self.engine)
        slot = Slot("predictions", here.key)
        attempt = here.lake.begin(slot)
        labels = pinned.signature.labels
        stamp = pa.scalar(here.started_at, pa.timestamp("us", "UTC"))

        def rows() -> Iterator[pa.RecordBatch]:
            for batch in here.lake.batches("features", here.key):
                size = batch.num_rows
                scores = np.full((size, len(labels)), 1 / len(labels), np.float32)
                values = {
                    "row_key": batch["row_key"],
                    "label": [labels[0]] * size,
                    "score": np.full(size, 1 / len(labels)),
                    "scores": pa.ListArray.from_arrays(
                        np.arange(size + 1, dtype=np.int32) * len(labels), scores.ravel()
                    ),
                    "model_version": [pinned.model.version] * size,
                    "model_digest": [pinned.model.digest] * size,
                    "recipe_version": ["r"] * size,
                    "input_hash": input_hashes(pa.Table.from_batches([batch]), self.inputs),
                    "run_id": ["first"] * size,
                    "scored_at": pa.repeat(stamp, size),
                }
                yield pa.RecordBatch.from_pydict(values, schema=pinned.schema)

        with here.workspace("predictions", attempt) as place:
            staged = stage(rows(), pinned.schema, place, "predictions")
            origins = [{"conditions": pinned.conditions, "run_ids": ["first"]}]
            what = {"work": pinned.identity, "origins": origins, "quarantined": 0, "quarantine_files": []}
            receipt = here.receipt(pinned.identity, **what)
            here.lake.commit(slot, staged, pinned.schema, receipt, attempt)


def _register_tabular(folder: Path) -> str:
    """The tests' tabular network: three columns, a few multiplications a row."""
    source = tiny_models.tabular_model(folder / "model")
    signature = tiny_models.TABULAR_CONFIG.signature()
    who = {"card": tiny_models.CARD, "by": "benchmark", "why": "to be measured"}
    return Registry(folder).register("tabular", source, "torch", signature, alias="champion", **who).name


def _numbers(rows: int, changed: bool) -> Iterator[pa.RecordBatch]:
    """Rows of three columns; with `changed`, one in a hundred is another."""
    chance = np.random.default_rng(0)
    for start in range(0, rows, BATCH):
        numbers = np.arange(start, min(start + BATCH, rows))
        amount = chance.random(len(numbers)) * 100
        if changed:
            amount[numbers % 100 == 0] += 1
        columns = {
            "row_key": [key_of(number) for number in numbers.tolist()],
            "amount": amount,
            "age": numbers % 60 + 20,
            "plan": np.array(["basic", "pro", "gold"])[numbers % 3],
        }
        yield pa.RecordBatch.from_pydict(columns)


def key_of(number: int) -> str:
    return f"key-{number:09d}"


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    """CPU-seconds of this process, all threads; and the result."""
    begun = time.process_time()
    result = what()
    return time.process_time() - begun, result


if __name__ == "__main__":
    main()
