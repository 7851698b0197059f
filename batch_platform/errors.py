"""Every error that a user of the platform can meet, as one tree.

Each message names what it is about (pipeline, partition, file, row or column) and what to do next.
The command line prints the message without a traceback; a Dagster run shows it as the failure.
"""

from typing import Any


class BatchPlatformError(Exception):
    """The root: anything the platform refuses or cannot do."""


class SettingsError(BatchPlatformError):
    """The environment (root folder, variables) does not describe a place to work in."""


class PipelineFileError(BatchPlatformError):
    """A pipeline's YAML (or its Python equivalent) is wrong; the message starts with the field's path."""


class NotYetSupportedError(PipelineFileError):
    """The pipeline asks for something the platform's design has and this release does not."""


class PartitionKeyError(BatchPlatformError):
    """A partition key is malformed or lies outside the pipeline's partitions."""


class SourceError(BatchPlatformError):
    """A source is missing, unreadable, or does not carry the columns of the contract."""


class SourceMissingError(SourceError):
    """No file, or no row, is there for a partition: an error unless the source says `allow_empty`."""


class ContractError(SourceError):
    """A whole file contradicts the contract (a column is absent or of another kind)."""


class DuplicateKeysError(ContractError):
    """Row keys repeat within a partition whose source says `on_duplicate: fail`."""


class UpstreamMissingError(BatchPlatformError):
    """A stage was asked for whose upstream stage has no committed result for the partition."""


class RowNotFoundError(BatchPlatformError):
    """No partition, or not the one asked for, has a row with that key, or the row has no prediction."""


class RecipeError(BatchPlatformError):
    """A feature recipe cannot be loaded, or breaks its promise of one row out per row in."""


class ModelError(BatchPlatformError):
    """A model cannot be found, trusted, loaded, or does not fit the features."""


class ModelNotFoundError(ModelError):
    """No such model, version or alias in the registry."""


class ModelSuspendedError(ModelError):
    """The version was suspended by a person: it must not score until that is lifted."""


class SignatureError(ModelError):
    """The model's signature and the features (or the outputs) do not fit each other."""


class InferenceError(BatchPlatformError):
    """The engine cannot score: the device is absent, or no row of the input can be scored."""


class RescoreError(BatchPlatformError):
    """The rows that are to be scored again are not those of the partition, or others have come or gone."""


class GateError(BatchPlatformError):
    """The gate refused a partition's result; nothing was committed.

    Attributes:
        checks: every verdict of the gate on that result (`core.gate.CheckResult`), the bad ones among them.
    """

    def __init__(self, message: str, checks: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.checks = checks


class StorageError(BatchPlatformError):
    """Reading or writing the lake, the registry or a report failed."""


class SupersededError(StorageError):
    """A newer attempt of the same partition has committed already; this one has nothing left to do."""


class DeliveryError(BatchPlatformError):
    """A sink refuses the predictions of a partition; it holds what it held before."""


class MonitoringError(BatchPlatformError):
    """A profile, reference or report cannot be made or read."""
