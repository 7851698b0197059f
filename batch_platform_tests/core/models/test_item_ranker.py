"""Rankings by the flavor `torch`: lists are the best of the catalogue, and folders that say something else are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batch_platform.core.models.item_ranker_config import ItemRankerConfig, bags
from batch_platform.core.models.outputs import bad_rows, ranking_faults
from batch_platform.core.models.predictor import SignatureRequest, check_folder, describe, load_predictor
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.errors import ModelError, SignatureError
from batch_platform_tests import tiny_models

CONFIG = tiny_models.RANKER_CONFIG
SIGNATURE = CONFIG.signature()
ROWS = pa.RecordBatch.from_pydict(
    {
        "recent": ["milk", None, "milk milk bread", "", "unknown eggs"],
        "history": ["milk bread", None, "eggs  tea", "tea", "tea tea tea"],
    }
)


def test_a_column_of_items_is_a_bag_of_them() -> None:
    recent, history = bags(ROWS, CONFIG).columns
    names = np.array(CONFIG.items)
    assert list(zip(recent.rows.tolist(), names[recent.items].tolist(), strict=True)) == [
        (0, "milk"),
        (2, "milk"),
        (2, "bread"),
        (4, "eggs"),
    ]
    assert recent.weights == pytest.approx([1, 2, 1, 1])
    assert history.rows.tolist() == [0, 0, 2, 2, 3, 4]
    assert bags(ROWS, CONFIG).take(np.array([4, 1, 0])).columns[1].rows.tolist() == [0, 2, 2]


def test_the_lists_are_the_best_of_the_catalogue(tmp_path: Path) -> None:
    """Against the same sums in numpy, in any order of the rows and in batches of any size."""
    folder = tiny_models.item_ranker(tmp_path / "m")
    predictor = load_predictor(folder, "torch", SIGNATURE)
    weights = {name: value.detach().numpy() for name, value in predictor.model.named_parameters()}  # type: ignore[attr-defined]
    chances = np.tile(weights["popularity"], (5, 1)).astype(np.float64)
    for place, name in enumerate(CONFIG.columns):
        for row, text in enumerate(ROWS[name].to_pylist()):
            counts = np.array([(text or "").split().count(item) for item in CONFIG.items])
            chances[row] += (
                counts * weights["again"][place] + counts @ weights[f"read.{place}"] @ weights["suggest"]
            )
    order = np.argsort(-chances, axis=1)[:, :2]
    prepared = predictor.prepare(ROWS)
    found = predictor.finish(predictor.forward(prepared, np.arange(5)))
    assert found["items"].to_pylist() == [[CONFIG.items[item] for item in row] for row in order]
    wanted = np.take_along_axis(chances, order, axis=1).clip(0, 1)
    assert np.array(found["item_scores"].to_pylist()) == pytest.approx(wanted, abs=1e-5)
    assert found["label"].to_pylist() == [items[0] for items in found["items"].to_pylist()]
    assert found["score"].to_pylist() == [scores[0] for scores in found["item_scores"].to_pylist()]
    for rows in ([3], [4, 0, 2]):
        part = predictor.finish(predictor.forward(prepared, np.array(rows)))
        assert part["items"].to_pylist() == [found["items"][row].as_py() for row in rows]
    assert predictor.finish(predictor.forward(prepared, np.array([], np.int64))).num_rows == 0


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    import torch

    predictor = load_predictor(tiny_models.item_ranker(tmp_path / "m"), "torch", SIGNATURE)
    with torch.no_grad():
        predictor.model.again[0, CONFIG.items.index("milk")] = float("nan")  # type: ignore[attr-defined]
    raw = predictor.forward(predictor.prepare(ROWS.slice(1, 2)), np.arange(2))
    assert bad_rows(raw, predictor.finish(raw), SIGNATURE) == dict.fromkeys(
        range(2), "the model's output is NaN or infinite"
    )


@pytest.mark.parametrize(
    ("items", "scores", "wrong"),
    [
        (["a", "b"], [0.5, 0.3], None),
        (["a"], [0.5], "items are not 2, each with a score"),
        (["a", "b"], [0.5], "items are not 2, each with a score"),
        (None, None, "items are not 2, each with a score"),
        (["a", "a"], [0.5, 0.3], "an item is there twice, or is none"),
        (["a", None], [0.5, 0.3], "an item is there twice, or is none"),
        (["a", "b"], [0.3, 0.5], "item_scores are not probabilities, the best first"),
        (["a", "b"], [1.5, 0.5], "item_scores are not probabilities, the best first"),
        (["a", "b"], [0.5, float("nan")], "item_scores are not probabilities, the best first"),
    ],
)
def test_lists_that_are_no_ranking(items: Any, scores: Any, wrong: str | None) -> None:
    good = (["x", "y"], [0.6, 0.1])
    found = ranking_faults(
        pa.array([good[0], items], pa.list_(pa.string())),
        pa.array([good[1], scores], pa.list_(pa.float32())),
        SIGNATURE,
    )
    assert [name for name, is_bad in found if is_bad[1]] == ([] if wrong is None else [wrong])
    assert not any(is_bad[0] for _, is_bad in found)


def test_the_folder_describes_itself(tmp_path: Path) -> None:
    folder = tiny_models.item_ranker(tmp_path / "m")
    assert describe(folder, "torch", SignatureRequest()) == SIGNATURE
    assert ModelSignature.from_dict(SIGNATURE.to_dict()) == SIGNATURE
    with pytest.raises(SignatureError, match="positive_class has no meaning for a ItemRanker"):
        describe(folder, "torch", SignatureRequest(positive_class="milk"))
    with pytest.raises(SignatureError, match="says task ranking, not classification"):
        describe(folder, "torch", SignatureRequest(task="classification"))
    other = ModelSignature((InputColumn("recent", "string"),), "ranking", top_k=2)
    with pytest.raises(SignatureError, match="a ranking of the 2 best by recent, history"):
        check_folder(folder, "torch", other)
    with pytest.raises(SignatureError, match="onnx model gives no ranking"):
        check_folder(folder, "onnx", SIGNATURE)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"items": ["milk", "milk"]}, "distinct names without spaces"),
        ({"items": ["milk", "oat milk"]}, "distinct names without spaces"),
        ({"top_k": 9}, "top_k is 9"),
        ({"columns": []}, "one or more columns"),
        ({"factors": 0}, "factors is no whole number"),
        ({"class_name": "Anything"}, "is not allowed"),
        ({"more": 1}, "expected an object with the fields"),
    ],
)
def test_a_config_that_is_wrong_is_refused(tmp_path: Path, change: dict[str, Any], wrong: str) -> None:
    folder = tiny_models.item_ranker(tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(ModelError, match=wrong):
        load_predictor(folder, "torch", SIGNATURE)


def test_weights_of_another_catalogue_are_refused(tmp_path: Path) -> None:
    folder = tiny_models.item_ranker(tmp_path / "m")
    ItemRankerConfig(CONFIG.columns, (*CONFIG.items, "salt"), CONFIG.factors, CONFIG.top_k).write(folder)
    with pytest.raises(ModelError, match="cannot be loaded as a torch model"):
        load_predictor(folder, "torch", SIGNATURE)
