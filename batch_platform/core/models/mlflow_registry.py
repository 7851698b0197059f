"""Models out of an MLflow registry, named `models:/name@alias` or `models:/name/3`.

MLflow decides which version an alias means. It keeps no digests, so the first use of a version writes its digest
down in the root (the pin), and files that were exchanged in MLflow's store afterwards are refused. Its files pass
the same door as those of our own registry: data formats only; a `signature.json` and a `card.json` among them
count. Nothing of MLflow is called to load a model, and nothing is written to MLflow.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.models import intake
from batch_platform.core.models.card import check_card, read_card, warn_of_expiry
from batch_platform.core.models.predictor import FLAVORS, SignatureRequest, check_folder, describe
from batch_platform.core.models.reference import MLFLOW_PREFIX, MLFLOW_REFERENCE
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.models.versions import CARD, RegisteredVersion, content_digest, differences
from batch_platform.errors import ModelError, ModelNotFoundError

TRACKING_URI = "MLFLOW_TRACKING_URI"
FLAVOR_TAG = "batch_platform.flavor"
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter is said of an alias


@dataclass(frozen=True)
class _Content:
    """What an MLflow version holds, judged by us."""

    flavor: str
    signature: ModelSignature
    files: dict[str, str]

    @property
    def digest(self) -> str:
        return content_digest(self.files, self.signature, self.flavor)


class MlflowRegistry:
    """The models of the MLflow server that `MLFLOW_TRACKING_URI` names."""

    def __init__(self, root: Location, max_bytes: int) -> None:
        self._pins = root / "mlflow"
        self._cache = files.scratch(root) / "models"
        self._max_bytes = max_bytes

    def resolve(self, name: str, alias: str) -> RegisteredVersion:
        """The version that a reference means now, its files on this machine.

        Args:
            name: the reference, `models:/name@alias` or `models:/name/3`.
            alias: not read: the reference has its own.

        Raises:
            ModelNotFoundError: MLflow has no such model, alias or version.
            ModelError: MLflow is not installed, not configured or does not answer; the files are refused, or are not
                those that were used first.
            SignatureError: files and signature do not fit each other.
        """
        found, client, uri, version = self._ask(name)
        if version.status != "READY":
            raise ModelError(f"{name}: version {version.version} is {version.status} in MLflow, not READY")
        content, folder = self._content(name, client, uri, version)
        card = read_card(folder / CARD) if (folder / CARD).is_file() else None
        warn_of_expiry(f"{name} version {version.version}", card)
        return RegisteredVersion(
            name=MLFLOW_PREFIX + found["name"],
            version=str(version.version),
            digest=content.digest,
            flavor=content.flavor,
            signature=content.signature,
            path=folder,
            files=content.files,
            card=card,
            registered_at=_time(version.creation_timestamp),
            registered_by=version.user_id or "not known to MLflow",
            cache=self._cache,
            alias=found["alias"],
        )

    def digest_of(self, name: str, alias: str) -> str:
        """The digest of the version that a reference means now, without its files.

        Args:
            name, alias: as in `resolve`.

        Returns:
            Of a version that was never used here, whose digest is not known yet, words that are no version's digest.

        Raises:
            ModelNotFoundError: MLflow has no such model, alias or version.
            ModelError: MLflow is not installed, not configured or does not answer.
        """
        _, _, uri, version = self._ask(name)
        pinned = files.read_if_there(self._pin(uri, version))
        return _read(pinned).digest if pinned is not None else f"not used yet: version {version.version}"

    def _ask(self, name: str) -> tuple[re.Match[str], Any, str, Any]:
        """The parts of a reference, MLflow's client, its address, and the version that the reference means now."""
        found = MLFLOW_REFERENCE.fullmatch(name)
        if found is None:
            raise ModelError(f"{name!r} is no model of MLflow: write models:/name@alias or models:/name/3")
        with _asking(name):
            client, uri = _client()
            if found["alias"]:
                version = client.get_model_version_by_alias(found["name"], found["alias"])
            else:
                version = client.get_model_version(found["name"], found["version"])
        return found, client, uri, version

    def _content(self, reference: str, client: Any, uri: str, version: Any) -> tuple[_Content, Path]:
        """The content and its folder, out of the cache where it is there as it was pinned."""
        pin = self._pin(uri, version)
        pinned = files.read_if_there(pin)
        if pinned is not None:
            content = _read(pinned)
            folder = self._folder(content)
            if folder.is_dir() and not any(differences(folder, content.files)):
                return content, folder
        incoming = self._cache / f"incoming-{uuid.uuid4().hex}"
        try:
            content = self._fetch(reference, client, uri, version, incoming)
            pinned = _write(content)
            if not files.create_once(pin, pinned) and (first := _read(pin.read_bytes())) != content:
                raise ModelError(
                    f"{reference}: version {version.version} was altered in MLflow since it was used first: its digest "
                    f"was {first.digest} and is {content.digest}. Register what it should be as a new version"
                )
            return content, self._keep(incoming, content)
        finally:
            files.remove_folder(incoming)

    def _pin(self, uri: str, version: Any) -> Location:
        # The address of a server may hold a password: its hash tells servers apart as well.
        server = hashlib.sha256(uri.encode()).hexdigest()[:16]
        return self._pins / server / quote(version.name) / f"{version.version}.json"

    def _folder(self, content: _Content) -> Path:
        return self._cache / content.digest.removeprefix("sha256:")

    def _keep(self, incoming: Path, content: _Content) -> Path:
        folder = self._folder(content)
        files.remove_folder(folder)
        with suppress(OSError):  # another process has just put the same there
            (incoming / "model").rename(folder)
        return folder

    def _fetch(self, reference: str, client: Any, uri: str, version: Any, incoming: Path) -> _Content:
        """Copy the files to `incoming/model` and judge them there."""
        with _asking(reference):
            source = client.get_model_version_download_uri(version.name, version.version)
            local = _local(source)
            if local is None:
                from mlflow.artifacts import download_artifacts

                local = Path(download_artifacts(source, dst_path=str(incoming / "raw"), tracking_uri=uri))
        folder = incoming / "model"
        try:
            intake.copy_folder(local, folder, self._max_bytes)
            intake.inspect(folder)
            flavor, signature = _flavor(folder, version.tags.get(FLAVOR_TAG))
            if (folder / CARD).is_file():
                check_card(read_card(folder / CARD))
        except ModelError as error:
            raise type(error)(
                f"{reference}: version {version.version} of MLflow is not taken{_flavors_of_mlflow(local)}: {error}"
            ) from None
        return _Content(flavor, signature, intake.digests(folder))


def _client() -> tuple[Any, str]:
    uri = os.environ.get(TRACKING_URI)
    if not uri:
        raise ModelError(f"a model of MLflow is asked for: set {TRACKING_URI} to the address of its server")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri), uri


@contextmanager
def _asking(reference: str) -> Iterator[None]:
    """Turn what MLflow says into our errors."""
    try:
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise ModelError(
            f"{reference}: a model of MLflow needs the package mlflow-skinny, which is not installed: "
            "pip install 'batch_platform[mlflow]'"
        ) from None
    try:
        yield
    except MlflowException as error:
        first = (str(error).splitlines() or [""])[0][:300]
        kind = ModelNotFoundError if error.error_code in _ABSENT else ModelError
        raise kind(f"{reference}: MLflow at {_shown(os.environ[TRACKING_URI])} says: {first}") from error
    except OSError as error:
        raise ModelError(f"{reference}: the files cannot be fetched from MLflow's store: {error}") from error


def _shown(uri: str) -> str:
    """An address without the password in it."""
    parts = urlsplit(uri)
    return uri.replace(f"{parts.username or ''}:{parts.password}@", "") if parts.password else uri


def _local(uri: str) -> Path | None:
    """The folder of this machine that an artifact address names; None for a remote one.

    Such a folder is read in place: MLflow's own copying follows symbolic links.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme else None


def _flavor(folder: Path, said: str | None) -> tuple[str, ModelSignature]:
    """The flavor that the version's tag says, else the one that the files are complete for, and the signature."""
    if said is not None:
        signature = describe(folder, said, SignatureRequest())
        check_folder(folder, said, signature)
        return said, signature
    fitting: list[tuple[str, ModelSignature]] = []
    reasons = []
    for flavor in FLAVORS:
        try:
            signature = describe(folder, flavor, SignatureRequest())
            check_folder(folder, flavor, signature)
        except ModelError as error:
            reasons.append(f"{flavor}: {str(error).replace(f'{folder}/', '')}")
        else:
            fitting.append((flavor, signature))
    if len(fitting) == 1:
        return fitting[0]
    found = " and ".join(flavor for flavor, _ in fitting) or "none"
    raise ModelError(
        f"its files fit {found} of the flavors: set the version's tag {FLAVOR_TAG} to one of {', '.join(FLAVORS)}"
        + (f" ({'; '.join(reasons)})" if not fitting else "")
    )


def _flavors_of_mlflow(folder: Path) -> str:
    """What the file MLmodel says the model is, for a message; empty where there is none."""
    path = folder / "MLmodel"
    if not path.is_file():
        return ""
    names = re.findall(r"^  (\w+):\s*$", path.read_text("utf-8", "replace").partition("flavors:")[2], re.M)
    return f" (its MLflow flavors: {', '.join(names[:10])})" if names else ""


def _write(content: _Content) -> bytes:
    value = {"flavor": content.flavor, "signature": content.signature.to_dict(), "files": content.files}
    return files.canonical_json({**value, "digest": content.digest})


def _read(pinned: bytes) -> _Content:
    value = json.loads(pinned)
    return _Content(value["flavor"], ModelSignature.from_dict(value["signature"]), value["files"])


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
