"""What the tests need besides the virtual environment: a Chromium and a PostgreSQL. Run by `make test` before pytest."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

from batch_platform_tests.postgres import find_programs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Path of a Chromium or Chrome on this machine."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


# By Debian package: what finds it, and what to say where it cannot be had.
NEEDED: dict[str, tuple[Callable[[], object], str]] = {
    "chromium": (find_browser, 'or leave its tests out: .venv/bin/pytest -m "not browser"'),
    "postgresql": (find_programs, "its programs initdb and pg_ctl start a server for the tests"),
}


def main() -> int:
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
