"""JSON over HTTP on the container's loopback address: one path that answers, and GET /health.

Nothing of a request is printed but that there was one. It ends in order at SIGTERM.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[dict[str, object]], dict[str, object]]
"""Returns what is answered to a request; ValueError says what is wrong with that."""

MOST_BYTES = 1 << 20  # of a request


def serve(path: str, answer: Answer, *, port: int) -> int:
    """Answer POST requests to `path` until SIGTERM comes; return how many were answered."""
    with _Service(path, answer, port) as service:
        # A container's first process dies of no signal that it does not ask for.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=service.shutdown).start())
        print(f"service: {path} on port {service.server_port}", flush=True)
        service.serve_forever()
    return service.answered


def _parse(body: bytes) -> dict[str, object]:
    request = json.loads(body)
    if isinstance(request, dict):
        return request
    raise ValueError("an object is required")


class _Service(ThreadingHTTPServer):
    def __init__(self, path: str, answer: Answer, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.path = path
        self.answer = answer
        self.answered = 0
        self._counting = threading.Lock()

    def count(self) -> None:
        with self._counting:
            self.answered += 1
            print(json.dumps({"requests": self.answered}), flush=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds in which a request is written
    server: _Service

    def do_GET(self) -> None:
        if self.path == "/health":
            self._reply(HTTPStatus.OK, {"status": "ready"})
        else:
            self._lost()

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True  # what follows is no request
            too_large = {"error": f"at most {MOST_BYTES} bytes, of a stated length"}
            self._reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large)
            return
        body = self.rfile.read(int(length))
        if self.path != self.server.path:
            self._lost()
            return
        try:
            answer = self.server.answer(_parse(body))
        except (ValueError, RecursionError) as error:
            self._reply(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        self._reply(HTTPStatus.OK, answer)
        self.server.count()

    def _lost(self) -> None:
        self._reply(HTTPStatus.NOT_FOUND, {"error": f"GET /health or POST {self.server.path}"})

    def _reply(self, status: HTTPStatus, document: dict[str, object]) -> None:
        body = json.dumps(document).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing: who asks what is nobody's business."""
