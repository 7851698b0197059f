"""Object storage as a place to keep files: one object is one file, a key's prefix is a folder.

An `ObjectPath` has the reading methods of `pathlib.Path` that the platform uses, so that readers need not know
where a root lies; `core/data/files.py` does all writing. It knows S3's conditional PUT, and refuses a store that
ignores it: everything that must happen once rests on it.
"""

import fnmatch
import hashlib
import io
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, cached_property, partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from batch_platform.errors import SettingsError, StorageError

# Of the tree of causes that delta-rs writes.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PLAIN = re.compile(r"[A-Za-z0-9._/-]*")
_PAUSES_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 5, 5)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Bucket:
    """A bucket, reached with the standard chain of AWS settings: environment, profile, instance role.

    An object that is not there is a `FileNotFoundError`; every other refusal a `StorageError`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._refuses_overwriting = False

    def __reduce__(self) -> "tuple[Any, tuple[str]]":
        return bucket, (self.name,)  # another process talks to it by itself

    @cached_property
    def client(self) -> Any:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        session = boto3.Session()
        if session.get_credentials() is None:
            raise SettingsError(
                f"s3://{self.name}: no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "AWS_PROFILE, or run where a role provides them"
            )
        endpoint: Any = {} if self._endpoint is None else {"endpoint": self._endpoint}
        return S3Store(
            self.name,
            **endpoint,
            region=self._region,
            credential_provider=Boto3CredentialProvider(session),
            client_options={"allow_http": self._may_be_plain, "timeout": timedelta(seconds=60)},
            # Resets, 503s and time-outs pass; what lasts longer than this is told.
            retry_config={
                "max_retries": 12,
                "retry_timeout": timedelta(seconds=180),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=5),
                    "base": 2,
                },
            },
        )

    @cached_property
    def _endpoint(self) -> str | None:
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")

    @cached_property
    def _region(self) -> str:
        import boto3

        return boto3.Session().region_name or "us-east-1"

    @property
    def _may_be_plain(self) -> bool:
        """Unencrypted HTTP only on this machine, or where it was asked for."""
        if os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true":
            return True
        return self._endpoint is not None and urlsplit(self._endpoint).hostname in _LOOPBACK

    @property
    def delta_options(self) -> dict[str, str]:
        """What delta-rs needs besides the credentials, which it finds by the same chain."""
        options = {"AWS_REGION": self._region, "aws_conditional_put": "etag"}
        if self._endpoint is not None:
            options["AWS_ENDPOINT_URL"] = self._endpoint
        if self._may_be_plain:
            options["AWS_ALLOW_HTTP"] = "true"
        return options

    def refuse_if_unconditional(self, folder: str) -> None:
        """Make sure that a second creation of an object is refused; asked once in a process.

        Raises:
            StorageError: the store answers "created" twice.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        if self._refuses_overwriting:
            return
        key = f"{folder}/.probe-{uuid.uuid4().hex}".lstrip("/")
        with self.talking(key):
            with suppress(AlreadyExistsError):  # carried out, and the reply lost
                self.patiently(key, partial(obstore.put, self.client, key, b"1", mode="create"))
            try:
                self.patiently(key, partial(obstore.put, self.client, key, b"2", mode="create"))
            except AlreadyExistsError:
                self._refuses_overwriting = True
            self.patiently(key, partial(obstore.delete, self.client, key))
        if not self._refuses_overwriting:
            raise StorageError(
                f"s3://{self.name}: the store ignores conditional PUT (If-None-Match): two writers would overwrite "
                "each other unseen. Use a store that honours it (AWS S3, Ceph, MinIO), or a folder as the root"
            )

    def patiently(self, key: str, write: Callable[[], Any]) -> None:
        """Write, and try again after resets, 503s and time-outs: the client does so by itself only for reading.

        Raises:
            obstore.exceptions.AlreadyExistsError: also where an earlier try was carried out and its reply lost.
        """
        from obstore.exceptions import GenericError

        for pause in _PAUSES_SECONDS:
            try:
                write()
                return
            except GenericError:
                time.sleep(pause)
        with self.talking(key):
            write()

    @contextmanager
    def talking(self, key: str) -> Iterator[None]:
        """Turn what the client says into a StorageError that names the object."""
        from obstore.exceptions import BaseError

        try:
            yield
        except BaseError as error:
            raise StorageError(
                f"s3://{self.name}/{key}: {type(error).__name__}: {told(error)}; check endpoint, credentials and "
                "permissions, then run it again"
            ) from error


def told(error: Exception) -> str:
    """What a client of object storage says, on one line: the store's own code and message where there are any."""
    text = _COLOUR.sub("", str(error))
    code, message = (re.search(f"<{name}>([^<]+)</{name}>", text) for name in ("Code", "Message"))
    if code is None:
        return " ".join(text.split())[:600]
    return f"{code[1]}: {message[1]}" if message is not None else code[1]


@cache
def bucket(name: str) -> Bucket:
    """The bucket of this name, the same one throughout the process."""
    return Bucket(name)


def object_root(url: str) -> "ObjectPath":
    """The folder that an `s3://bucket/prefix` names.

    Raises:
        SettingsError: it is no such URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise SettingsError(f"{url}: not a folder and not s3://bucket/prefix")
    if not _PLAIN.fullmatch(parts.path):
        raise SettingsError(
            f"{url}: use letters, digits and ._-/ alone: not every reader finds other names again"
        )
    return ObjectPath(bucket(parts.netloc), parts.path.strip("/"))


@dataclass(frozen=True)
class Stat:
    """Size in bytes and time of the last change (seconds since 1970) of an object."""

    st_size: int
    st_mtime: float


@dataclass(frozen=True, order=True)
class ObjectPath:
    """A file or folder in a bucket, by its key."""

    bucket: Bucket = field(compare=False)
    key: str

    # -- names --------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"s3://{self.bucket.name}/{self.key}"

    def __truediv__(self, name: "str | ObjectPath") -> "ObjectPath":
        inside = str(name)
        if ".." in inside.split("/") or inside.startswith("/"):
            raise StorageError(f"{self}: {inside!r} leads out of the folder")
        return ObjectPath(self.bucket, f"{self.key}/{inside}".strip("/"))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def parent(self) -> "ObjectPath":
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def with_suffix(self, suffix: str) -> "ObjectPath":
        return ObjectPath(self.bucket, str(Path(self.key).with_suffix(suffix)))

    # -- reading ------------------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        import obstore

        with self.bucket.talking(self.key):
            return bytes(obstore.get(self.bucket.client, self.key).bytes())

    def stat(self) -> Stat:
        import obstore

        with self.bucket.talking(self.key):
            found = obstore.head(self.bucket.client, self.key)
        return Stat(found["size"], found["last_modified"].timestamp())

    def is_file(self) -> bool:
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        return next(self.iterdir(), None) is not None

    def open(self, mode: str = "rb", buffering: int = 2**16) -> IO[bytes]:
        """The object as a file that can be searched; only what is read is fetched, `buffering` bytes or more at a time."""
        assert mode == "rb"
        return io.BufferedReader(_Reader(self), buffering)

    def chunks(self) -> Iterator[bytes]:
        """The whole content, some megabytes at a time."""
        import obstore

        with self.bucket.talking(self.key):
            for chunk in obstore.get(self.bucket.client, self.key).stream(min_chunk_size=4 * 2**20):
                yield bytes(chunk)

    def iterdir(self) -> "Iterator[ObjectPath]":
        import obstore

        with self.bucket.talking(self.key):
            found = obstore.list_with_delimiter(self.bucket.client, self.key or None)
        for name in found["common_prefixes"]:
            yield ObjectPath(self.bucket, name)
        for item in found["objects"]:
            yield ObjectPath(self.bucket, item["path"])

    def glob(self, pattern: str) -> "Iterator[ObjectPath]":
        """Entries of this folder whose names match; not below it."""
        return (entry for entry in self.iterdir() if fnmatch.fnmatchcase(entry.name, pattern))

    def walk_files(self) -> "Iterator[tuple[ObjectPath, int, datetime]]":
        """Every object below: its path, size and time of the last change."""
        import obstore

        with self.bucket.talking(self.key):
            for page in obstore.list(self.bucket.client, self.key or None):
                for item in page:
                    yield ObjectPath(self.bucket, item["path"]), item["size"], item["last_modified"]

    # -- writing: called by core/data/files.py -----------------------------------------------------------------

    def create(self, content: bytes) -> bool:
        """Create the object unless it is there; whether this content stands now.

        The reply to a creation can be lost and its repetition refused: content that no one else writes tells.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        self.bucket.refuse_if_unconditional(self.key.rpartition("/")[0])
        create = partial(obstore.put, self.bucket.client, self.key, content, mode="create")
        with self.bucket.talking(self.key):
            try:
                self.bucket.patiently(self.key, create)
            except AlreadyExistsError:
                return self.read_bytes() == content
        return True

    def put(self, content: bytes | Path) -> None:
        """Write the object whole; a large file in parts, which show together."""
        import obstore

        with self.bucket.talking(self.key):
            self.bucket.patiently(self.key, partial(obstore.put, self.bucket.client, self.key, content))

    def unlink(self, missing_ok: bool = False) -> None:
        import obstore

        if not missing_ok:
            self.stat()
        with self.bucket.talking(self.key):
            self.bucket.patiently(self.key, partial(obstore.delete, self.bucket.client, self.key))

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()


class _Reader(io.RawIOBase):
    """An object's bytes by ranges."""

    def __init__(self, path: ObjectPath) -> None:
        super().__init__()
        self._path = path
        self._size = path.stat().st_size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        import obstore

        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        path = self._path
        with path.bucket.talking(path.key):
            got = obstore.get_range(path.bucket.client, path.key, start=self._position, length=length)
        buffer[:length] = bytes(got)
        self._position += length
        return length
