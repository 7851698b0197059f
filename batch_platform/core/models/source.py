"""Where a pipeline's model comes from: our own registry, or MLflow's. Decides by the form of the name alone."""

from typing import Protocol

from batch_platform.core.data.files import Location
from batch_platform.core.models.mlflow_registry import MlflowRegistry
from batch_platform.core.models.reference import MLFLOW_PREFIX
from batch_platform.core.models.registry import MAX_BYTES, Registry
from batch_platform.core.models.versions import RegisteredVersion


class ModelSource(Protocol):
    """Whatever turns a model's name in a pipeline file into a version with a digest."""

    def resolve(self, name: str, alias: str) -> RegisteredVersion:
        """The version that the name and the alias mean now.

        Raises:
            ModelNotFoundError: there is none.
            ModelSuspendedError: the version must not score.
            ModelError: it cannot be trusted or had.
        """

    def digest_of(self, name: str, alias: str) -> str:
        """The digest of that version, to see whether it is another one now; the version may be suspended.

        Raises:
            ModelNotFoundError: there is none.
            ModelError: it cannot be trusted, or the source does not answer.
        """


def model_source(name: str, root: Location) -> ModelSource:
    """The source for a model's name: `models:/...` is MLflow's, any other our own registry's."""
    return MlflowRegistry(root, MAX_BYTES) if name.startswith(MLFLOW_PREFIX) else Registry(root)


def recorded_version(name: str, version: str, root: Location) -> RegisteredVersion:
    """The version that a receipt names.

    Raises:
        ModelNotFoundError: it is not there any more.
        ModelError: it cannot be trusted or had.
    """
    if name.startswith(MLFLOW_PREFIX):
        return MlflowRegistry(root, MAX_BYTES).resolve(f"{name}/{version}", "")
    return Registry(root).get(name, version)
