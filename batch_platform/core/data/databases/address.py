"""Which database an environment variable names, and what may be said of it.

Decides the kinds of database and how their addresses look. An address holds a password: it stands in no message, log,
table or pipeline file; databases are called by the variable's name.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from batch_platform.errors import SettingsError

Kind = Literal["postgresql", "duckdb", "sqlite"]
_KINDS: dict[str, Kind] = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "duckdb": "duckdb",
    "sqlite": "sqlite",
}
# A connection that goes nowhere ends by itself, in seconds: while connecting, and with a peer that is gone.
_PATIENCE = {"connect_timeout": 30, "keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 6}


@dataclass(frozen=True)
class Address:
    """A database.

    Attributes:
        variable: the environment variable that it was read from; what messages call it by.
        kind: which database it is.
        target: the URL of a server, or the path of a file.
    """

    variable: str
    kind: Kind
    target: str = field(repr=False)

    @classmethod
    def from_env(cls, variable: str, base: Path) -> "Address":
        """Read the address that an environment variable holds.

        Args:
            base: folder that relative paths start from.

        Raises:
            SettingsError: it is not set, or no address of a known kind.
        """
        value = os.environ.get(variable, "").strip()
        scheme, separator, rest = value.partition("://")
        kind = _KINDS.get(scheme.lower())
        if not value:
            raise SettingsError(
                f"the environment variable {variable} is not set: it must hold a database's address, e.g. "
                "postgresql://user:password@host/database"
            )
        if not separator or kind is None:
            raise SettingsError(
                f"the environment variable {variable} holds no address of a database: write "
                "postgresql://user:password@host/database, duckdb:///path or sqlite:///path"
            )
        if kind == "postgresql":
            return cls(variable, kind, _patient(f"postgresql://{rest}"))
        path = rest.removeprefix("/")
        if not rest.startswith("/") or not path:
            raise SettingsError(
                f"the environment variable {variable}: write {kind}:/// and the path of a file"
            )
        return cls(variable, kind, str(base / path))

    def said(self, error: Exception) -> str:
        """What a database says, on one line and without what is secret."""
        text = " ".join(str(error).split())
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, "***")
        return re.sub(r"^([A-Z_]+: )?\[libpq\] ", "", text)[:600]

    def _secrets(self) -> set[str]:
        if self.kind != "postgresql":
            return set()
        try:
            written = urlsplit(self.target).password or ""
        except ValueError:
            written = ""
        given = os.environ.get("PGPASSWORD", "")
        return {secret for secret in (self.target, written, unquote(written), given) if secret}


def _patient(url: str) -> str:
    """The URL with time limits, except where it sets its own."""
    wanted = [f"{name}={value}" for name, value in _PATIENCE.items() if f"{name}=" not in url]
    return url + ("&" if "?" in url else "?") + "&".join(wanted) if wanted else url
