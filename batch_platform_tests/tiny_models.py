"""Models that are built on the fly in a fraction of a second, for any test that needs a real one."""

import json
from pathlib import Path

import pyarrow as pa

from batch_platform.core.models.item_ranker_config import ItemRankerConfig
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.models.tabular import Standardisation, TabularConfig

CARD = {
    "intended_use": "tests of the platform",
    "training_data": "none: the weights are random",
    "metrics": {"accuracy": None},
    "owner": "team:tests",
    "validator": "team:validation",
    "expires": "9999-12-31",
}
LABELS = ("ham", "spam")
WORDS = [
    "a",
    "the",
    "money",
    "free",
    "meeting",
    "now",
    "click",
    "tomorrow",
    "win",
    "report",
    "lunch",
    "offer",
    "dear",
    "friend",
    "see",
    "you",
    "at",
]
TEXT_SIGNATURE = ModelSignature(
    inputs=(InputColumn("text", "string"),),
    task="classification",
    labels=LABELS,
    positive_class="spam",
    text_column="text",
    max_tokens=32,
)
TABULAR_CONFIG = TabularConfig(
    numeric=("amount", "age"),
    categorical={"plan": ("basic", "pro")},
    task="classification",
    labels=("stays", "churned"),
    hidden=(8,),
    embedding_size=4,
)

RANKER_CONFIG = ItemRankerConfig(("recent", "history"), ("milk", "bread", "eggs", "tea"), factors=3, top_k=2)


def item_ranker(folder: Path, seed: int = 0) -> Path:
    """A ranker of four items with random weights; returns `folder`."""
    import torch

    from batch_platform.core.models.item_ranker import ItemRanker

    torch.manual_seed(seed)
    model = ItemRanker(RANKER_CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save(folder)
    return folder


def text_classifier(folder: Path, labels: tuple[str, ...] = LABELS, seed: int = 0, **shape: float) -> Path:
    """A 2-layer BERT classifier with a WordPiece tokenizer: 0.2 s, 124 KB; `shape` makes it larger. Returns `folder`."""
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    config = _bert_config(**shape)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: place for place, label in enumerate(labels)}
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.bias[0] += 0.9  # so that both of two labels occur
    return _save(model, folder)


def text_embedder(folder: Path, seed: int = 0) -> Path:
    """A 2-layer BERT body with a tokenizer, for embeddings of length 32. Returns `folder`."""
    import torch
    from transformers import BertModel

    torch.manual_seed(seed)
    return _save(BertModel(_bert_config()), folder)


def pooled_classifier(folder: Path, labels: tuple[str, ...] = LABELS, seed: int = 0) -> Path:
    """A BERT body, mean pooling, and a linear head in `head.safetensors`. Returns `folder`."""
    import torch
    from safetensors.torch import save_file

    text_embedder(folder, seed)
    head = {"weight": torch.randn(len(labels), 32) * 0.5, "bias": torch.zeros(len(labels))}
    save_file(head, folder / "head.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(place): label for place, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def text_answerer(folder: Path, seed: int = 0) -> Path:
    """A 2-layer T5 that makes texts of `WORDS` out of texts, and ends some of them early. Returns `folder`."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(_word_ids()), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2, initializer_factor=3.0,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    _word_tokenizer(ends=True, pad_token="<pad>", model_max_length=48).save_pretrained(folder)
    return folder


def text_continuer(folder: Path, seed: int = 0) -> Path:
    """A 2-layer GPT-2 that continues texts of `WORDS`; its tokenizer has no padding token. Returns `folder`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(_word_ids()), n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.4,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    _word_tokenizer(ends=False).save_pretrained(folder)
    return folder


def tabular_model(folder: Path, config: TabularConfig = TABULAR_CONFIG, seed: int = 0) -> Path:
    """A `TabularMLP` with random weights. Its signature is `config.signature()`. Returns `folder`."""
    import numpy as np
    import torch

    from batch_platform.core.models.tabular_mlp import TabularMLP

    torch.manual_seed(seed)
    model = TabularMLP(config)
    width = len(config.numeric)
    model.set_standardisation(Standardisation(np.full(width, 10, np.float32), np.full(width, 5, np.float32)))
    model.save(folder)
    return folder


def texts(rows: int, seed: int = 0) -> list[str]:
    """Texts of 0 to 40 of `WORDS`, the same for the same seed."""
    import random

    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(0, 41))) for _ in range(rows)]


def text_rows(rows: int, seed: int = 0) -> pa.Table:
    """A shard of `texts` with row keys k0, k1, ..."""
    return pa.table({"row_key": [f"k{place}" for place in range(rows)], "text": texts(rows, seed)})


def tabular_rows(rows: int, seed: int = 0) -> pa.Table:
    """A shard for `TABULAR_CONFIG`, with nulls and unseen categories."""
    import random

    draw = random.Random(seed)
    return pa.table(
        {
            "row_key": [f"k{place}" for place in range(rows)],
            "amount": pa.array([draw.choice([None, draw.uniform(0, 20)]) for _ in range(rows)], pa.float64()),
            "age": pa.array([draw.randrange(90) for _ in range(rows)], pa.int64()),
            "plan": pa.array([draw.choice(["basic", "pro", "gold", None]) for _ in range(rows)]),
        }
    )


def _bert_config(**shape: float):
    from transformers import BertConfig

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,  # wide enough that texts differ in label
    }
    return BertConfig(vocab_size=len(_vocabulary()), **small | shape)


def _vocabulary() -> dict[str, int]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?"
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *pieces,
        *(word for word in WORDS if len(word) > 1),
    ]
    return {token: place for place, token in enumerate(tokens)}


def _word_ids() -> dict[str, int]:
    return {word: place for place, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}


def _word_tokenizer(ends: bool, **options):
    """One token a word; with `ends`, a text ends with `</s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(_word_ids(), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", **options)


def _save(model, folder: Path) -> Path:
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    longest = model.config.max_position_embeddings
    BertTokenizerFast(vocab=_vocabulary(), model_max_length=longest).save_pretrained(folder)
    return folder
