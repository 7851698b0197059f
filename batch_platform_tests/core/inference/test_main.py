import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_platform.core.inference import __main__ as command
from batch_platform.core.inference.engine import Engine
from batch_platform.core.models.registry import Registry
from batch_platform_tests import tiny_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_models.text_classifier(folder / "text")
    tiny_models.tabular_model(folder / "tabular")
    return folder


@pytest.fixture
def rows(tmp_path):
    texts = tiny_models.texts(200)
    texts[7] = None
    table = pa.table({"id": pa.array(range(200), pa.int32()), "body": pa.array(texts), "more": [1.5] * 200})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=30)
    return tmp_path / "in.parquet"


def _arguments(folder, rows, **changes):
    given = {
        "model": folder, "flavor": "transformers", "task": "classification", "input": rows,
        "output": rows.parent / "out.parquet", "row-key": "id", "text-column": "body", "device": "cpu",
    } | changes  # fmt: skip
    return [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]


def test_every_row_is_in_the_output_or_named(folder, rows, capsys, monkeypatch):
    monkeypatch.setattr(command, "shard_rows", lambda *_: 64)
    monkeypatch.setattr(command, "_READ_ROWS", 16)
    stats_file = rows.parent / "stats.json"
    assert command.main(_arguments(folder / "text", rows, stats=stats_file)) == 1
    table = pq.read_table(rows.parent / "out.parquet")
    assert table.column_names == ["id", "label", "score", "scores"]
    assert table.schema.field("id").type == pa.int32()
    assert table["id"].to_pylist() == [key for key in range(200) if key != 7]
    assert capsys.readouterr().err == "row 7: NullText: column 'body' is null: a text model cannot score it\n"
    stats = json.loads(stats_file.read_text())
    assert (stats["rows"], stats["failed_rows"], stats["causes"]) == (200, 1, {"NullText": 1})
    assert stats["plan"]["device"] == "cpu"
    assert sorted(path.name for path in rows.parent.iterdir()) == ["in.parquet", "out.parquet", "stats.json"]


def test_null_keys_fail_by_row(folder, rows, capsys):
    table = pa.table({"id": pa.array(["a", None, "c"]), "body": ["x", "y", None]})
    pq.write_table(table, rows)
    assert command.main(_arguments(folder / "text", rows)) == 1
    assert pq.read_table(rows.parent / "out.parquet")["id"].to_pylist() == ["a"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["NullText", "NullRowKey"]


def test_tabular_and_empty_input(folder, rows):
    pq.write_table(tiny_models.tabular_rows(50), rows)
    changes = {"flavor": "torch", "row-key": "row_key", "text-column": None}
    assert command.main(_arguments(folder / "tabular", rows, **changes)) == 0
    assert pq.read_table(rows.parent / "out.parquet").num_rows == 50
    pq.write_table(tiny_models.tabular_rows(50).slice(0, 0), rows)
    assert command.main(_arguments(folder / "tabular", rows, **changes)) == 0
    assert pq.read_table(rows.parent / "out.parquet").column_names == ["row_key", "label", "score", "scores"]


@pytest.mark.parametrize("is_copied", [False, True])
def test_an_altered_version_is_not_scored(folder, rows, capsys, is_copied):
    registry = Registry(rows.parent / "root")
    signature = tiny_models.TABULAR_CONFIG.signature()
    version = registry.register("m", folder / "tabular", "torch", signature, card=None, by="a", why="b")
    place = version.path.parent
    if is_copied:
        place = Path(shutil.copytree(place, rows.parent / "copy"))
    pq.write_table(tiny_models.tabular_rows(5), rows)
    given = {"flavor": "torch", "row-key": "row_key", "text-column": None}
    assert command.main(_arguments(place, rows, **given)) == 0
    (place / "model" / "config.json").write_text((place / "model" / "config.json").read_text() + " ")
    assert command.main(_arguments(place, rows, **given)) == 2
    assert "config.json was altered since it was registered" in capsys.readouterr().err
    if is_copied:
        (place / "record.json").write_text("{")
        assert command.main(_arguments(place, rows, **given)) == 2
        assert "record.json: is not as the registry wrote it" in capsys.readouterr().err


def test_a_suspended_version_is_not_scored(folder, rows, capsys):
    registry = Registry(rows.parent / "root")
    signature = tiny_models.TABULAR_CONFIG.signature()
    version = registry.register("m", folder / "tabular", "torch", signature, card=None, by="a", why="b")
    registry.suspend("m", "1", "risk", "scores rose")
    pq.write_table(tiny_models.tabular_rows(5), rows)
    given = {"flavor": "torch", "row-key": "row_key", "text-column": None}
    assert command.main(_arguments(version.path.parent, rows, **given)) == 2
    assert "was suspended by risk" in capsys.readouterr().err
    assert not (rows.parent / "out.parquet").exists()


def test_a_version_of_a_registry_is_scored_by_its_signature(folder, rows):
    registry = Registry(rows.parent / "root")
    signature = tiny_models.TABULAR_CONFIG.signature("churned")
    version = registry.register("m", folder / "tabular", "torch", signature, card=None, by="a", why="b")
    pq.write_table(tiny_models.tabular_rows(20), rows)
    changes = {"flavor": "torch", "row-key": "row_key", "text-column": None}
    assert command.main(_arguments(version.path.parent, rows, **changes)) == 0
    table = pq.read_table(rows.parent / "out.parquet")
    assert table["score"].to_pylist() == pytest.approx([scores[1] for scores in table["scores"].to_pylist()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row-key": "key"}, "has no column 'key'"),
        ({"text-column": "content"}, "column 'content' (string) is missing"),
        ({"text-column": "more"}, "column 'more' is double"),
        ({"flavor": "catboost"}, "'catboost' is not supported"),
        ({"task": "regression"}, "not regression"),
        ({"input": "absent.parquet"}, "absent.parquet: cannot be read"),
        ({"model": "absent"}, "absent: is not a folder"),
        ({"output": "absent/out.parquet"}, "absent"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(folder, rows, capsys, changes, message):
    assert command.main(_arguments(folder / "text", rows, **changes)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in rows.parent.iterdir()] == ["in.parquet"]


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "poetry"},
        {"threads": "0"},
        {"batch-timeout": "0"},
        {"batch-timeout": "soon"},
        {"model": None},
        {"colour": "red"},
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(folder, rows, capsys, changes):
    with pytest.raises(SystemExit) as stop:
        command.main(_arguments(folder / "text", rows, **changes))
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_breaks_off_is_named_and_leaves_no_output(folder, rows, capsys):
    content = bytearray(rows.read_bytes())
    content[40:400] = b"\xff" * 360
    rows.write_bytes(content)
    assert command.main(_arguments(folder / "text", rows)) == 2
    assert "error: " in capsys.readouterr().err
    assert [path.name for path in rows.parent.iterdir()] == ["in.parquet"]


def test_it_runs_where_the_rest_of_the_platform_is_not_installed(folder, rows):
    code = (
        "import sys\n"
        "class NotInstalled:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('dagster', 'deltalake', 'pydantic', 'croniter', 'evidently'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NotInstalled())\n"
        "from batch_platform.core.inference.__main__ import main\n"
        "sys.exit(main())\n"
    )
    arguments = _arguments(folder / "text", rows, threads=1)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("row 7: NullText")
    assert pq.read_table(rows.parent / "out.parquet").num_rows == 199


def test_the_time_out_reaches_the_engine(folder, rows, monkeypatch):
    given = []
    monkeypatch.setattr(
        command, "Engine", lambda *arguments: given.append(arguments[2]) or Engine(*arguments)
    )
    command.main(_arguments(folder / "text", rows, **{"batch-timeout": 7.5}))
    assert [patience.batch_timeout for patience in given] == [7.5]


@pytest.mark.parametrize("make", [tiny_models.text_answerer, tiny_models.text_continuer])
def test_generation(rows, tmp_path, make, capsys):
    model = make(tmp_path / "model")
    changes = {"task": "generation", "max-new-tokens": 6, "batch-tokens": 100}
    assert command.main(_arguments(model, rows, **changes)) == 1
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("generated_text").type == pa.string()
    assert table["id"].to_pylist() == [key for key in range(200) if key != 7]
    texts = table["generated_text"].to_pylist()
    assert max(len(text.split()) for text in texts) == 6
    # Other batches, equal texts.
    changes |= {"batch-tokens": 5000, "output": tmp_path / "again.parquet"}
    assert command.main(_arguments(model, rows, **changes)) == 1
    assert pq.read_table(tmp_path / "again.parquet")["generated_text"].to_pylist() == texts
    assert "NullText" in capsys.readouterr().err
