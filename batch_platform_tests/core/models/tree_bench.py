"""What the tests of the flavors for trees share: real data as a table, and ways to put it through a model."""

import sys
from contextlib import redirect_stderr
from io import StringIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.inference import __main__ as command
from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.inference.engine import Engine
from batch_platform.core.models.predictor import load_predictor
from batch_platform.core.models.signature import InputColumn, ModelSignature


def data(kind):
    """Features (rows, columns) float64 with some missing, their names, and the target, of a data set of sklearn."""
    from sklearn import datasets

    load = {"binary": datasets.load_breast_cancer, "multiclass": datasets.load_wine,
            "regression": datasets.load_diabetes}[kind]  # fmt: skip
    found = load()
    values = found.data.copy()
    values[np.random.default_rng(0).random(values.shape) < 0.02] = np.nan
    names = [name.replace(" ", "_").replace("/", "_") for name in found.feature_names]
    return values, names, found.target


LABELS = {"binary": ("malignant", "benign"), "multiclass": ("first", "second", "third"), "regression": ()}


def signature(kind, names):
    inputs = tuple(InputColumn(name, "float64") for name in names)
    return ModelSignature(inputs, "regression" if kind == "regression" else "classification", LABELS[kind])


def table(values, names):
    """A shard; NaN becomes null in every other row."""
    columns = {"row_key": [f"k{row}" for row in range(len(values))]}
    for place, name in enumerate(names):
        column = values[:, place]
        columns[name] = pa.array(column, mask=np.isnan(column) & (np.arange(len(column)) % 2 == 0))
    return pa.table(columns)


def engine(folder, flavor, signature, batch_rows="auto"):
    plan = BatchPlan.of(signature, "cpu", batch_rows=batch_rows, flavor=flavor)
    return Engine(load_predictor(folder, flavor, signature), plan)


def numbers(outputs, signature):
    """What the engine gave, (rows, labels or 1) float64; scores are float32 there."""
    if signature.task == "regression":
        return outputs["prediction"].to_numpy()[:, None]
    return np.array(outputs["scores"].to_pylist())


def by_command(folder, flavor, rows, tmp_path, task="classification"):
    """Exit code, error text and output table of `python -m batch_platform.core.inference`."""
    pq.write_table(rows, tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    arguments = {"model": folder, "flavor": flavor, "task": task, "input": tmp_path / "in.parquet",
                 "output": output, "row-key": "row_key", "device": "cpu"}  # fmt: skip
    errors = StringIO()
    with redirect_stderr(errors):
        code = command.main([part for name, value in arguments.items() for part in (f"--{name}", str(value))])
    sys.stderr.flush()
    return code, errors.getvalue(), pq.read_table(output) if output.exists() else None
