"""What the files of a Hugging Face folder say about themselves, read as JSON without loading the model.

It decides task, labels, pooling and normalisation where nobody has said them. It knows neither torch nor
transformers, so that describing and registering a model is quick.
"""

import json
from pathlib import Path
from typing import Any

from batch_platform.core.models.predictor import SignatureRequest
from batch_platform.core.models.signature import InputColumn, ModelSignature, Pooling, Task
from batch_platform.errors import ModelError, SignatureError

HEAD_FILE = "head.safetensors"
DEFAULT_NEW_TOKENS = 64
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def describe(folder: Path, request: SignatureRequest) -> ModelSignature:
    """The signature that the folder implies, with what the request says put first.

    Raises:
        ModelError: the folder is no such model, or pools in a way that is not supported.
        SignatureError: the request does not suit the task.
    """
    config = read_json(folder / "config.json")
    task = request.task or _task(folder, config)
    column = request.text_column or "text"
    labels: tuple[str, ...] = ()
    if task == "classification":
        labels = request.labels or labels_of(config)
        if request.pooling is not None and not (folder / HEAD_FILE).is_file():
            raise SignatureError(
                f"{folder}: pooling has no meaning for a model with a head of its own: leave it out"
            )
    elif request.labels is not None:
        raise SignatureError(f"labels have no meaning for the task {task}: leave them out")
    generates = task == "generation"
    if generates and request.pooling is not None:
        raise SignatureError(f"{folder}: pooling has no meaning for the task {task}: leave it out")
    if not generates and request.max_new_tokens is not None:
        raise SignatureError(f"max_new_tokens has no meaning for the task {task}: leave it out")
    embeds = task == "embedding"
    pools = embeds or (task == "classification" and (folder / HEAD_FILE).is_file())
    return ModelSignature(
        inputs=(InputColumn(column, "string"),),
        task=task,
        labels=labels,
        positive_class=request.positive_class,
        text_column=column,
        max_tokens=request.max_tokens,
        pooling=(request.pooling or folder_pooling(folder) or "mean") if pools else None,
        normalize=folder_normalizes(folder) if embeds else None,
        output_size=hidden_size(config) if embeds else None,
        max_new_tokens=(request.max_new_tokens or _new_tokens(folder)) if generates else None,
    )


def check_folder(folder: Path, signature: ModelSignature) -> None:
    """Check that the folder is complete and agrees with the signature.

    Raises:
        ModelError: a file is missing or unreadable.
        SignatureError: folder and signature say different things.
    """
    config = read_json(folder / "config.json")
    if signature.task == "regression":
        raise SignatureError(
            f"{folder}: a transformers model does classification, embedding or generation, not regression"
        )
    if signature.task == "generation" and not _generates(config):
        raise SignatureError(
            f"{folder / 'config.json'}: the architecture {config.get('architectures')} does not generate text"
        )
    if signature.text_column is None:
        raise SignatureError(f"{folder}: the signature of a text model needs a text_column")
    for what, names in (("tokenizer", _TOKENIZER_FILES), ("weights", _WEIGHT_FILES)):
        if not any((folder / name).is_file() for name in names):
            raise ModelError(f"{folder}: no {what}: expected one of {', '.join(names)}")
    if signature.task == "classification" and "id2label" in config:
        said = labels_of(config)
        if said != signature.labels and not _are_placeholders(said):
            raise SignatureError(
                f"{folder / 'config.json'}: id2label says {list(said)}, the signature says "
                f"{list(signature.labels)}: they must be equal, in the order of the logits"
            )
    folder_pooling(folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ModelError: it is missing or no object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: is missing; give the folder that `save_pretrained` wrote") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: is not a JSON object")
    return value


def labels_of(config: dict[str, Any]) -> tuple[str, ...]:
    """The labels in the order of the logits; transformers leaves the default of two out of the file."""
    id2label = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    try:
        return tuple(str(id2label[str(place)]) for place in range(len(id2label)))
    except (KeyError, TypeError):
        raise ModelError(f"config.json: id2label does not number the labels from 0: {id2label!r}") from None


def hidden_size(config: dict[str, Any]) -> int | None:
    """Length of an embedding, as far as config.json names it."""
    for name in ("hidden_size", "dim", "d_model"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return None


def folder_pooling(folder: Path) -> Pooling | None:
    """Pooling of a sentence-transformers folder; None where the folder does not say.

    Raises:
        ModelError: it pools or transforms in a way that this flavor would get wrong.
    """
    for kind in _modules(folder):
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ModelError(
                f"{folder / 'modules.json'}: the module {kind} is not supported; export the model without it"
            )
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    modes = {name for name, value in config.items() if name.startswith("pooling_mode_") and value is True}
    if modes == {"pooling_mode_mean_tokens"} or config.get("pooling_mode") == "mean":
        return "mean"
    if modes == {"pooling_mode_cls_token"} or config.get("pooling_mode") == "cls":
        return "cls"
    raise ModelError(f"{path}: only mean and cls pooling are supported, this says {sorted(modes)}")


def folder_normalizes(folder: Path) -> bool:
    """Whether the folder's modules end in a normalisation to length 1."""
    return "Normalize" in _modules(folder)


def _modules(folder: Path) -> list[str]:
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        return [str(module["type"]).rsplit(".", 1)[-1] for module in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError):
        raise ModelError(f"{path}: is not a list of modules with a type") from None


def _task(folder: Path, config: dict[str, Any]) -> Task:
    names = config.get("architectures") or []
    classifies = any(str(name).endswith("ForSequenceClassification") for name in names)
    if classifies or (folder / HEAD_FILE).is_file():
        return "classification"
    return "generation" if _generates(config) else "embedding"


def _generates(config: dict[str, Any]) -> bool:
    names = [str(name) for name in config.get("architectures") or []]
    return any(name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for name in names)


def _new_tokens(folder: Path) -> int:
    path = folder / "generation_config.json"
    said = read_json(path).get("max_new_tokens") if path.is_file() else None
    return said if isinstance(said, int) else DEFAULT_NEW_TOKENS


def _are_placeholders(labels: tuple[str, ...]) -> bool:
    return all(label == f"LABEL_{place}" for place, label in enumerate(labels))
