"""What the tests need besides the virtual environment: a Chromium and a PostgreSQL, and triton's interpreter.

Run by `make test` before pytest.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from batch_platform_tests.postgres import find_programs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# What torch 2.13.0 for CUDA asks for. Its build for processors leaves it out, and 700 MB are much to ask of a user.
TRITON = "triton==3.7.1"
NO_TRITON = "triton is not installed: the kernels for CUDA are not tested (python -m batch_platform_tests.requirements)"


def find_browser() -> str | None:
    """Path of a Chromium or Chrome on this machine."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


# By Debian package: what finds it, and what to say where it cannot be had.
NEEDED: dict[str, tuple[Callable[[], object], str]] = {
    "chromium": (find_browser, 'or leave its tests out: .venv/bin/pytest -m "not browser"'),
    "postgresql": (find_programs, "its programs initdb and pg_ctl start a server for the tests"),
}


def add_triton() -> None:
    """Install triton where there are builds of it: Linux. Without it the tests of CUDA's kernels are skipped, and say so."""
    if find_spec("triton") is not None or sys.platform != "linux":
        return
    if platform.machine() not in ("x86_64", "aarch64"):
        return
    print(f"installing for the tests: {TRITON} (200 MB, 700 unpacked)", flush=True)
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "install", "-q", "--python", sys.executable, "--no-deps", TRITON]
    if not uv.is_file() or subprocess.run(command, check=False).returncode:
        print(f"make test: {NO_TRITON}", file=sys.stderr)


def main() -> int:
    add_triton()
    missing = [package for package, (find, _) in NEEDED.items() if not find()]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing for the tests: {', '.join(missing)}", flush=True)
        for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-y", "-q", *missing]):
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    missing = [package for package, (find, _) in NEEDED.items() if not find()]
    for package in missing:
        words = f"make test: {package} is missing: install it (Debian: apt-get install {package}); {NEEDED[package][1]}"
        print(words, file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
