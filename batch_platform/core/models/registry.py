"""The registry: numbered, unchangeable versions of models, and aliases that point to them.

It decides what is accepted, under which number, and whether what lies on the disk is still what was
registered. It does not know pipelines, and loads a model only to check golden rows.
"""

import hashlib
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.models import intake
from batch_platform.core.models.card import check_card, warn_of_expiry
from batch_platform.core.models.golden import check_golden
from batch_platform.core.models.history import FOLDER as HISTORY
from batch_platform.core.models.history import SEALS, History
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
_CLAIMS = "claims"  # folder of the numbers that were given out
_ABANDONED_SECONDS = 24 * 3600
_BROKEN_SEAL = "was taken away or exchanged since it was sealed: restore the history from a backup"
_STRAY = "is not in the history: where a registration was interrupted, repeat it; else remove this"


@dataclass(frozen=True)
class ModelEntry:
    """A model with its versions, oldest first, and its aliases."""

    name: str
    versions: tuple[RegisteredVersion, ...]
    aliases: Mapping[str, str]


class Registry:
    """The models under `<root>/registry`, on a disk or in object storage."""

    def __init__(self, root: Location, max_bytes: int = MAX_BYTES) -> None:
        self.folder = root / "registry"
        self._scratch = files.scratch(root) / "registry"
        self._cache = files.scratch(root) / "models"
        self._max_bytes = max_bytes

    # -- finding ------------------------------------------------------------------------------------------

    def resolve(self, name: str, alias: str) -> RegisteredVersion:
        """The version that an alias points to now.

        Raises:
            ModelNotFoundError: no such model or alias; lists those that exist.
            ModelSuspendedError: the version must not score.
            ModelError: the registry was altered.
        """
        version = self.pointed(name, alias)
        version.refuse_suspended()
        warn_of_expiry(f"{name} version {version.version}", version.card)
        return version

    def pointed(self, name: str, alias: str) -> RegisteredVersion:
        """The version that an alias points to now, to be looked at: it may be suspended.

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
        return replace(self._read(name, version, history), alias=alias, approved=history.approval(alias))

    def digest_of(self, name: str, alias: str) -> str:
        """The digest of the version that an alias points to now. Raises as `pointed`."""
        return self.pointed(name, alias).digest

    def aliases(self, name: str) -> Mapping[str, str]:
        """Version by alias of a model; empty where there is no such model.

        Raises:
            ModelError: the registry was altered.
        """
        return History.read(self.folder / name).aliases

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
            ModelSuspendedError: the version must not score.
            ModelError: names the file that was altered.
        """
        found = self.get(name, version)
        found.checked_folder()
        return found

    def names(self) -> tuple[str, ...]:
        """The names of all models."""
        return tuple(path.name for path in files.entries(self.folder) if (path / HISTORY).is_dir())

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

    def events(self, name: str) -> tuple[Mapping[str, Any], ...]:
        """What happened to a model, oldest first: `event`, `version`, `alias` where it has one, `by`, `why`, `at`, and more.

        Raises:
            ModelNotFoundError: no such model; lists those that exist.
            ModelError: the history was altered.
        """
        return self._history(name).entries

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
            source_dir: folder of this machine with the model's files; it is copied.
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
        _remove_abandoned(self._scratch)
        incoming = self._scratch / uuid.uuid4().hex
        try:
            intake.copy_folder(source_dir, incoming / FILES, self._max_bytes)
            record = _inspect(incoming, flavor, signature, golden)
            record["documents"] = write_documents(incoming, signature, checked, golden)
            version, created = self._place(name, incoming, record, by, why)
            if alias is not None:
                self._point(name, version, alias, by, why)
        except OSError as error:
            raise StorageError(f"model {name}: cannot be written to {self.folder / name}: {error}") from error
        finally:
            files.remove_folder(incoming)
        return replace(self.get(name, version), created=created)

    def promote(
        self, name: str, version: str, alias: str, by: str, why: str, compared: str = "", despite: str = ""
    ) -> RegisteredVersion:
        """Point an alias to a version, and remember who did it and why.

        Args:
            compared: what the promotion gate showed, for the history.
            despite: what the gate had against it, where somebody decided otherwise.

        Raises:
            ModelNotFoundError: no such model or version.
            ModelSuspendedError: the version must not score.
            ModelError: the alias is no name, nobody or no reason is named, or the registry was altered.
            StorageError: the registry cannot be written.
        """
        _check_names(name, alias, by, why)
        self.get(name, version)
        self._point(name, version, alias, by, why, compared, despite)
        return self.get(name, version)

    def roll_back(self, name: str, alias: str, by: str, why: str) -> RegisteredVersion:
        """Point an alias to the version that it pointed to before, and remember who did it and why.

        Raises:
            ModelNotFoundError: no such model, or the alias pointed to no other version before.
            ModelSuspendedError: that version must not score.
            ModelError: nobody or no reason is named, or the registry was altered.
            StorageError: the registry cannot be written.
        """
        _check_names(name, alias, by, why)
        while True:
            history = self._history(name)
            before = history.before(alias)
            if before is None:
                raise ModelNotFoundError(
                    f"model {name!r}: {alias!r} pointed to no other version before: there is nothing to go back to"
                )
            self._read(name, before, history).refuse_suspended()
            if history.append(self.folder / name, "rolled_back", by, why, version=before, alias=alias):
                return self.get(name, before)

    def suspend(self, name: str, version: str, by: str, why: str) -> RegisteredVersion:
        """Forbid a version to score from now on, under whatever alias; one that is suspended stays as it is.

        Returns:
            The version with the suspension that stands.

        Raises:
            ModelNotFoundError: no such model or version.
            ModelError: nobody or no reason is named, or the registry was altered.
            StorageError: the registry cannot be written.
        """
        _check_names(name, None, by, why)
        while True:
            history = self._history(name)
            found = self._read(name, version, history)
            if found.suspended is not None:
                return found
            history.append(self.folder / name, "suspended", by, why, version=version)

    def lift(self, name: str, version: str, by: str, why: str) -> RegisteredVersion:
        """Let a suspended version score again.

        Raises:
            ModelNotFoundError: no such model or version.
            ModelError: it is not suspended, nobody or no reason is named, or the registry was altered.
            StorageError: the registry cannot be written.
        """
        _check_names(name, None, by, why)
        while True:
            history = self._history(name)
            if self._read(name, version, history).suspended is None:
                raise ModelError(f"model {name} version {version} is not suspended: there is nothing to lift")
            if history.append(self.folder / name, "lifted", by, why, version=version):
                return self.get(name, version)

    def _place(
        self, name: str, incoming: Path, record: dict[str, Any], by: str, why: str
    ) -> tuple[str, bool]:
        """Give the incoming folder its number. Returns the version, and whether it is a new one."""
        model = self.folder / name
        placed: tuple[str, bytes] | None = None
        while True:
            history = History.read(model)
            for version, entry in history.registered.items():
                if entry["digest"] == record["digest"]:
                    if (
                        placed is not None and placed[0] != version
                    ):  # the same content was registered beside us
                        files.remove_folder(model / placed[0])
                    return version, False
            if placed is None:
                placed = _interrupted(model, record["digest"], history) or _publish(
                    model, incoming, history, {**record, "name": name, "registered_by": by, "why": why}
                )
            number, content = placed
            seal = hashlib.sha256(content).hexdigest()
            what = {"version": number, "digest": record["digest"], "record_sha256": seal}
            if history.append(model, "registered", by, why, **what):
                return number, True

    def _point(
        self, name: str, version: str, alias: str, by: str, why: str, compared: str = "", despite: str = ""
    ) -> None:
        model = self.folder / name
        told = {field: text for field, text in (("compared", compared), ("despite", despite)) if text}
        while True:
            history = History.read(model)
            self._read(name, version, history).refuse_suspended()
            if history.aliases.get(alias) == version:
                return
            if history.append(model, "promoted", by, why, version=version, alias=alias, **told):
                return

    # -- checking -----------------------------------------------------------------------------------------

    def verify(self) -> tuple[Problem, ...]:
        """Compare everything in the registry with what was registered; empty where all is as it was."""
        return tuple(
            problem for folder in files.entries(self.folder) for problem in self._verify_model(folder)
        )

    def _verify_model(self, folder: Location) -> Iterator[Problem]:
        name = folder.name
        is_link = isinstance(folder, Path) and folder.is_symlink()
        if not folder.is_dir() or is_link or not _NAME.fullmatch(name):
            yield Problem(name, None, str(folder), "is no folder of a model")
            return
        try:
            history = History.read(folder)
        except ModelError as error:
            yield Problem(name, None, str(folder / HISTORY), str(error))
            return
        for file in history.broken_seals(folder):
            yield Problem(name, None, str(folder / HISTORY / file), _BROKEN_SEAL)
        known = set(history.registered)
        for path in files.entries(folder):
            if path.name not in known | {HISTORY, SEALS, _CLAIMS}:
                yield Problem(name, None, str(path), _STRAY)
        for version, entry in history.registered.items():
            yield from verify_version(folder / version, name, entry, self._cache)

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
        found = read_version(self.folder / name / version, name, entry, self._cache)
        return replace(found, suspended=history.suspensions.get(version))


def _publish(model: Location, incoming: Path, history: History, record: dict[str, Any]) -> tuple[str, bytes]:
    """Move the incoming files under the next number. Returns the version and the record's bytes."""
    taken = [*history.registered, *_names(model), *_names(model / _CLAIMS)]
    number = max((int(name) for name in taken if _VERSION.fullmatch(name)), default=0) + 1
    while not files.create_once(model / _CLAIMS / str(number), uuid.uuid4().hex.encode()):
        number += 1
    folder = model / str(number)
    for found in files.walk(incoming):
        files.publish(found.location, folder / files.relative(found.location, incoming))
    content = files.canonical_json({**record, "version": str(number)})
    files.replace(folder / RECORD, content)
    return str(number), content


def _names(folder: Location) -> list[str]:
    return [entry.name for entry in files.entries(folder)]


def _interrupted(model: Location, digest: str, history: History) -> tuple[str, bytes] | None:
    """A folder of this content that got its number and no entry in the history."""
    for name in _names(model):
        if _VERSION.fullmatch(name) and name not in history.registered:
            content = files.read_if_there(model / name / RECORD)
            if content is not None and json.loads(content)["digest"] == digest:
                return name, content
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


def _remove_abandoned(scratch: Path) -> None:
    """Copies left by registrations that were killed; a running one is younger."""
    for path in scratch.glob("*"):
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:  # its registration ended just now
            continue
        if age > _ABANDONED_SECONDS:
            files.remove_folder(path)
