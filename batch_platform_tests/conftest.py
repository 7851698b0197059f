"""Fixtures that several folders of tests use."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from batch_platform.settings import ROOT_VARIABLE
from batch_platform_tests.mini import Mini


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATCH_PLATFORM_ROOT", "BATCH_PLATFORM_HOURLY_RATE", "BATCH_PLATFORM_REPORTS_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mini]:
    """A small real pipeline, its model registered, its sources still to be written."""
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "root"))
    with dg.instance_for_test() as instance:
        pipeline = Mini(tmp_path, instance)
        pipeline.register()
        yield pipeline
