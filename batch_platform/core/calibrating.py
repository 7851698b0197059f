"""The size of batches that was measured for a model on a kind of machine, measured once and kept.

What is kept stands for all later runs: another size can change the last bits of an output, so it belongs to what a
prediction was made with. A process that is killed while it measures leaves nothing; of two that measure at once the first
to end decides. How it is measured is decided by `inference.calibration`.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.inference.calibration import Measured, choose, measure
from batch_platform.core.inference.device import hardware_of
from batch_platform.core.inference.engine import Engine
from batch_platform.core.provenance.fingerprint import fingerprint
from batch_platform.errors import StorageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What was measured, and what was taken.

    Attributes:
        model_digest: of the model that was measured.
        hardware: the kind of machine, with its processor or GPU.
        dtype: the floating-point type that it computed in.
        batch_tokens: the size that was taken.
        measured: all sizes.
        at: when, ISO 8601, UTC.
    """

    model_digest: str
    hardware: Mapping[str, Any]
    dtype: str
    batch_tokens: int
    measured: tuple[Measured, ...]
    at: str

    def line(self) -> str:
        """The reason, for people."""
        rates = ", ".join(
            f"{each.batch_tokens}: "
            + ("too large" if each.tokens_per_second is None else f"{each.tokens_per_second:,.0f}/s")
            for each in self.measured
        )
        return (
            f"{self.batch_tokens} tokens a batch, measured {self.at[:16]} (tokens a second by size: {rates})"
        )


def calibrated(engine: Engine, model_digest: str, root: Location) -> Engine:
    """The engine with the size of batches that is kept for its model on this kind of machine; measured where none is.

    Args:
        engine: a text model, loaded.
        model_digest: of that model.
        root: of the platform.

    Raises:
        InferenceError: the model does not read texts, or nothing fits the device's memory.
        StorageError: what is kept is damaged, or cannot be written.
    """
    found = kept(engine, model_digest, root) or calibrate(engine, model_digest, root)
    _log.info("model %s: %s", model_digest, found.line())
    return Engine(engine.predictor, replace(engine.plan, batch_tokens=found.batch_tokens), engine.patience)


def kept(engine: Engine, model_digest: str, root: Location) -> Calibration | None:
    """What is kept; None where nothing was measured yet.

    Raises:
        StorageError: it is damaged.
    """
    place = _place(engine, model_digest, root)
    content = files.read_if_there(place)
    if content is None:
        return None
    try:
        found = json.loads(content)
        return Calibration(**{**found, "measured": tuple(Measured(**each) for each in found["measured"])})
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{place} is damaged ({error}): remove it, and it is measured again") from None


def calibrate(engine: Engine, model_digest: str, root: Location, again: bool = False) -> Calibration:
    """Measure, and keep the result unless another process has meanwhile; returns what is kept.

    Args:
        again: in place of what is kept. Rows that were scored with another size are then scored anew.

    Raises:
        As `calibrated`.
    """
    measured = measure(engine.predictor, engine.plan)
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    made = Calibration(model_digest, _hardware(engine), engine.plan.dtype, choose(measured), measured, now)
    place = _place(engine, model_digest, root)
    if again:
        files.remove(place)
    if files.create_once(place, files.canonical_json(asdict(made))):
        return made
    standing = kept(engine, model_digest, root)
    if standing is None:
        raise StorageError(f"{place} was taken away while it was made; run it again")
    return standing


def _place(engine: Engine, model_digest: str, root: Location) -> Location:
    conditions = {
        "hardware": _hardware(engine),
        "dtype": engine.plan.dtype,
        "backend": engine.predictor.backend,
    }
    return root / "calibrations" / model_digest.removeprefix("sha256:") / f"{fingerprint(conditions)}.json"


def _hardware(engine: Engine) -> dict[str, Any]:
    found = hardware_of(engine.plan.device)
    return {name: found[name] for name in ("processor", "cores", "gpu")}
