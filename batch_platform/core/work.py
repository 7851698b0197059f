"""What is to be scored and by what, pinned before the first row is read.

Decides what makes two pieces of work the same, and what two rows have to have in common to be interchangeable. It scores
nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batch_platform.core.data.lake import Commit
from batch_platform.core.deciding import COLUMN, check_columns, describe, rule_version
from batch_platform.core.inference.batching import shard_rows
from batch_platform.core.inference.engine import Scorer
from batch_platform.core.models.registry import RegisteredVersion
from batch_platform.core.models.signature import ModelSignature
from batch_platform.core.provenance import receipts
from batch_platform.core.provenance.fingerprint import code_version, fingerprint
from batch_platform.core.slice import Slice
from batch_platform.core.spec import DecisionSpec, PipelineSpec
from batch_platform.errors import SignatureError


@dataclass(frozen=True)
class Work:
    """What is to be scored and by what, pinned before the first row is read.

    Attributes:
        model: the version that the alias pointed to when the run was asked for.
        signature: the model's, with the pipeline's positive class.
        decision: the rule; it acts on finished rows, so that another one has nothing scored.
        parameters: all that can change an output besides data, model and code.
        rows: keys of the rows that alone are to be scored, whatever the others were made of; None: those that need it.
        reuses: the commit whose rows are copied where they need no scoring; None where all rows are scored.
    """

    features: Commit
    recipe_version: str
    model: RegisteredVersion
    signature: ModelSignature
    decision: DecisionSpec | None
    parameters: dict[str, Any]
    rows: pa.Array | None = None
    reuses: Commit | None = None

    @property
    def conditions(self) -> dict[str, Any]:
        """All that acts on a row besides its input."""
        return conditions_of(self.recipe_version, self.model, self.parameters)

    @property
    def identity(self) -> str:
        """Equal for all work that gives a row the same values."""
        return identity_of(self.features, self.conditions, self.decision)

    @property
    def fingerprint(self) -> str:
        """Identity of the work: of its shards, and of its commit."""
        if self.reuses is None:
            return self.identity
        parts = {"work": self.identity, "reuses": self.reuses.attempt}
        if self.rows is not None:
            parts["rows"] = sorted(self.rows.to_pylist())
        return fingerprint(parts)

    def described(self, hardware: Mapping[str, Any]) -> dict[str, Any]:
        """What a receipt says of the work.

        Args:
            hardware: the machine that computes, as `device.hardware_of` has it.
        """
        return {
            **receipts.of_model(self.model),
            **receipts.read_from("features", self.features.receipt),
            "contract_version": self.features.receipt.get("contract_version"),
            "device": self.parameters["device"],
            "dtype": self.parameters["dtype"],
            "hardware": dict(hardware),
            "recipe_version": self.recipe_version,
            "code_version": code_version(),
            "parameters": self.parameters,
            "decision": None if self.decision is None else describe(self.decision),
            "signature": self.signature.to_dict(),
            "features_fingerprint": self.features.fingerprint,
            "rows_in": self.features.rows,
        }

    @property
    def inputs(self) -> list[str]:
        """The columns that the model reads."""
        return [column.name for column in self.signature.inputs]

    @property
    def schema(self) -> pa.Schema:
        """Columns of the predictions table."""
        scored = self.scored_schema
        if self.decision is None:
            return scored
        place = 1 + len(self.signature.output_schema())
        return scored.insert(place, pa.field(COLUMN, pa.string()))

    @property
    def scored_schema(self) -> pa.Schema:
        """Columns of the predictions before anything is decided."""
        return pa.schema(
            [
                ("row_key", pa.string()),
                *self.signature.output_schema(),
                ("model_version", pa.string()),
                ("model_digest", pa.string()),
                ("recipe_version", pa.string()),
                ("input_hash", pa.string()),
                ("run_id", pa.string()),
                ("scored_at", pa.timestamp("us", tz="UTC")),
            ]
        )


def pin(slice_: Slice, model: RegisteredVersion, engine: Scorer) -> Work:
    """Fix what the result will be made of.

    Raises:
        UpstreamMissingError: the partition has no features.
        SignatureError: model, features and decision do not fit each other.
    """
    features = slice_.committed("features")
    signature = signature_for(model, slice_.spec.decision)
    schema = slice_.lake.schema("features")
    assert schema is not None  # there is a commit
    try:
        signature.check_features(schema)
    except SignatureError as error:
        raise SignatureError(f"{slice_.about}, model {model.name} version {model.version}: {error}") from None
    decision = slice_.spec.decision
    if decision is not None:
        try:
            check_columns(decision, signature, schema)
        except SignatureError as error:
            raise SignatureError(f"{slice_.about}, {error}") from None
    for path, digest in (features.receipt.get("model_files") or {}).items():
        if model.files.get(path) != digest:
            raise SignatureError(
                f"{slice_.about}: its features were made with another {path} than that of model {model.name} version "
                f"{model.version}: materialize {slice_.spec.name}/features for it again"
            )
    parameters = parameters_of(slice_.spec, signature, engine)
    recipe_version = features.receipt["recipe_version"]
    return Work(features, recipe_version, model, signature, slice_.spec.decision, parameters)


def parameters_of(spec: PipelineSpec, signature: ModelSignature, engine: Scorer) -> dict[str, Any]:
    """All that can change an output besides data, model and code."""
    return {
        **engine.plan.to_dict(),
        "backend": engine.backend,
        "shard_rows": shard_rows(spec.inference.shard_rows, signature, engine.plan.device),
        "positive_class": signature.positive_class,
    }


def conditions_of(
    recipe_version: str, model: RegisteredVersion, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """All that acts on a row besides its input."""
    return {
        "recipe": recipe_version,
        "model": [model.name, model.version, model.digest],
        "parameters": dict(parameters),
        "code": code_version(),
    }


def identity_of(features: Commit, conditions: Mapping[str, Any], decision: DecisionSpec | None) -> str:
    """Identity of scoring these features under these conditions, and deciding by this rule."""
    parts = {"features": features.fingerprint, **conditions}
    if decision is not None:
        parts["decision"] = rule_version(decision)
    return fingerprint(parts)


def signature_for(model: RegisteredVersion, decision: DecisionSpec | None) -> ModelSignature:
    """The model's signature under the pipeline's decision, which names the positive class.

    Raises:
        SignatureError: the decision does not suit the model.
    """
    signature = model.signature
    if decision is None or decision.positive_class is None:
        return signature
    about = f"model {model.name} version {model.version}"
    if signature.task != "classification" or len(signature.labels) != 2:
        raise SignatureError(f"{about}: decision.positive_class needs a classifier of two classes; remove it")
    if decision.positive_class not in signature.labels:
        raise SignatureError(
            f"{about}: decision.positive_class {decision.positive_class!r} is none of {list(signature.labels)}"
        )
    return signature.with_positive_class(decision.positive_class)
