"""A prediction explained and replayed, on real commits: reused, replaced, quarantined and sensitive rows."""

import dataclasses
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_platform.core import landing
from batch_platform.core.data.contract import MASK
from batch_platform.core.data.lake import Lake
from batch_platform.core.delivering import deliver_partition
from batch_platform.core.models.registry import Registry
from batch_platform.core.provenance import explaining, finding
from batch_platform.core.provenance.explaining import Explanation, explain
from batch_platform.core.provenance.replaying import Replayer
from batch_platform.core.provenance.trail import Trail
from batch_platform.errors import ModelError, RowNotFoundError, StorageError
from batch_platform_tests.core.provenance.made import make, slice_of
from batch_platform_tests.mini import DAYS, Mini, good_row

DAY = DAYS[0]


def ask(mini: Mini, key: str, day: str | None = None) -> Explanation:
    return explain(mini.spec, mini.settings, key, day)


def prediction(mini: Mini, key: str) -> dict[str, Any]:
    return mini.table("predictions").filter(pl.col("row_key") == key).to_dicts()[0]


def test_every_field_of_a_prediction(mini: Mini) -> None:
    mini.write(DAY)
    make(mini, DAY)
    mini.settings = dataclasses.replace(mini.settings, dagster_url="https://dagster.example")
    key = f"{DAY}-13"
    told, row = ask(mini, key), prediction(mini, key)
    assert (told.row_key, told.partition_key, told.status) == (key, DAY, "predicted")
    assert (told.source_file, told.source_row) == (f"data/{DAY}.csv", 13)
    assert told.source_sha256 == sha256((mini.folder / "data" / f"{DAY}.csv").read_bytes()).hexdigest()
    assert told.raw == {"id": key, "amount": 19.5, "age": 33, "plan": "pro"}
    assert told.features is not None and told.features["age"] == 33
    assert told.outputs == {name: row[name] for name in ("label", "score", "scores")}
    for name in ("input_hash", "recipe_version", "model_version", "model_digest", "run_id"):
        assert getattr(told, name) == row[name], name
    assert told.scored_at == row["scored_at"].isoformat()
    # Shards of 8 rows, each one batch.
    assert (told.model, told.shard, told.shard_row, told.batch, told.attempt) == ("churn", 1, 5, 0, 1)
    assert told.parameters is not None and told.parameters["shard_rows"] == 8
    assert told.code_version
    assert told.run_url == "https://dagster.example/runs/run-1"
    assert told.commit is not None and told.commit["version"] >= 1
    assert (told.quarantine, told.history, told.notes) == ((), (), ())


def test_batches_of_a_shard(mini: Mini) -> None:
    mini.change(inference={"batch_rows": 3})
    mini.write(DAY)
    make(mini, DAY)
    for number in range(20):
        told = ask(mini, f"{DAY}-{number}")
        assert (told.shard, told.shard_row, told.batch) == (number // 8, number % 8, number % 8 // 3)
    # Of a row that is copied later, the batch that it was scored in; not where batches had to be halved.
    receipt = Trail(Lake(mini.layout), DAY).predictions
    assert receipt is not None
    assert explaining._batch({**receipt, "stats": {**receipt["stats"], "bisections": 1}}, 5) is None
    text = {**receipt["parameters"], "batch_tokens": 512}
    assert explaining._batch({**receipt, "parameters": text}, 5) is None


def test_what_the_sinks_hold(mini: Mini) -> None:
    mini.change(sinks=[{"type": "parquet", "uri": "exports"}])
    mini.write(DAY)
    make(mini, DAY)
    key = f"{DAY}-3"
    assert ask(mini, key).deliveries == ()
    deliver_partition(slice_of(mini, DAY, "run-2"))
    (sink,) = ask(mini, key).deliveries
    assert sink["sink"].endswith("exports")
    assert (sink["predictions_attempt"], sink["run_id"], sink["holds"]) == (1, "run-2", "this prediction")
    mini.register(seed=1)
    mini.write(DAY, 21)
    make(mini, DAY, "run-3")
    assert [ask(mini, key).deliveries[0]["holds"], ask(mini, f"{DAY}-20").deliveries[0]["holds"]] == [
        "an earlier prediction",
        "not this row",
    ]


def test_the_newest_partition_with_the_key_unless_another_is_named(mini: Mini) -> None:
    for day in DAYS[:3]:
        mini.write(day, [good_row("customer", number) for number in range(5)])
        make(mini, day)
    assert ask(mini, "customer-2").partition_key == DAYS[2]
    assert ask(mini, "customer-2", DAYS[1]).source_file == f"data/{DAYS[1]}.csv"
    for key, day in (("nobody", None), ("nobody", DAY), ("customer-2", DAYS[4])):
        with pytest.raises(RowNotFoundError, match="mini"):
            ask(mini, key, day)


def test_a_row_scored_anew_has_its_history_and_the_raw_row_of_that_time(mini: Mini) -> None:
    mini.write(DAY)
    make(mini, DAY)
    before = prediction(mini, f"{DAY}-3")
    mini.register(seed=1)
    make(mini, DAY, "run-2")
    told = ask(mini, f"{DAY}-3")
    assert (told.model_version, told.run_id, told.attempt) == ("2", "run-2", 2)
    (old,) = told.history
    assert (old["model_version"], old["run_id"], old["outputs"]["score"]) == ("1", "run-1", before["score"])

    # The source is landed again without a prediction being made: what it was made of still counts.
    mini.write(DAY, [{**good_row(DAY, number), "age": 99} for number in range(20)][::-1])
    landing.land_partition(slice_of(mini, DAY, "run-3"))
    again = ask(mini, f"{DAY}-3")
    assert (again.source_row, again.raw) == (3, told.raw)

    for place in files_of(mini, "raw"):
        if "-1-raw" in place.name:
            place.unlink()
    again = ask(mini, f"{DAY}-3")
    assert (again.raw, again.source_file, len(again.notes)) == (None, None, 1)


def files_of(mini: Mini, table: str) -> list[Any]:
    return sorted(mini.layout.table(table).rglob("*.parquet"))


def test_a_missing_file_is_an_error(mini: Mini) -> None:
    mini.write(DAY)
    make(mini, DAY)
    for place in files_of(mini, "features"):
        place.unlink()
    with pytest.raises(StorageError, match="a file of features is missing; batch-platform verify mini"):
        ask(mini, f"{DAY}-3")


def test_quarantined_rows(mini: Mini) -> None:
    mini.change(inference={"max_error_share": 0.5})
    rows = [good_row(DAY, number) for number in range(20)]
    rows[4]["plan"] = "platinum"
    mini.write(DAY, rows)
    make(mini, DAY)
    told = ask(mini, f"{DAY}-4")
    assert (told.status, told.source_row, told.raw, told.run_id) == ("quarantined", 4, None, None)
    (entry,) = told.quarantine
    assert (entry["stage"], entry["error_type"], entry["stands"]) == ("raw", "not_allowed", True)
    with pytest.raises(RowNotFoundError, match="has no prediction"):
        Replayer(mini.spec, mini.settings).replay(f"{DAY}-4")

    mini.write(DAY)
    make(mini, DAY, "run-2")
    told = ask(mini, f"{DAY}-4")
    assert (told.status, told.run_id) == ("predicted", "run-2")
    assert [entry["stands"] for entry in told.quarantine] == [False]


def test_sensitive_values_are_masked(mini: Mini) -> None:
    columns = {name: dict(column) for name, column in mini.spec.model_dump()["source"]["columns"].items()}
    columns["amount"]["sensitive"] = True
    mini.change(source={"columns": columns})
    mini.write(DAY)
    make(mini, DAY)
    told = ask(mini, f"{DAY}-3")
    assert told.raw is not None and told.features is not None
    assert (told.raw["amount"], told.raw["age"]) == (MASK, 23)
    # A recipe may have put a sensitive text under another name.
    assert (told.features["amount"], told.features["plan"], told.features["age"]) == (MASK, MASK, 23)


# -- replay -----------------------------------------------------------------------------------------------


def test_replay_is_equal_for_every_row_and_for_an_old_version(mini: Mini) -> None:
    mini.change(decision={"positive_class": "churned", "threshold": 0.4})
    mini.write(DAY)
    make(mini, DAY)
    mini.register(seed=1)  # the alias has moved on
    registry = Registry(mini.settings.root)
    registry.suspend("churn", "1", "tests", "looked at")
    mini.change(decision={"positive_class": "churned", "threshold": 0.9})  # and so has the threshold
    replayer = Replayer(mini.spec, mini.settings)
    for number in range(20):
        found = replayer.replay(f"{DAY}-{number}")
        assert found.equal, found
        assert (found.model_version, found.remade, found.device) == ("1", "equal", "cpu")
        assert found.recorded["decision"] == found.again["decision"]


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("score", lambda value: value + 0.01),
        ("scores", lambda value: [value[1], value[0]]),
        ("label", lambda value: "other"),
        ("input_hash", lambda value: "0" * 32),
    ],
)
def test_replay_finds_what_was_altered(mini: Mini, column: str, change: Callable[[Any], Any]) -> None:
    mini.write(DAY)
    make(mini, DAY)
    (place,) = files_of(mini, "predictions")
    table = pq.read_table(place, partitioning=None)
    values = [change(value) for value in table[column].to_pylist()]
    index = table.schema.get_field_index(column)
    pq.write_table(table.set_column(index, column, pa.array(values, table.schema.field(column).type)), place)
    found = Replayer(mini.spec, mini.settings).replay(f"{DAY}-3")
    assert [difference.column for difference in found.differences] == [column]


def test_replay_refuses_another_model_of_that_number(mini: Mini) -> None:
    mini.write(DAY)
    make(mini, DAY)
    (place,) = files_of(mini, "predictions")
    table = pq.read_table(place, partitioning=None)
    index = table.schema.get_field_index("model_digest")
    pq.write_table(table.set_column(index, "model_digest", pa.array(["sha256:0"] * 20)), place)
    with pytest.raises(ModelError, match="restore the registry"):
        Replayer(mini.spec, mini.settings).replay(f"{DAY}-3")


# -- finding ----------------------------------------------------------------------------------------------


def test_files_whose_range_excludes_the_key_are_not_read(mini: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in DAYS:
        mini.write(day)
        make(mini, day)
    read: list[Any] = []
    original = pq.ParquetFile.read_row_group

    def counting(file: pq.ParquetFile, *words: Any, **named: Any) -> pa.Table:
        read.append(words)
        return original(file, *words, **named)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    lake = slice_of(mini, DAY).lake
    assert finding.newest_partition_with(lake, "predictions", f"{DAYS[1]}-7") == DAYS[1]
    assert len(read) == 1
    assert finding.newest_partition_with(lake, "predictions", "nobody") is None
    assert len(read) == 1
