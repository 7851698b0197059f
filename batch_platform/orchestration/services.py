"""What the stages of one run share: the models, each loaded once, the report renderer and the progress line.

The alias is resolved when first asked for, at the start of the run, and never again in the run.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from batch_platform.core.spec import PipelineSpec
from batch_platform.settings import Settings

if TYPE_CHECKING:
    from batch_platform.core.forecasting import Forecaster
    from batch_platform.core.inference.engine import Scorer
    from batch_platform.core.models.registry import RegisteredVersion
    from batch_platform.core.monitoring.rendering import Renderer


class Services:
    """Made once per run; each part is made when first used.

    Attributes:
        redrive: whether rows in quarantine are scored again.
    """

    def __init__(self, spec: PipelineSpec, settings: Settings, redrive: bool = False) -> None:
        self.redrive = redrive
        self._spec = spec
        self._settings = settings

    @cached_property
    def model(self) -> "RegisteredVersion":
        """The version that the pipeline's alias points to.

        Raises:
            ModelNotFoundError: no such model or alias.
        """
        return self._resolve("model")

    @cached_property
    def engine(self) -> "Scorer":
        """The engine with that version loaded.

        Raises:
            ModelError: the files are altered or cannot be loaded.
            SignatureError: the pipeline's decision does not suit the model.
            InferenceError: the device asked for is not there.
        """
        return self._load(self.model)

    @cached_property
    def challenger(self) -> "RegisteredVersion":
        """The version that the challenger's alias points to. Raises as `model`."""
        return self._resolve("challenger")

    @cached_property
    def challenger_engine(self) -> "Scorer":
        """The engine with that version loaded. Raises as `engine`."""
        return self._load(self.challenger)

    def models_of(self, assets: Iterable[str]) -> dict[str, "RegisteredVersion"]:
        """The versions behind those of some assets that are a model, by the asset's name."""
        return {name: getattr(self, name) for name in assets if name in self._spec.model.aliases}

    def _resolve(self, asset: str) -> "RegisteredVersion":
        from batch_platform.core.models.source import model_source

        name = self._spec.model.name
        return model_source(name, self._settings.root).resolve(name, self._spec.model.aliases[asset])

    def _load(self, version: "RegisteredVersion") -> "Scorer":
        from batch_platform.core.scoring import load_engine

        return load_engine(version, self._spec, self._settings.root)

    @cached_property
    def forecaster(self) -> "Forecaster":
        """How long scoring takes, by the statistics that stood when the run began."""
        from batch_platform.core.data.lake import Lake
        from batch_platform.core.forecasting import Forecaster
        from batch_platform.core.layout import Layout

        lake = Lake(Layout.of(self._settings, self._spec.name))
        return Forecaster.of(lake, self.model.digest, self.engine.plan.device)

    def model_file(self, path: str) -> bytes:
        """A file of that version, for steps that make features of it.

        Raises:
            ModelError: it has no such file, or it was altered.
        """
        return self.model.read_file(path)

    @cached_property
    def renderer(self) -> "Renderer":
        from batch_platform.core.monitoring.rendering import Renderer

        return Renderer()

    def progress(self, line: str) -> None:
        """Show a line in the run's output.

        Not in its event log: every line of that is an event that must be stored.
        """
        print(line, flush=True)  # noqa: T201

    def close(self) -> None:
        """End what was started."""
        for engine in ("engine", "challenger_engine"):
            if engine in self.__dict__:
                getattr(self, engine).close()
        if "renderer" in self.__dict__:
            self.renderer.close()
