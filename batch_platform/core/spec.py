"""The pipeline file: every field with its meaning, bounds and safe default.

This is the reference manual: Dagster's component docs show these descriptions. It decides which files
are accepted and refuses, with the field's path, what is wrong or not yet supported. It does not know
Dagster, and reads nothing but the values it is given.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from croniter import CroniterBadDateError, croniter
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from batch_platform.core.data.databases.query import Query
from batch_platform.core.data.partitions import PartitionCalendar
from batch_platform.core.models.reference import MLFLOW_PREFIX, MLFLOW_REFERENCE
from batch_platform.errors import NotYetSupportedError, PartitionKeyError, PipelineFileError

ColumnType = Literal[
    "string",
    "boolean",
    "int32",
    "int64",
    "float32",
    "float64",
    "date",
    "timestamp",
    "list<float32>",
    "binary",
]

PIPELINE_NAME = re.compile(r"[a-z][a-z0-9_]*")

# What a document is as a row.
DOCUMENT_COLUMNS: dict[str, ColumnType] = {
    "path": "string",
    "text": "string",
    "title": "string",
    "media_type": "string",
    "size": "int64",
}

# Columns the platform adds to the tables; a contract may not use their names for something else.
RESERVED_COLUMNS = frozenset(
    {
        "row_key",
        "partition_key",
        "source_file",
        "source_row",
        "input_hash",
        "model_version",
        "model_digest",
        "recipe_version",
        "run_id",
        "scored_at",
        "label",
        "score",
        "scores",
        "prediction",
        "embedding",
        "decision",
    }
)


# Columns that landing adds.
LANDED_COLUMNS = ("row_key", "partition_key", "source_file", "source_row")
_NUMBERS = ("int32", "int64", "float32", "float64")
_JOINED = ("string", "int32", "int64")
_MADE: dict[str, ColumnType] = {"count": "int64", "join": "string"}


class _Section(BaseModel):
    # protected_namespaces: pydantic reserves `model_`, which is our field's plain name.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _check_placeholders(uri: str) -> None:
    unknown = set(re.findall(r"\{([^}]*)\}", uri)) - {"partition"}
    if unknown:
        raise ValueError(f"unknown placeholder {{{sorted(unknown)[0]}}}: only {{partition}} is known")


class PartitionsSpec(_Section):
    """The slices of time that the pipeline is cut into."""

    cadence: Literal["daily", "hourly", "weekly", "monthly"] = Field(
        "daily", description="Length of a partition. Weeks start on Sunday."
    )
    start: str = Field(description='First partition, e.g. "2026-01-01" (quote it).')
    end: str | None = Field(None, description="First date that is not covered any more; null: no end.")
    timezone: str = Field("UTC", description="IANA zone in which a day begins, e.g. Europe/Berlin.")

    @field_validator("start", "end", mode="before")
    @classmethod
    def _dates_as_text(cls, value: Any) -> Any:
        # YAML reads an unquoted 2026-01-01 as a date.
        return value.isoformat() if hasattr(value, "isoformat") else value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"{value!r} is not an IANA time zone")
        return value

    @model_validator(mode="after")
    def _end_after_start(self) -> "PartitionsSpec":
        try:
            self.calendar()
        except PartitionKeyError as error:
            raise ValueError(str(error)) from None
        return self

    def calendar(self) -> PartitionCalendar:
        """The partitions that these fields describe."""
        return PartitionCalendar.of(self.cadence, self.start, self.end, self.timezone)


class ColumnSpec(_Section):
    """The contract of one column."""

    type: ColumnType = Field(description="Type of the column in every table of the lake.")
    required: bool = Field(False, description="A row without a value is quarantined.")
    optional: bool = Field(
        False,
        description="A file (parquet, csv) or table (delta) may lack the column, such as one from before it was added: null "
        "then. In jsonl every column may be absent.",
    )
    min: float | None = Field(None, description="Smallest value allowed (numbers).")
    max: float | None = Field(None, description="Largest value allowed (numbers).")
    allowed: list[str | int | float | bool] | None = Field(
        None, description="The only values allowed; a row with another one is quarantined."
    )
    sensitive: bool = Field(
        False, description="Masked in logs, reports, quarantine and the UI; kept in the tables."
    )

    @model_validator(mode="after")
    def _bounds(self) -> "ColumnSpec":
        if self.required and self.optional:
            raise ValueError(
                "a required column cannot be optional: without the column every row would be quarantined"
            )
        numeric = self.type in ("int32", "int64", "float32", "float64")
        if not numeric and (self.min is not None or self.max is not None):
            raise ValueError(f"min and max apply to numbers, not to {self.type}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.allowed is not None and self.type in ("list<float32>", "binary", "date", "timestamp"):
            raise ValueError(f"allowed does not apply to {self.type}")
        if self.allowed is not None and not self.allowed:
            raise ValueError("allowed is empty: every row would be quarantined")
        return self


class SourceSpec(_Section):
    """Where a partition's rows come from, and what they must look like."""

    uri: str | None = Field(
        None,
        min_length=1,
        description="File, folder, glob or Delta table, relative to the project or as s3://bucket/key; {partition} is the "
        "partition key. For format predictions the other pipeline's name, for sql nothing.",
    )
    format: Literal["parquet", "csv", "jsonl", "documents", "delta", "sql", "predictions"] = Field(
        "parquet",
        description="Format of the files (csv and jsonl also as .gz, .bz2, .xz, .zst); documents: text, Markdown, HTML, PDF "
        "and e-mail files, one row each with path, text, title, media_type and size; delta: a Delta table; sql: the "
        "result of `query`; predictions: those of another pipeline, whose columns the contract calls "
        "`<pipeline>_score` and so on, and `row_key`.",
    )
    query: str | None = Field(
        None,
        description="For format sql: one SELECT. Bound in it are :start and :end, the partition's window (times with "
        "zone; in SQLite texts as datetime() gives them), and :partition, its key. End it with ORDER BY the key: in "
        "another order the same rows are new data.",
    )
    connection_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*$",
        description="For format sql: the environment variable that holds the database's address: "
        "postgresql://user:password@host/database, duckdb:///path or sqlite:///path.",
    )
    partition_column: str | None = Field(
        None,
        description="For a uri without {partition}: rows whose date or timestamp falls in the window.",
    )
    row_key: str = Field(min_length=1, description="Column that identifies a row within a partition.")
    on_duplicate: Literal["fail", "first", "last", "quarantine"] = Field(
        "fail",
        description="Rows with the same key: fail the partition, keep the first or last, or keep the first "
        "and quarantine the others.",
    )
    allow_empty: bool = Field(False, description="An empty or absent partition is a valid, empty result.")
    columns: dict[str, ColumnSpec] = Field(
        min_length=1, description="The contract. Columns not named here are ignored, and counted."
    )

    @field_validator("uri")
    @classmethod
    def _placeholders(cls, value: str | None) -> str | None:
        _check_placeholders(value or "")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "SourceSpec":
        if self.row_key not in self.columns:
            raise ValueError(f"row_key {self.row_key!r} is not among columns: add it to the contract")
        if self.columns[self.row_key].type in ("list<float32>", "binary"):
            raise ValueError(f"row_key {self.row_key!r} must be a scalar, not a list or binary column")
        if self.format == "sql":
            self._check_query()
        elif self.uri is None:
            raise ValueError("uri is missing: name a file, folder or glob")
        elif self.query is not None or self.connection_env is not None:
            raise ValueError("query and connection_env have no effect without format: sql")
        elif self.format == "predictions":
            self._check_upstream(self.uri)
        elif self.format == "documents":
            self._check_documents(self.uri)
        elif (self.partition_column is None) == ("{partition}" not in self.uri):
            raise ValueError("give either {partition} in uri or a partition_column, and not both")
        if self.partition_column is not None:
            placing = self.columns.get(self.partition_column)
            if placing is None or placing.type not in ("date", "timestamp"):
                raise ValueError(
                    f"partition_column {self.partition_column!r} must be a date or timestamp column of the contract"
                )
        self._check_names()
        return self

    def _check_names(self) -> None:
        for name, column in self.columns.items():
            if column.optional and name in (self.row_key, self.partition_column):
                raise ValueError(f"column {name!r} says which row it is, so it cannot be optional")
            if column.optional and self.format in ("sql", "predictions", "documents"):
                raise ValueError(f"column {name!r}: optional has no effect with format: {self.format}")
            if name in RESERVED_COLUMNS and not (name == self.row_key == "row_key"):
                raise ValueError(f"column {name!r} has the name of a column that the platform adds")

    def _check_query(self) -> None:
        if self.query is None or self.connection_env is None:
            raise ValueError("format: sql needs query and connection_env")
        if self.uri is not None or self.partition_column is not None:
            raise ValueError(
                "uri and partition_column have no effect with format: sql; select by :start and :end"
            )
        used = Query.parse(self.query).parameters
        if "partition" not in used and not {"start", "end"} <= set(used):
            raise ValueError("query has to select the partition's rows: use :start and :end, or :partition")

    def _check_upstream(self, uri: str) -> None:
        if not PIPELINE_NAME.fullmatch(uri):
            raise ValueError(f"uri {uri!r}: with format: predictions it is the name of another pipeline")
        if self.partition_column is not None:
            raise ValueError("partition_column has no effect with format: predictions: the keys are the same")

    def _check_documents(self, uri: str) -> None:
        if "{partition}" not in uri or self.partition_column is not None:
            raise ValueError("documents need {partition} in uri, and no partition_column")
        for name, column in self.columns.items():
            if DOCUMENT_COLUMNS.get(name) != column.type:
                there = ", ".join(f"{known} ({kind})" for known, kind in DOCUMENT_COLUMNS.items())
                raise ValueError(
                    f"documents have no column {name!r} of type {column.type}; they have {there}"
                )

    @property
    def upstream_pipeline(self) -> str | None:
        """The pipeline whose predictions are read; None for other sources."""
        return self.uri if self.format == "predictions" else None

    @property
    def place(self) -> str:
        """Where the rows come from, for messages and receipts."""
        return self.uri or f"sql:{self.connection_env}"


class AggregateSpec(_Section):
    """One value made of the rows of a lookup that lie in the lookback."""

    function: Literal["count", "sum", "mean", "min", "max", "join"] = Field(
        description="count: int64, 0 without rows; join: a text of all values with spaces between, the newest first, null "
        "without values; the others: float64, null without values."
    )
    column: str | None = Field(
        None,
        description="Column of numbers, for join also of texts without spaces; nulls are left out. count without one: rows.",
    )

    @model_validator(mode="after")
    def _column_is_there(self) -> "AggregateSpec":
        if self.column is None and self.function != "count":
            raise ValueError(f"{self.function} needs a column")
        return self

    def refuses(self, kind: ColumnType) -> bool:
        """Whether nothing can be made of a column of this type."""
        return self.function != "count" and kind not in (_JOINED if self.function == "join" else _NUMBERS)


def _with_any_key(schema: dict[str, Any]) -> None:
    del schema["additionalProperties"]
    schema["required"].remove("on")


class TableSpec(_Section):
    """Where a lookup or labels are read from."""

    uri: str | None = Field(
        None, min_length=1, description="Like source.uri; {partition} is optional. For sql nothing."
    )
    format: Literal["parquet", "csv", "jsonl", "delta", "sql"] = Field(
        "parquet", description="Like source.format."
    )
    query: str | None = Field(
        None,
        description="For format sql: one SELECT. Bound in it are :start, :end and :partition, as in source.query; of a "
        "lookup :start is where the lookback begins.",
    )
    connection_env: str | None = Field(
        None, pattern=r"^[A-Za-z_]\w*$", description="For format sql: as source.connection_env."
    )

    @model_validator(mode="after")
    def _one_place(self) -> "TableSpec":
        of_databases = (self.query, self.connection_env)
        if self.format == "sql":
            if None in of_databases or self.uri is not None:
                raise ValueError("format: sql needs query and connection_env, and no uri")
            Query.parse(self.query or "")
        elif self.uri is None or of_databases != (None, None):
            raise ValueError(f"format: {self.format} needs uri, and no query or connection_env")
        _check_placeholders(self.uri or "")
        return self

    @property
    def place(self) -> str:
        """Where it is read from, for messages and receipts."""
        return self.uri or f"sql:{self.connection_env}"


class LookupSpec(TableSpec):
    """A point-in-time join: what was known of a raw row's key by a moment, and nothing from after it.

    The moment is the end of the partition, which itself belongs to the next one, or an earlier one of the row's own
    (`as_of`). A date is known when its day ends, in the pipeline's zone.
    """

    on: str = Field(
        description="Column of the lookup that holds the values of the contract's column of that name."
    )
    event_time: str = Field(
        description="Column of the lookup that says since when a row is known: a timestamp; or a date, "
        "which in other formats than Parquet is named as one under columns."
    )
    as_of: str | None = Field(
        None,
        description="Required date or timestamp of the contract: nothing from after the row's own moment is used. "
        "null: the partition's end.",
    )
    lookback_days: int = Field(30, ge=1, le=36_500, description="Older rows of the lookup are not used.")
    columns: dict[str, ColumnSpec] | None = Field(
        None,
        description="What is taken of the newest row, and the types of what the aggregates read. A row of the "
        "lookup that breaks it fails the partition; `required`: a raw row without a value is quarantined. null: all "
        "columns of the Parquet files but the key and the event time.",
    )
    aggregates: dict[str, AggregateSpec] = Field(
        default_factory=dict,
        description="Values by name, made of all rows in the lookback, instead of taking the newest row.",
    )
    prefix: str = Field("", pattern=r"^\w*$", description="Put before the names of what is taken.")
    on_duplicate: Literal["fail", "last"] = Field(
        "fail",
        description="Rows that differ at the same key and newest moment: fail the partition, or take the one read last.",
    )

    # YAML 1.1 reads an unquoted `on` as true, also as a key: `dg check` must let it pass, the validator below takes it.
    model_config = ConfigDict(json_schema_extra=_with_any_key)

    @model_validator(mode="before")
    @classmethod
    def _on_as_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and True in values:
            return {"on" if name is True else name: value for name, value in values.items()}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "LookupSpec":
        if self.columns is not None and not self.columns:
            raise ValueError("columns is empty: name what to take, or leave it out")
        if any(column.optional for column in (self.columns or {}).values()):
            raise ValueError("optional applies to source.columns: what a lookup lacks cannot be taken")
        if self.columns is None and self.format != "parquet":
            raise ValueError(f"columns: name them with their types, which {self.format} does not say")
        for name in (self.on, self.event_time, *(self.columns or ())):
            if name in LANDED_COLUMNS:
                raise ValueError(f"column {name!r} has the name of a column that the platform adds")
        if self.columns is not None and self.on in self.columns:
            raise ValueError(f"columns names {self.on!r}, whose type is that of the contract")
        time = None if self.columns is None else self.columns.get(self.event_time)
        if time is not None and time.type not in ("date", "timestamp"):
            raise ValueError(f"event_time {self.event_time!r} must be a date or timestamp, not {time.type}")
        for name, aggregate in self.aggregates.items():
            known = None if self.columns is None else self.columns.get(aggregate.column or "")
            if self.columns is not None and aggregate.column is not None and known is None:
                raise ValueError(f"aggregates.{name}: column {aggregate.column!r} is not among columns")
            if known is not None and aggregate.refuses(known.type):
                raise ValueError(
                    f"aggregates.{name}: {aggregate.column!r} is {known.type}, of which there is no {aggregate.function}"
                )
        return self

    def taken(self) -> dict[str, ColumnType] | None:
        """Names and types of the columns that the lookup adds; None where the files say them."""
        if self.aggregates:
            kinds: dict[str, ColumnType] = {
                name: _MADE.get(aggregate.function, "float64") for name, aggregate in self.aggregates.items()
            }
        elif self.columns is not None:
            kinds = {name: column.type for name, column in self.columns.items()}
        else:
            return None
        return {f"{self.prefix}{name}": kind for name, kind in kinds.items()}

    @property
    def required(self) -> frozenset[str]:
        """Columns that every raw row needs a value of, under the names that the recipe sees."""
        return self._named(lambda column: column.required)

    @property
    def sensitive(self) -> frozenset[str]:
        """Sensitive columns, under the names that the recipe sees; numbers made of them are sensitive too."""
        return self._named(lambda column: column.sensitive)

    def _named(self, has: Callable[[ColumnSpec], bool]) -> frozenset[str]:
        found = {name for name, column in (self.columns or {}).items() if has(column)}
        if self.aggregates:
            found = {name for name, aggregate in self.aggregates.items() if aggregate.column in found}
        return frozenset(f"{self.prefix}{name}" for name in found)


class FeaturesSpec(_Section):
    """How features are made of the raw columns."""

    recipe: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description='A recipe in Python, as "module:ATTRIBUTE".',
    )
    steps: list[dict[str, Any]] | None = Field(
        None,
        min_length=1,
        description="Steps, each one name with its parameters: clean_text, compose_text, truncate_characters, date_parts, "
        "select, chunk, encode, or module:function of a step in Python. What is left at their end are the features.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> "FeaturesSpec":
        if (self.recipe is None) == (self.steps is None):
            raise ValueError("give either a recipe or steps")
        for place, entry in enumerate(self.steps or ()):
            if len(entry) != 1:
                raise ValueError(f"steps.{place}: write one name with its parameters, not {len(entry)}")
        return self


class ModelSpec(_Section):
    """The registered model that scores."""

    name: str = Field(
        pattern=r"^(?:[A-Za-z0-9][\w.-]*|models:/.*)$",
        description="Name in the registry; or models:/name@alias or models:/name/3 of the MLflow server that "
        "MLFLOW_TRACKING_URI names.",
    )
    alias: str = Field(
        "champion",
        pattern=r"^[A-Za-z_][\w-]*$",
        description="Alias, resolved to a version when a run starts.",
    )
    challenger: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w-]*$",
        description="Alias whose version scores the same rows beside it, into challenger_predictions, and is compared. Not "
        "for models of MLflow.",
    )

    @model_validator(mode="after")
    def _whole_reference(self) -> "ModelSpec":
        if self.is_of_mlflow and not MLFLOW_REFERENCE.fullmatch(self.name):
            raise ValueError(f"name {self.name!r}: write models:/name@alias or models:/name/3")
        if self.is_of_mlflow and "alias" in self.model_fields_set:
            raise ValueError("alias has no effect beside a name models:/...: write models:/name@alias")
        if self.challenger == self.alias:
            raise ValueError(f"challenger {self.challenger!r} is the champion's own alias: name another one")
        return self

    @property
    def aliases(self) -> dict[str, str]:
        """The alias behind each of the pipeline's assets that are a model: `model`, and `challenger` where there is one."""
        return {"model": self.alias, **({"challenger": self.challenger} if self.challenger else {})}

    @property
    def is_of_mlflow(self) -> bool:
        """Whether the name is a reference to MLflow's registry, with its own alias or version."""
        return self.name.startswith(MLFLOW_PREFIX)

    @property
    def shown(self) -> str:
        """The model and its alias, for people."""
        return repr(self.name) if self.is_of_mlflow else f"{self.name!r}, alias {self.alias!r}"


class ConditionSpec(_Section):
    """What a value must be; of several conditions all must hold. A null meets none of them but `is_null: true`."""

    at_least: float | None = Field(None, description="Numbers from this one on.")
    above: float | None = Field(None, description="Numbers greater than this one.")
    at_most: float | None = Field(None, description="Numbers up to this one.")
    below: float | None = Field(None, description="Numbers less than this one.")
    is_in: list[str | int | bool] | None = Field(None, min_length=1, description="One of these values.")
    is_null: bool | None = Field(None, description="true: there is no value; false: there is one.")

    @model_validator(mode="after")
    def _something(self) -> "ConditionSpec":
        if not self.model_fields_set:
            raise ValueError("says nothing: give at_least, above, at_most, below, is_in or is_null")
        return self

    @property
    def is_of_numbers(self) -> bool:
        """Whether it compares numbers."""
        return any(value is not None for value in (self.at_least, self.above, self.at_most, self.below))


class RuleSpec(_Section):
    """One rule: where all conditions hold, this is decided."""

    when: dict[str, ConditionSpec] = Field(
        min_length=1,
        description="Conditions by column: an output of the model (label, score, prediction, generated_text) or a feature.",
    )
    decide: str = Field(min_length=1, description="The decision.")


class DecisionSpec(_Section):
    """Turns outputs into the column `decision`: by a threshold on the score of two classes, or by rules."""

    positive_class: str | None = Field(
        None, description="Of two classes, the label whose probability is the score. A threshold needs it."
    )
    threshold: float = Field(0.5, ge=0.0, le=1.0, description="Scores at or above it decide for it.")
    rules: list[RuleSpec] | None = Field(
        None,
        min_length=1,
        description="Instead of a threshold: rules, of which the first that applies decides.",
    )
    otherwise: str | None = Field(
        None, min_length=1, description="With rules: the decision where none applies."
    )

    @model_validator(mode="after")
    def _one_way(self) -> "DecisionSpec":
        if self.rules is None and self.positive_class is None:
            raise ValueError("give a positive_class with its threshold, or rules")
        if self.rules is not None and "threshold" in self.model_fields_set:
            raise ValueError("give either a threshold or rules")
        if (self.rules is None) != (self.otherwise is None):
            raise ValueError("rules need otherwise, the decision where none applies, and only they do")
        return self


class InferenceSpec(_Section):
    """How rows are put through the model."""

    executor: Literal["local", "ray"] = Field(
        "local",
        description="local: this machine. ray: actors on the Ray cluster that RAY_ADDRESS names, else one of this machine "
        "alone; needs the extra batch_platform[ray].",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one.")
    devices: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        1,
        description="Devices that compute at once, a process or an actor for each: a number, or all GPUs that there are. On "
        "CPUs they share the processors; with ray, all is an actor for each node.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on GPUs that have it, else float32."
    )
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto", "calibrated"] = Field(
        "auto",
        description="Token budget of a batch of texts, padding included. auto: by the device; calibrated: measured once "
        "for the model and the kind of machine, and kept.",
    )
    batch_rows: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Rows of a batch of a tabular model."
    )
    shard_rows: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Rows of a shard, the unit of resume. auto: 8192 texts, or more rows of numbers, by columns.",
    )
    batch_timeout: float = Field(
        600.0,
        gt=0.0,
        le=86_400.0,
        description="Seconds that computing one batch may take. A later one is stopped and halved; a row that "
        "takes longer alone is quarantined.",
    )
    max_error_share: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="Share of a stage's rows that may be quarantined; more fails the partition.",
    )


Metric = Literal[
    "accuracy",
    "auc",
    "precision",
    "recall",
    "f1",
    "reciprocal_rank",
    "ndcg",
    "hit_rate",
    "top_3_accuracy",
    "r2",
    "log_loss",
    "brier",
    "mae",
    "rmse",
]


class LabelsSpec(TableSpec):
    """Where the truth arrives."""

    row_key: str = Field(description="Column that holds the row key of the prediction.")
    partition_column: str | None = Field(
        None,
        description="For a uri without {partition}, or a query without parameters: the column that names the partition "
        "scored.",
    )
    column: str = Field(
        description="Column that holds the true label or value. Of several for a row the last counts; for a ranking, whose "
        "labels are the right items, all do."
    )
    horizon_days: int = Field(0, ge=0, description="Days after a partition's end until labels are complete.")
    floors: dict[Metric, float] = Field(
        default_factory=dict,
        description="The worst that is accepted, e.g. {auc: 0.7}; of log_loss, brier, mae and rmse the highest. The "
        "check fails where the whole 95 % interval is worse.",
    )
    segments: list[str] = Field(
        default_factory=list,
        description="Feature columns by whose values performance is told apart: the twelve most frequent of each.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "LabelsSpec":
        if self.query is not None:
            selects, how = (
                bool(Query.parse(self.query).parameters),
                "use :start and :end, or :partition, in query",
            )
        else:
            selects, how = "{partition}" in (self.uri or ""), "give {partition} in uri"
        if (self.partition_column is None) != selects:
            raise ValueError(f"either {how}, or give a partition_column, and not both")
        return self


class DriftSpec(_Section):
    """How drift is judged."""

    reference_partitions: int = Field(
        56, ge=3, description="Partitions in the reference; until there are so many: not enough history."
    )
    false_alarms_per_quarter: float = Field(
        1.0,
        gt=0.0,
        le=90.0,
        description="Budget of false alarms for the whole pipeline, of drift; of data quality as many again.",
    )
    columns: Literal["auto"] | list[str] = Field(
        "auto", description="Feature columns to watch; auto: all but keys and timestamps."
    )


class QualitySpec(_Section):
    """How a partition's quality is judged by the partitions before it: volume, freshness, nulls, ranges, new values."""

    history_partitions: int = Field(
        56,
        ge=14,
        le=400,
        description="So many partitions before it are compared with; fewer than 14: not enough history.",
    )
    severity: Literal["warn", "error"] = Field(
        "warn", description="error: an unusual partition is not published; warn: the check shows it."
    )


class SinkSpec(_Section):
    """A database or folder of files that the committed predictions are delivered to."""

    type: Literal["sql", "parquet", "csv"] = Field(
        description="sql: a table of a database; parquet, csv: a file for each partition, with a manifest."
    )
    connection_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*$",
        description="For sql: the environment variable that holds the database's address, as for a source.",
    )
    table: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)?$",
        description="For sql: the table, as name or schema.name. It is made where it is not there, with the key "
        "(partition_key, row_key).",
    )
    uri: str | None = Field(
        None,
        min_length=1,
        pattern=r"^[^{}*?\[\]]*$",
        description="For parquet and csv: the folder, relative to the project or as s3://bucket/prefix; of this pipeline "
        "alone.",
    )
    mode: Literal["upsert"] = Field(
        "upsert",
        description="For sql. upsert: rows that are new or differ are written, those predicted no more are removed.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "SinkSpec":
        of_databases = (self.connection_env, self.table)
        if self.type == "sql" and (None in of_databases or self.uri is not None):
            raise ValueError("type: sql needs connection_env and table, and no uri")
        if self.type != "sql" and (self.uri is None or of_databases != (None, None)):
            raise ValueError(f"type: {self.type} needs uri, and no connection_env or table")
        if self.type != "sql" and "mode" in self.model_fields_set:
            raise ValueError(
                f"mode has no effect with type: {self.type}: a partition's file is replaced whole"
            )
        return self

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.uri or f"{self.connection_env}: {self.table}"


class AutomationSpec(_Section):
    """When the pipeline runs by itself."""

    trigger: Literal["schedule", "on_arrival", "upstream", "manual"] = Field(
        "manual", description="schedule or manual; on_arrival and upstream: a later release."
    )
    cron: str | None = Field(None, description='Five fields, in the partitions\' zone, e.g. "0 3 * * *".')
    catch_up: int = Field(
        7,
        ge=0,
        le=3660,
        description="Partitions before the newest that are redone at a tick where missing or failed.",
    )
    redo_stale: bool = Field(
        False,
        description="At a tick, redo also stale partitions among these: made by another model, recipe or contract.",
    )
    off_peak: str | None = Field(None, description="A later release.")

    @model_validator(mode="after")
    def _cron_fits_trigger(self) -> "AutomationSpec":
        if self.trigger == "schedule" and self.cron is None:
            raise ValueError('trigger: schedule needs a cron, e.g. "0 3 * * *"')
        if self.trigger == "manual" and self.redo_stale:
            raise ValueError("redo_stale has no effect with trigger: manual; write trigger: schedule")
        if self.trigger == "manual" and self.cron is not None:
            raise ValueError("a cron has no effect with trigger: manual; write trigger: schedule")
        if self.cron is not None:
            if len(self.cron.split()) != 5 or not croniter.is_valid(self.cron):
                raise ValueError(f"cron {self.cron!r} is not valid: five fields, e.g. 0 3 * * *")
            try:
                croniter(self.cron).get_next()
            except CroniterBadDateError:
                raise ValueError(f"cron {self.cron!r} never happens: there is no such day") from None
        return self


class RetentionSpec(_Section):
    """How long things are kept, in days. The job `<name>_maintenance` removes what is older."""

    staging_days: int = Field(
        7,
        ge=1,
        description="Finished shards of work that nobody goes on with, and files of killed processes.",
    )
    history_days: int = Field(
        3650, ge=1, description="Data files of superseded commits. Receipts and the tables' logs are kept."
    )
    quarantine_days: int = Field(
        90, ge=1, description="Payloads and messages of quarantined rows; keys, causes and places are kept."
    )


class PipelineSpec(_Section):
    """A batch-inference pipeline: raw inputs, features, predictions and drift reports by date."""

    name: str = Field(
        "",
        description="Prefix of the asset keys and folder in the lake: [a-z][a-z0-9_]*. Default: the folder's name.",
    )
    description: str = Field("", description="What the pipeline is for, shown in the UI.")
    owners: list[str] = Field(default_factory=list, description='E-mail addresses or "team:name".')
    partitions: PartitionsSpec = Field(description="The slices of time.")
    source: SourceSpec = Field(description="The raw inputs and their contract.")
    lookups: list[LookupSpec] = Field(
        default_factory=list,
        description="Point-in-time joins, whose columns stand beside the raw ones for the recipe.",
    )
    features: FeaturesSpec | None = Field(
        None, description="The recipe; without it the contract's columns pass through."
    )
    model: ModelSpec = Field(description="The model that scores.")
    decision: DecisionSpec | None = Field(None, description="Turns outputs into decisions.")
    inference: InferenceSpec = Field(default_factory=InferenceSpec, description="How rows are scored.")
    labels: LabelsSpec | None = Field(None, description="Where the truth arrives.")
    drift: DriftSpec = Field(default_factory=DriftSpec, description="How drift is judged.")
    quality: QualitySpec = Field(
        default_factory=QualitySpec, description="How quality is judged by the pipeline's own history."
    )
    sinks: list[SinkSpec] = Field(
        default_factory=list, description="Where the committed predictions are delivered to."
    )
    automation: AutomationSpec = Field(
        default_factory=AutomationSpec, description="When the pipeline runs by itself."
    )
    retention: RetentionSpec = Field(
        default_factory=RetentionSpec,
        description="How long things are kept that are not needed for new work.",
    )

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if value and not PIPELINE_NAME.fullmatch(value):
            raise ValueError(f"{value!r} is no pipeline name: use a-z, 0-9 and _, beginning with a letter")
        return value

    @field_validator("sinks")
    @classmethod
    def _different_sinks(cls, value: list[SinkSpec]) -> list[SinkSpec]:
        names = [sink.name for sink in value]
        if len(set(names)) < len(names):
            raise ValueError("two sinks write to the same place: remove one")
        return value

    @field_validator("owners")
    @classmethod
    def _owner_form(cls, value: list[str]) -> list[str]:
        for owner in value:
            if not re.fullmatch(r"team:[\w-]+|[^@\s]+@[^@\s]+\.[^@\s]+", owner):
                raise ValueError(f"{owner!r} is neither an e-mail address nor team:name")
        return value

    @model_validator(mode="after")
    def _lookups_fit(self) -> "PipelineSpec":
        names = {*self.source.columns, *LANDED_COLUMNS}
        for place, lookup in enumerate(self.lookups):
            key = self.source.columns.get(lookup.on)
            if key is None or key.type in ("float32", "float64", "list<float32>", "binary"):
                raise ValueError(
                    f"lookups.{place}.on: {lookup.on!r} must be a column of source.columns that can be a key"
                )
            moment = None if lookup.as_of is None else self.source.columns.get(lookup.as_of)
            is_moment = moment is not None and moment.required and moment.type in ("date", "timestamp")
            if lookup.as_of is not None and not is_moment:
                raise ValueError(
                    f"lookups.{place}.as_of: {lookup.as_of!r} must be a date or timestamp of source.columns that is "
                    "required: true"
                )
            taken = set(lookup.taken() or ())
            if twice := sorted(names & taken):
                raise ValueError(
                    f"lookups.{place}: a column {twice[0]!r} is there already; set a prefix, or leave it out"
                )
            names |= taken
            if lookup.taken() is None and self.features is not None and self.features.steps is not None:
                raise ValueError(f"lookups.{place}.columns: with features.steps, name the columns to take")
        return self

    @property
    def sensitive_columns(self) -> frozenset[str]:
        """Columns of the contract and the lookups whose values are masked."""
        own = {name for name, column in self.source.columns.items() if column.sensitive}
        return frozenset(own).union(*(lookup.sensitive for lookup in self.lookups))

    def refuse_unsupported(self) -> None:
        """Refuse what the format has a place for and this release does not do.

        Raises:
            NotYetSupportedError: names the field; it is never ignored in silence.
        """
        asked = {
            "model.challenger of MLflow": self.model.challenger is not None and self.model.is_of_mlflow,
            f"automation.trigger: {self.automation.trigger}": self.automation.trigger
            in ("on_arrival", "upstream"),
            "automation.off_peak": self.automation.off_peak is not None,
        }
        refused = [field for field, present in asked.items() if present]
        if refused:
            raise NotYetSupportedError(
                f"pipeline {self.name}: {refused[0]} comes with a later release of batch_platform; "
                "remove it from the pipeline file"
            )

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.partitions.timezone)


def parse_spec(attributes: dict[str, Any], folder_name: str) -> PipelineSpec:
    """Check the attributes of one pipeline file.

    Args:
        attributes: the mapping under `attributes:`.
        folder_name: default for `name`.

    Raises:
        PipelineFileError: the first mistake, as `field.path: what is wrong`, all others after it.
        NotYetSupportedError: a field of a later release is used.
    """
    try:
        spec = PipelineSpec.model_validate(attributes)
    except ValidationError as error:
        raise PipelineFileError(describe(error)) from None
    if not spec.name:
        spec = named(spec, folder_name)
    spec.refuse_unsupported()
    return spec


def named(spec: PipelineSpec, folder_name: str) -> PipelineSpec:
    """The same pipeline under its folder's name.

    Raises:
        PipelineFileError: the folder's name cannot be a pipeline's.
    """
    if not PIPELINE_NAME.fullmatch(folder_name):
        raise PipelineFileError(
            f"name: the folder {folder_name!r} is no pipeline name; set name: (a-z, 0-9 and _)"
        )
    return spec.model_copy(update={"name": folder_name})


def describe(error: ValidationError) -> str:
    """A validation error as lines of `field.path: what is wrong`."""
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"]) or "attributes"
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            what = "unknown field; check the spelling, or see the component's docs for the fields"
        lines.append(f"{path}: {what}")
    return "\n".join(lines)
