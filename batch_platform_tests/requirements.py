"""What the tests need besides the virtual environment: a Chromium. Run by `make test` before pytest."""

import os
import shutil
import subprocess
import sys

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Path of a Chromium or Chrome on this machine."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def main() -> int:
    if find_browser():
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing Chromium for the browser tests", flush=True)
        for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-y", "-q", "chromium"]):
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if find_browser():
        return 0
    print(
        "make test: no Chromium for the browser tests: install it (Debian: apt-get install chromium), "
        'or leave them out: .venv/bin/pytest -m "not browser"',
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
