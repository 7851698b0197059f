import json

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch_platform.cli.models import models
from batch_platform.core.models.registry import Registry
from batch_platform.errors import BatchPlatformError, ModelError, ModelSuspendedError, SignatureError
from batch_platform_tests import tiny_models


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCH_PLATFORM_ROOT", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def tabular(tmp_path):
    return tiny_models.tabular_model(tmp_path / "tabular")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tiny_models.text_classifier(tmp_path_factory.mktemp("text") / "model")


def _run(*arguments):
    result = CliRunner().invoke(models, [str(part) for part in arguments])
    if isinstance(result.exception, BatchPlatformError):
        raise result.exception
    return result


def test_register_prints_the_version_alone(root, tabular, tmp_path):
    card = tmp_path / "card.json"
    card.write_text(json.dumps(tiny_models.CARD))
    options = ("--flavor", "torch", "--alias", "champion", "--card", card, "--by", "ann", "--why", "first")
    result = _run("register", "churn", tabular, *options)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "1\n", "")
    version = Registry(root).resolve("churn", "champion")
    assert (version.card, version.registered_by) == (tiny_models.CARD, "ann")
    again = _run("register", "churn", tabular, *options)
    assert again.stdout == "1\n"
    assert "is version 1 already" in again.stderr


def test_a_missing_card_is_warned_of(root, tabular):
    result = _run("register", "churn", tabular, "--flavor", "torch")
    assert result.stderr == "warning: churn is registered without a model card; give one with --card\n"
    assert Registry(root).get("churn", "1").card is None


def test_a_text_model_is_described_by_its_folder_and_the_options(root, text):
    options = (
        "--flavor",
        "transformers",
        "--text-column",
        "body",
        "--max-tokens",
        20,
        "--positive-class",
        "spam",
    )
    assert _run("register", "mail", text, *options).stdout == "1\n"
    signature = Registry(root).get("mail", "1").signature
    assert signature.task == "classification"
    assert signature.labels == ("ham", "spam")
    assert (signature.text_column, signature.max_tokens, signature.positive_class) == ("body", 20, "spam")
    _run("register", "mail", text, "--flavor", "transformers", "--task", "embedding", "--pooling", "cls")
    assert Registry(root).get("mail", "2").signature.pooling == "cls"


def test_a_model_that_generates_is_known_by_its_folder(root, tmp_path):
    folder = tiny_models.text_answerer(tmp_path / "t5")
    assert _run("register", "answers", folder, "--flavor", "transformers").stdout == "1\n"
    _run("register", "answers", folder, "--flavor", "transformers", "--max-new-tokens", 5)
    signatures = [Registry(root).get("answers", version).signature for version in ("1", "2")]
    assert [(found.task, found.max_new_tokens) for found in signatures] == [
        ("generation", 64),
        ("generation", 5),
    ]


def test_a_signature_can_be_a_file_or_lie_in_the_folder(root, tabular, tmp_path):
    signature = tiny_models.TABULAR_CONFIG.signature("stays")
    path = tmp_path / "signature.json"
    path.write_text(json.dumps(signature.to_dict()))
    _run("register", "a", tabular, "--flavor", "torch", "--signature", path)
    assert Registry(root).get("a", "1").signature == signature
    with pytest.raises(ModelError, match="--positive-class and --signature both"):
        _run(
            "register", "a", tabular, "--flavor", "torch", "--signature", path, "--positive-class", "churned"
        )
    (tabular / "signature.json").write_text(path.read_text())
    _run("register", "b", tabular, "--flavor", "torch")
    assert Registry(root).get("b", "1").signature == signature
    with pytest.raises(SignatureError, match="says positive_class 'stays', not 'churned'"):
        _run("register", "b", tabular, "--flavor", "torch", "--positive-class", "churned")


def test_golden_rows_that_differ_are_refused(root, tabular, tmp_path):
    golden = tiny_models.tabular_rows(5)
    golden = golden.append_column("score", [[0.123] * 5])
    pq.write_table(golden, tmp_path / "golden.parquet")
    with pytest.raises(ModelError, match="golden values differ"):
        _run("register", "churn", tabular, "--flavor", "torch", "--golden", tmp_path / "golden.parquet")
    (tmp_path / "golden.parquet").write_text("no parquet")
    with pytest.raises(ModelError, match="cannot be read as Parquet"):
        _run("register", "churn", tabular, "--flavor", "torch", "--golden", tmp_path / "golden.parquet")


def test_a_card_that_is_no_json_is_refused(root, tabular, tmp_path):
    (tmp_path / "card.json").write_text("[1]")
    with pytest.raises(ModelError, match="is a JSON object"):
        _run("register", "churn", tabular, "--flavor", "torch", "--card", tmp_path / "card.json")


def test_list_and_promote(root, tabular):
    assert "no models yet" in _run("list").stderr
    _run("register", "churn", tabular, "--flavor", "torch", "--by", "ann")
    done = _run("promote", "churn", "1", "--alias", "champion", "--by", "bob", "--why", "best")
    assert done.stdout == "churn: champion -> 1\n"
    assert "churn  1  champion  torch  classification" in _run("list").stdout
    (entry,) = json.loads(_run("list", "--json").stdout)
    assert entry["aliases"] == {"champion": "1"}
    assert entry["versions"][0]["digest"] == Registry(root).get("churn", "1").digest
    with pytest.raises(ModelError, match="no version '5'"):
        _run("promote", "churn", "5", "--alias", "champion", "--by", "bob", "--why", "best")


def test_calibrate_measures_once_and_says_what_is_kept(root, text):
    assert _run("register", "mail", text, "--flavor", "transformers").exit_code == 0
    first = json.loads(_run("calibrate", "mail", "1", "--device", "cpu", "--json").output)
    assert first["batch_tokens"] in [each["batch_tokens"] for each in first["measured"]]
    assert json.loads(_run("calibrate", "mail", "1", "--device", "cpu", "--json").output) == first
    shown = _run("calibrate", "mail", "1", "--device", "cpu").output.splitlines()
    assert len(shown) == len(first["measured"]) + 1
    assert shown[-1] == f"kept for mail version 1, cpu, float32: {first['batch_tokens']}"
    assert json.loads(_run("calibrate", "mail", "1", "--again", "--json").output)["at"] > first["at"]


def test_suspend_and_lift(root, tabular):
    _run("register", "churn", tabular, "--flavor", "torch", "--alias", "champion", "--by", "ann")
    done = _run("suspend", "churn", "1", "--by", "risk", "--why", "scores rose")
    assert done.stdout.startswith("churn: version 1 suspended by risk at 20")
    assert done.stdout.endswith(": scores rose\n")
    assert _run("list").stdout.endswith(": scores rose\n")
    (entry,) = json.loads(_run("list", "--json").stdout)
    assert entry["versions"][0]["suspended"]["why"] == "scores rose"
    with pytest.raises(ModelSuspendedError, match="suspended by risk"):
        _run("promote", "churn", "1", "--alias", "champion", "--by", "bob", "--why", "best")
    assert _run("suspend", "churn", "1", "--by", "risk").exit_code == 2
    lifted = _run("suspend", "churn", "1", "--lift", "--by", "risk", "--why", "well again")
    assert lifted.stdout == "churn: version 1 may score again\n"
    assert json.loads(_run("list", "--json").stdout)[0]["versions"][0]["suspended"] is None
    assert _run("verify").exit_code == 0


def test_history_says_who_when_and_why(root, tabular):
    _run("register", "churn", tabular, "--flavor", "torch", "--by", "ann", "--why", "first")
    _run("promote", "churn", "1", "--alias", "champion", "--by", "bob", "--why", "best")
    _run("suspend", "churn", "1", "--by", "risk", "--why", "scores rose")
    events = json.loads(_run("history", "churn", "--json").stdout)
    assert [(event["event"], event["by"], event["why"]) for event in events] == [
        ("registered", "ann", "first"),
        ("promoted", "bob", "best"),
        ("suspended", "risk", "scores rose"),
    ]
    lines = _run("history", "churn").stdout.splitlines()
    assert [line.split("  ", 1) for line in lines] == [
        [events[0]["at"], "registered version 1  by ann: first"],
        [events[1]["at"], "promoted version 1 as champion  by bob: best"],
        [events[2]["at"], "suspended version 1  by risk: scores rose"],
    ]
    with pytest.raises(ModelError, match="no model 'other'"):
        _run("history", "other")


def test_verify_exits_1_on_an_alteration(root, tabular):
    _run("register", "churn", tabular, "--flavor", "torch")
    assert _run("verify").exit_code == 0
    assert json.loads(_run("verify", "--json").stdout) == {"ok": True, "problems": []}
    path = root / "registry" / "churn" / "1" / "model" / "config.json"
    path.write_text(path.read_text() + " ")
    result = _run("verify")
    assert result.exit_code == 1
    assert f"churn 1 {path}: was altered" in result.stdout
    answer = _run("verify", "--json")
    assert answer.exit_code == 1
    assert json.loads(answer.stdout)["problems"][0]["file"] == str(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("promote", "churn", "1", "--alias", "champion"),
        ("register", "churn"),
        ("register", "churn", "/absent", "--flavor", "torch"),
    ],
)
def test_wrong_usage_is_exit_2(root, arguments):
    assert _run(*arguments).exit_code == 2
