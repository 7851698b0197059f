"""The reports' server: pages with a policy, nothing beside them, and no way to write."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_platform.core.monitoring.report_server import report_server


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A server over `reports/` with one page, a secret beside the folder and a link to it inside."""
    page = tmp_path / "reports" / "churn" / "2026-01-01" / "drift.html"
    page.parent.mkdir(parents=True)
    page.write_text("<!doctype html><p>fine</p>")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "reports" / "link.html").symlink_to(tmp_path / "secret.txt")
    server = report_server(tmp_path / "reports", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def ask(port: int, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    return response, response.read()


def test_a_page_comes_with_a_policy_that_lets_nothing_in_or_out(port: int) -> None:
    response, body = ask(port, "/churn/2026-01-01/drift.html")
    assert (response.status, b"fine" in body) == (200, True)
    policy = dict(
        part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";")
    )
    assert {policy[name] for name in ("default-src", "connect-src", "form-action", "frame-ancestors")} == {
        "'none'"
    }
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Type"] == "text/html"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/churn/../../secret.txt",
        "/churn/..%2f..%2fsecret.txt",
        "//etc/passwd",
        "/link.html",
        "/",
        "/churn/",
        "/churn/2026-01-01/",
        "/nothing.html",
        "/%00",
        "/" + "a" * 5000,
    ],
)
def test_what_is_no_report_is_not_found_and_nothing_is_listed(port: int, path: str) -> None:
    response, body = ask(port, path)
    assert response.status in (400, 404)
    assert b"secret" not in body
    assert b"2026-01-01" not in body
    assert "Content-Security-Policy" in response.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(port: int, method: str) -> None:
    assert ask(port, "/churn/2026-01-01/drift.html", method)[0].status == 501
    assert ask(port, "/churn/2026-01-01/drift.html")[0].status == 200


def test_only_this_machine_is_listened_to(tmp_path: Path) -> None:
    server = report_server(tmp_path / "new" / "reports", 0)
    try:
        assert server.server_address[0] == "127.0.0.1"
    finally:
        server.server_close()
