"""Embeddings of real texts on a CPU, paragraphs of e-mails or whole ones, by the engine and by
what people would use instead.

Every contender is a process of its own that reads Parquet and writes Parquet. All run in turn, round after round, so
that what else the machine does hits all alike; the table has medians of the rounds, and medians of the rounds'
ratios. Start-up is measured with one row and taken off. Needs the data of `make demo`. Contenders that are not
installed are left out: `uv pip install sentence-transformers`, `uv pip install "ray[data]"`.

    python -m benchmarks.inference
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contenders import BATCH_ROWS, OTHERS_VARIABLE, lengths_of

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / ".demo_data"
# Products with weights, twice for each weight, that one token needs: 6 layers of 4 x 384 x 384 + 2 x 384 x 1536.
FLOP_PER_TOKEN = 2 * 6 * (4 * 384 * 384 + 2 * 384 * 1536)
# Contender -> the package that it needs.
OTHERS = {"naive": "torch", "pipeline": "transformers", "sentence-transformers": "sentence_transformers"}
OTHERS["ray-data"] = "ray"


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: of CPU, of all its threads.
        memory_bytes: most memory.
        peak: FLOP/s that one thread could do before and after it: a neighbour on the same core takes its share.
    """

    seconds: float
    memory_bytes: int
    peak: float


def main() -> int:
    options = _options()
    model = options.model
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = _texts(options.texts, options.rows)
        _write(folder / "all.parquet", texts)
        _write(folder / "one.parquet", texts[:1])
        lengths = np.array(lengths_of(model, texts))
        contenders = [each for each, package in OTHERS.items() if importlib.util.find_spec(package)]
        contenders += ["ours", *options.also]
        costs: dict[str, list[Cost]] = {name: [] for name in contenders}
        for name in contenders:  # the first start of all reads and compiles what later ones find
            _run(name, model, folder / "one.parquet", folder / "one.out.parquet", options.threads)
        for number in range(options.rounds):
            for name in contenders:
                costs[name].append(_work(name, model, folder, options.threads))
                print(f"round {number + 1}: {name}: {costs[name][-1].seconds:.1f} s", file=sys.stderr)
        _print_table(costs, lengths, texts, folder, options.threads)
    return 0


def _texts(kind: str, rows: int) -> list[str]:
    days = sorted((DATA / "email_triage" / "raw").glob("*.jsonl"))
    if not days:
        raise SystemExit(f"{DATA}: no e-mails there: run `make demo` first")
    emails = [json.loads(line) for day in days for line in day.open(encoding="utf-8")]
    texts = [f"{email['subject']}\n{email['body']}" for email in emails]
    if kind == "paragraphs":
        texts = [part for text in texts for part in re.split(r"\n\s*\n", text) if part.strip()]
    if rows > len(texts):
        raise SystemExit(f"there are {len(texts)} {kind}: --rows is too many")
    return [texts[place] for place in np.random.default_rng(0).choice(len(texts), rows, replace=False)]


def _write(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"id": np.arange(len(texts)), "text": texts}), path)


def _work(name: str, model: Path, folder: Path, threads: int) -> Cost:
    """The cost of all rows without the cost of starting."""
    start, _ = _run(name, model, folder / "one.parquet", folder / "one.out.parquet", threads)
    before = _peak(folder)
    whole, memory = _run(name, model, folder / "all.parquet", folder / f"{name}.out.parquet", threads)
    return Cost(whole - start, memory, (before + _peak(folder)) / 2)


def _run(name: str, model: Path, source: Path, target: Path, threads: int) -> tuple[float, int]:
    """CPU seconds and most memory of a contender's process."""
    words = [
        "--model",
        str(model),
        "--input",
        str(source),
        "--output",
        str(target),
        "--threads",
        str(threads),
    ]
    if name.startswith("ours"):
        own = ["--flavor", "transformers", "--task", "embedding", "--row-key", "id", "--text-column", "text"]
        dtype = name.partition(":")[2] or "auto"
        own += ["--device", "cpu", "--dtype", dtype, "--stats", str(target.with_suffix(".stats.json"))]
        words = ["batch_platform.core.inference", *words, *own]
    else:
        words = ["benchmarks.contenders", name, *words]
    count = str(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": count, "RAYON_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}
    environment["TOKENIZERS_PARALLELISM"] = "true"
    others = target.with_suffix(".others")
    others.unlink(missing_ok=True)  # of the contender before
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=HERE.parent,
        env={**environment, OTHERS_VARIABLE: str(others)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed:\n{errors.decode()[-2000:]}")
    told = json.loads(others.read_text()) if others.exists() else {"seconds": 0.0, "memory_bytes": 0}
    seconds = usage.ru_utime + usage.ru_stime + told["seconds"]
    return seconds, max(usage.ru_maxrss * 1024, told["memory_bytes"])


def _peak(folder: Path) -> float:
    """Fused multiply-adds in float32 of one thread at full width: FLOP/s."""
    program = folder / "fma_peak"
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-mprefer-vector-width=512"]
    wide = "avx512f" in Path("/proc/cpuinfo").read_text()
    source = str(HERE / "fma_peak.c")
    subprocess.run(["cc", *flags, f"-DWIDTH={16 if wide else 8}", source, "-o", str(program)], check=True)
    return float(subprocess.run([str(program)], capture_output=True, check=True, text=True).stdout) * 1e9


def _padding(name: str, lengths: np.ndarray, texts: list[str], folder: Path) -> float:
    """Share of padding: by the engine's own statistics, else in batches of rows in arrival order, or by characters."""
    if name.startswith("ours"):
        stats = json.loads((folder / f"{name}.out.stats.json").read_text())
        return float(stats["padding_waste"])
    order = np.arange(len(texts))
    if name == "sentence-transformers":
        order = np.argsort([-len(text) for text in texts], kind="stable")
    parts = [lengths[order[start : start + BATCH_ROWS]] for start in range(0, len(order), BATCH_ROWS)]
    return float(1 - lengths.sum() / sum(part.max() * len(part) for part in parts))


def _print_table(
    costs: dict[str, list[Cost]],
    lengths: np.ndarray,
    texts: list[str],
    folder: Path,
    threads: int,
) -> None:
    tokens = int(lengths.sum())
    peaks = [part.peak / 1e9 for parts in costs.values() for part in parts]
    print(
        f"{len(texts)} texts, {tokens} useful tokens (mean {lengths.mean():.0f}, 95th percentile "
        f"{np.percentile(lengths, 95):.0f}); {threads} threads; raw FMA peak of a thread "
        f"{min(peaks):.0f} to {max(peaks):.0f} GFLOP/s\n"
    )
    print("| contender | useful tokens per CPU-second | of raw FMA peak | speed of ours over it | padding | "
          "peak memory | least cosine to naive |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    expected = _vectors(folder / "naive.out.parquet")
    for name, parts in costs.items():
        rate = tokens / median(part.seconds for part in parts)
        share = median(tokens * FLOP_PER_TOKEN / part.seconds / part.peak for part in parts)
        ratio = median(other.seconds / own.seconds for other, own in zip(parts, costs["ours"], strict=True))
        padding = _padding(name, lengths, texts, folder)
        cosine = (expected * _vectors(folder / f"{name}.out.parquet")).sum(1).min()
        print(
            f"| {name} | {rate:,.0f} | {share:.0%} | {ratio:.2f} | {padding:.0%} | "
            f"{max(part.memory_bytes for part in parts) / 2**20:,.0f} MiB | {cosine:.5f} |"
        )


def _vectors(path: Path) -> np.ndarray:
    table = pq.read_table(path).sort_by("id")
    vectors = table["embedding"].combine_chunks()
    rows: np.ndarray = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", choices=["paragraphs", "emails"], default="paragraphs")
    parser.add_argument("--rows", type=int, default=5000, help="how many of them, drawn at random")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, default=DATA / "minilm", help="folder of MiniLM-L6")
    parser.add_argument(
        "--also", nargs="*", default=[], help="more ways of ours by numeric type, such as ours:bfloat16"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
