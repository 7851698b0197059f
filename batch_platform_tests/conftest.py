"""Fixtures that several folders of tests use."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from batch_platform.core.data.files import SCRATCH_VARIABLE, Location
from batch_platform.core.data.objects import object_root
from batch_platform.settings import ROOT_VARIABLE
from batch_platform_tests.mini import Mini
from batch_platform_tests.postgres import Server, server
from batch_platform_tests.s3.ceph import ceph_s3, is_installed
from batch_platform_tests.s3.server import environment, moto_s3, new_bucket

# Read by triton when it is imported, by whatever test is first: kernels are interpreted on the processor.
os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long runs are left out unless `-m` speaks of them; with an option in pyproject, `-m "not browser"` would run them."""
    if "torture" in config.getoption("markexpr"):
        return
    long = [item for item in items if item.get_closest_marker("torture")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("ROOT", "HOURLY_RATE", "REPORTS_URL", "DAGSTER_URL")
    for name in (f"BATCH_PLATFORM_{setting}" for setting in settings):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OPENLINEAGE_URL", raising=False)


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The address of an S3 server, shared by the tests of a session."""
    with moto_s3() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ceph object gateway, shared by the tests of a session."""
    if not is_installed():
        pytest.skip("Ceph is not installed")
    with ceph_s3(tmp_path_factory.mktemp("s3") / "ceph") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server, shared by the tests of a session; each makes a database of its own."""
    with server() as running:
        yield running


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.torture)])
def s3_server(request: pytest.FixtureRequest) -> str:
    """The address of an S3 server."""
    endpoint: str = request.getfixturevalue(request.param)
    return endpoint


@pytest.fixture
def object_storage(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty bucket of that server, as `s3://bucket/prefix`; this process finds it by the environment."""
    return _bucket_of(s3_server, monkeypatch, tmp_path)


def _bucket_of(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    return f"s3://{new_bucket(endpoint)}/some/prefix"


@pytest.fixture(params=["disk", "moto", pytest.param("ceph", marks=pytest.mark.torture)])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    """The platform's root, on a disk and in object storage."""
    if request.param == "disk":
        return tmp_path / "root"
    return object_root(_bucket_of(request.getfixturevalue(request.param), monkeypatch, tmp_path))


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
