"""A small read-only web server for the reports, on loopback.

A page opened from the Dagster UI must come over http; browsers refuse links from there to files. Serves what
lies under `reports/` and nothing else, lists nothing, writes nothing.
"""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Evidently's page carries its scripts and styles inline; it may load nothing and send nothing anywhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; connect-src 'none'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


class _Handler(SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(404, "No such report")

    def send_head(self) -> Any:
        try:
            target = Path(self.translate_path(self.path)).resolve()
            inside = target.is_relative_to(Path(self.directory).resolve())
        except (ValueError, OSError):  # no path at all: a NUL in it, or too long
            inside = False
        if not inside:
            self.send_error(404, "No such report")
            return None
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def report_server(reports: Path, port: int) -> ThreadingHTTPServer:
    """A server over the folder `reports/` on 127.0.0.1; call `serve_forever`.

    Raises:
        OSError: the port is taken.
    """
    reports.mkdir(parents=True, exist_ok=True)
    return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(reports)))
