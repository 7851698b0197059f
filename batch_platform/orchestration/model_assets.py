"""The assets `model` and `challenger` (what the aliases point to) and `training` (makes a new version), all unpartitioned.

The first two are observed, never made: a changed digest makes the predictions stale, and a run over many dates
is not split by it. A sensor observes promotions.
"""

import importlib
import json
from collections.abc import Iterator

import dagster as dg

from batch_platform.core.spec import PipelineSpec
from batch_platform.core.staleness import digests_now
from batch_platform.errors import BatchPlatformError
from batch_platform.orchestration.events import model_observation, version_observation
from batch_platform.orchestration.metadata import as_metadata, model_metadata
from batch_platform.orchestration.stages import asset_key
from batch_platform.settings import Settings


def model_asset(spec: PipelineSpec, is_trained: bool) -> dg.AssetsDefinition:
    """The registered model behind the pipeline's alias; its data version is the artifact digest.

    Args:
        is_trained: whether the asset `training` stands above it.
    """
    above = [asset_key(spec, "training")] if is_trained else []
    return _observed(spec, "model", f"Registered model {spec.model.shown}.", above)


def challenger_asset(spec: PipelineSpec) -> list[dg.AssetsDefinition]:
    """The version behind the challenger's alias, in the same way; none without a challenger."""
    alias = spec.model.challenger
    words = f"Registered model {spec.model.name!r}, alias {alias!r}: scored beside the champion."
    return [] if alias is None else [_observed(spec, "challenger", words, [])]


def _observed(
    spec: PipelineSpec, name: str, description: str, above: list[dg.AssetKey]
) -> dg.AssetsDefinition:
    observed = dg.AssetSpec(
        asset_key(spec, name),
        deps=above,
        group_name=spec.name,
        owners=spec.owners,
        description=description,
    )

    @dg.multi_observable_source_asset(name=f"{spec.name}__{name}", specs=[observed])  # type: ignore[untyped-decorator]
    def model() -> Iterator[dg.ObserveResult]:
        from batch_platform.core.models.source import model_source

        named = spec.model
        version = model_source(named.name, Settings.from_env().root).resolve(named.name, named.aliases[name])
        yield dg.ObserveResult(
            asset_key=observed.key,
            data_version=dg.DataVersion(version.digest),
            metadata=model_metadata(version),
        )

    return model


def model_sensor(spec: PipelineSpec) -> dg.SensorDefinition:
    """Reports once that an alias points to another version, so that what the one before made shows as stale.

    It starts no run. MLflow's server is asked where the model is MLflow's.
    """

    @dg.sensor(
        name=f"{spec.name}_model_sensor",
        description=f"Sees which version {spec.model.shown} is; predictions of another one become stale.",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        digests = digests_now(spec, Settings.from_env().root)
        cursor = json.dumps(digests, sort_keys=True)
        if not digests or context.cursor == cursor:
            words = "no other version" if digests else f"{spec.model.shown} is not registered yet"
            return dg.SensorResult(skip_reason=words, cursor=context.cursor)
        seen = [_seen(spec, name, digest) for name, digest in digests.items()]
        return dg.SensorResult(asset_events=seen, cursor=cursor)

    return sensor


def _seen(spec: PipelineSpec, name: str, digest: str) -> dg.AssetObservation:
    from batch_platform.core.models.registry import Registry

    if spec.model.is_of_mlflow:  # whose files would have to be fetched for more
        return version_observation(asset_key(spec, name), digest)
    registry = Registry(Settings.from_env().root)
    return model_observation(
        asset_key(spec, name), registry.pointed(spec.model.name, spec.model.aliases[name])
    )


def training_asset(spec: PipelineSpec, module: str) -> dg.AssetsDefinition:
    """The asset that trains and registers a version, by the `train` function of the pipeline's module.

    Args:
        module: dotted name of the module that defines `train(spec, settings) -> RegisteredVersion`.
    """

    @dg.asset(
        key=asset_key(spec, "training"),
        group_name=spec.name,
        owners=spec.owners,
        description=f"Trains {spec.model.name!r}, registers the version and points the alias to it, or the challenger's.",
        kinds={"pytorch"},
    )
    def training() -> Iterator[dg.AssetObservation | dg.MaterializeResult]:
        train = getattr(importlib.import_module(module), "train", None)
        if not callable(train):
            raise BatchPlatformError(
                f"pipeline {spec.name}: {module} defines no function train(spec, settings)"
            )
        version = train(spec, Settings.from_env())
        for name, digest in digests_now(spec, Settings.from_env().root).items():
            yield _seen(spec, name, digest)
        yield dg.MaterializeResult(
            data_version=dg.DataVersion(version.digest),
            metadata=as_metadata({"version": version.version, "digest": version.digest}),
        )

    return training
