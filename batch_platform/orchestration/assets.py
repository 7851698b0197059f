"""The chain of a pipeline as one multi-asset: dates outside, stages inside.

A backfill runs many dates in one step, with one loaded model. A date that fails is named, its later
stages do not run, the other dates are finished, and the step fails at the end. Each date leaves its
own events, metadata and check results. What a stage does is not decided here.
"""

import time
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from batch_platform.core import outcomes
from batch_platform.core.layout import Layout
from batch_platform.core.outcomes import Outcome
from batch_platform.core.provenance.openlineage import LineageEvents
from batch_platform.core.slice import Run, Slice, StageResult
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.staleness import CODE, DATA, code_version_of, code_versions
from batch_platform.errors import BatchPlatformError, GateError, StorageError, SupersededError
from batch_platform.orchestration import events
from batch_platform.orchestration.metadata import stage_metadata
from batch_platform.orchestration.partitions import partitions_definition
from batch_platform.orchestration.services import Services
from batch_platform.orchestration.stages import Stage, asset_key, outer_upstream, stages_of
from batch_platform.settings import Settings, project_root

# Inference takes a slot of this pool; `dagster.yaml` limits it.
POOL = "gpu"


class PipelineConfig(dg.Config):
    """What a launch may ask for besides its partitions."""

    redrive: bool = Field(
        default=False,
        description="Score the rows again that are in quarantine, also where nothing else has changed.",
    )


def pipeline_assets(spec: PipelineSpec) -> dg.AssetsDefinition:
    """The assets and checks of one pipeline."""
    partitions = partitions_definition(spec.partitions)
    stages = stages_of(spec)
    specs = [_asset_spec(spec, stage, partitions) for stage in stages]
    checks = [check for stage in stages for check in _check_specs(spec, stage, partitions)]

    @dg.multi_asset(
        name=f"{spec.name}__pipeline",
        specs=specs,
        check_specs=checks,
        partitions_def=partitions,
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=POOL,
    )
    def pipeline(context: dg.AssetExecutionContext, config: PipelineConfig) -> Iterator[Any]:
        selected = [s for s in stages if asset_key(spec, s.name) in context.selected_asset_keys]
        yield from _Range(context, spec, selected, config.redrive).run()

    return pipeline


def _asset_spec(spec: PipelineSpec, stage: Stage, partitions: dg.PartitionsDefinition) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset_key(spec, stage.name),
        deps=[*(asset_key(spec, upstream) for upstream in stage.upstream), *outer_upstream(spec, stage.name)],
        description=stage.description,
        partitions_def=partitions,
        group_name=spec.name,
        owners=spec.owners,
        code_version=code_version_of(spec, stage.name),
        skippable=True,
        kinds=set(stage.kinds),
    )


def _check_specs(
    spec: PipelineSpec, stage: Stage, partitions: dg.PartitionsDefinition
) -> Iterator[dg.AssetCheckSpec]:
    whole = {events.COMPLETE: "The stage ended well for the partition; says why where it did not."}
    for name, description in {**stage.checks, **whole}.items():
        yield dg.AssetCheckSpec(
            name,
            asset=asset_key(spec, stage.name),
            description=description,
            partitions_def=partitions,
            blocking=stage.blocking or name == events.COMPLETE,
        )


class _Range:
    """The dates of one run, one after the other."""

    def __init__(
        self, context: dg.AssetExecutionContext, spec: PipelineSpec, stages: list[Stage], redrive: bool
    ) -> None:
        self._context = context
        self._spec = spec
        self._stages = stages
        self._settings = Settings.from_env()
        self._base = project_root()
        self._layout = Layout.of(self._settings, spec.name)
        self._calendar = spec.partitions.calendar()
        self._run = Run(context.run.run_id, _trigger(context))
        self._code_versions = code_versions(spec, [stage.name for stage in stages])
        self._services = Services(spec, self._settings, redrive)
        self._lineage = LineageEvents.from_env(self._services.progress)
        self._failed: dict[str, str] = {}
        self._reported_models: set[str] = set()
        self._rendering: deque[tuple[str, Stage, StageResult]] = deque()

    def run(self) -> Iterator[Any]:
        """Work through the dates.

        Raises:
            dagster.Failure: some dates failed; its message names each with its cause.
        """
        keys = list(self._context.partition_keys)
        try:
            for number, key in enumerate(keys, start=1):
                started = time.monotonic()
                yield from self._date(key)
                yield from self._report_rendered(wait=False)
                state = "FAILED" if key in self._failed else "done"
                seconds = time.monotonic() - started
                self._services.progress(
                    f"[{self._spec.name}] {key} {state} ({number} of {len(keys)}, {seconds:.1f} s)"
                )
            yield from self._report_rendered(wait=True)
            self._draw_trend()
        except events.INTERRUPTED:
            events.let_be_retried(self._context.instance, self._run.run_id)
            self._services.progress(
                f"[{self._spec.name}] stopped from outside; finished shards are kept, the next run goes on from them"
            )
            raise
        finally:
            self._services.close()
        if self._failed:
            raise dg.Failure(self._summary(len(keys)), allow_retries=False)
        yield from events.release_downstream(
            self._context.assets_def, (self._asset(stage) for stage in self._stages)
        )

    def _date(self, key: str) -> Iterator[Any]:
        slice_ = self._slice(key)
        not_run: set[str] = set()
        for stage in self._stages:
            if stage.name in not_run:
                continue
            try:
                result = stage.work(slice_.starting(), self._services)
            except SupersededError as error:
                self._services.progress(f"[{self._spec.name}] {error}")
                return
            except Exception as error:  # noqa: BLE001 - one bad date must not stop the others; the run fails at its end
                below = self._below(stage)
                not_run |= {other.name for other in below}
                yield from self._report_failure(key, stage, below, error)
                continue
            for name, version in self._services.models_of(stage.upstream).items():
                if name not in self._reported_models:
                    self._reported_models.add(name)
                    yield events.model_observation(asset_key(self._spec, name), version)
            for check in result.checks:
                yield events.evaluation(self._asset(stage), key, check, stage.blocking)
            if result.rendering is not None:
                self._rendering.append((key, stage, result))
            else:
                yield from self._report_done(key, stage, result)

    def _report_rendered(self, wait: bool) -> Iterator[Any]:
        """Report the stages whose reports are ready; with `wait`, all of them."""
        while self._rendering:
            key, stage, result = self._rendering[0]
            assert result.rendering is not None
            if not wait and not result.rendering.done():
                return
            self._rendering.popleft()
            try:
                result.rendering.result()
            except Exception as error:  # noqa: BLE001 - as for the stages
                yield from self._report_failure(key, stage, [], error)
            else:
                yield from self._report_done(key, stage, result)

    def _report_done(self, key: str, stage: Stage, result: StageResult) -> Iterator[Any]:
        made_of = self._inputs(key, stage)
        code_version = self._code_versions[stage.name]
        yield events.materialization(
            self._asset(stage),
            key,
            stage_metadata(result, self._settings),
            result.data_version,
            code_version,
            made_of,
        )
        yield events.complete(self._asset(stage), key)
        warnings = {check.name: check.description for check in result.checks if not check.passed}
        # Stages of this pipeline by their names, assets of others by their whole keys.
        own = {asset_key(self._spec, name) for name in (*stage.upstream, stage.name)}
        versions = {
            upstream.path[-1] if upstream in own else upstream.to_user_string(): version
            for upstream, (version, _) in made_of.items()
        }
        versions |= {CODE: code_version, DATA: result.data_version}
        outcome = Outcome.now("done", self._run.run_id, warnings=warnings, versions=versions)
        self._remember(key, {stage.name: outcome})
        if self._lineage is not None:
            digests = {name: model.digest for name, model in self._services.models_of(stage.upstream).items()}
            self._lineage.materialized(self._slice(key), stage.name, stage.upstream, result, digests)

    def _below(self, stage: Stage) -> list[Stage]:
        """The stages that read what this one makes, or what these make."""
        reached = {stage.name}
        for other in self._stages:  # they stand in the order of their work
            if reached & set(other.upstream):
                reached.add(other.name)
        return [other for other in self._stages if other.name in reached - {stage.name}]

    def _report_failure(self, key: str, stage: Stage, below: list[Stage], error: Exception) -> Iterator[Any]:
        """Report a stage that failed, and those below it, which are therefore not run."""
        cause = self._cause(error)
        before = f"{self._failed[key]}; " if key in self._failed else ""
        self._failed[key] = f"{before}{stage.name}: {cause}"
        for check in error.checks if isinstance(error, GateError) else ():
            yield events.evaluation(self._asset(stage), key, check, stage.blocking)
        yield events.complete(self._asset(stage), key, cause)
        ended = {stage.name: Outcome.now("failed", self._run.run_id, cause)}
        for skipped in below:
            yield events.complete(self._asset(skipped), key, f"not run: {stage.name} failed: {cause}")
            ended[skipped.name] = Outcome.now("skipped", self._run.run_id, f"{stage.name} failed")
        self._remember(key, ended)

    def _draw_trend(self) -> None:
        """Make the pipeline's trend page anew, once a run; its failure fails the run and none of the dates."""
        from batch_platform.core.trending import write_trend

        if not {"drift_report", "performance"} & {stage.name for stage in self._stages}:
            return
        try:
            write_trend(self._layout)
        except BatchPlatformError as error:
            self._failed["the trend page"] = self._cause(error)

    def _remember(self, key: str, ended: dict[str, Outcome]) -> None:
        """Record what became of stages; a disk too full for that neither hides it nor stops other dates."""
        try:
            outcomes.record(self._layout, key, ended)
        except StorageError as error:
            before = f"{self._failed[key]}; " if key in self._failed else ""
            self._failed[key] = f"{before}the outcome cannot be recorded: {self._cause(error)}"

    def _cause(self, error: Exception) -> str:
        if isinstance(error, BatchPlatformError):
            return " ".join(str(error).split())
        # Not one of the refusals that explain themselves: where it happened must be seen.
        self._services.progress("".join(traceback.format_exception(error)))
        return f"{type(error).__name__}: {error}"

    def _slice(self, key: str) -> Slice:
        return Slice(self._spec, self._calendar.partition(key), self._settings, self._base, self._run)

    def _asset(self, stage: Stage) -> dg.AssetKey:
        return asset_key(self._spec, stage.name)

    def _inputs(self, key: str, stage: Stage) -> dict[dg.AssetKey, tuple[str, str]]:
        versions = {
            asset: events.newest_materialization(self._context.instance, asset, key)
            for asset in outer_upstream(self._spec, stage.name)
        }
        models = self._services.models_of(stage.upstream)
        for upstream in stage.upstream:
            asset = asset_key(self._spec, upstream)
            if upstream in models:
                versions[asset] = (models[upstream].digest, "NULL")
            else:
                versions[asset] = events.newest_materialization(self._context.instance, asset, key)
        return versions

    def _summary(self, dates: int) -> str:
        failed = len(self._failed.keys() & set(self._context.partition_keys))
        lines = [f"{key}: {cause}" for key, cause in self._failed.items()]
        head = f"{self._spec.name}: {failed} of {dates} partitions failed, the others are done"
        hint = "Mend the cause and materialize these partitions again; the others need nothing."
        return "\n".join([head, *lines, hint])


def _trigger(context: dg.AssetExecutionContext) -> str:
    tags = context.run.tags
    for name in ("dagster/schedule_name", "dagster/sensor_name", "dagster/backfill"):
        if name in tags:
            return f"{name.removeprefix('dagster/')}: {tags[name]}"
    return "manual"
