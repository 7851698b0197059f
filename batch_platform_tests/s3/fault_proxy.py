"""An HTTP proxy on loopback that does to requests what networks and busy stores do.

Before an S3 server it resets a share of the connections, answers a share with 503, and lets a share of the replies get
lost: the request is carried out, and the client never hears of it. It passes the Host header on unchanged, because
requests are signed with it. It can also take conditions off requests, as stores do that do not know them.
"""

import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_BUSY = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_BETWEEN_HOPS = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


@dataclass
class Faults:
    """Shares of the requests that meet a fault; the rest pass.

    Attributes:
        reset: the connection is reset before anything reaches the server.
        busy: answered with 503 SlowDown.
        lost: of the requests that write: carried out, and the connection reset in the place of the reply.
        ignore_conditions: `If-None-Match` is taken off.
    """

    reset: float = 0.0
    busy: float = 0.0
    lost: float = 0.0
    ignore_conditions: bool = False


class FaultProxy:
    """A running proxy.

    Attributes:
        faults: may be changed while it runs.
        counts: what became of the requests: passed, reset, busy, lost.
    """

    def __init__(self, target: str, faults: Faults, seed: int = 0) -> None:
        self.faults = faults
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.target = urlsplit(target)
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def decide(self, method: str) -> str:
        """What becomes of the next request."""
        faults = self.faults
        with self._lock:
            draw = self._random.random()
            fate = "passed"
            if draw < faults.reset:
                fate = "reset"
            elif draw < faults.reset + faults.busy:
                fate = "busy"
            elif draw < faults.reset + faults.busy + faults.lost and method in ("PUT", "POST", "DELETE"):
                fate = "lost"
            self.counts[fate] += 1
            return fate


@contextmanager
def fault_proxy(target: str, faults: Faults, seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy before the server at `target`, for the time of the block."""
    proxy = FaultProxy(target, faults, seed)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def _handle(self) -> None:
        body = self._body()
        fate = self.proxy.decide(self.command)
        if fate == "reset":
            self._reset()
            return
        if fate == "busy":
            self._answer(503, {"Content-Type": "application/xml"}, _BUSY)
            return
        connection = HTTPConnection(self.proxy.target.hostname or "", self.proxy.target.port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self._headers():
                connection.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
            if fate == "lost":
                self._reset()
                return
            headers = {k: v for k, v in response.getheaders() if k.lower() not in _BETWEEN_HOPS}
            if self.command == "HEAD":
                headers["Content-Length"] = response.getheader("Content-Length", "0")
            self._answer(response.status, headers, content)
        finally:
            connection.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # one way for all methods
            return self._handle
        raise AttributeError(name)

    def _headers(self) -> Iterator[tuple[str, str]]:
        dropped = set(_BETWEEN_HOPS)
        if self.proxy.faults.ignore_conditions:
            dropped.add("if-none-match")
        return ((name, value) for name, value in self.headers.items() if name.lower() not in dropped)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        # Closed with nothing lingering, the peer gets a reset and no orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):  # reset above
            return

    def log_message(self, format: str, *args: Any) -> None:
        pass
