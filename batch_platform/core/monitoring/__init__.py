"""Profiles of partitions and the drift decision; what is named here is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batch_platform.core.monitoring.drift import DriftMonitor, Finding, Verdict
    from batch_platform.core.monitoring.profile import Profile, profile_table

__all__ = ["DriftMonitor", "Finding", "Profile", "Verdict", "profile_table"]

_HOMES = {
    "DriftMonitor": "drift",
    "Finding": "drift",
    "Verdict": "drift",
    "Profile": "profile",
    "profile_table": "profile",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
