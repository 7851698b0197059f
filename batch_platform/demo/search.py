"""Finds the e-mails that are about something: `python -m batch_platform.demo.search "words"`.

Embeds the words with the model that made the embeddings, and multiplies: the vectors have the length 1, so a product is the
cosine. It reads the tables of `mail_search` with DuckDB, as anybody may.
"""

import argparse
import sys
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batch_platform.core.models.registry import Registry
from batch_platform.core.pipelines import defs_folder, find_pipeline
from batch_platform.core.scoring import load_engine
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import BatchPlatformError, UpstreamMissingError
from batch_platform.settings import Settings

PIPELINE = "mail_search"
_WIDTH = 100


@dataclass(frozen=True)
class Hit:
    """A piece of an e-mail, how like the words it is (cosine), and the day on which it came."""

    row_key: str
    day: str
    likeness: float
    text: str


def search(spec: PipelineSpec, settings: Settings, words: str, count: int) -> list[Hit]:
    """The pieces that are most like the words, one of each e-mail.

    Raises:
        ModelNotFoundError: the model was not registered yet.
        UpstreamMissingError: nothing was embedded yet.
    """
    model = Registry(settings.root).resolve(spec.model.name, spec.model.alias)
    with closing(load_engine(model, spec, settings.root)) as engine:
        (result,) = engine.score_stream(iter([pa.table({"row_key": ["words"], "text": [words]})]))
    asked = result.outputs["embedding"][0].as_py()
    keys, days, texts, vectors = _pieces(spec, settings)
    likeness = vectors @ np.array(asked, np.float32)  # (pieces,)
    hits: dict[str, Hit] = {}
    for place in np.argsort(-likeness, kind="stable").tolist():
        parent = keys[place].rpartition("#")[0]
        hits.setdefault(parent, Hit(keys[place], days[place], float(likeness[place]), texts[place]))
        if len(hits) == count:
            break
    return list(hits.values())


def _pieces(spec: PipelineSpec, settings: Settings) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """Keys, days and texts of all pieces, and their embeddings, (pieces, 384) float32."""
    import duckdb
    from deltalake import DeltaTable

    lake = settings.root / "lake" / spec.name
    if not (lake / "predictions" / "_delta_log").is_dir():
        raise UpstreamMissingError(f"{spec.name} has no predictions yet: run make demo-all first")
    connection = duckdb.connect()
    for name in ("predictions", "features"):
        connection.register(name, DeltaTable(str(lake / name)).to_pyarrow_dataset())
    found = connection.sql(
        "SELECT p.row_key, p.partition_key, f.text, p.embedding FROM predictions p JOIN features f "
        "USING (row_key, partition_key) ORDER BY partition_key, row_key"
    ).to_arrow_table()
    keys, days, texts, embeddings = (column.combine_chunks() for column in found.columns)
    vectors = embeddings.flatten().to_numpy(zero_copy_only=False).reshape(len(keys), -1)
    return keys.to_pylist(), days.to_pylist(), texts.to_pylist(), vectors


def main() -> int:
    """Print what was found; 2 where nothing can be searched."""
    parser = argparse.ArgumentParser(prog="python -m batch_platform.demo.search", description=search.__doc__)
    parser.add_argument("words")
    parser.add_argument("--count", type=int, default=5, help="how many e-mails (default: 5)")
    asked = parser.parse_args()
    try:
        spec = find_pipeline(defs_folder(), PIPELINE)
        hits = search(spec, Settings.from_env(), asked.words, asked.count)
    except BatchPlatformError as error:
        print(error, file=sys.stderr)
        return 2
    for hit in hits:
        text = " ".join(hit.text.split())
        print(f"{hit.likeness:.3f}  {hit.day}  {hit.row_key}\n       {text[:_WIDTH]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
