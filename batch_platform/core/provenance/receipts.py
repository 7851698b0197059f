"""What every commit says of itself: the fields of a receipt, and those that are the same for a whole process.

Decides which fields there are: each is in every receipt, and is null where it has no meaning for the table (a model, for
raw rows) or cannot be known (the git commit, where the code is no checkout). It reads the machine and the project's
folder, not the data.
"""

import hashlib
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_platform.core.data import files
from batch_platform.core.inference.device import hardware_of
from batch_platform.errors import SettingsError
from batch_platform.settings import project_root

if TYPE_CHECKING:
    from batch_platform.core.models.versions import RegisteredVersion

GIT_COMMIT_VARIABLE = "BATCH_PLATFORM_GIT_COMMIT"
LOCK_FILE = "requirements.lock"

# name: what it says.
FIELDS: Mapping[str, str] = {
    # who and when
    "pipeline": "the pipeline's name",
    "partition_key": "the partition",
    "run_id": "the run that committed",
    "attempt": "number of the attempt at the partition's stage; the highest stands",
    "triggered_by": "manual, or what started the run and its name",
    "started_at": "begin of the stage, ISO 8601 in UTC",
    "committed_at": "its end",
    # the model
    "model": "name of the model",
    "model_version": "its version",
    "model_digest": "sha256 over its files, signature and flavor",
    "model_alias": "the alias that was resolved to the version when the run began",
    "model_files": "sha256 by file",
    "card_digest": "sha256 of the model card",
    "approved_by": "who pointed the alias to the version, why and when",
    # code and machine
    "code_version": "digest of the code that makes values",
    "git_commit": "the checkout's commit; -dirty where tracked files were changed",
    "lock_digest": f"sha256 of {LOCK_FILE}",
    "hardware": "machine, processor, cores, and the GPU that computed",
    "device": "where the model computed: cpu or cuda",
    "dtype": "in which numbers",
    "seed": "of random numbers that act on values; null: none do",
    # what went in
    "inputs": "files read: name, rows, sha256",
    "table_versions": "version by table of the lake that was read",
    "contract_version": "digest of the contract that the raw rows keep",
    "recipe_version": "version of the feature recipe",
    "rows_in": "rows that entered",
    # what came out
    "rows_scored": "rows that went through the model",
    "rows_reused": "rows copied from the snapshot before",
    "quarantined": "rows set aside",
    "files": "files of the partition: path, size, rows, sha256",
    "drift": "status by drift verdict",
    "supersedes": "attempt whose commit this one replaced; null for the first",
    # the chain
    "fingerprint": "identity of the work",
    "table": "the table",
    "version": "version of the table that the commit made",
    "previous": "sha256 of the commit before it in the table's log",
}

# What a commit that follows from another one (its quarantine, its statistics) has in common with it.
_INHERITED = (
    "model",
    "model_version",
    "model_digest",
    "model_alias",
    "model_files",
    "card_digest",
    "approved_by",
    "code_version",
    "device",
    "dtype",
    "contract_version",
    "recipe_version",
)


def complete(known: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt with every field: what is known, what the process knows, and null for the rest."""
    return {**dict.fromkeys(FIELDS), **environment(), **known}


def inherited(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Of a commit's receipt, what is also true of a commit that follows from it."""
    return {name: receipt.get(name) for name in _INHERITED}


def followed(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Of a commit's receipt, what is also true of one that is made of the same inputs beside it."""
    return {name: receipt.get(name) for name in (*_INHERITED, "inputs", "table_versions", "rows_in")}


def read_from(table: str, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """The input fields of a commit that is made of the standing rows of one partition of a table."""
    inputs = [
        {"name": f"{table}/{file['path']}", "rows": file["rows"], "sha256": file["sha256"]}
        for file in receipt["files"]
    ]
    return {"inputs": inputs, "table_versions": {table: receipt["version"]}}


def of_model(model: "RegisteredVersion") -> dict[str, Any]:
    """The model's fields."""
    card = None if model.card is None else hashlib.sha256(files.canonical_json(model.card)).hexdigest()
    return {
        "model": model.name,
        "model_version": model.version,
        "model_digest": model.digest,
        "model_alias": model.alias,
        "model_files": dict(model.files),
        "card_digest": card,
        "approved_by": None if model.approved is None else dict(model.approved),
    }


def environment() -> dict[str, Any]:
    """Code and machine of this process."""
    try:
        root = project_root()
    except SettingsError:  # the package without a project: neither a checkout nor a lock
        return {
            "git_commit": os.environ.get(GIT_COMMIT_VARIABLE),
            "lock_digest": None,
            "hardware": hardware_of("cpu"),
        }
    commit = os.environ.get(GIT_COMMIT_VARIABLE) or _git_commit(root)  # an image has no checkout
    return {"git_commit": commit, "lock_digest": _lock_digest(root), "hardware": hardware_of("cpu")}


@cache
def _git_commit(root: Path) -> str | None:
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        told = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip()


@cache
def _lock_digest(root: Path) -> str | None:
    try:
        return files.sha256_of(root / LOCK_FILE)
    except FileNotFoundError:
        return None
