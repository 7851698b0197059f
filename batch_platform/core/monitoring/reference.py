"""Profiles and the frozen references of a pipeline, as files under `monitoring/<pipeline>/`.

Decides how they are kept: each written whole; a reference's profiles under the digest of their content, so that it
can neither change nor be mixed with another one made at the same time. It does not judge.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.monitoring.facts import Facts, facts_in
from batch_platform.core.monitoring.profile import HEADER_BYTES, Profile, rows_in
from batch_platform.errors import MonitoringError


@dataclass(frozen=True)
class Reference:
    """The partitions that days are compared with.

    Attributes:
        version: counts up with each new reference.
        keys: partition keys, oldest first.
        by: who made it.
        why: in their words.
        at: ISO 8601, UTC.
        digests: by table, in the order of `keys`: SHA-256 of each profile as it was then.
    """

    version: int
    keys: tuple[str, ...]
    by: str
    why: str
    at: str
    digests: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def words(self) -> str:
        """Its version and partitions."""
        return f"version {self.version}: {len(self.keys)} partitions, {self.keys[0]} to {self.keys[-1]}"


@dataclass(frozen=True)
class ReferenceStore:
    """The monitoring files of one pipeline, in one folder."""

    folder: Location

    # -- profiles -----------------------------------------------------------------------------------------

    def save_profiles(self, partition_key: str, profiles: dict[str, Profile]) -> None:
        """Keep the profiles of a partition by table, in the place of earlier ones."""
        for table, profile in profiles.items():
            self.save_content(table, partition_key, profile.to_bytes())

    def load_profile(self, table: str, partition_key: str) -> Profile:
        """The profile of a partition's table.

        Raises:
            MonitoringError: it is not there, or cannot be read.
        """
        path = self._profile(table, partition_key)
        return _read(path, self._content(path, partition_key))

    def content(self, table: str, partition_key: str) -> bytes:
        """Bytes of the profile of a partition's table.

        Raises:
            MonitoringError: it is not there.
        """
        return self._content(self._profile(table, partition_key), partition_key)

    def content_of(self, table: str, partition_key: str, digest: str) -> bytes | None:
        """The same, of a profile with that SHA-256; None where it is not there, or is another one."""
        content = files.read_if_there(self._profile(table, partition_key))
        return content if content is not None and hashlib.sha256(content).hexdigest() == digest else None

    def save_content(self, table: str, partition_key: str, content: bytes) -> None:
        """Keep the profile of a partition's table, in the place of an earlier one."""
        path = self._profile(table, partition_key)
        if files.read_if_there(path) != content:
            files.replace(path, content)

    def facts(self, table: str, partition_key: str, content: bytes) -> Facts:
        """What data quality remembers of a profile's bytes.

        Raises:
            MonitoringError: they cannot be read; names the file.
        """
        try:
            return facts_in(content)
        except MonitoringError as error:
            raise _unreadable(self._profile(table, partition_key), error) from None

    def rows(self, table: str, partition_key: str) -> int:
        """Rows of a partition's table, without reading all of its profile.

        Raises:
            MonitoringError: there is no profile, or it cannot be read.
        """
        path = self._profile(table, partition_key)
        try:
            return rows_in(self._content(path, partition_key, HEADER_BYTES))
        except MonitoringError as error:
            raise _unreadable(path, error) from None

    def keys(self, *tables: str) -> list[str]:
        """Partition keys that have a profile of each of these tables, in order."""
        found = [
            {path.stem for path in files.entries(self.folder / "profiles" / table, "*.profile")}
            for table in tables
        ]
        return sorted(set.intersection(*found)) if found else []

    # -- references ---------------------------------------------------------------------------------------

    def current(self) -> Reference | None:
        """The newest reference; None before the first.

        Raises:
            MonitoringError: it cannot be read.
        """
        found = files.entries(self.folder / "references", "*.json")
        return self._reference(found[-1]) if found else None

    def all(self) -> list[Reference]:
        """Every reference, oldest first.

        Raises:
            MonitoringError: one cannot be read.
        """
        return [self._reference(path) for path in files.entries(self.folder / "references", "*.json")]

    def freeze(
        self, keys: Sequence[str], tables: Sequence[str], by: str, why: str, standing: Reference | None
    ) -> Reference:
        """Make these partitions the new reference; their profiles are copied, so that it never changes.

        Args:
            standing: the reference that the new one was decided to follow; None: there was none.

        Returns:
            The reference that follows `standing`: this one, or that of another process which was first.

        Raises:
            MonitoringError: a profile is missing.
        """
        version = 1 if standing is None else standing.version + 1
        digests = tuple((table, tuple(self._keep(table, key) for key in keys)) for table in tables)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        made = Reference(version, tuple(keys), by, why, at, digests)
        path = self.folder / "references" / f"{version:06d}.json"
        files.create_once(path, files.canonical_json(asdict(made)))
        return self._reference(path)

    def reference_profile(self, reference: Reference, table: str, partition_key: str) -> Profile:
        """A partition's profile as it was when the reference was frozen.

        Raises:
            MonitoringError: it is not there, was altered, or cannot be read.
        """
        digest = dict(reference.digests)[table][reference.keys.index(partition_key)]
        path = self._frozen(digest)
        content = files.read_if_there(path)
        if content is None:
            raise MonitoringError(
                f"{path}: reference {reference.version} has lost the profile of {partition_key}"
            )
        if hashlib.sha256(content).hexdigest() != digest:
            raise MonitoringError(f"{path}: reference {reference.version} is damaged: the file was altered")
        return _read(path, content)

    def _keep(self, table: str, partition_key: str) -> str:
        content = self.load_profile(table, partition_key).to_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files.create_once(self._frozen(digest), content)
        return digest

    def _reference(self, path: Location) -> Reference:
        try:
            values = json.loads(path.read_bytes())
            digests = tuple((table, tuple(each)) for table, each in values["digests"])
            return Reference(**{**values, "keys": tuple(values["keys"]), "digests": digests})
        except (ValueError, KeyError, TypeError) as error:
            raise MonitoringError(
                f"{path}: not a reference that this version reads ({error!r}); remove the folder "
                f"{self.folder} and materialize drift_report again, oldest partitions first"
            ) from None

    # -- paths --------------------------------------------------------------------------------------------

    def _frozen(self, digest: str) -> Location:
        return self.folder / "references" / "profiles" / f"{digest}.profile"

    def _profile(self, table: str, partition_key: str) -> Location:
        # Keys sort as their windows do; the colon of hourly keys is kept, so that a stem is a key.
        return self.folder / "profiles" / table / f"{partition_key}.profile"

    def _content(self, path: Location, partition_key: str, most: int = -1) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(most)
        except FileNotFoundError:
            raise MonitoringError(
                f"{path}: no profile; materialize drift_report for {partition_key}"
            ) from None


def _read(path: Location, content: bytes) -> Profile:
    try:
        return Profile.from_bytes(content)
    except MonitoringError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Location, error: MonitoringError) -> MonitoringError:
    return MonitoringError(
        f"{path}: {error}; remove the file and materialize drift_report for {path.stem} again"
    )
