"""The registry: numbered, unchangeable versions of models, and aliases that point to them.

It decides what is accepted, under which number, and whether what lies on the disk is still what was
registered. It does not know pipelines, and loads a model only to check golden rows.
"""

import fcntl
import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.data import files
from batch_platform.core.models import intake
from batch_platform.core.models.card import check_card
from batch_platform.core.models.golden import check_golden
from batch_platform.core.models.history import FILE as HISTORY_FILE
from batch_platform.core.models.history import History
from batch_platform.core.models.predictor import check_flavor, check_folder, load_predictor
from batch_platform.core.models.signature import ModelSignature
from batch_platform.errors import ModelError, ModelNotFoundError, StorageError

MAX_BYTES = 20 * 2**30
FILES = "model"  # folder of the model's own files in a version's folder
RECORD, SIGNATURE, CARD, GOLDEN = "record.json", "signature.json", "card.json", "golden.parquet"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_ALIAS = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_INCOMING = ".incoming-"
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a model.

    Attributes:
        name: of the model.
        version: its number, as text; the name of its folder.
        digest: "sha256:..." over files, signature and flavor.
        flavor: how it is loaded.
        signature: what it reads and returns.
        path: folder with the model's files.
        files: SHA-256 of each of these, by relative path.
        card: the model card; None where it was registered without one.
        registered_at: ISO 8601, UTC.
        registered_by: who registered it.
        created: False where `register` found the same content under this version.
    """

    name: str
    version: str
    digest: str
    flavor: str
    signature: ModelSignature
    path: Path
    files: Mapping[str, str]
    card: Mapping[str, Any] | None
    registered_at: str
    registered_by: str
    created: bool = field(default=True, compare=False)

    def check_files(self) -> None:
        """Compare the files with what was registered; to be called before they are loaded.

        Raises:
            ModelError: names the file that was altered, added or removed.
        """
        for name, problem in _differences(self.path, self.files):
            raise ModelError(
                f"model {self.name} version {self.version}: {self.path / name} {problem} since it was registered; "
                "it is not loaded. Restore the file, or register the model again"
            )


@dataclass(frozen=True)
class ModelEntry:
    """A model with its versions, oldest first, and its aliases."""

    name: str
    versions: tuple[RegisteredVersion, ...]
    aliases: Mapping[str, str]


@dataclass(frozen=True)
class Problem:
    """Something in the registry that is not as it was registered."""

    model: str
    version: str | None
    file: str
    problem: str


class Registry:
    """The models under `<root>/registry`."""

    def __init__(self, root: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = root / "registry"
        self._max_bytes = max_bytes

    # -- finding ------------------------------------------------------------------------------------------

    def resolve(self, name: str, alias: str) -> RegisteredVersion:
        """The version that an alias points to now.

        Raises:
            ModelNotFoundError: no such model or alias; lists those that exist.
            ModelError: the registry was altered.
        """
        history = self._history(name)
        version = history.aliases.get(alias)
        if version is None:
            aliases = ", ".join(f"{key} -> {value}" for key, value in sorted(history.aliases.items())) or "none"
            versions = ", ".join(history.registered)
            raise ModelNotFoundError(
                f"model {name!r} has no alias {alias!r} (aliases: {aliases}; versions: {versions}); type: "
                f"batch-platform models promote {name} VERSION --alias {alias} --by WHO --why TEXT"
            )
        return self._read(name, version, history)

    def get(self, name: str, version: str) -> RegisteredVersion:
        """A version by its number.

        Raises:
            ModelNotFoundError: no such model or version; lists those that exist.
            ModelError: the registry was altered.
        """
        return self._read(name, version, self._history(name))

    def open(self, name: str, version: str) -> RegisteredVersion:
        """A version whose files were compared with their digests just now: ready to be loaded.

        Raises:
            ModelNotFoundError: no such model or version.
            ModelError: names the file that was altered.
        """
        found = self.get(name, version)
        found.check_files()
        return found

    def names(self) -> tuple[str, ...]:
        """The names of all models."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(path.name for path in self.folder.iterdir() if (path / HISTORY_FILE).is_file()))

    def list(self) -> tuple[ModelEntry, ...]:
        """All models, by name.

        Raises:
            ModelError: the registry was altered.
        """
        entries = []
        for name in self.names():
            history = self._history(name)
            versions = tuple(self._read(name, version, history) for version in history.registered)
            entries.append(ModelEntry(name, versions, history.aliases))
        return tuple(entries)

    # -- registering --------------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        source: Path,
        *,
        flavor: str,
        signature: ModelSignature,
        card: Mapping[str, Any] | None,
        by: str,
        why: str,
        golden: pa.Table | None = None,
        alias: str | None = None,
    ) -> RegisteredVersion:
        """Take a model folder in as a new version, or find the version that has this content already.

        Args:
            name: of the model; letters, digits, `_`, `.` and `-`.
            source: folder with the model's files; it is copied.
            flavor: how it is loaded.
            signature: what it reads and returns.
            card: the model card.
            by: who registers it.
            why: the reason, for the history.
            golden: input rows with expected outputs, compared before the version exists.
            alias: to point to the version at once.

        Returns:
            The version; `created` is False where the content was registered before: its card and golden
            rows stay as they were.

        Raises:
            ModelError: name, files, card or golden rows are refused; the message says what to do.
            SignatureError: files and signature do not fit each other.
            StorageError: the registry cannot be written.
        """
        _check_names(name, alias, by)
        check_flavor(flavor)
        checked = None if card is None else check_card(card)
        model = self.folder / name
        incoming = model / f"{_INCOMING}{uuid.uuid4().hex}"
        try:
            intake.copy_folder(source, incoming / FILES, self._max_bytes)
            digest = self._inspect(incoming, flavor, signature, checked, golden)
            with _locked(model):
                number = self._place(name, incoming, digest, by, why)
                if alias is not None:
                    self._point(name, number, alias, by, why)
        except OSError as error:
            raise StorageError(f"model {name}: cannot be written to {model}: {error}") from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
            _remove_if_unused(model)
        return replace(self.get(name, number), created=not incoming_is_duplicate(digest, number))

    def promote(self, name: str, version: str, alias: str, by: str, why: str) -> RegisteredVersion:
        """Point an alias to a version, and remember who did it and why.

        Raises:
            ModelNotFoundError: no such model or version.
            ModelError: the alias is no name, or nobody and no reason is named.
        """
        _check_names(name, alias, by)
        if not why.strip():
            raise ModelError("a promotion needs a reason: --why TEXT")
        self._history(name)
        with _locked(self.folder / name):
            self._point(name, version, alias, by, why)
        return self.get(name, version)
