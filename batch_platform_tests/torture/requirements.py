"""What the torture suite needs of the system: strace, which injects faults, a library that shifts the clock, and Ceph.

Run by `make torture`. Without them the tests that need them are skipped, and say so.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from batch_platform_tests.s3 import ceph


def fake_clock() -> Path | None:
    """The library to preload, so that a process sees a shifted clock."""
    return next(Path("/usr/lib").rglob("faketime/libfaketime.so.1"), None)


def missing() -> list[str]:
    """Debian packages that are not installed."""
    packages = []
    if shutil.which("strace") is None:
        packages.append("strace")
    if fake_clock() is None:
        packages.append("faketime")
    return packages + ([] if ceph.is_installed() else list(ceph.PACKAGES))


def install() -> list[str]:
    """Install what is missing where this process may; returns what is missing still."""
    packages = missing()
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {', '.join(packages)} for the torture suite", flush=True)
        for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-y", "-q", *packages]):
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return missing()


if __name__ == "__main__":
    if packages := install():
        print(
            f"make torture: needs {', '.join(packages)} (Debian: apt-get install {' '.join(packages)})",
            file=sys.stderr,
        )
        sys.exit(1)
