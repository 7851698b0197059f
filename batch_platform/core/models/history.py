"""What happened to a registered model, in order, and what its aliases point to because of it.

One file per entry, each created once under the next number: of two writers at the same time one is first, and the
other looks again and decides again. Each entry carries the hash of the one before it, so that an entry that was altered
or taken out shows; a seal beside the history carries the hash of each entry, so that the last one, which nothing
follows, is missed as well. It decides nothing about the versions' content.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.errors import ModelError

FOLDER = "history"
SEALS = "seals"
_EVENT_FIELDS = {
    "registered": {"version", "digest", "record_sha256"},
    "promoted": {"version", "alias"},
    "rolled_back": {"version", "alias"},
    "suspended": {"version"},
    "lifted": {"version"},
}
# What the promotion gate showed, and what of it was overridden; absent where no gate was asked.
_GATE_FIELDS = {"compared", "despite"}
_COMMON_FIELDS = {"event", "at", "by", "why", "previous", "hash"}


_POINTING = ("promoted", "rolled_back")  # events after which an alias points to the entry's version


@dataclass(frozen=True)
class Suspension:
    """Who suspended a version, why, and when (ISO 8601, UTC)."""

    by: str
    why: str
    at: str

    def __str__(self) -> str:
        return f"suspended by {self.by} at {self.at}: {self.why}"


@dataclass(frozen=True)
class History:
    """The entries of one model, oldest first."""

    entries: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, folder: Location) -> "History":
        """Read the history of a model's folder; empty where there is none.

        Raises:
            ModelError: an entry was altered or taken away.
        """
        entries: list[Mapping[str, Any]] = []
        for path in files.entries(folder / FOLDER, "*.json"):
            try:
                content = path.read_bytes()
                entry = json.loads(content)
                problem = _problem(entry, entries, path.name, content)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                problem = "it is no entry of a history"
            if problem is not None:
                raise ModelError(f"{path}: was altered: {problem}; restore it from a backup")
            entries.append(entry)
        return cls(tuple(entries))

    def append(self, folder: Location, event: str, by: str, why: str, **what: str) -> bool:
        """Write one entry more; False where another writer was first with an entry of its own.

        Raises:
            StorageError: it cannot be written.
        """
        head = str(self.entries[-1]["hash"]) if self.entries else ""
        entry = {"event": event, **what, "by": by, "why": why, "at": _now(), "previous": head}
        digest = _hash(entry)
        name = _name(len(self.entries))
        if not files.create_once(folder / FOLDER / name, _content({**entry, "hash": digest})):
            return False
        files.create_once(folder / SEALS / name, digest.encode())
        return True

    def broken_seals(self, folder: Location) -> list[str]:
        """Names of entries that were sealed and are no longer there, or are others.

        An entry without a seal is none of these: its writer was killed between the two.
        """
        standing = {_name(place): entry["hash"] for place, entry in enumerate(self.entries)}
        seals = files.entries(folder / SEALS)
        return [seal.name for seal in seals if seal.read_bytes().decode() != standing.get(seal.name)]

    @property
    def aliases(self) -> dict[str, str]:
        """Version by alias."""
        return {entry["alias"]: entry["version"] for entry in self.entries if entry["event"] in _POINTING}

    def before(self, alias: str) -> str | None:
        """The version that an alias pointed to before its last promotion that stands; None where there was none.

        Going back twice goes back two promotions, not forward again.
        """
        promoted: list[str] = []
        for entry in self._pointing(alias):
            if entry["event"] == "rolled_back":
                promoted.pop()
            else:
                promoted.append(entry["version"])
        return promoted[-2] if len(promoted) > 1 else None

    def approval(self, alias: str) -> dict[str, str] | None:
        """Who pointed an alias to where it points, why, when and despite what; None where nobody did."""
        pointing = self._pointing(alias)
        told = ("by", "why", "at", *sorted(_GATE_FIELDS))
        return {name: pointing[-1][name] for name in told if name in pointing[-1]} if pointing else None

    def _pointing(self, alias: str) -> list[Mapping[str, Any]]:
        return [each for each in self.entries if each["event"] in _POINTING and each["alias"] == alias]

    @property
    def suspensions(self) -> dict[str, "Suspension"]:
        """The suspension that stands, by version."""
        standing: dict[str, Suspension] = {}
        for entry in self.entries:
            if entry["event"] == "suspended":
                standing[entry["version"]] = Suspension(entry["by"], entry["why"], entry["at"])
            elif entry["event"] == "lifted":
                standing.pop(entry["version"], None)
        return standing

    @property
    def registered(self) -> dict[str, Mapping[str, Any]]:
        """The entry of its registration, by version."""
        return {entry["version"]: entry for entry in self.entries if entry["event"] == "registered"}


def _name(place: int) -> str:
    return f"{place + 1:06d}.json"


def _content(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _problem(
    entry: Mapping[str, Any], before: list[Mapping[str, Any]], name: str, content: bytes
) -> str | None:
    gate = _GATE_FIELDS if entry["event"] == "promoted" else set()
    if set(entry) - gate != _COMMON_FIELDS | _EVENT_FIELDS[entry["event"]] or content != _content(entry):
        return "it does not have the form of an entry"
    bare = {field: value for field, value in entry.items() if field != "hash"}
    if entry["hash"] != _hash(bare):
        return "it does not match its hash"
    if name != _name(len(before)) or entry["previous"] != (before[-1]["hash"] if before else ""):
        return "it does not follow the entry before it"
    return None


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(files.canonical_json(entry)).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
