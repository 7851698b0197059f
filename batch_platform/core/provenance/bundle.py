"""One archive with what a model-risk review asks for: of some partitions, who made what of what, and how it did.

Copies documents and tables as they are, names the digest of each, and writes an index for people. Raw rows, features and
predictions are not in it; values that quarantined rows had are not either. The same lake gives the same bytes.
"""

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batch_platform.core.data import files
from batch_platform.core.data.lake import PARTITION_COLUMN, Lake
from batch_platform.core.layout import Layout
from batch_platform.core.models.history import FOLDER as HISTORY
from batch_platform.core.models.versions import CARD, RECORD, SIGNATURE
from batch_platform.core.monitoring.reviews import ReviewStore
from batch_platform.core.quarantine import causes
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import StorageError
from batch_platform.settings import Settings

_EPOCH = (1980, 1, 1, 0, 0, 0)  # a time of making would change the bytes
_SCORED = ("predictions", "challenger_predictions")
_METRICS = ("drift_metrics", "performance", "run_stats")
_DIGESTS = "SHA256SUMS"

Receipt = Mapping[str, Any]


def audit_bundle(spec: PipelineSpec, settings: Settings, first: str, last: str, target: Path) -> list[str]:
    """Write the archive.

    Args:
        first, last: partition keys, both included.
        target: the file to write, a ZIP archive.

    Returns:
        Names of what is in it.

    Raises:
        PartitionKeyError: a key is none of the pipeline's, or the range is empty.
        StorageError: nothing was ever committed for these partitions, or the archive cannot be written.
    """
    keys = [partition.key for partition in spec.partitions.calendar().between(first, last)]
    content = _Bundle(spec, settings, keys).content()
    with files.writing(target):
        target.write_bytes(_zipped(content))
    return sorted(content)


class _Bundle:
    def __init__(self, spec: PipelineSpec, settings: Settings, keys: list[str]) -> None:
        self._spec, self._settings, self._keys = spec, settings, keys
        self._layout = Layout.of(settings, spec.name)
        self._lake = Lake(self._layout)
        self._wanted = frozenset(keys)

    def content(self) -> dict[str, bytes]:
        """Bytes by name in the archive."""
        receipts = self._receipts()
        if not receipts:
            raise StorageError(
                f"pipeline {self._spec.name}: nothing was ever committed from {self._keys[0]} to {self._keys[-1]}: "
                "look at BATCH_PLATFORM_ROOT and the range"
            )
        found = {
            **{
                f"receipts/{table}/{_plain(receipt[PARTITION_COLUMN])}/{_attempt(receipt)}.json": _json(
                    receipt
                )
                for table, made in receipts.items()
                for receipt in made
            },
            "pipeline.json": _json(self._spec.model_dump(mode="json")),
            "chain.json": _json(self._chain()),
            **self._models([made for table in _SCORED for made in receipts.get(table, [])]),
            **self._monitoring(),
            "quarantine.json": _json(self._quarantine()),
        }
        found["index.md"] = _index(self._spec, self._keys, receipts, found).encode()
        found[_DIGESTS] = _digests(found)
        return found

    # -- what was done ------------------------------------------------------------------------------------

    def _receipts(self) -> dict[str, list[Receipt]]:
        """By table, of the wanted partitions, oldest first; replaced commits too."""
        found: dict[str, list[Receipt]] = {}
        for table in self._lake.tables():
            made = [made for made in self._lake.receipts(table) if made[PARTITION_COLUMN] in self._wanted]
            if made:
                found[table] = [*reversed(made)]
        return found

    def _chain(self) -> dict[str, Any]:
        """The head of each table's chain of commits, so that the receipts can be held against a copy of the log."""
        heads = {}
        for table in self._lake.tables():
            folder = self._lake.table(table)
            handle = folder.open()
            assert handle is not None  # it is in the list
            heads[table] = {"version": handle.version(), "hash": folder.commit_hash(handle.version())}
        return heads

    # -- by what ------------------------------------------------------------------------------------------

    def _models(self, predictions: Sequence[Receipt]) -> dict[str, bytes]:
        """Documents of the versions that scored, and the whole history of their models: approvals among it."""
        versions = {(made["model"], made["model_version"]) for made in predictions}
        for made in predictions:
            versions |= {tuple(origin["conditions"]["model"][:2]) for origin in made.get("origins", ())}
        registry = self._settings.root / "registry"
        found: dict[str, bytes] = {}
        for name, version in versions:
            for document in (RECORD, SIGNATURE, CARD):
                content = files.read_if_there(registry / name / version / document)
                if content is not None:  # MLflow keeps its own
                    found[f"models/{name}/{version}/{document}"] = content
        for name in {name for name, _ in versions}:
            for entry in files.entries(registry / name / HISTORY, "*.json"):
                found[f"models/{name}/{HISTORY}/{entry.name}"] = entry.read_bytes()
        return found

    # -- and how it did -----------------------------------------------------------------------------------

    def _monitoring(self) -> dict[str, bytes]:
        found = {f"{table}.json": _json(self._rows(table)) for table in _METRICS}
        reviews = [
            review
            for review in ReviewStore(self._layout.monitoring).all()
            if review.partition_key in self._wanted
        ]
        found["reviews.json"] = _json([asdict(review) for review in reviews])
        for key in self._keys:
            content = files.read_if_there(self._layout.report(key) / "drift.json")
            if content is not None:
                found[f"drift/{_plain(key)}.json"] = content
        return found

    def _rows(self, table: str) -> list[dict[str, Any]]:
        return [
            {PARTITION_COLUMN: key, **row}
            for key in self._keys
            for batch in self._lake.batches(table, key)
            for row in batch.to_pylist()
        ]

    def _quarantine(self) -> list[dict[str, Any]]:
        """Causes by partition and stage. Examples of messages may quote values, and are left out."""
        return [
            {PARTITION_COLUMN: key, "stage": cause.stage, "error_type": cause.error_type, "rows": cause.rows}
            for key in self._keys
            for cause in causes(self._lake, key)
        ]


def _attempt(receipt: Receipt) -> str:
    return (
        f"{receipt['stage']}-{receipt['attempt']}"
        if receipt["table"] == "quarantine"
        else str(receipt["attempt"])
    )


def _plain(partition_key: str) -> str:
    return partition_key.replace(":", "-")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n").encode()


def _digests(content: Mapping[str, bytes]) -> bytes:
    """As `sha256sum --check` reads it."""
    lines = [f"{hashlib.sha256(content[name]).hexdigest()}  {name}" for name in sorted(content)]
    return ("\n".join(lines) + "\n").encode()


def _zipped(content: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content[name], compresslevel=6)
    return buffer.getvalue()


# -- the index --------------------------------------------------------------------------------------------


def _index(
    spec: PipelineSpec, keys: list[str], receipts: Mapping[str, list[Receipt]], content: Mapping[str, bytes]
) -> str:
    predictions = receipts.get("predictions", [])
    standing = {made[PARTITION_COLUMN]: made for made in predictions}
    rows = sum(file["rows"] for made in standing.values() for file in made["files"])
    lines = [
        f"# {spec.name}: {keys[0]} to {keys[-1]}",
        "",
        spec.description,
        "",
        f"{len(standing)} of {len(keys)} partitions have predictions, {rows} rows. Owners: "
        f"{', '.join(spec.owners) or 'none named'}.",
        "",
        "| file | what |",
        "| --- | --- |",
        "| `receipts/` | every commit of these partitions, by table, partition and attempt; replaced ones too |",
        "| `chain.json` | the last commit of each table and its hash: each receipt names the hash of the commit before it |",
        "| `pipeline.json` | the pipeline file, as it is now |",
        "| `models/` | record with file digests, signature and card of every version that scored, challengers too; history "
        "with approvals and what the promotion gate showed |",
        "| `drift/`, `drift_metrics.json` | verdicts on drift; `reviews.json`: the owners' decisions on them |",
        "| `performance.json`, `run_stats.json` | realised metrics; what scoring took |",
        "| `quarantine.json` | rows set aside that stand, by partition, stage and cause |",
        "| `SHA256SUMS` | the digest of every file here: `sha256sum --check SHA256SUMS` |",
        "",
        "## Predictions that stand",
        "| partition | rows | quarantined | model | version | digest | recipe | code | run | committed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key in sorted(standing):
        lines.append("| " + " | ".join(_cell(value) for value in _summary(key, standing[key])) + " |")
    replaced = Counter(made[PARTITION_COLUMN] for made in predictions)
    again = {key: count - 1 for key, count in sorted(replaced.items()) if count > 1}
    if again:
        told = ", ".join(f"{key} ({count})" for key, count in again.items())
        lines += ["", f"Partitions whose predictions were replaced, and how often: {told}."]
    lines += ["", "## Approvals", *_approvals(content)]
    return "\n".join([*lines, ""])


def _summary(key: str, made: Receipt) -> list[Any]:
    rows = sum(file["rows"] for file in made["files"])
    names = (
        "quarantined",
        "model",
        "model_version",
        "model_digest",
        "recipe_version",
        "code_version",
        "run_id",
    )
    return [key, rows, *(made[name] for name in names), made["committed_at"]]


def _approvals(content: Mapping[str, bytes]) -> list[str]:
    lines = []
    for name in sorted(content):
        if f"/{HISTORY}/" in name:
            entry = json.loads(content[name])
            target = f" as {entry['alias']}" if "alias" in entry else ""
            what = f"{name.split('/')[1]} version {entry['version']} {entry['event']}{target}"
            gate = [f"{field}: {_cell(entry[field])}" for field in ("compared", "despite") if field in entry]
            words = "; ".join([_cell(entry["why"]), *gate])
            lines.append(f"- {entry['at']}: {what} by {_cell(entry['by'])}: {words}")
    return lines or ["None: the models are in no registry of the platform."]


def _cell(value: Any) -> str:
    """A value in a line of Markdown: it may be anybody's text."""
    text = " ".join(str(value).split())
    for mark in "\\|<>[]`*_":
        text = text.replace(mark, f"\\{mark}")
    return text
