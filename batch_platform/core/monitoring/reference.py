"""Profiles and the frozen reference of a pipeline, as files under `monitoring/<pipeline>/`.

Decides how they are kept: each written whole, the reference never changed once frozen. It does not judge.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from batch_platform.core.data import files
from batch_platform.core.monitoring.profile import Profile
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
    """

    version: int
    keys: tuple[str, ...]
    by: str
    why: str
    at: str


class ReferenceStore:
    """The monitoring files of one pipeline."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReferenceStore) and self._folder == other._folder

    def __hash__(self) -> int:
        return hash(self._folder)

    def save_profiles(self, partition_key: str, profiles: dict[str, Profile]) -> None:
        """Keep the profiles of a partition by table, in the place of earlier ones."""
        for table, profile in profiles.items():
            path = self._profile(table, partition_key)
            content = profile.to_bytes()
            if not path.is_file() or path.read_bytes() != content:
                files.replace(path, content)

    def load_profile(self, table: str, partition_key: str) -> Profile:
        """The profile of a partition's table.

        Raises:
            MonitoringError: it is not there, or cannot be read.
        """
        path = self._profile(table, partition_key)
        if not path.is_file():
            raise MonitoringError(f"{path}: no profile; materialize drift_report for {partition_key}")
        return Profile.from_bytes(path.read_bytes())

    def keys(self, table: str) -> list[str]:
        """Partition keys that have a profile, in order."""
        return sorted(path.stem for path in (self._folder / "profiles" / table).glob("*.profile"))

    def current(self) -> Reference | None:
        """The newest reference; None before the first."""
        found = sorted((self._folder / "references").glob("*.json"))
        if not found:
            return None
        return self._read(found[-1])

    def freeze(self, keys: Sequence[str], tables: Sequence[str], by: str, why: str) -> Reference:
        """Make these partitions the new reference; their profiles are copied, so that it never changes.

        Returns:
            The reference that stands: this one, or that of another process which was first.
        """
        standing = self.current()
        version = 1 if standing is None else standing.version + 1
        made = Reference(version, tuple(keys), by, why, datetime.now(UTC).isoformat(timespec="seconds"))
        for table in tables:
            for key in keys:
                content = self.load_profile(table, key).to_bytes()
                files.replace(self._frozen(version, table, key), content)
        path = self._folder / "references" / f"{version:06d}.json"
        files.create_once(path, files.canonical_json({**asdict(made), "keys": list(keys)}))
        return self._read(path)

    def reference_profile(self, reference: Reference, table: str, partition_key: str) -> Profile:
        """A partition's profile as it was when the reference was frozen.

        Raises:
            MonitoringError: it is not there, or cannot be read.
        """
        path = self._frozen(reference.version, table, partition_key)
        if not path.is_file():
            raise MonitoringError(f"{path}: the reference has lost a profile; freeze a new reference")
        return Profile.from_bytes(path.read_bytes())

    def _read(self, path: Path) -> Reference:
        values = json.loads(path.read_bytes())
        return Reference(**{**values, "keys": tuple(values["keys"])})

    def _frozen(self, version: int, table: str, partition_key: str) -> Path:
        return self._folder / "references" / f"{version:06d}" / table / f"{partition_key}.profile"

    def _profile(self, table: str, partition_key: str) -> Path:
        # Keys sort as their windows do; the colon of hourly keys is kept, so that a stem is a key.
        return self._folder / "profiles" / table / f"{partition_key}.profile"
