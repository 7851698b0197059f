"""The torture table: lines added up, put between the marks of the document and nowhere else."""

import json
from pathlib import Path

import pytest

from batch_platform_tests.torture import report
from batch_platform_tests.torture.bench import RESULTS_VARIABLE, record


def test_lines_of_one_fault_are_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    monkeypatch.setenv(RESULTS_VARIABLE, str(path))
    record("disk full", 1_500, "refused")
    record("kill -9", 2, "{resumed} resumed", resumed=1)
    record("disk full", 500, "refused")
    record("kill -9", 30, "{resumed} resumed", resumed=12)
    assert [json.loads(line)["runs"] for line in path.read_text().splitlines()] == [1500, 2, 500, 30]
    lines = report.read_lines(path)
    assert report.table(lines).splitlines()[2:] == [
        "| disk full | 2,000 | refused |",
        "| kill -9 | 32 | 13 resumed |",
    ]


def test_only_what_is_between_the_marks_changes() -> None:
    document = f"# One\n\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.put_into(document, "| a |\n")
    assert once == f"# One\n\n{report.BEGIN}\n| a |\n{report.END}\nafter\n"
    assert report.put_into(once, "| a |\n") == once


@pytest.mark.parametrize(
    "document", ["no marks", report.BEGIN, f"{report.END}{report.BEGIN}", report.BEGIN * 2 + report.END]
)
def test_a_document_without_marks_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        report.put_into(document, "")
