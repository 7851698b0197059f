"""Embeddings on a GPU, from Parquet to Parquet: by the engine and by what people would use instead.

The models have the sizes of MiniLM-L6 and BERT-base and random weights: speed does not depend on them. Texts are
passages of the demo's e-mails; `make-texts` writes them, so that a machine without the demo's data needs one file and a
tokenizer. All contenders run in one process, each warmed up first; useful tokens are counted once, by the tokenizer.
Needs torch with CUDA, transformers and pyarrow, and nothing of the platform but its core.

    python -m benchmarks.gpu make-texts texts.parquet
    python -m benchmarks.gpu run texts.parquet --tokenizer .demo_data/minilm/tokenizer.json
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

DATA = Path(__file__).resolve().parent.parent / ".demo_data"
MODELS: dict[str, dict[str, int]] = {
    "MiniLM-L6": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "BERT-base": {},
}
MAX_TOKENS = 512
# A "word" of more characters is an attachment.
LONGEST_WORD = 60
# Rows whose vectors are compared.
FEW = 256


def main() -> int:
    options = _options()
    if options.command == "make-texts":
        make_texts(options.file, options.rows)
        return 0
    with tempfile.TemporaryDirectory() as place:
        run(options, Path(place))
    return 0


# -- texts ------------------------------------------------------------------------------------------------


def make_texts(path: Path, rows: int) -> None:
    """Passages one after the other from all e-mails, and again from another beginning when they end."""
    draw = np.random.default_rng(0)
    words: list[str] = []
    for day in sorted((DATA / "email_triage" / "raw").glob("*.jsonl")):
        for line in day.open(encoding="utf-8"):
            email = json.loads(line)
            text = f"{email['subject']}\n{email['body']}"
            words += [word for word in text.split(" ") if len(word) <= LONGEST_WORD]
    if not words:
        raise SystemExit(f"{DATA}: no e-mails there: run `make demo` first")
    texts, start = [], 0
    for size in np.clip(draw.lognormal(np.log(33), 0.6, rows), 2, 330).astype(int):
        if start + size > len(words):
            start = int(draw.integers(0, 50))
        texts.append(" ".join(words[start : start + size]))
        start += size
    pq.write_table(pa.table({"id": np.arange(rows), "text": texts}), path, compression="zstd")


# -- contenders -------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, folder: Path) -> None:
    import torch

    peak = matmul_peak()
    print(
        f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}: bf16 matrix product of 8192 x 8192 x 8192: "
        f"{peak / 1e12:.0f} TFLOP/s"
    )
    table = pq.read_table(options.texts)
    parts = [
        pa.table({"id": pc.add(table["id"], len(table) * n), "text": table["text"]})
        for n in range(options.times)
    ]
    all_rows = folder / "all.parquet"
    pq.write_table(pa.concat_tables(parts), all_rows)
    few_rows = folder / "few.parquet"
    pq.write_table(table.slice(0, options.few), few_rows)
    lengths = np.array(_lengths(options.tokenizer, table["text"].to_pylist()))
    useful = {all_rows: int(lengths.sum()) * options.times, few_rows: int(lengths[: options.few].sum())}
    print(
        f"{len(table):,} texts, mean {lengths.mean():.0f} tokens, 95th percentile {np.percentile(lengths, 95):.0f}, "
        f"most {lengths.max()}; the engine reads them {options.times} times, the others {options.few:,} once\n"
    )
    print("| model | contender | useful tokens/s | of matmul peak | device busy | least cosine to float32 |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, sizes in MODELS.items():
        model = folder / name
        flop = make_model(model, sizes, options.tokenizer)
        expected = reference(model, table["text"].slice(0, FEW).to_pylist())
        for contender in options.contenders:
            work, batch = CONTENDERS[contender]
            source = all_rows if work is ours else few_rows
            rate, busy, found = timed(
                work, model, source, folder / "out.parquet", useful[source], batch or options.batch_tokens
            )
            cosine = (found * expected).sum(1).min()
            print(
                f"| {name} | {contender} | {rate:,.0f} | {rate * flop / peak:.0%} | {busy:.0%} | {cosine:.5f} |",
                flush=True,
            )


def timed(
    work: Callable[..., Callable[[Path, Path], None]],
    model: Path,
    source: Path,
    target: Path,
    tokens: int,
    batch: int | None,
) -> tuple[float, float, np.ndarray]:
    """Useful tokens a second, share of the time in which the device did anything, and the vectors of the first rows."""
    call = work(model, batch)
    warm = target.with_name("warm.parquet")
    pq.write_table(pq.read_table(source).slice(0, 40_000 if work is ours else 2000), warm)
    call(warm, target)
    with Busy() as busy:
        started = time.perf_counter()
        call(source, target)
        seconds = time.perf_counter() - started
    rows = pq.read_table(target).slice(0, FEW)["embedding"].combine_chunks()
    vectors = rows.flatten().to_numpy(zero_copy_only=False).reshape(FEW, -1)
    return tokens / seconds, busy.share, vectors


def ours(model: Path, batch_tokens: int | None) -> Callable[[Path, Path], None]:
    """What `python -m batch_platform.core.inference` does once the model is loaded."""
    from batch_platform.core.inference import __main__ as command
    from batch_platform.core.inference.batching import BatchPlan
    from batch_platform.core.inference.engine import Engine
    from batch_platform.core.models.predictor import SignatureRequest, describe, load_predictor

    signature = describe(model, "transformers", SignatureRequest(task="embedding"))
    plan = BatchPlan.of(signature, "cuda", batch_tokens=batch_tokens or "auto")
    predictor = load_predictor(model, "transformers", signature, plan.device, plan.dtype)
    engine = Engine(predictor, plan)
    print(f"<!-- {predictor.backend}, {plan} -->")

    def call(source: Path, target: Path) -> None:
        with pq.ParquetFile(source) as file:
            outcome = command._stream(file, file.schema_arrow.field("id"), engine, target)
        assert not outcome.failed_rows

    return call


def naive(model: Path, batch: int) -> Callable[[Path, Path], None]:
    """The loop of a first script: arrival order, batches of rows, padding to the longest."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    network = AutoModel.from_pretrained(model, local_files_only=True, dtype=torch.bfloat16).cuda().eval()

    def encode(texts: list[str]) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), batch):
                inputs = tokenizer(
                    texts[start : start + batch],
                    padding=True,
                    truncation=True,
                    max_length=MAX_TOKENS,
                    return_tensors="pt",
                ).to("cuda")
                hidden = network(**inputs).last_hidden_state.float()
                weights = inputs["attention_mask"].unsqueeze(-1).float()
                parts.append(_unit((hidden * weights).sum(1) / weights.sum(1)).cpu().numpy())
        return np.concatenate(parts)

    return _through_files(encode)


def pipeline(model: Path, batch: int) -> Callable[[Path, Path], None]:
    """`transformers.pipeline("feature-extraction")`; it gives a vector for each token, padding included."""
    import torch
    from transformers import pipeline as make

    extract = make("feature-extraction", model=str(model), batch_size=batch, device=0, dtype=torch.bfloat16)
    options = {"truncation": True, "max_length": MAX_TOKENS}

    def encode(texts: list[str]) -> np.ndarray:
        lengths = [len(ids) for ids in extract.tokenizer(texts, **options)["input_ids"]]
        found = extract(texts, tokenize_kwargs=options, return_tensors=True)
        means = [hidden[:, :size].float().mean(1) for hidden, size in zip(found, lengths, strict=True)]
        return _unit(torch.cat(means)).cpu().numpy()

    return _through_files(encode)


def sentence_transformers(model: Path, batch: int) -> Callable[[Path, Path], None]:
    """`SentenceTransformer.encode`; it sorts by characters."""
    from sentence_transformers import SentenceTransformer, models

    body = models.Transformer(str(model), max_seq_length=MAX_TOKENS)
    network = SentenceTransformer(
        modules=[body, models.Pooling(body.get_word_embedding_dimension())], device="cuda"
    ).bfloat16()

    def encode(texts: list[str]) -> np.ndarray:
        found = network.encode(
            texts,
            batch_size=batch,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        return found.float().cpu().numpy()

    return _through_files(encode)


# What makes a contender ready, and the rows of its batches; the engine has a budget of tokens.
CONTENDERS: dict[str, tuple[Callable[..., Callable[[Path, Path], None]], int | None]] = {
    "ours": (ours, None),
    "sentence-transformers": (sentence_transformers, 256),
    "naive loop": (naive, 32),
    "transformers pipeline": (pipeline, 32),
}


def _through_files(encode: Callable[[list[str]], np.ndarray]) -> Callable[[Path, Path], None]:
    def call(source: Path, target: Path) -> None:
        table = pq.read_table(source)
        rows = encode(table["text"].to_pylist())
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), pa.float32()), rows.shape[1])
        pq.write_table(pa.table({"id": table["id"], "embedding": vectors}), target)

    return call


# -- model, reference, peak -------------------------------------------------------------------------------


def make_model(folder: Path, sizes: dict[str, int], tokenizer: Path) -> float:
    """A model folder with random weights. Returns the FLOP of a token: the products with weights, twice each weight."""
    import torch
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(**sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer), model_max_length=MAX_TOKENS, **special
    ).save_pretrained(folder)
    modules = [
        {"type": "sentence_transformers.models." + kind} for kind in ("Transformer", "Pooling", "Normalize")
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    width, wide = config.hidden_size, config.intermediate_size
    return float(2 * config.num_hidden_layers * (4 * width * width + 2 * width * wide))


def reference(model: Path, texts: list[str]) -> np.ndarray:
    """The vectors in float32, one text at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    network = AutoModel.from_pretrained(model, local_files_only=True).cuda().eval()
    with torch.inference_mode():
        rows = []
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt").to("cuda")
            rows.append(_unit(network(**inputs).last_hidden_state.mean(1)).cpu().numpy()[0])
    return np.stack(rows)


def matmul_peak(size: int = 8192, rounds: int = 20) -> float:
    """FLOP/s of a bf16 matrix product of random numbers."""
    import torch

    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(rounds):
        left @ right
    end.record()
    torch.cuda.synchronize()
    return 2 * size**3 * rounds / (begin.elapsed_time(end) / 1000)


class Busy:
    """How much of the time the device computed anything, by NVIDIA's own counter, read every 50 ms."""

    def __enter__(self) -> "Busy":
        self._ended = threading.Event()
        self._shares: list[int] = []
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def share(self) -> float:
        # The counter looks back: the first readings are of the time before.
        return mean(self._shares[len(self._shares) // 5 :] or [0]) / 100

    def _watch(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        while not self._ended.wait(0.05):
            self._shares.append(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)


def _unit(rows: Any) -> Any:
    import torch

    return torch.nn.functional.normalize(rows, dim=1)


def _lengths(tokenizer: Path, texts: list[str]) -> list[int]:
    from tokenizers import Tokenizer

    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    reader.enable_truncation(MAX_TOKENS)
    return [len(encoding.ids) for encoding in reader.encode_batch_fast(texts)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make-texts", help="write the texts")
    make.add_argument("file", type=Path)
    make.add_argument("--rows", type=int, default=200_000)
    work = commands.add_parser("run", help="measure")
    work.add_argument("texts", type=Path)
    work.add_argument("--tokenizer", type=Path, required=True)
    work.add_argument("--times", type=int, default=4, help="how often the engine reads the texts")
    work.add_argument("--few", type=int, default=20_000, help="rows for the other contenders")
    work.add_argument("--contenders", nargs="*", choices=list(CONTENDERS), default=list(CONTENDERS))
    work.add_argument("--batch-tokens", type=int, help="budget of the engine's batches (default: its own)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
