"""The assets `model` (what the alias points to) and `training` (makes a new version), both unpartitioned.

`model` is observed, never made: a changed digest makes the predictions stale, and a run over many dates
is not split by it. A sensor observes promotions.
"""

import importlib
from collections.abc import Iterator

import dagster as dg

from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import BatchPlatformError, ModelNotFoundError
from batch_platform.orchestration.events import model_observation
from batch_platform.orchestration.metadata import as_metadata, model_metadata
from batch_platform.orchestration.stages import asset_key
from batch_platform.settings import Settings


def model_asset(spec: PipelineSpec, is_trained: bool) -> dg.AssetsDefinition:
    """The registered model behind the pipeline's alias; its data version is the artifact digest.

    Args:
        is_trained: whether the asset `training` stands above it.
    """
    observed = dg.AssetSpec(
        asset_key(spec, "model"),
        deps=[asset_key(spec, "training")] if is_trained else [],
        group_name=spec.name,
        owners=spec.owners,
        description=f"Registered model {spec.model.shown}.",
    )

    @dg.multi_observable_source_asset(name=f"{spec.name}__model", specs=[observed])  # type: ignore[untyped-decorator]
    def model() -> Iterator[dg.ObserveResult]:
        from batch_platform.core.models.source import model_source

        named = spec.model
        version = model_source(named.name, Settings.from_env().root).resolve(named.name, named.alias)
        yield dg.ObserveResult(
            asset_key=observed.key,
            data_version=dg.DataVersion(version.digest),
            metadata=model_metadata(version),
        )

    return model


def model_sensor(spec: PipelineSpec) -> list[dg.SensorDefinition]:
    """Reports once that the alias points to another version, so that predictions of the one before show as stale.

    It starts no run. None for a model of MLflow, whose server would be asked every minute: observe that by hand.
    """
    if spec.model.is_of_mlflow:
        return []

    @dg.sensor(
        name=f"{spec.name}_model_sensor",
        description=f"Sees which version {spec.model.shown} is; predictions of another one become stale.",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        from batch_platform.core.models.registry import Registry

        try:
            version = Registry(Settings.from_env().root).pointed(spec.model.name, spec.model.alias)
        except ModelNotFoundError as error:
            return dg.SensorResult(skip_reason=str(error))
        if context.cursor == version.digest:
            return dg.SensorResult(skip_reason=f"still version {version.version}")
        seen = model_observation(asset_key(spec, "model"), version)
        return dg.SensorResult(asset_events=[seen], cursor=version.digest)

    return [sensor]


def training_asset(spec: PipelineSpec, module: str) -> dg.AssetsDefinition:
    """The asset that trains and registers a version, by the `train` function of the pipeline's module.

    Args:
        module: dotted name of the module that defines `train(spec, settings) -> RegisteredVersion`.
    """

    @dg.asset(
        key=asset_key(spec, "training"),
        group_name=spec.name,
        owners=spec.owners,
        description=f"Trains {spec.model.name!r}, registers the version and points the alias to it.",
        kinds={"pytorch"},
    )
    def training() -> Iterator[dg.AssetObservation | dg.MaterializeResult]:
        train = getattr(importlib.import_module(module), "train", None)
        if not callable(train):
            raise BatchPlatformError(
                f"pipeline {spec.name}: {module} defines no function train(spec, settings)"
            )
        version = train(spec, Settings.from_env())
        yield model_observation(asset_key(spec, "model"), version)
        yield dg.MaterializeResult(
            data_version=dg.DataVersion(version.digest),
            metadata=as_metadata({"version": version.version, "digest": version.digest}),
        )

    return training
