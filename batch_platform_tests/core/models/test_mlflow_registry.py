"""Models out of a real MLflow store: its SQLite registry and its folder of artifacts."""

import json
import os
import pickle
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from batch_platform.core.data.files import Location
from batch_platform.core.data.objects import object_root
from batch_platform.core.inference.engine import Engine
from batch_platform.core.models import mlflow_registry
from batch_platform.core.models.registry import MAX_BYTES, Registry
from batch_platform.core.models.source import model_source
from batch_platform.core.overview import overview
from batch_platform.core.spec import InferenceSpec
from batch_platform.errors import ModelError, ModelNotFoundError
from batch_platform.orchestration.model_assets import model_sensor
from batch_platform_tests import tiny_models
from batch_platform_tests.mini import DAYS, Mini

SIGNATURE = tiny_models.TABULAR_CONFIG.signature("churned")


class Store:
    """An MLflow store in a folder; models are logged to it as MLflow's users do."""

    def __init__(self, folder: Path, artifacts: str | None = None) -> None:
        from mlflow import MlflowClient

        self.folder = folder
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client: Any = MlflowClient(tracking_uri=self.uri)
        self.client.create_experiment("e", artifact_location=artifacts or (folder / "artifacts").as_uri())
        self.client.create_registered_model("churn")
        self.root: Location = folder / "root"

    def log(self, source: Path, **tags: str) -> str:
        """Log a folder in a run of its own and register it. Returns the version."""
        run = self.client.create_run(self.client.get_experiment_by_name("e").experiment_id)
        self.client.log_artifacts(run.info.run_id, str(source), "model")
        uri = f"{run.info.artifact_uri}/model"
        return str(self.client.create_model_version("churn", uri, run.info.run_id, tags=tags).version)

    def artifacts(self, version: str) -> Path:
        source = self.client.get_model_version("churn", version).source
        return Path(source.removeprefix("file://"))

    def resolve(self, name: str) -> Any:
        return model_source(name, self.root).resolve(name, "champion")


def version_run(store: Store, version: str) -> str:
    """The run that a version was logged in."""
    return str(store.client.get_model_version("churn", version).run_id)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty store's database: making one takes seconds."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_experiments()
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def store(tmp_path: Path, database: bytes, monkeypatch: pytest.MonkeyPatch) -> Store:
    (tmp_path / "mlflow.db").write_bytes(database)
    made = Store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    return made


@pytest.fixture
def tabular(tmp_path: Path) -> Path:
    folder = tiny_models.tabular_model(tmp_path / "tabular")
    (folder / "signature.json").write_text(json.dumps(SIGNATURE.to_dict()))
    return folder


def test_an_alias_or_a_version_becomes_a_version_with_a_digest_that_scores(
    store: Store, tabular: Path
) -> None:
    assert store.log(tabular) == "1"
    store.client.set_registered_model_alias("churn", "champion", "1")
    version = store.resolve("models:/churn@champion")
    assert (version.name, version.version, version.flavor) == ("models:/churn", "1", "torch")
    assert version.signature == SIGNATURE
    assert version == store.resolve("models:/churn/1")
    # The digest is that which our own registry gives the same folder.
    own = Registry(store.root).register("m", tabular, "torch", SIGNATURE, card=None, by="a", why="b")
    assert version.digest == own.digest
    assert version.path.name == version.digest.removeprefix("sha256:")
    result = Engine.load(version, version.signature, InferenceSpec(device="cpu")).score(
        tiny_models.tabular_rows(20)
    )
    assert (result.outputs.num_rows, result.failures) == (20, [])


def test_an_alias_is_resolved_anew_each_time(store: Store, tabular: Path) -> None:
    store.log(tabular)
    tiny_models.tabular_model(tabular, seed=1)
    store.log(tabular)
    store.client.set_registered_model_alias("churn", "champion", "1")
    first = store.resolve("models:/churn@champion")
    store.client.set_registered_model_alias("churn", "champion", "2")
    second = store.resolve("models:/churn@champion")
    assert (first.version, second.version) == ("1", "2")
    assert first.digest != second.digest


def test_a_text_model_without_a_signature_is_described_by_its_folder(store: Store, tmp_path: Path) -> None:
    store.log(tiny_models.text_classifier(tmp_path / "text"))
    version = store.resolve("models:/churn/1")
    assert (version.flavor, version.signature.labels) == ("transformers", tiny_models.LABELS)


def test_a_card_in_the_folder_counts(store: Store, tabular: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tabular / "card.json").write_text(json.dumps(tiny_models.CARD | {"expires": "2001-01-01"}))
    store.log(tabular)
    assert store.resolve("models:/churn/1").card["owner"] == "team:tests"
    assert "model models:/churn/1 version 1: the model card expired" in caplog.text
    (tabular / "card.json").write_text("{}")
    store.log(tabular)
    with pytest.raises(ModelError, match="churn/2: version 2 of MLflow is not taken: the model card says"):
        store.resolve("models:/churn/2")


def test_a_pipeline_scores_with_it(
    mini: Mini, store: Store, tabular: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log(tabular)
    store.client.set_registered_model_alias("churn", "champion", "1")
    mini.change(model={"name": "models:/churn@champion"})
    mini.write(DAYS[0])
    mini.run(DAYS[0], stages=["raw", "features", "predictions"])
    rows = mini.table("predictions")
    version = store.resolve("models:/churn@champion")
    assert rows["model_version"].unique().to_list() == ["1"]
    assert rows["model_digest"].unique().to_list() == [version.digest]
    assert rows.height == 20
    now = datetime(2026, 1, 2, 12, tzinfo=UTC)
    status = overview(mini.spec, mini.settings, now)
    assert (status.model, status.stale) == ("", {})

    # An alias that is moved in MLflow makes stale what the version before has made, until a run scores with the new one.
    tiny_models.tabular_model(tabular, seed=1)
    store.log(tabular)
    store.client.set_registered_model_alias("churn", "champion", "2")
    assert overview(mini.spec, mini.settings, now).stale == {DAYS[0]: "predictions: model changed"}
    told = model_sensor(mini.spec)(dg.build_sensor_context(instance=mini.instance))
    assert isinstance(told, dg.SensorResult)
    (seen,) = told.asset_events
    assert (seen.tags or {})["dagster/data_version"] == "not used yet: version 2"
    mini.run(DAYS[0], stages=["predictions"])
    assert overview(mini.spec, mini.settings, now).stale == {}
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "set MLFLOW_TRACKING_URI" in overview(mini.spec, mini.settings, now).model


def test_artifacts_and_root_in_object_storage(
    object_storage: str, tmp_path: Path, database: bytes, tabular: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").write_bytes(database)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"])
    store = Store(tmp_path, f"{object_storage}/artifacts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    store.root = object_root(f"{object_storage}/root")
    store.log(tabular)
    version = store.resolve("models:/churn/1")
    own = Registry(tmp_path / "own").register("m", tabular, "torch", SIGNATURE, card=None, by="a", why="b")
    assert version.digest == own.digest
    tiny_models.tabular_model(tabular, seed=3)
    for path in tabular.iterdir():
        store.client.log_artifact(version_run(store, "1"), str(path), "model")
    shutil.rmtree(version.path)
    with pytest.raises(ModelError, match="was altered in MLflow since it was used first"):
        store.resolve("models:/churn/1")


def test_files_come_from_the_cache_and_an_altered_cache_is_mended(
    store: Store, tabular: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log(tabular)
    version = store.resolve("models:/churn/1")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_registry.intake, "copy_folder", lambda *_: pytest.fail("was fetched again"))
        assert store.resolve("models:/churn/1") == version
    (version.path / "config.json").write_text("{}")
    assert store.resolve("models:/churn/1").checked_folder() == version.path
    assert list(version.path.parent.glob("incoming-*")) == []


def test_files_exchanged_in_the_store_after_the_first_use_are_refused(
    store: Store, tabular: Path, tmp_path: Path
) -> None:
    store.log(tabular)
    version = store.resolve("models:/churn/1")
    tiny_models.tabular_model(store.artifacts("1"), seed=7)
    # This machine has what was pinned; another one finds the difference.
    assert store.resolve("models:/churn/1") == version
    version.path.rename(tmp_path / "away")
    with pytest.raises(ModelError, match="version 1 was altered in MLflow since it was used first"):
        store.resolve("models:/churn/1")


def _pickle(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(pickle.dumps({}))
    (folder / "MLmodel").write_text(
        "artifact_path: model\nflavors:\n  python_function:\n    loader_module: mlflow.sklearn\n"
        "  sklearn:\n    pickled_model: model.pkl\nmlflow_version: 3.17.2\n"
    )


def _loader_only(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: evil\n")
    (folder / "evil.py").write_text("raise SystemExit")


def _link(folder: Path) -> None:
    (folder / "passwd").symlink_to("/etc/passwd")


def _cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def _remote_code(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.py"}}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pickle, r"flavors: python_function, sklearn\): model.pkl: may be a pickle"),
        (
            _loader_only,
            r"flavors: python_function\): its files fit none of the flavors: set the version's tag",
        ),
        (_link, "passwd: is a symbolic link"),
        (_cut_short, "model.safetensors: is cut short"),
        (_remote_code, "tokenizer_config.json: auto_map"),
    ],
)
def test_files_that_cannot_be_trusted_are_refused_and_leave_nothing(
    store: Store, tabular: Path, spoil: Any, message: str
) -> None:
    version = store.log(tabular)
    spoil(store.artifacts(version))
    with pytest.raises(ModelError, match=rf"models:/churn/1: version 1 of MLflow is not taken.*{message}"):
        store.resolve("models:/churn/1")
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_a_model_too_large_is_refused(store: Store, tabular: Path) -> None:
    store.log(tabular)
    with pytest.raises(ModelError, match="more than the 100 that"):
        mlflow_registry.MlflowRegistry(store.root, max_bytes=100).resolve("models:/churn/1", "champion")
    assert (
        mlflow_registry.MlflowRegistry(store.root, MAX_BYTES).resolve("models:/churn/1", "x").version == "1"
    )


def test_the_flavor_can_be_said_by_a_tag(store: Store, tabular: Path) -> None:
    store.log(tabular, **{"batch_platform.flavor": "transformers"})
    with pytest.raises(ModelError, match=r"text_column|not"):
        store.resolve("models:/churn/1")
    store.log(tabular, **{"batch_platform.flavor": "torch"})
    assert store.resolve("models:/churn/2").flavor == "torch"


def test_what_is_not_there_is_said(store: Store, tabular: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.log(tabular)
    for name in ("models:/churn@nobody", "models:/churn/7", "models:/other/1"):
        with pytest.raises(ModelNotFoundError, match=f"{name}: MLflow at sqlite"):
            store.resolve(name)
    with pytest.raises(ModelError, match="is no model of MLflow"):
        store.resolve("models:/churn")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ModelError, match="set MLFLOW_TRACKING_URI"):
        store.resolve("models:/churn/1")


def test_without_mlflow_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("mlflow"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(ModelError, match=r"pip install 'batch_platform\[mlflow\]'"):
        model_source("models:/m/1", tmp_path).resolve("models:/m/1", "champion")


def test_a_password_in_the_address_is_not_shown() -> None:
    assert mlflow_registry._shown("https://ann:secret@host/x") == "https://host/x"
    assert mlflow_registry._shown("sqlite:////a/b.db") == "sqlite:////a/b.db"
