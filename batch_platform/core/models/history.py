"""What happened to a registered model, in order, and what its aliases point to because of it.

One file beside the versions, replaced whole: history and aliases can never disagree after a crash. Each
entry carries the hash of the one before it, so that an entry that was altered or taken out shows. It
decides nothing about the versions' content.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batch_platform.core.data import files
from batch_platform.errors import ModelError

FILE = "aliases.json"
_EVENT_FIELDS = {
    "registered": {"version", "digest", "record_sha256"},
    "promoted": {"version", "alias"},
}
_COMMON_FIELDS = {"event", "at", "by", "why", "previous", "hash"}


@dataclass(frozen=True)
class History:
    """The entries of one model, oldest first."""

    entries: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "History":
        """Read the history of a model's folder; empty where there is none.

        Raises:
            ModelError: the file was altered.
        """
        path = folder / FILE
        if not path.is_file():
            return cls()
        content = path.read_bytes()
        try:
            history = cls(tuple(json.loads(content)["history"]))
            problem = history._problem()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{path}: is no history of a model; restore it from a backup") from None
        if problem is None and content != history._content():
            problem = "the aliases are not those of the history"
        if problem is not None:
            raise ModelError(f"{path}: was altered: {problem}; restore it from a backup")
        return history

    def write(self, folder: Path) -> None:
        """Put this history in the place of the one that stands."""
        files.replace(folder / FILE, self._content())

    def with_entry(self, event: str, by: str, why: str, **what: str) -> "History":
        """One entry more."""
        entry = {"event": event, **what, "by": by, "why": why, "at": _now(), "previous": self._head()}
        return History((*self.entries, {**entry, "hash": _hash(entry)}))

    @property
    def aliases(self) -> dict[str, str]:
        """Version by alias."""
        promoted = [entry for entry in self.entries if entry["event"] == "promoted"]
        return {entry["alias"]: entry["version"] for entry in promoted}

    @property
    def registered(self) -> dict[str, Mapping[str, Any]]:
        """The entry of its registration, by version."""
        return {entry["version"]: entry for entry in self.entries if entry["event"] == "registered"}

    def _content(self) -> bytes:
        value = {"aliases": self.aliases, "history": list(self.entries)}
        return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def _head(self) -> str:
        return str(self.entries[-1]["hash"]) if self.entries else ""

    def _problem(self) -> str | None:
        previous = ""
        for place, entry in enumerate(self.entries):
            if set(entry) != _COMMON_FIELDS | _EVENT_FIELDS[entry["event"]]:
                return f"entry {place} has other fields than an entry has"
            bare = {name: value for name, value in entry.items() if name != "hash"}
            if entry["previous"] != previous or entry["hash"] != _hash(bare):
                return f"entry {place} ({entry['event']} {entry['version']}) does not match its hash"
            previous = entry["hash"]
        return None


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(files.canonical_json(entry)).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
