"""The component that turns a pipeline file into assets, checks, a job and a schedule. Wiring only."""

import textwrap

import dagster as dg
from dagster.components import Scaffolder, ScaffoldRequest
from pydantic import BaseModel

from batch_platform.core.spec import PipelineSpec, named
from batch_platform.orchestration.assets import pipeline_assets
from batch_platform.orchestration.automation import pipeline_job, pipeline_schedule
from batch_platform.orchestration.late_labels import late_labels_sensor
from batch_platform.orchestration.maintenance import maintenance_job, maintenance_schedule
from batch_platform.orchestration.model_assets import (
    challenger_asset,
    model_asset,
    model_sensor,
    training_asset,
)
from batch_platform.orchestration.reviews import review_job, review_sensor, training_job
from batch_platform.orchestration.scaffold import TEMPLATE


class PipelineScaffolder(Scaffolder):
    """Writes a commented `defs.yaml` for `dg scaffold defs`."""

    def scaffold(self, request: ScaffoldRequest) -> None:
        """Write the file into the new folder."""
        request.target_path.mkdir(parents=True, exist_ok=True)
        content = TEMPLATE.replace("NAME", request.target_path.name)
        (request.target_path / "defs.yaml").write_text(content)


@dg.scaffold_with(PipelineScaffolder)
class BatchInferencePipeline(PipelineSpec, dg.Component):
    """Batch inference by date: raw inputs -> features -> predictions -> drift reports.

    Makes the assets `<name>/raw`, `features`, `predictions`, `drift_report`, `performance` (with labels), `delivered`
    (with sinks), `challenger_predictions` (with a challenger), all partitioned, their checks, the asset `model`, a job
    and, if asked for, a schedule. A module
    `training.py` beside the pipeline file adds the asset `training`.
    """

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The schema that pipeline files are checked against and that the UI documents."""
        return PipelineSpec

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "BatchInferencePipeline":
        """Make the component of a checked pipeline file."""
        assert isinstance(attributes, PipelineSpec)
        return cls(**{name: getattr(attributes, name) for name in attributes.model_fields_set})

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """What the component's docs say besides the fields."""
        return dg.ComponentTypeSpec(
            description=textwrap.dedent(cls.__doc__ or ""), tags=["batch", "inference"]
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The pipeline's definitions.

        Raises:
            PipelineFileError: the name is missing and the folder's cannot be used.
            NotYetSupportedError: a field of a later release is used.
        """
        spec: PipelineSpec = self if self.name else named(self, context.path.name)
        spec.refuse_unsupported()
        training = context.path / "training.py"
        assets = [pipeline_assets(spec), model_asset(spec, training.is_file()), *challenger_asset(spec)]
        if training.is_file():
            assets.append(training_asset(spec, context.defs_relative_module_name(training)))
        job, maintenance = pipeline_job(spec), maintenance_job(spec)
        train = training_job(spec) if training.is_file() else None
        asked_for = [maintenance, review_job(spec, is_trained=train is not None)]
        schedules = [*pipeline_schedule(spec, job), maintenance_schedule(spec, maintenance)]
        sensors = [review_sensor(spec, job, train), *late_labels_sensor(spec, job), model_sensor(spec)]
        return dg.Definitions(
            assets=assets,
            jobs=[job, *asked_for, *([train] if train else [])],
            schedules=schedules,
            sensors=sensors,
        )
