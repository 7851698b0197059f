"""A whole project in a temporary folder, made as a user makes one: a defs folder with one pipeline file.

Real processes work on it: `dg`, the web server and the daemon, started and stopped by the tests.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from batch_platform.core.data.files import Location
from batch_platform.core.layout import Layout
from batch_platform.settings import Settings
from batch_platform_tests.mini import Mini

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).resolve().parent.parent

_PYPROJECT = """\
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "shop"
code_location_target_module = "shop.definitions"
defs_module = "shop.defs"
registry_modules = ["batch_platform"]
"""
_DEFINITIONS = """\
from pathlib import Path
import dagster as dg
defs = dg.Definitions.merge(
    dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
    dg.Definitions(executor=dg.in_process_executor),
)
"""


class Project:
    """The folder, its pipelines, and what can be done with it.

    Args:
        folder: where it is made.
        root: where the platform keeps its data; below the folder by default.
    """

    def __init__(self, folder: Path, root: Location | None = None) -> None:
        self.folder = folder
        self.settings = Settings(root=root or folder / "root")
        self.home = folder / "dagster_home"
        defs = folder / "shop" / "defs"
        defs.mkdir(parents=True)
        self.home.mkdir()
        (folder / "pyproject.toml").write_text(_PYPROJECT)
        (folder / "workspace.yaml").write_text("load_from:\n  - python_module: shop.definitions\n")
        (folder / "shop" / "__init__.py").touch()
        (defs / "__init__.py").touch()
        (folder / "shop" / "definitions.py").write_text(_DEFINITIONS)
        (self.home / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())

    def add_pipeline(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Write a pipeline file."""
        folder = self.folder / "shop" / "defs" / name
        folder.mkdir(exist_ok=True)
        document = {"type": "batch_platform.BatchInferencePipeline", "attributes": dict(attributes)}
        (folder / "defs.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def layout(self, pipeline: str) -> Layout:
        return Layout.of(self.settings, pipeline)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": f"{self.folder}:{REPOSITORY}",  # the code under test, wherever else one is installed
            "DAGSTER_HOME": str(self.home),
            "BATCH_PLATFORM_ROOT": str(self.settings.root),
            "DO_NOT_TRACK": "1",
        }

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the virtual environment in the project's folder; output is captured together."""
        return subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )

    @contextmanager
    def process(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a server of the virtual environment; it and all it started end with the block."""
        log = (self.folder / f"{words[0]}.log").open("wb")
        process = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]],
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)
            log.close()

    @contextmanager
    def web_server(self) -> Iterator[str]:
        """The Dagster web server; yields its address once it answers."""
        port = free_port()
        with self.process("dagster-webserver", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)):
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: _answers(f"{url}/server_info"), "the web server")
            yield url

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """The Dagster daemon: queue, backfills, schedules."""
        with self.process("dagster-daemon", "run", "-w", "workspace.yaml") as process:
            yield process

    def mini(self) -> Mini:
        """The writer of sources and models for the pipeline `mini` of this project."""
        import dagster as dg

        return Mini(self.folder, dg.DagsterInstance.from_config(str(self.home)), self.settings.root)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 400) -> Any:
    """Wait until the condition gives something true, and return it."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come within {seconds:.0f} s")


def graphql(url: str, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the web server, as the UI does."""
    body = json.dumps({"query": query, "variables": dict(variables)}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.loads(response.read())
    assert "errors" not in answer, answer["errors"]
    return answer["data"]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    # By the group: the servers start processes of their own.
    for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
