"""A person in the Dagster UI: the lineage graph, a partition's page, a drift report, and Materialize.

A real web server, daemon and report server; a headless Chromium that may talk to no other machine.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from batch_platform.core.monitoring.report_server import report_server
from batch_platform_tests.mini import ATTRIBUTES, DAYS
from batch_platform_tests.project import Project, wait_for
from batch_platform_tests.requirements import find_browser

pytestmark = pytest.mark.browser

CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Three days are the reference, the fourth is judged, the fifth is materialized by hand.
SCORED, UNSCORED = DAYS[3], DAYS[4]
LABELS = {
    "uri": "labels/{partition}.csv",
    "format": "csv",
    "row_key": "id",
    "column": "label",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Four days scored, a fifth ready to be, and the report server running."""
    made = Project(tmp_path)
    made.add_pipeline("mini", {**ATTRIBUTES, "labels": LABELS})
    mini = made.mini()
    mini.register()
    for day in DAYS:
        mini.write(day)
    server = report_server(made.settings.root / "reports", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("BATCH_PLATFORM_REPORTS_URL", f"http://127.0.0.1:{server.server_port}")
    done = made.command("dg", "launch", "--job", "mini", "--partition-range", f"{DAYS[0]}...{SCORED}")
    assert done.returncode == 0, done.stdout
    yield made
    server.shutdown()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    browser_path = find_browser()
    assert browser_path is not None, "no Chromium: python -m batch_platform_tests.requirements"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=CHROMIUM)
        opened = browser.new_page(viewport={"width": 1500, "height": 950})
        opened.set_default_timeout(60_000)
        outside: list[str] = []
        opened.on(
            "request", lambda request: outside.append(request.url) if _is_outside(request.url) else None
        )
        try:
            yield opened
        finally:
            opened.screenshot(path=tmp_path / "last.png")
            browser.close()
        assert outside == []


def _is_outside(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:"))


def test_look_at_results_and_materialize_a_partition(project: Project, page: Page) -> None:
    mini = project.mini()
    with project.web_server() as url, project.daemon():
        page.goto(f"{url}/asset-groups")
        for asset in ("raw", "features", "model", "predictions", "drift_report", "performance"):
            expect(page.get_by_text(asset, exact=True).first).to_be_visible()

        page.goto(f"{url}/assets/mini/predictions?view=partitions&partition={SCORED}")
        expect(page.get_by_text("recipe_version").first).to_be_visible()
        expect(page.get_by_text("churn version 1").first).to_be_visible()

        page.goto(f"{url}/assets/mini/predictions?view=checks")
        for check in ("reconciliation", "finite", "range", "quarantined_share", "complete"):
            expect(page.get_by_text(check, exact=True).first).to_be_visible()

        page.goto(f"{url}/assets/mini/drift_report?view=partitions&partition={SCORED}")
        expect(page.get_by_text("no drift found against 3 reference days").first).to_be_visible()
        page.get_by_text("[Show Markdown]").click()
        picture = page.get_by_alt_text("largest z by column")
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.naturalWidth") > 0
        page.get_by_role("button", name="Close").click()
        address = page.get_by_role("link", name="drift.html").first.get_attribute("href")
        assert address is not None
        read_report(page, address)

        page.goto(f"{url}/asset-groups")
        materialize_all(page, UNSCORED)
        wait_for(lambda: mini.check("drift_report", "complete", UNSCORED), "the end of the run")
    assert mini.rows("predictions", UNSCORED) == 20


def read_report(page: Page, address: str) -> None:
    """Open the drift report: our summary and Evidently's part, without an error in its scripts."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    expect(page.get_by_role("heading", name=f"Drift report: mini, {SCORED}")).to_be_visible()
    expect(page.get_by_text("Dataset Drift is NOT detected").first).to_be_visible()
    assert errors == []


def materialize_all(page: Page, partition: str) -> None:
    """Launch the whole chain for one partition, as a person does."""
    page.get_by_role("button", name="Materialize all").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_placeholder("ex: ").fill(partition)
    dialog.get_by_placeholder("ex: ").press("Enter")
    dialog.get_by_role("button", name="Launch 1 run").click()
