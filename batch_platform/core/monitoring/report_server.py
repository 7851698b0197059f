"""A small read-only web server for the reports, on loopback.

A page opened from the Dagster UI must come over http; browsers refuse links from there to files, and to object storage
without a key. Serves what lies under `reports/` and nothing else, lists nothing, writes nothing.
"""

from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from batch_platform.core.data import files
from batch_platform.core.data.files import Location

# Evidently's page carries its scripts and styles inline; it may load nothing and send nothing anywhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; connect-src 'none'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_TYPES = {".html": "text/html", ".json": "application/json"}


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, *arguments: Any, reports: Location) -> None:
        self._reports = reports
        super().__init__(*arguments)

    def do_GET(self) -> None:
        content, kind = self._find()
        if content is None:
            self.send_error(404, "No such report")
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _find(self) -> tuple[bytes | None, str]:
        """A report's bytes and media type; None for anything that is no report."""
        path = PurePosixPath(unquote(urlsplit(self.path).path).removeprefix("/"))
        kind = _TYPES.get(path.suffix)
        if kind is None or path.is_absolute() or ".." in path.parts or "\0" in str(path):
            return None, ""
        place = self._reports / str(path)
        try:
            if isinstance(place, Path) and not place.resolve().is_relative_to(
                Path(str(self._reports)).resolve()
            ):
                return None, ""
            return files.read_if_there(place), kind
        except OSError:  # a folder, or a name longer than the system's
            return None, ""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def report_server(reports: Location, port: int) -> ThreadingHTTPServer:
    """A server over the folder `reports/` on 127.0.0.1; call `serve_forever`.

    Raises:
        OSError: the port is taken.
    """
    return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, reports=reports))
