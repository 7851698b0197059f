"""The registry: numbered, unchangeable versions of models, and aliases that point to them.

It decides what is accepted, under which number, and whether what lies on the disk is still what was
registered. It does not know pipelines, and loads a model only to check golden rows.
"""

import errno
import fcntl
import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_platform.core.data import files
from batch_platform.core.models import intake
from batch_platform.core.models.card import check_card
from batch_platform.core.models.golden import check_golden
from batch_platform.core.models.history import FILE as HISTORY_FILE
from batch_platform.core.models.history import History
from batch_platform.core.models.predictor import check_flavor, check_folder, load_predictor
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.models.versions import (
    FILES,
    RECORD,
    Problem,
    RegisteredVersion,
    content_digest,
    read_version,
    verify_version,
    write_documents,
)
from batch_platform.errors import ModelError, ModelNotFoundError, StorageError

__all__ = ["ModelEntry", "Problem", "RegisteredVersion", "Registry"]

MAX_BYTES = 20 * 2**30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_ALIAS = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_INCOMING = ".incoming-"
_LOCK = ".lock"
_ABANDONED_SECONDS = 24 * 3600
_STRAY = "is not in the history: where a registration was interrupted, repeat it; else remove this"


@dataclass(frozen=True)
class ModelEntry:
    """A model with its versions, oldest first, and its aliases."""

    name: str
    versions: tuple[RegisteredVersion, ...]
    aliases: Mapping[str, str]


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
            aliases = (
                ", ".join(f"{key} -> {value}" for key, value in sorted(history.aliases.items())) or "none"
            )
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
        source_dir: Path,
        flavor: str,
        signature: ModelSignature,
        *,
        card: Mapping[str, Any] | None,
        by: str,
        why: str,
        golden: pa.Table | None = None,
        alias: str | None = None,
    ) -> RegisteredVersion:
        """Take a model folder in as a new version, or find the version that has this content already.

        Args:
            name: of the model; letters, digits, `_`, `.` and `-`.
            source_dir: folder with the model's files; it is copied.
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
        _check_names(name, alias, by, why)
        check_flavor(flavor)
        checked = None if card is None else check_card(card)
        model = self.folder / name
        incoming = model / f"{_INCOMING}{uuid.uuid4().hex}"
        try:
            intake.copy_folder(source_dir, incoming / FILES, self._max_bytes)
            record = _inspect(incoming, flavor, signature, golden)
            record["documents"] = write_documents(incoming, signature, checked, golden)
            with _locked(model):
                version, created = self._place(name, incoming, record, by, why)
                if alias is not None:
                    self._point(name, version, alias, by, why)
        except OSError as error:
            raise StorageError(f"model {name}: cannot be written to {model}: {error}") from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
            with suppress(OSError):
                model.rmdir()  # only where nothing of this model was ever accepted
        return replace(self.get(name, version), created=created)

    def promote(self, name: str, version: str, alias: str, by: str, why: str) -> RegisteredVersion:
        """Point an alias to a version, and remember who did it and why.

        Raises:
            ModelNotFoundError: no such model or version.
            ModelError: the alias is no name, nobody or no reason is named, or the registry was altered.
            StorageError: the registry cannot be written.
        """
        _check_names(name, alias, by, why)
        self.get(name, version)
        try:
            with _locked(self.folder / name):
                self._point(name, version, alias, by, why)
        except OSError as error:
            raise StorageError(f"model {name}: the alias {alias} cannot be written: {error}") from error
        return self.get(name, version)

    def _place(
        self, name: str, incoming: Path, record: dict[str, Any], by: str, why: str
    ) -> tuple[str, bool]:
        """Give the incoming folder its number. Returns the version, and whether it is a new one."""
        model = self.folder / name
        _remove_abandoned(model)
        history = History.read(model)
        for version, entry in history.registered.items():
            if entry["digest"] == record["digest"]:
                return version, False
        number, content = _interrupted(model, record["digest"], history) or _number(
            model, incoming, {**record, "name": name, "registered_by": by, "why": why}
        )
        seal = hashlib.sha256(content).hexdigest()
        what = {"version": number, "digest": record["digest"], "record_sha256": seal}
        history.with_entry("registered", by, why, **what).write(model)
        return number, True

    def _point(self, name: str, version: str, alias: str, by: str, why: str) -> None:
        history = History.read(self.folder / name)
        if history.aliases.get(alias) != version:
            history.with_entry("promoted", by, why, version=version, alias=alias).write(self.folder / name)

    # -- checking -----------------------------------------------------------------------------------------

    def verify(self) -> tuple[Problem, ...]:
        """Compare everything in the registry with what was registered; empty where all is as it was."""
        folders = sorted(self.folder.iterdir()) if self.folder.is_dir() else ()
        return tuple(problem for folder in folders for problem in self._verify_model(folder))

    def _verify_model(self, folder: Path) -> Iterator[Problem]:
        name = folder.name
        if not folder.is_dir() or folder.is_symlink() or not _NAME.fullmatch(name):
            yield Problem(name, None, str(folder), "is no folder of a model")
            return
        try:
            history = History.read(folder)
        except ModelError as error:
            yield Problem(name, None, str(folder / HISTORY_FILE), str(error))
            return
        known = set(history.registered)
        for path in sorted(folder.iterdir()):
            if path.name not in known | {HISTORY_FILE, _LOCK} and not path.name.startswith(_INCOMING):
                yield Problem(name, None, str(path), _STRAY)
        for version, entry in history.registered.items():
            yield from verify_version(folder / version, name, entry)

    # -- reading ------------------------------------------------------------------------------------------

    def _history(self, name: str) -> History:
        if not _NAME.fullmatch(name):
            raise ModelError(f"{name!r} is no model name: use letters, digits, _ . and -")
        history = History.read(self.folder / name)
        if not history.entries:
            known = ", ".join(self.names()) or "none"
            raise ModelNotFoundError(
                f"there is no model {name!r} in {self.folder} (models: {known}); type: "
                f"batch-platform models register {name} DIR --flavor transformers --alias champion"
            )
        return history

    def _read(self, name: str, version: str, history: History) -> RegisteredVersion:
        entry = history.registered.get(version)
        if entry is None:
            raise ModelNotFoundError(
                f"model {name!r} has no version {version!r}; it has {', '.join(history.registered)}"
            )
        return read_version(self.folder / name / version, name, entry)


def _number(model: Path, incoming: Path, record: dict[str, Any]) -> tuple[str, bytes]:
    """Give the incoming folder the next number. Returns the version and the record's bytes."""
    names = {path.name for path in model.iterdir()} | History.read(model).registered.keys()
    number = max((int(name) for name in names if _VERSION.fullmatch(name)), default=0)
    while True:
        number += 1
        content = files.canonical_json({**record, "version": str(number)})
        files.replace(incoming / RECORD, content)
        try:
            incoming.rename(model / str(number))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            continue  # someone who does not take our lock was first: the next number
        files.fsync_folder(model)
        return str(number), content


def _interrupted(model: Path, digest: str, history: History) -> tuple[str, bytes] | None:
    """A folder of this content that got its number and no entry in the history."""
    for path in model.iterdir():
        if _VERSION.fullmatch(path.name) and path.name not in history.registered:
            record = path / RECORD
            if record.is_file() and json.loads(content := record.read_bytes())["digest"] == digest:
                return path.name, content
    return None


def _inspect(
    incoming: Path, flavor: str, signature: ModelSignature, golden: pa.Table | None
) -> dict[str, Any]:
    """Judge the copied files; returns the beginnings of the record."""
    folder = incoming / FILES
    intake.inspect(folder)
    check_folder(folder, flavor, signature)
    if golden is not None:
        check_golden(load_predictor(folder, flavor, signature), golden)
    content = intake.digests(folder)
    return {"flavor": flavor, "files": content, "digest": content_digest(content, signature, flavor)}


def _check_names(name: str, alias: str | None, by: str, why: str) -> None:
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"{name!r} is no model name: use letters, digits, _ . and -, not beginning with a dot"
        )
    if alias is not None and not _ALIAS.fullmatch(alias):
        raise ModelError(f"{alias!r} is no alias: use letters, digits, _ and -, beginning with a letter or _")
    if not by.strip() or not why.strip():
        raise ModelError(f"model {name}: say who does this and why (by, why): the history keeps both")


@contextmanager
def _locked(model: Path) -> Iterator[None]:
    """One writer of a model's history at a time; the lock ends with the process."""
    with (model / _LOCK).open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _remove_abandoned(model: Path) -> None:
    """Copies left by registrations that were killed; a running one is younger."""
    for path in model.glob(f"{_INCOMING}*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
