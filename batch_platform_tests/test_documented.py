"""What the docs show is run: snippets of SQL, Python and YAML, as they stand on the page."""

import re
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
import yaml
from deltalake import write_deltalake

from batch_platform.core.spec import parse_spec
from batch_platform_tests.core.deliveries import Shop
from batch_platform_tests.mini import ATTRIBUTES, DAYS

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/features.md", "docs/sources_and_sinks.md")


def snippets(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def test_the_lines_that_read_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (statements,) = snippets("docs/sources_and_sinks.md", "sql")
    shop = Shop(tmp_path, "churn", [{"type": "parquet", "uri": "exports/churn"}])
    for day, scores in ((DAYS[0], {"a": 0.25, "b": 0.75}), (DAYS[1], {"a": 1.0})):
        shop.commit(scores, "f", day)
        shop.deliver(day)
    monkeypatch.chdir(tmp_path)
    with duckdb.connect() as connection:
        first, view = [each for each in statements.split(";") if each.strip()]
        assert sorted(connection.execute(first).fetchall()) == [(DAYS[0], 2, 0.5), (DAYS[1], 1, 1.0)]
        connection.execute(view)
        assert connection.execute("SELECT count(*) FROM churn_scores").fetchall() == [(3,)]


def test_the_search_among_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (search,) = (each for each in snippets("docs/features.md", "python") if "list_cosine_similarity" in each)
    table = pa.table(
        {
            "row_key": ["<message id>#0", "near", "far"],
            "embedding": pa.array([[1, 0], [0.9, 0.1], [0, 1]], pa.list_(pa.float32())),
            "partition_key": ["2002-08-26"] * 3,
        }
    )
    write_deltalake(str(tmp_path / ".batch_platform/lake/mail_search/predictions"), table)
    monkeypatch.chdir(tmp_path)
    exec(search, {})
    shown = capsys.readouterr().out
    assert shown.index("near") < shown.index("far")


def test_the_table_that_any_reader_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (reading,) = snippets("README.md", "python")
    rows = pa.table({"row_key": ["a"], "score": [0.5]})
    write_deltalake(str(tmp_path / ".batch_platform/lake/email_triage/predictions"), rows)
    monkeypatch.chdir(tmp_path)
    *before, last = reading.strip().splitlines()
    found: dict[str, Any] = {}
    exec("\n".join(before), found)
    assert isinstance(eval(last, found), pl.DataFrame)


@pytest.mark.parametrize("page", PAGES)
def test_pipeline_files_and_their_sections_are_accepted(page: str) -> None:
    """Whole files as they are; sections in a pipeline that has the columns they speak of."""
    found = [yaml.safe_load(text) for text in snippets(page, "yaml")]
    assert found
    for shown in found:
        if "attributes" in shown:
            parse_spec(shown["attributes"], "shown")
            continue
        attributes = {**ATTRIBUTES, "lookups": [], **shown}
        if "source" not in shown:
            named = ["id", "customer_id", "text", "title", "body", "plan", "amount"]
            columns = {name: {"type": "string", "required": True} for name in named}
            attributes["source"] = {
                "uri": "in/{partition}.csv",
                "format": "csv",
                "row_key": "id",
                "columns": columns,
            }
        parse_spec(attributes, "shown")
