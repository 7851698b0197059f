"""Tabular flavors from an Arrow table: the library's own predict call against our engine, side by side.

python -m benchmarks.tabular_flavors                # 1,000,000 rows of 30 columns
python -m benchmarks.tabular_flavors --rows 100000 --rounds 3

Both begin with the table and end with named results in memory: the library's with its array of answers, the
engine's with keyed label, score and scores of every row, each answer checked. Rounds alternate; the ratio is
the median of the rounds' ratios, so that a slow moment of the machine meets both.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import lightgbm
import numpy as np
import onnxruntime
import pyarrow as pa
import xgboost

from batch_platform.core.inference.batching import BatchPlan, shard_rows
from batch_platform.core.inference.engine import Engine
from batch_platform.core.models.predictor import load_predictor
from batch_platform.core.models.signature import InputColumn, ModelSignature

COLUMNS = 30
NAMES = [f"feature_{place}" for place in range(COLUMNS)]
SIGNATURE = ModelSignature(
    tuple(InputColumn(name, "float64") for name in NAMES), "classification", ("no", "yes"), "yes"
)
Bare = Callable[[], np.ndarray]


def rows_of(count: int) -> pa.Table:
    random = np.random.default_rng(0)
    columns = {name: random.normal(size=count) for name in NAMES}
    return pa.table({"row_key": pa.array(np.arange(count)).cast(pa.string()), **columns})


def training_rows() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    values = random.normal(size=(20_000, COLUMNS))
    return values, (values[:, :5].sum(axis=1) + random.normal(size=len(values)) > 0).astype(int)


def as_matrix(table: pa.Table, dtype: type) -> np.ndarray:
    return np.column_stack([table[name].to_numpy().astype(dtype, copy=False) for name in NAMES])


def with_lightgbm(folder: Path, table: pa.Table) -> Bare:
    values, target = training_rows()
    data = lightgbm.Dataset(values, target, feature_name=NAMES)
    lightgbm.train({"objective": "binary", "verbosity": -1}, data, 100).save_model(folder / "model.txt")
    booster = lightgbm.Booster(model_file=folder / "model.txt")
    return lambda: booster.predict(as_matrix(table, np.float64))


def with_xgboost(folder: Path, table: pa.Table) -> Bare:
    values, target = training_rows()
    data = xgboost.DMatrix(values, target, feature_names=NAMES)
    xgboost.train({"objective": "binary:logistic"}, data, 100).save_model(folder / "model.json")
    booster = xgboost.Booster(model_file=folder / "model.json")
    return lambda: booster.inplace_predict(as_matrix(table, np.float32), validate_features=False)


def with_onnx(folder: Path, table: pa.Table) -> Bare:
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier

    values, target = training_rows()
    model = GradientBoostingClassifier(n_estimators=100, max_depth=5, subsample=0.3).fit(
        values, np.array(SIGNATURE.labels)[target]
    )
    exported = to_onnx(model, values[:1].astype(np.float32), options={"zipmap": False})
    (folder / "model.onnx").write_bytes(exported.SerializeToString())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return lambda: session.run(["probabilities"], {"X": as_matrix(table, np.float32)})[0][:, 1]


MAKERS = {"lightgbm": with_lightgbm, "xgboost": with_xgboost, "onnx": with_onnx}


def by_engine(engine: Engine, table: pa.Table, size: int) -> np.ndarray:
    shards = (table.slice(start, size) for start in range(0, table.num_rows, size))
    results = list(engine.score_stream(shards))
    assert not any(result.failures for result in results)
    return np.concatenate([result.outputs["score"].to_numpy() for result in results])


def compare(flavor: str, table: pa.Table, rounds: int, sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bare = MAKERS[flavor](folder, table)
        plan = BatchPlan.of(SIGNATURE, "cpu", flavor=flavor)
        engine = Engine(load_predictor(folder, flavor, SIGNATURE, plan.device, plan.dtype), plan)
        difference = np.abs(bare() - by_engine(engine, table, sizes[0])).max()
        for size in sizes:
            times = [
                (timed(bare), timed(lambda size=size: by_engine(engine, table, size))) for _ in range(rounds)
            ]
            own, ours = (median(values) for values in zip(*times, strict=True))
            ratio = median(second / first for first, second in times)
            print(
                f"| {flavor} | {size:,} | {own:.2f} | {ours:.2f} | {ratio:.3f} | {difference:.1e} |",
                flush=True,
            )


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--flavor", choices=MAKERS, action="append", help="default: all")
    parser.add_argument(
        "--shard-rows", type=int, action="append", help="default: as inference.shard_rows: auto"
    )
    arguments = parser.parse_args()
    table = rows_of(arguments.rows)
    sizes = arguments.shard_rows or [shard_rows("auto", SIGNATURE)]
    print(f"{arguments.rows:,} rows of {COLUMNS} columns, {arguments.rounds} rounds\n")
    print("| flavor | rows of a shard | library, s | engine, s | ratio | largest difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for flavor in arguments.flavor or MAKERS:
        compare(flavor, table, arguments.rounds, sizes)


if __name__ == "__main__":
    main()
