"""`python -m batch_platform.core.inference`: one Parquet file through one model folder, by itself.

It needs pyarrow and the libraries of the model's flavor, nothing else of the platform. Rows are read, scored and written
a shard at a time. Exit codes: 0 all rows scored; 1 some rows failed (the others are in the output, the
failures on standard error and in --stats); 2 wrong usage or input, one line on standard error.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch_platform.core.inference.batching import BatchPlan, shard_rows
from batch_platform.core.inference.computing import BATCH_TIMEOUT, Patience
from batch_platform.core.inference.engine import KEY, Engine, RowFailure, ShardResult
from batch_platform.core.inference.progress import ProgressMeter
from batch_platform.core.inference.stats import RunStats
from batch_platform.core.models.history import History
from batch_platform.core.models.predictor import SIGNATURE_FILE, SignatureRequest, describe, load_predictor
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.models.versions import FILES, RECORD, differences, read_version
from batch_platform.errors import BatchPlatformError, ModelError, SignatureError, SourceError

SHARD_BYTES = 64 * 2**20
_READ_ROWS = 512  # texts
_READ_NUMBERS = 65_536
_PROGRESS_SECONDS = 10.0
_SHOWN_FAILURES = 20
_LISTED_FAILURES = 1000


@dataclass
class _Outcome:
    """What is counted while the file streams through."""

    stats: list[RunStats] = field(default_factory=list)
    failures: list[RowFailure] = field(default_factory=list)
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, failure: RowFailure) -> None:
        self.causes[failure.error_type] += 1
        if len(self.failures) < _LISTED_FAILURES:
            self.failures.append(failure)

    @property
    def failed_rows(self) -> int:
        return sum(self.causes.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        # Read by the tokenizers and the OpenMP runtime when they start, so before torch is imported.
        os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(options.threads)
    try:
        return _run(options)
    except (BatchPlatformError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201 -- a command speaks
        return 2


def _run(options: argparse.Namespace) -> int:
    folder, signature = _model(options)
    if options.threads is not None and options.flavor in ("transformers", "torch"):
        import torch

        torch.set_num_threads(options.threads)
    batch_tokens = "auto" if options.batch_tokens is None else options.batch_tokens
    plan = BatchPlan.of(signature, options.device, options.dtype, batch_tokens, flavor=options.flavor)
    with _open(options.input) as source:
        key = _key_field(source, options)
        signature.check_features(source.schema_arrow)
        patience = Patience(batch_timeout=options.batch_timeout)
        predictor = load_predictor(folder, options.flavor, signature, plan.device, plan.dtype)
        outcome = _stream(source, key, Engine(predictor, plan, patience), options.output)
    _report(outcome, plan, options)
    return 1 if outcome.failed_rows else 0


def _model(options: argparse.Namespace) -> tuple[Path, ModelSignature]:
    """The folder with the model's files, and its signature; also of a version's folder in a registry."""
    folder: Path = options.model
    request = SignatureRequest(
        task=options.task, text_column=options.text_column, max_new_tokens=options.max_new_tokens
    )
    if (folder / RECORD).is_file() and (folder / SIGNATURE_FILE).is_file():
        files, signature = _registered(folder.resolve())
        if signature.task != options.task:
            raise SignatureError(f"{folder}: is registered for {signature.task}, not {options.task}")
        return files, signature
    return folder, describe(folder, options.flavor, request)


def _registered(folder: Path) -> tuple[Path, ModelSignature]:
    """The files of a version's folder, compared with their digests, and its signature; a suspended version is refused."""
    history = History.read(folder.parent)
    entry = history.registered.get(folder.name)
    if entry is not None:
        version = read_version(folder, folder.parent.name, entry, cache=folder)
        version = replace(version, suspended=history.suspensions.get(folder.name))
        return version.checked_folder(), version.signature
    # A copy away from its registry: its own record is all there is to compare with.
    try:
        recorded = dict(json.loads((folder / RECORD).read_bytes())["files"])
    except (ValueError, KeyError, TypeError):
        raise ModelError(
            f"{folder / RECORD}: is not as the registry wrote it; copy the version again"
        ) from None
    for name, problem in differences(folder / FILES, recorded):
        raise ModelError(f"{folder / FILES / name} {problem} since it was registered; copy the version again")
    return folder / FILES, ModelSignature.read(folder / SIGNATURE_FILE)


def _open(path: Path) -> pq.ParquetFile:
    try:
        # Pages are streamed; by default Arrow would fetch the whole file ahead and hold it.
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path}: cannot be read as Parquet: {error}") from None


def _key_field(source: pq.ParquetFile, options: argparse.Namespace) -> pa.Field:
    schema = source.schema_arrow
    if schema.names.count(options.row_key) != 1:
        raise SourceError(
            f"{options.input}: has no column {options.row_key!r} to be the row key; "
            f"it has {', '.join(schema.names)}"
        )
    return schema.field(options.row_key)


def _stream(source: pq.ParquetFile, key: pa.Field, engine: Engine, output: Path) -> _Outcome:
    """Score shard by shard into a file beside `output`, which takes its place when complete."""
    signature = engine.predictor.signature
    if key.name in signature.output_schema().names:
        raise SourceError(f"the row key column {key.name!r} has the name of an output column: rename it")
    outcome = _Outcome()
    keys: deque[pa.ChunkedArray] = deque()
    schema = pa.schema([pa.field(key.name, key.type), *signature.output_schema()])
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    # Labels repeat; keys, scores and vectors do not, and a dictionary of them is made in vain.
    repeating = [field.name for field in signature.output_schema() if pa.types.is_string(field.type)]
    meter, told = ProgressMeter(source.metadata.num_rows), time.monotonic()
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=repeating) as writer:
            for result in engine.score_stream(_shards(source, key.name, engine, keys)):
                writer.write_table(_with_keys(result, keys.popleft(), schema, outcome))
                meter.scored(result.stats)
                if time.monotonic() - told >= _PROGRESS_SECONDS:
                    told = time.monotonic()
                    print(meter.line(), file=sys.stderr)  # noqa: T201 -- a command speaks
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return outcome


def _shards(
    source: pq.ParquetFile, key: str, engine: Engine, keys: deque[pa.ChunkedArray]
) -> Iterator[pa.Table]:
    """Shards keyed by row number, as the file's own keys may be of any type; these go to `keys`."""
    signature = engine.predictor.signature
    columns = list(dict.fromkeys([key, *(column.name for column in signature.inputs)]))
    read = _READ_NUMBERS if signature.text_column is None else _READ_ROWS
    for table in _tables(source, columns, shard_rows("auto", signature, engine.plan.device), read):
        keys.append(table[key])
        numbers = pa.array([str(number) for number in range(table.num_rows)], pa.string())
        features = table.select([column.name for column in signature.inputs])
        yield features.append_column(KEY, numbers)


def _tables(source: pq.ParquetFile, columns: list[str], most_rows: int, read_rows: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = size = 0
    try:
        for batch in source.iter_batches(batch_size=read_rows, columns=columns):
            held.append(batch)
            rows += batch.num_rows
            size += batch.nbytes
            if rows >= most_rows or size >= SHARD_BYTES:
                yield pa.Table.from_batches(held)
                held, rows, size = [], 0, 0
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"the input cannot be read to its end: {error}") from None
    if rows:
        yield pa.Table.from_batches(held)


def _with_keys(result: ShardResult, keys: pa.ChunkedArray, schema: pa.Schema, outcome: _Outcome) -> pa.Table:
    outcome.stats.append(result.stats)
    for failure in result.failures:
        own = str(keys[int(failure.row_key)].as_py())
        outcome.add(RowFailure(own, failure.error_type, failure.message))
    rows = pc.cast(result.outputs[KEY], pa.int64())
    own_keys = keys.take(rows)
    outputs = result.outputs
    if own_keys.null_count:
        for _ in range(own_keys.null_count):
            outcome.add(RowFailure("null", "NullRowKey", f"column {schema.names[0]!r} is null"))
        outputs, own_keys = outputs.filter(own_keys.is_valid()), own_keys.drop_null()
    return pa.table([own_keys, *outputs.drop_columns([KEY]).columns], schema=schema)


def _report(outcome: _Outcome, plan: BatchPlan, options: argparse.Namespace) -> None:
    for failure in outcome.failures[:_SHOWN_FAILURES]:
        print(f"row {failure.row_key}: {failure.error_type}: {failure.message}", file=sys.stderr)  # noqa: T201
    if outcome.failed_rows > _SHOWN_FAILURES:
        print(f"{outcome.failed_rows} rows failed: {dict(outcome.causes)}", file=sys.stderr)  # noqa: T201
    if options.stats is not None:
        stats = RunStats.combine(outcome.stats).to_dict() | {
            "failed_rows": outcome.failed_rows,
            "causes": dict(outcome.causes),
            "failures": [vars(failure) for failure in outcome.failures],
            "plan": plan.to_dict(),
        }
        options.stats.write_text(json.dumps(stats, indent=1) + "\n", "utf-8")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help shows the usage)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m batch_platform.core.inference", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with the model's files")
    parser.add_argument("--flavor", required=True, help="transformers, torch, lightgbm, xgboost or onnx")
    parser.add_argument(
        "--task",
        required=True,
        choices=["embedding", "classification", "regression", "generation", "ranking"],
    )
    parser.add_argument("--input", type=Path, required=True, help="Parquet file to score")
    parser.add_argument("--output", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--row-key", required=True, help="column that identifies a row; kept under its name")
    parser.add_argument("--text-column", help="column that a text model reads (default: text)")
    parser.add_argument(
        "--max-new-tokens", type=_positive, help="generation: tokens that a text may get (64)"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--batch-tokens", type=_positive, help="token budget of a batch (default: by device)")
    parser.add_argument(
        "--batch-timeout", type=_seconds, default=BATCH_TIMEOUT, help="seconds that one batch may take (600)"
    )
    parser.add_argument("--threads", type=_positive, help="CPU threads (default: all)")
    parser.add_argument("--stats", type=Path, help="JSON file to write counts, timings and failures to")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, up to a day")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
