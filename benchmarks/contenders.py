"""Ways in which people score texts, each a whole program from Parquet to Parquet. Run by `benchmarks.inference`.

Embeddings with mean pooling, normalised; input columns `id` and `text`, output columns `id` and `embedding`.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 32
# Names the file for what processes other than the contender's own took.
OTHERS_VARIABLE = "BENCHMARK_OTHERS"
MAX_TOKENS = 512


def naive(model: Path, texts: list[str]) -> np.ndarray:
    """The loop of a first script: arrival order, batches of rows, padding to the longest."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    network = AutoModel.from_pretrained(model, local_files_only=True).eval()
    parts = []
    with torch.inference_mode():
        for batch in _batches(texts):
            inputs = tokenizer(
                batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            hidden = network(**inputs).last_hidden_state
            parts.append(_mean(hidden, inputs["attention_mask"]))
    return np.concatenate(parts)


def pipeline(model: Path, texts: list[str]) -> np.ndarray:
    """`transformers.pipeline("feature-extraction")`; it gives a vector for each token, padding included."""
    from transformers import pipeline as make

    extract = make("feature-extraction", model=str(model), batch_size=BATCH_ROWS)
    options = {"truncation": True, "max_length": MAX_TOKENS}
    found = extract(texts, tokenize_kwargs=options, return_tensors=True)
    lengths = iter(lengths_of(model, texts))
    rows = [hidden[0, : next(lengths)].mean(0).numpy() for hidden in found]
    return _normalised(np.stack(rows))


def sentence_transformers(model: Path, texts: list[str]) -> np.ndarray:
    """`SentenceTransformer.encode`; it sorts by characters."""
    from sentence_transformers import SentenceTransformer, models

    body = models.Transformer(str(model), max_seq_length=MAX_TOKENS)
    network = SentenceTransformer(
        modules=[body, models.Pooling(body.get_word_embedding_dimension())], device="cpu"
    )
    found = network.encode(texts, batch_size=BATCH_ROWS, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(found)


def ray_data(model: Path, texts: list[str]) -> np.ndarray:
    """`ray.data.map_batches` with one actor around the naive loop."""
    import ray

    class Actor:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"place": batch["place"], "embedding": naive(model, list(batch["text"]))}

    rows = ray.data.from_items([{"place": place, "text": text} for place, text in enumerate(texts)])
    found = rows.map_batches(Actor, batch_size=1024, concurrency=1).take_all()
    _tell_of_others()
    return np.stack([row["embedding"] for row in sorted(found, key=lambda row: row["place"])])


def _tell_of_others() -> None:
    """Write down what other processes than this one took so far: Ray's outlive it, and nobody waits for them."""
    import psutil

    others = psutil.Process().children(recursive=True)
    seconds = sum(sum(each.cpu_times()[:4]) for each in others)
    memory = max(each.memory_info().rss for each in others)
    Path(os.environ[OTHERS_VARIABLE]).write_text(json.dumps({"seconds": seconds, "memory_bytes": memory}))


CONTENDERS: dict[str, Callable[[Path, list[str]], np.ndarray]] = {
    "naive": naive,
    "pipeline": pipeline,
    "sentence-transformers": sentence_transformers,
    "ray-data": ray_data,
}


def lengths_of(model: Path, texts: list[str]) -> list[int]:
    """Tokens of each text, as many as the model looks at."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]


def _batches(texts: list[str]) -> Iterator[list[str]]:
    return (texts[start : start + BATCH_ROWS] for start in range(0, len(texts), BATCH_ROWS))


def _mean(hidden: Any, mask: Any) -> np.ndarray:
    weights = mask.unsqueeze(-1).float()
    return _normalised(((hidden * weights).sum(1) / weights.sum(1)).numpy())


def _normalised(rows: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    table = pq.read_table(options.input)
    rows = CONTENDERS[options.contender](options.model, table["text"].to_pylist())
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), pa.float32()), rows.shape[1])
    pq.write_table(pa.table({"id": table["id"], "embedding": vectors}), options.output)


if __name__ == "__main__":
    main()
