"""What the environment says, read when asked for and never at import.

Decides where the platform keeps its data (`BATCH_PLATFORM_ROOT`) and what a device hour costs.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from batch_platform.core.data.files import Location
from batch_platform.core.data.objects import object_root
from batch_platform.errors import SettingsError

ROOT_VARIABLE = "BATCH_PLATFORM_ROOT"
HOURLY_RATE_VARIABLE = "BATCH_PLATFORM_HOURLY_RATE"
REPORTS_URL_VARIABLE = "BATCH_PLATFORM_REPORTS_URL"
DAGSTER_URL_VARIABLE = "BATCH_PLATFORM_DAGSTER_URL"


def project_root() -> Path:
    """The folder that relative paths of pipeline files start from.

    Returns:
        The nearest folder at or above the working directory that holds `workspace.yaml`, else the
        folder that the package itself was cloned into.

    Raises:
        SettingsError: neither is there (the package was installed without its project).
    """
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "workspace.yaml").is_file():
            return folder
    raise SettingsError(f"no workspace.yaml in {here} or above it: run the command from the project's folder")


@dataclass(frozen=True)
class Settings:
    """Where the platform works.

    Attributes:
        root: folder, or prefix of a bucket, that holds `lake/`, `registry/`, `mlflow/`, `monitoring/`, `reports/`,
            `staging/` and `receipts/`.
        hourly_rate: price of one device hour, in any currency; None when it is not configured.
        reports_url: where `reports/` is served; `make ui` does so at the default.
        dagster_url: where people open Dagster, for links to runs; None when it is not configured.
    """

    root: Location
    hourly_rate: float | None = None
    reports_url: str = "http://127.0.0.1:3001"
    dagster_url: str | None = None

    @classmethod
    def from_env(cls) -> "Settings":
        """Read the settings from the environment.

        Raises:
            SettingsError: a variable has a value that cannot be used.
        """
        root = os.environ.get(ROOT_VARIABLE, "")
        rate = os.environ.get(HOURLY_RATE_VARIABLE)
        try:
            hourly_rate = None if rate is None else float(rate)
        except ValueError:
            raise SettingsError(f"{HOURLY_RATE_VARIABLE}={rate!r} is not a number") from None
        return cls(
            root=_location(root) if root else project_root() / ".batch_platform",
            hourly_rate=hourly_rate,
            reports_url=os.environ.get(REPORTS_URL_VARIABLE, cls.reports_url).rstrip("/"),
            dagster_url=os.environ.get(DAGSTER_URL_VARIABLE, "").rstrip("/") or None,
        )

    @property
    def registry(self) -> Location:
        return self.root / "registry"


def _location(root: str) -> Location:
    return object_root(root) if "://" in root else Path(root).expanduser().resolve()
