"""Finding the project's pipeline files without Dagster, for the command line."""

import tomllib
from pathlib import Path

import yaml

from batch_platform.core.spec import PipelineSpec, parse_spec
from batch_platform.errors import PipelineFileError, SettingsError
from batch_platform.settings import project_root

COMPONENT = "batch_platform.BatchInferencePipeline"


def defs_folder() -> Path:
    """The `defs` folder of the project, as `[tool.dg.project]` of its pyproject.toml names it.

    Raises:
        SettingsError: the working directory is in no project, or its pyproject.toml names no such folder.
    """
    root = project_root()
    try:
        tool = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["dg"]["project"]
        module = tool["defs_module"] if "defs_module" in tool else f"{tool['root_module']}.defs"
    except (OSError, KeyError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(
            f"{root / 'pyproject.toml'}: [tool.dg.project] with root_module cannot be read ({error}): run the "
            "command from the project's folder, or mend the file"
        ) from None
    return root.joinpath(*module.split("."))


def load_pipelines(defs: Path) -> dict[str, PipelineSpec]:
    """Every pipeline under a `defs` folder, by name.

    Raises:
        PipelineFileError: a file is no YAML or breaks a rule; the message starts with the file. Also where
            two pipelines have the same name.
    """
    found: dict[str, PipelineSpec] = {}
    for path in sorted(defs.rglob("defs.yaml")):
        for document in _documents(path):
            if document.get("type") != COMPONENT:
                continue
            try:
                spec = parse_spec(document.get("attributes") or {}, path.parent.name)
            except PipelineFileError as error:
                raise type(error)(f"{path}: {error}") from None
            if spec.name in found:
                raise PipelineFileError(f"{path}: name: a second pipeline is called {spec.name!r}")
            found[spec.name] = spec
    return found


def training_module(defs: Path, name: str) -> Path | None:
    """The `training.py` beside a pipeline's file; None where there is none."""
    for path in sorted(defs.rglob("training.py")):
        file = path.with_name("defs.yaml")
        if file.is_file() and name in load_pipelines(path.parent):
            return path
    return None


def find_pipeline(defs: Path, name: str) -> PipelineSpec:
    """One pipeline by name.

    Raises:
        PipelineFileError: there is none of that name, or a file is wrong.
    """
    pipelines = load_pipelines(defs)
    if name not in pipelines:
        raise PipelineFileError(f"no pipeline {name!r}; there are: {', '.join(pipelines) or 'none'}")
    return pipelines[name]


def _documents(path: Path) -> list[dict]:
    try:
        documents = list(yaml.safe_load_all(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineFileError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return [document for document in documents if isinstance(document, dict)]
