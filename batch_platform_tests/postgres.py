"""A real PostgreSQL for tests: a server of its own in a temporary folder, on a free port, as another user than root."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adbc_driver_postgresql import dbapi

from batch_platform_tests.project import free_port

_SYSTEM_USER = "postgres"  # made by Debian's package
_DEBIAN = Path("/usr/lib/postgresql")


def find_programs() -> Path | None:
    """The folder with `initdb` and `postgres`; None where PostgreSQL is not installed."""
    for folder in sorted(_DEBIAN.glob("*/bin"), reverse=True):
        if (folder / "initdb").is_file():
            return folder
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


class Server:
    """A running server.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, folder: Path) -> None:
        programs = find_programs()
        assert programs is not None, "PostgreSQL is not installed: make test installs it"
        self.port = free_port()
        self._data = folder / "data"
        self._control = [str(programs / "pg_ctl"), "-D", str(self._data), "-w"]
        self._user = _SYSTEM_USER if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user, self._user)
        self._run(str(programs / "initdb"), "-D", str(self._data), "-U", "tests", "-A", "trust", "--no-sync")
        self.start()

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k '' -c fsync=off -c max_connections=50"
        self._run(*self._control, "-l", str(self._data.parent / "log"), "-o", options, "start")

    def stop(self) -> None:
        """End it at once; what was committed stays."""
        self._run(*self._control, "-m", "immediate", "stop")

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{uuid.uuid4().hex[:12]}"
        execute(self.url("postgres"), f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql://tests@127.0.0.1:{self.port}/{database}"

    def _run(self, *command: str) -> None:
        subprocess.run(
            command, user=self._user, cwd="/", check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )


@contextmanager
def server() -> Iterator[Server]:
    """A server that ends with the block."""
    # Not in pytest's folder, which pytest keeps closed to other users.
    with tempfile.TemporaryDirectory(prefix="batch_platform-postgres-") as folder:
        running = Server(Path(folder))
        try:
            yield running
        finally:
            running.stop()


def execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements, each committed at once; the last one's rows, where it has some."""
    rows: list[tuple[Any, ...]] = []
    with dbapi.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
    return rows
