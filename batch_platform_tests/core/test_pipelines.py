"""Pipeline files found without Dagster, and their mistakes told with the file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from batch_platform.core.pipelines import COMPONENT, defs_folder, find_pipeline, load_pipelines
from batch_platform.errors import NotYetSupportedError, PipelineFileError, SettingsError
from batch_platform_tests.mini import ATTRIBUTES
from batch_platform_tests.project import REPOSITORY

UNNAMED = {name: value for name, value in ATTRIBUTES.items() if name != "name"}


def write(defs: Path, folder: str, *documents: Any) -> Path:
    path = defs / folder / "defs.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump_all(documents))
    return path


def pipeline(**attributes: Any) -> dict[str, Any]:
    return {"type": COMPONENT, "attributes": {**UNNAMED, **attributes}}


def test_every_pipeline_of_the_folder_by_name(tmp_path: Path) -> None:
    write(tmp_path, "churn", pipeline())
    write(tmp_path, "deep/er", pipeline(name="named"))
    write(tmp_path, "two", pipeline(name="one"), pipeline(name="two"))
    write(tmp_path, "other", {"type": "dagster.DefinitionsComponent", "attributes": {"path": "x"}})
    write(tmp_path, "empty")
    assert sorted(load_pipelines(tmp_path)) == ["churn", "named", "one", "two"]
    assert find_pipeline(tmp_path, "named").name == "named"
    with pytest.raises(PipelineFileError, match="no pipeline 'chrun'; there are: churn, named, one, two"):
        find_pipeline(tmp_path, "chrun")


def test_none_at_all(tmp_path: Path) -> None:
    assert load_pipelines(tmp_path) == {}
    with pytest.raises(PipelineFileError, match="there are: none"):
        find_pipeline(tmp_path, "x")


MISTAKES: list[tuple[Any, type[PipelineFileError], str]] = [
    (pipeline(colour="red"), PipelineFileError, "colour: unknown field"),
    (
        pipeline(automation={"trigger": "on_arrival"}),
        NotYetSupportedError,
        "pipeline churn: automation.trigger: on_arrival comes with a later release",
    ),
    ({"type": COMPONENT}, PipelineFileError, "partitions: Field required"),
    ({"type": COMPONENT, "attributes": ["a list"]}, PipelineFileError, "attributes: Input should be"),
]


@pytest.mark.parametrize(("document", "kind", "words"), MISTAKES)
def test_a_mistake_names_the_file(
    tmp_path: Path, document: Any, kind: type[PipelineFileError], words: str
) -> None:
    path = write(tmp_path, "churn", document)
    with pytest.raises(kind) as caught:
        load_pipelines(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"type: [unclosed", b"\xff\xfe\x00", b"a: 1\n\tb: 2"])
def test_a_file_that_is_no_yaml(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, "churn")
    path.write_bytes(content)
    with pytest.raises(PipelineFileError) as caught:
        load_pipelines(tmp_path)
    assert str(caught.value).startswith(f"{path}: not valid YAML: ")
    assert "\n" not in str(caught.value)


def test_two_pipelines_of_one_name(tmp_path: Path) -> None:
    write(tmp_path, "a", pipeline(name="same"))
    second = write(tmp_path, "b", pipeline(name="same"))
    with pytest.raises(PipelineFileError) as caught:
        load_pipelines(tmp_path)
    assert str(caught.value) == f"{second}: name: a second pipeline is called 'same'"


def test_the_defs_folder_is_the_one_that_dagster_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workspace.yaml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    pyproject = tmp_path / "pyproject.toml"
    for content, expected in (
        ('root_module = "shop"', "shop/defs"),
        ('root_module = "shop"\ndefs_module = "shop.deep.pipelines"', "shop/deep/pipelines"),
        ('defs_module = "shop.pipelines"', "shop/pipelines"),
    ):
        pyproject.write_text(f"[tool.dg.project]\n{content}\n")
        assert defs_folder() == tmp_path / expected
    for broken in ("", "[tool.dg.project]\n", "not toml"):
        pyproject.write_text(broken)
        with pytest.raises(SettingsError, match="run the command from the project's folder"):
            defs_folder()
    pyproject.unlink()
    with pytest.raises(SettingsError, match=r"pyproject\.toml"):
        defs_folder()


def test_the_demos_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    found = load_pipelines(defs_folder())
    assert {"email_triage", "flight_delays"} <= set(found)
    assert all(spec.description and spec.owners for spec in found.values())
    assert found["email_triage"].labels and found["flight_delays"].labels
