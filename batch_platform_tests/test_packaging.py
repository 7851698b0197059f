"""What is installed and pinned: the wheel, the lock, and the files that Dagster reads."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import pytest
import yaml
from dagster._core.workspace.load import load_workspace_process_context_from_yaml_paths
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from batch_platform_tests.project import BIN, REPOSITORY


def own_files() -> list[Path]:
    """The repository's files, committed or about to be, relative to it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines() if (REPOSITORY / line).is_file()]


def pyproject() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def locked() -> dict[str, list[Requirement]]:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    found: dict[str, list[Requirement]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def test_the_wheel_has_the_pipeline_files_and_not_the_tests(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for path in own_files():
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((REPOSITORY / path).read_bytes())
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(copy),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").glob("batch_platform-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        path.as_posix()
        for path in own_files()
        if path.parts[0] == "batch_platform" and (path.suffix in (".py", ".yaml") or path.name == "py.typed")
    }
    assert {"batch_platform/py.typed", "batch_platform/defs/email_triage/defs.yaml"} <= package
    assert package <= names
    assert {name.split("/")[0] for name in names} <= {
        "batch_platform",
        wheel.name.rsplit("-py3", 1)[0] + ".dist-info",
    }
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "batch-platform = batch_platform.cli.main:main" in text
    assert "[dagster_dg_cli.registry_modules]" in text


def test_the_lock_pins_all_that_is_asked_for() -> None:
    project = pyproject()["project"]
    wanted = [
        *project["dependencies"],
        *(r for group in project["optional-dependencies"].values() for r in group),
    ]
    pins = locked()
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name == canonicalize_name(project["name"]):
            continue  # an extra that asks for another extra, whose own needs are looked at
        if name == "torch":
            assert name not in pins  # its build is chosen by the Makefile, which pins it
            makefile = (REPOSITORY / "Makefile").read_text()
            pinned = re.findall(r"^TORCH_VERSION := (\S+)$", makefile, re.MULTILINE)
        else:
            assert name in pins, f"{name} is not in requirements.lock"
            pinned = [next(iter(pin.specifier)).version for pin in pins[name]]
        assert pinned
        for number in pinned:
            assert requirement.specifier.contains(number), f"{name} {number} is not {requirement.specifier}"
    for pin in (pin for group in pins.values() for pin in group):
        assert [specifier.operator for specifier in pin.specifier] == ["=="], str(pin)


def test_what_is_installed_is_what_is_locked() -> None:
    """The versions that these tests vouch for."""
    for name in ("dagster", "deltalake", "evidently", "pandas", "pyarrow", "transformers"):
        (pin,) = (pin for pin in locked()[name] if pin.marker is None or pin.marker.evaluate())
        assert version(name) in pin.specifier


def test_evidently_can_be_imported_with_the_installed_pandas() -> None:
    """`pip check` does not notice when it cannot."""
    program = "import evidently, evidently.presets, pandas; print(pandas.__version__)"
    environment = {**os.environ, "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3.0.")


def test_dagster_yaml_is_accepted_without_any_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (REPOSITORY / "dagster.yaml").read_text()
    assert "env:" not in text
    (tmp_path / "dagster.yaml").write_text(text)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.telemetry_enabled is False
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled
        assert instance.global_op_concurrency_default_limit == 1
        assert type(instance.run_coordinator).__name__ == "QueuedRunCoordinator"


def test_workspace_yaml_loads_our_code_location(monkeypatch: pytest.MonkeyPatch) -> None:
    document = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text())
    (entry,) = document["load_from"]
    assert (
        entry["python_module"]["module_name"]
        == pyproject()["tool"]["dg"]["project"]["code_location_target_module"]
    )
    monkeypatch.chdir(REPOSITORY)
    with (
        dg.instance_for_test() as instance,
        load_workspace_process_context_from_yaml_paths(
            instance, [str(REPOSITORY / "workspace.yaml")]
        ) as context,
    ):
        (location,) = context.create_request_context().code_locations
        assert location.name == "batch_platform"
        (repository,) = location.get_repositories().values()
        assert {job.name for job in repository.get_all_jobs()} >= {"email_triage", "flight_delays"}


def test_no_file_names_a_registry() -> None:
    """Where packages come from is the user's own configuration."""
    # Put together, so that this file is not a hit of its own.
    hosts = [
        "pypi." + "org",
        "pythonhosted." + "org",
        "registry.npmjs." + "org",
        "huggingface." + "co",
    ]
    configured = subprocess.run(
        [BIN / "python", "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    for url in re.findall(r"https?://[^\s'\"]+", configured):
        hosts.append(urlsplit(url).hostname or "")
    pattern = re.compile(
        "|".join(re.escape(host) for host in hosts if host not in ("", "localhost", "127.0.0.1"))
    )
    hits = []
    for path in own_files():
        content = (REPOSITORY / path).read_bytes()
        if b"\0" not in content and pattern.search(content.decode(errors="replace")):
            hits.append(str(path))
    assert hits == []
