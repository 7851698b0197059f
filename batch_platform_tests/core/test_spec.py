"""The pipeline file: what is accepted, and each refusal with the field's path."""

import copy
from datetime import date
from typing import Any

import pytest

from batch_platform.core.spec import named, parse_spec
from batch_platform.errors import NotYetSupportedError, PipelineFileError

MINIMAL: dict[str, Any] = {
    "partitions": {"start": "2026-01-01"},
    "source": {
        "uri": "in/{partition}.parquet",
        "row_key": "id",
        "columns": {"id": {"type": "string"}, "x": {"type": "float64"}, "at": {"type": "timestamp"}},
    },
    "model": {"name": "m"},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The minimal file with one field set, by dotted path."""
    attributes = copy.deepcopy(MINIMAL)
    *parents, last = path.split(".")
    section = attributes
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return attributes


def without(path: str) -> dict[str, Any]:
    attributes = copy.deepcopy(MINIMAL)
    *parents, last = path.split(".")
    section = attributes
    for parent in parents:
        section = section[parent]
    del section[last]
    return attributes


def test_only_partitions_source_and_model_are_needed() -> None:
    spec = parse_spec(MINIMAL, "churn")
    assert spec.name == "churn"
    assert (spec.partitions.cadence, spec.partitions.timezone, spec.partitions.end) == ("daily", "UTC", None)
    assert (spec.source.format, spec.source.on_duplicate, spec.source.allow_empty) == (
        "parquet",
        "fail",
        False,
    )
    assert (spec.model.alias, spec.model.challenger) == ("champion", None)
    assert (spec.inference.device, spec.inference.shard_rows, spec.inference.max_error_share) == (
        "auto",
        "auto",
        0.01,
    )
    assert spec.inference.batch_timeout == 600
    assert (spec.drift.reference_partitions, spec.drift.false_alarms_per_quarter) == (56, 1.0)
    assert (spec.automation.trigger, spec.automation.catch_up) == ("manual", 7)
    assert (spec.features, spec.labels, spec.decision, spec.sinks, spec.lookups) == (None, None, None, [], [])


def test_a_name_in_the_file_wins_over_the_folder() -> None:
    assert parse_spec(changed("name", "mine"), "My-Folder").name == "mine"


def test_dates_may_be_unquoted() -> None:
    assert parse_spec(changed("partitions.start", date(2026, 1, 1)), "p").partitions.start == "2026-01-01"


@pytest.mark.parametrize("section", ["partitions", "source", "model"])
def test_a_missing_section(section: str) -> None:
    with pytest.raises(PipelineFileError, match=f"^{section}: Field required"):
        parse_spec(without(section), "p")


ID = {"type": "string"}
LABELS = {"uri": "{partition}", "row_key": "id", "column": "y"}

REFUSED: list[tuple[str, Any, str]] = [
    ("colour", "red", "colour: unknown field; check the spelling"),
    ("source.colour", "red", "source.colour: unknown field"),
    ("source.columns.x.typ", "int64", "source.columns.x.typ: unknown field"),
    ("inference.shard_row", 5, "inference.shard_row: unknown field"),
    ("name", "Churn", "name: 'Churn' is no pipeline name"),
    ("name", "../x", "name: '../x' is no pipeline name"),
    ("owners", ["nobody"], "owners: 'nobody' is neither an e-mail address nor team:name"),
    ("owners", "team:x", "owners: Input should be a valid list"),
    (
        "partitions.cadence",
        "yearly",
        "partitions.cadence: Input should be 'daily', 'hourly', 'weekly' or 'monthly'",
    ),
    ("partitions.timezone", "Berlin", "partitions.timezone: 'Berlin' is not an IANA time zone"),
    ("partitions.start", "1 January", "partitions: '1 January' is not a date"),
    ("partitions.end", "2025-12-31", "partitions: partitions.end '2025-12-31' is not after"),
    ("partitions.end", "2026-01-01", "partitions: partitions.end '2026-01-01' is not after"),
    ("source.uri", "", "source.uri: String should have at least 1 character"),
    ("source.uri", "in/{date}.csv", "source.uri: unknown placeholder {date}: only {partition} is known"),
    ("source.uri", "in.csv", "source: give either {partition} in uri or a partition_column, and not both"),
    ("source.partition_column", "at", "source: give either {partition} in uri or a partition_column"),
    ("source.format", "xlsx", "source.format: Input should be 'parquet', 'csv', 'jsonl'"),
    ("source.row_key", "key", "source: row_key 'key' is not among columns"),
    (
        "source.on_duplicate",
        "ignore",
        "source.on_duplicate: Input should be 'fail', 'first', 'last' or 'quarantine'",
    ),
    ("source.allow_empty", "perhaps", "source.allow_empty: Input should be a valid boolean"),
    ("source.columns", {}, "source.columns: Dictionary should have at least 1 item"),
    ("source.columns.id", {"type": "binary"}, "source: row_key 'id' must be a scalar"),
    ("source.columns.id", {"type": "list<float32>"}, "source: row_key 'id' must be a scalar"),
    ("source.columns.score", ID, "source: column 'score' has the name of a column that the platform adds"),
    (
        "source.columns.row_key",
        ID,
        "source: column 'row_key' has the name of a column that the platform adds",
    ),
    ("source.columns.x", {"type": "number"}, "source.columns.x.type: Input should be 'string'"),
    ("source.columns.x", {}, "source.columns.x.type: Field required"),
    (
        "source.columns.x",
        {"type": "string", "min": 0},
        "source.columns.x: min and max apply to numbers, not to string",
    ),
    ("source.columns.x", {"type": "int64", "min": 2, "max": 1}, "source.columns.x: min 2.0 is above max 1.0"),
    ("source.columns.x", {"type": "int64", "allowed": []}, "source.columns.x: allowed is empty"),
    (
        "source.columns.x",
        {"type": "date", "allowed": ["a"]},
        "source.columns.x: allowed does not apply to date",
    ),
    (
        "source.columns.x",
        {"type": "int64", "min": "low"},
        "source.columns.x.min: Input should be a valid number",
    ),
    ("features.recipe", "no colon", "features.recipe: String should match pattern"),
    ("features.recipe", "os:system('x')", "features.recipe: String should match pattern"),
    ("inference.device", "tpu", "inference.device: Input should be 'auto', 'cpu' or 'cuda'"),
    ("inference.dtype", "int8", "inference.dtype: Input should be 'auto'"),
    (
        "inference.shard_rows",
        0,
        "inference.shard_rows.constrained-int: Input should be greater than or equal to 1",
    ),
    ("inference.batch_timeout", 0, "inference.batch_timeout: Input should be greater than 0"),
    ("inference.batch_timeout", 1e6, "inference.batch_timeout: Input should be less than or equal to 86400"),
    ("inference.batch_timeout", float("inf"), "inference.batch_timeout: Input should be less than or"),
    ("inference.batch_timeout", float("nan"), "inference.batch_timeout: Input should be"),
    ("inference.max_error_share", 1.5, "inference.max_error_share: Input should be less than or equal to 1"),
    (
        "inference.max_error_share",
        -0.1,
        "inference.max_error_share: Input should be greater than or equal to 0",
    ),
    ("inference.batch_tokens", 0, "inference.batch_tokens"),
    (
        "labels",
        {"uri": "in.csv", "row_key": "id", "column": "y"},
        "labels: either give {partition} in uri, or",
    ),
    ("labels", LABELS | {"format": "sql"}, "labels: format: sql needs query and connection_env, and no uri"),
    ("labels", {"uri": "{partition}", "column": "y"}, "labels.row_key: Field required"),
    (
        "labels",
        {"uri": "{partition}", "row_key": "id", "column": "y", "horizon_days": -1},
        "labels.horizon_days",
    ),
    (
        "drift.reference_partitions",
        2,
        "drift.reference_partitions: Input should be greater than or equal to 3",
    ),
    ("drift.false_alarms_per_quarter", 0, "drift.false_alarms_per_quarter: Input should be greater than 0"),
    ("automation.trigger", "schedule", 'automation: trigger: schedule needs a cron, e.g. "0 3 * * *"'),
    ("automation.cron", "0 3 * * *", "automation: a cron has no effect with trigger: manual"),
    (
        "automation",
        {"trigger": "schedule", "cron": "0 25 * * *"},
        "automation: cron '0 25 * * *' is not valid",
    ),
    ("automation", {"trigger": "schedule", "cron": "0 0 3 * * *"}, "is not valid: five fields"),
    ("automation.catch_up", -1, "automation.catch_up: Input should be greater than or equal to 0"),
]


@pytest.mark.parametrize(("path", "value", "words"), REFUSED, ids=lambda part: str(part)[:40])
def test_a_mistake_is_refused_with_its_path(path: str, value: Any, words: str) -> None:
    with pytest.raises(PipelineFileError) as caught:
        parse_spec(changed(path, value), "p")
    assert words in str(caught.value)
    assert not isinstance(caught.value, NotYetSupportedError)


def test_a_cron_that_never_happens() -> None:
    """The 30th of February; croniter finds no such day."""
    attributes = changed("automation", {"trigger": "schedule", "cron": "0 0 30 2 *"})
    with pytest.raises(PipelineFileError, match="automation"):
        parse_spec(attributes, "p")


def test_all_mistakes_are_told_at_once() -> None:
    attributes = changed("colour", "red")
    attributes["inference"] = {"max_error_share": 2}
    with pytest.raises(PipelineFileError) as caught:
        parse_spec(attributes, "p")
    assert len(str(caught.value).splitlines()) == 2


LATER: list[tuple[str, Any, str]] = [
    ("automation.trigger", "on_arrival", "automation.trigger: on_arrival"),
    ("automation.trigger", "upstream", "automation.trigger: upstream"),
    ("automation.off_peak", "22-06", "automation.off_peak"),
]


@pytest.mark.parametrize(("path", "value", "field"), LATER, ids=lambda part: str(part)[:40])
def test_what_a_later_release_does_is_refused_and_not_ignored(path: str, value: Any, field: str) -> None:
    with pytest.raises(NotYetSupportedError) as caught:
        parse_spec(changed(path, value), "churn")
    assert str(caught.value).startswith(f"pipeline churn: {field} comes with a later release")


@pytest.mark.parametrize("folder", ["My-Pipeline", "1st", "", "a b"])
def test_a_folder_that_cannot_name_a_pipeline(folder: str) -> None:
    with pytest.raises(PipelineFileError, match=r"^name: the folder .* set name:"):
        parse_spec(MINIMAL, folder)


def test_named_keeps_all_else() -> None:
    spec = parse_spec(MINIMAL, "p")
    assert named(spec, "q").model_dump(exclude={"name"}) == spec.model_dump(exclude={"name"})


def test_a_partition_column_must_be_a_date_or_timestamp_of_the_contract() -> None:
    for column in ("x", "nowhere"):
        attributes = changed("source.uri", "in.parquet")
        attributes["source"]["partition_column"] = column
        with pytest.raises(
            PipelineFileError, match=f"partition_column '{column}' must be a date or timestamp"
        ):
            parse_spec(attributes, "p")
    attributes["source"]["partition_column"] = "at"
    assert parse_spec(attributes, "p").source.partition_column == "at"


def test_a_key_column_may_be_called_row_key() -> None:
    attributes = changed("source.columns", {"row_key": {"type": "int64"}})
    attributes["source"]["row_key"] = "row_key"
    assert parse_spec(attributes, "p").source.row_key == "row_key"


def test_every_field_has_a_description() -> None:
    """They are the reference manual in Dagster's docs."""
    spec = parse_spec(MINIMAL, "p")
    sections = [
        type(spec),
        *(type(getattr(spec, name)) for name in ("partitions", "source", "model", "inference")),
    ]
    sections += [type(spec.source.columns["id"]), type(spec.drift), type(spec.automation)]
    for section in sections:
        assert [name for name, field in section.model_fields.items() if not field.description] == []


def test_a_model_of_mlflow_has_its_alias_in_its_name() -> None:
    for name in ("models:/spam filter@champion", "models:/churn/3"):
        spec = parse_spec({**MINIMAL, "model": {"name": name}}, "p")
        assert (spec.model.is_of_mlflow, spec.model.shown) == (True, repr(name))
    for name in ("models:/churn", "models:/../x/1", "models:/churn/latest", "models:/a/1/b"):
        with pytest.raises(PipelineFileError, match="models:/name@alias or models:/name/3"):
            parse_spec({**MINIMAL, "model": {"name": name}}, "p")
    with pytest.raises(PipelineFileError, match="alias has no effect"):
        parse_spec({**MINIMAL, "model": {"name": "models:/churn/3", "alias": "champion"}}, "p")
