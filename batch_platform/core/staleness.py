"""Which finished stages were made of something that is another now: pipeline file, recipe, code, model, or upstream rows.

The same versions are given to Dagster, whose UI comes to the same verdict from its own events: of each stage its own, and
of what is above it the data that it was made of. A stage whose upstream is stale is not stale itself until that was made
anew. It starts no work.
"""

from collections.abc import Mapping
from contextlib import suppress

from batch_platform.core.data.files import Location
from batch_platform.core.deciding import rule_version
from batch_platform.core.featurizing import recipe_of
from batch_platform.core.models.source import model_source
from batch_platform.core.outcomes import Outcome
from batch_platform.core.provenance.fingerprint import code_version, fingerprint
from batch_platform.core.spec import PipelineSpec
from batch_platform.errors import ModelNotFoundError

# Names of versions in `Outcome.versions`, beside those of the assets above a stage.
CODE = "code"
DATA = "data"
_CHANGED = {
    "raw": "source or contract",
    "features": "recipe or lookups",
    "predictions": "inference, decision or code",
    "delivered": "sinks",
    "drift_report": "drift settings",
    "performance": "label settings",
    "challenger_predictions": "inference, decision or code",
}


def code_version_of(spec: PipelineSpec, stage: str) -> str:
    """What must change for a stage's results to become stale, besides what they are made of."""
    if stage == "raw":
        return fingerprint(spec.source.model_dump(mode="json"))[:12]
    if stage == "features":
        lookups = [lookup.model_dump(mode="json") for lookup in spec.lookups]
        recipe = recipe_of(spec).version
        return fingerprint({"recipe": recipe, "lookups": lookups})[:12] if lookups else recipe
    if stage in ("predictions", "challenger_predictions"):
        parts = {"inference": spec.inference.model_dump(), "code": code_version()}
        return fingerprint({**parts, "decision": spec.decision and rule_version(spec.decision)})[:12]
    if stage == "delivered":
        return fingerprint({"sinks": [sink.model_dump() for sink in spec.sinks]})[:12]
    if stage == "drift_report":
        return fingerprint(spec.drift.model_dump())[:12]
    assert spec.labels is not None
    return fingerprint(spec.labels.model_dump())[:12]


def code_versions(spec: PipelineSpec, stages: list[str]) -> dict[str, str]:
    """`code_version_of` of each stage."""
    return {stage: code_version_of(spec, stage) for stage in stages}


def digests_now(spec: PipelineSpec, root: Location) -> dict[str, str]:
    """Digests of the models that a run would score with now, by the assets `model` and `challenger`.

    One that was never registered is left out: a run says so.

    Raises:
        ModelError: the registry was altered, or MLflow cannot be asked.
    """
    found = {}
    for asset, alias in spec.model.aliases.items():
        with suppress(ModelNotFoundError):
            found[asset] = model_source(spec.model.name, root).digest_of(spec.model.name, alias)
    return found


def stale_stages(
    known: Mapping[str, Outcome], versions: Mapping[str, str], digests: Mapping[str, str]
) -> dict[str, str]:
    """The stale stages of one partition, and why.

    Args:
        known: the last outcome of each stage.
        versions: `code_versions` now.
        digests: of the models that a run would score with now, `model` and `challenger`, as far as they are known.
    """
    data = {stage: outcome.versions[DATA] for stage, outcome in known.items() if DATA in outcome.versions}
    data |= digests
    stale: dict[str, str] = {}
    for stage, outcome in known.items():
        # What a release before this one has recorded says nothing about versions.
        if outcome.state != "done" or stage not in versions or CODE not in outcome.versions:
            continue
        reasons = [_CHANGED[stage]] if outcome.versions[CODE] != versions[stage] else []
        reasons += [
            upstream
            for upstream, version in outcome.versions.items()
            if upstream in data and upstream not in (CODE, DATA) and data[upstream] != version
        ]
        if reasons:
            stale[stage] = f"{' and '.join(reasons)} changed"
    return stale
