"""One registered version on the disk: its documents, its digests, and what differs from them.

It decides which files a version consists of and what its digest is made of. Numbers, aliases and history
are the registry's.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.models import intake
from batch_platform.core.models.history import Suspension
from batch_platform.core.models.signature import ModelSignature
from batch_platform.errors import ModelError, ModelSuspendedError, SignatureError

FILES = "model"  # folder of the model's own files in a version's folder
RECORD, SIGNATURE, CARD, GOLDEN = "record.json", "signature.json", "card.json", "golden.parquet"


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
        cache: folder of this machine for copies of what lies in object storage.
        files: SHA-256 of each of these, by relative path.
        card: the model card; None where it was registered without one.
        registered_at: ISO 8601, UTC.
        registered_by: who registered it.
        suspended: who suspended it and why, when it was looked up; None where it may score.
        alias: the alias that it was found by; None where it was asked for by its number.
        approved: who pointed the alias to it, why and when (`by`, `why`, `at`); None where nobody did.
        created: False where `register` found the same content under this version.
    """

    name: str
    version: str
    digest: str
    flavor: str
    signature: ModelSignature
    path: Location
    files: Mapping[str, str]
    card: Mapping[str, Any] | None
    registered_at: str
    registered_by: str
    suspended: Suspension | None = None
    alias: str | None = field(default=None, compare=False)
    approved: Mapping[str, str] | None = field(default=None, compare=False)
    created: bool = field(default=True, compare=False)
    cache: Path = field(default=Path(), compare=False, repr=False)

    def refuse_suspended(self) -> None:
        """Let a version pass that may score.

        Raises:
            ModelSuspendedError: says who suspended it, when and why, and what to type.
        """
        if self.suspended is not None:
            raise ModelSuspendedError(
                f"model {self.name} version {self.version} was {self.suspended}. It does not score; promote another "
                f"version, or lift the suspension: batch-platform models suspend {self.name} {self.version} --lift "
                "--by WHO --why TEXT"
            )

    def checked_folder(self) -> Path:
        """The model's files on this machine, each of them compared with what was registered just now.

        Raises:
            ModelSuspendedError: the version must not score.
            ModelError: names the file that was altered, added or removed.
            StorageError: they cannot be fetched.
        """
        self.refuse_suspended()
        folder = self._local()
        for name, problem in differences(folder, self.files):
            raise ModelError(
                f"model {self.name} version {self.version}: {folder / name} {problem} since it was registered; "
                "it is not loaded. Restore the file, or register the model again"
            )
        return folder

    def read_file(self, path: str) -> bytes:
        """One of the model's files, compared with what was registered.

        Raises:
            ModelError: there is no such file, or it was altered.
        """
        about = f"model {self.name} version {self.version}"
        if path not in self.files:
            raise ModelError(f"{about} has no file {path}; it has: {', '.join(sorted(self.files))}")
        content = files.read_if_there(self.path / path)
        if content is None or hashlib.sha256(content).hexdigest() != self.files[path]:
            raise ModelError(f"{about}: {path} was altered since it was registered; register the model again")
        return content

    def _local(self) -> Path:
        if isinstance(self.path, Path):
            return self.path
        folder = self.cache / self.digest.removeprefix("sha256:")
        if folder.is_dir() and not any(differences(folder, self.files)):
            return folder
        incoming = self.cache / f"incoming-{uuid.uuid4().hex}"
        for name in self.files:
            files.fetch(self.path / name, incoming / name)
        files.remove_folder(folder)
        with suppress(OSError):  # another process has just put the same there
            incoming.rename(folder)
        files.remove_folder(incoming)
        return folder


@dataclass(frozen=True)
class Problem:
    """Something in the registry that is not as it was registered."""

    model: str
    version: str | None
    file: str
    problem: str


def read_version(folder: Location, name: str, entry: Mapping[str, Any], cache: Path) -> RegisteredVersion:
    """Read a version's documents and check them against each other; the model's files are not read.

    Args:
        folder: of the version.
        name: of the model.
        entry: the registration in the model's history.
        cache: folder of this machine for copies of what lies in object storage.

    Raises:
        ModelError: a document was altered.
    """
    record = _record(folder, entry, f"model {name} version {entry['version']}")
    try:
        signature = ModelSignature.read(folder / SIGNATURE)
        card = json.loads((folder / CARD).read_bytes())
    except (OSError, ValueError, SignatureError) as error:
        raise ModelError(f"{folder}: was altered: {error}; restore it from a backup") from None
    if content_digest(record["files"], signature, record["flavor"]) != record["digest"]:
        raise ModelError(f"{folder / SIGNATURE}: was altered; restore it from a backup")
    return RegisteredVersion(
        name=name,
        version=entry["version"],
        digest=record["digest"],
        flavor=record["flavor"],
        signature=signature,
        path=folder / FILES,
        files=record["files"],
        card=card,
        registered_at=entry["at"],
        registered_by=entry["by"],
        cache=cache,
    )


def _record(folder: Location, entry: Mapping[str, Any], about: str) -> dict[str, Any]:
    try:
        content = (folder / RECORD).read_bytes()
    except OSError as error:
        raise ModelError(f"{about}: {folder} was altered: {error}; restore it from a backup") from None
    if hashlib.sha256(content).hexdigest() != entry["record_sha256"]:
        raise ModelError(f"{about}: {folder / RECORD} was altered; restore it from a backup")
    return json.loads(content)


def verify_version(folder: Location, name: str, entry: Mapping[str, Any], cache: Path) -> Iterator[Problem]:
    """Everything in a version's folder that is not as it was registered; all files are read."""
    version = entry["version"]
    try:
        found = read_version(folder, name, entry, cache)
    except ModelError as error:
        yield Problem(name, version, str(folder), str(error))
        return
    for file, problem in differences(found.path, found.files):
        yield Problem(name, version, str(found.path / file), problem)
    documents = {RECORD: entry["record_sha256"], **_record(folder, entry, name)["documents"]}
    beside = {path.name: path for path in folder.iterdir() if path.name != FILES}
    for file in sorted(beside.keys() | documents.keys()):
        if file not in beside:
            yield Problem(name, version, str(folder / file), "was removed")
        elif file not in documents:
            yield Problem(name, version, str(folder / file), "was added")
        elif not beside[file].is_file() or files.sha256_of(beside[file]) != documents[file]:
            yield Problem(name, version, str(folder / file), "was altered")


def content_digest(content: Mapping[str, str], signature: ModelSignature, flavor: str) -> str:
    """Identity of a version: "sha256:..." over its files' digests by path, its signature and flavor."""
    value = {"files": content, "signature": signature.to_dict(), "flavor": flavor}
    return "sha256:" + hashlib.sha256(files.canonical_json(value)).hexdigest()


def write_documents(
    incoming: Path,
    signature: ModelSignature,
    card: Mapping[str, Any] | None,
    golden: pa.Table | None,
) -> dict[str, str]:
    """Write what stands beside the model's files. Returns the SHA-256 of each document by name."""
    for name, value in ((SIGNATURE, signature.to_dict()), (CARD, card)):
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        files.replace(incoming / name, (text + "\n").encode())
    names = [SIGNATURE, CARD]
    if golden is not None:
        pq.write_table(golden, incoming / GOLDEN)
        files.fsync_file(incoming / GOLDEN)
        names.append(GOLDEN)
    return {name: files.sha256_of(incoming / name) for name in names}


def differences(folder: Location, registered: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Files of a folder, by relative path, that were altered, added or removed, and which of these."""
    if isinstance(folder, Path):
        found = intake.digests(folder) if folder.is_dir() else {}
    else:
        places = [entry.location for entry in files.walk(folder)]
        found = {files.relative(place, folder): files.sha256_of(place) for place in places}
    for name in sorted(found.keys() | registered.keys()):
        if name not in found:
            yield name, "was removed"
        elif name not in registered:
            yield name, "was added"
        elif found[name] != registered[name]:
            yield name, "was altered"
