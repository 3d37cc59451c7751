"""Tell handwritten digits apart over HTTP. Runs inside the confidential VM; only who is let in through a tunnel reaches it.

    serve.py [--model /inputs/model] [--port 8000]

Reads   MODEL/*.safetensors: one file, the network that examples/digits trains
Answers POST /v1/predict {"images": [[64 numbers from 0 to 1, row by row], ...]}, at most 256 images, with
        {"predictions": [{"digit": 7, "probability": 0.98}, ...]}; GET /health with {"status": "ready"}
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

print("serve-digits: starting", flush=True)

import numpy as np  # noqa: E402 - the first line says that the container runs; NumPy takes its time under emulation
from network import PIXELS, Weights, load_weights, logits  # noqa: E402 - of the container: examples/digits/network.py

MOST_IMAGES = 256
MOST_BYTES = 1 << 20  # of a request


def predict(weights: Weights, request: object) -> dict[str, object]:
    """Answer one request; ValueError says what is wrong with it."""
    if not isinstance(request, dict) or set(request) != {"images"}:
        raise ValueError("an object with images is required")
    try:
        images = np.array(request["images"], np.float32)
    except (TypeError, ValueError):
        raise ValueError("images is a list of lists of numbers") from None
    if images.ndim != 2 or images.shape[1] != PIXELS or not 1 <= len(images) <= MOST_IMAGES:
        raise ValueError(f"1 to {MOST_IMAGES} images of {PIXELS} numbers are required")
    if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise ValueError("the numbers are from 0 to 1")
    z = logits(weights, images)[0]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return {"predictions": [{"digit": int(row.argmax()), "probability": round(float(row.max()), 4)} for row in p]}


class Service(ThreadingHTTPServer):
    """The network, and how many requests it has answered."""

    def __init__(self, weights: Weights, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.weights = weights
        self.counting = threading.Lock()
        self.answered = 0

    def count(self) -> None:
        """Count an answer, and print the count: of a request nothing else is told."""
        with self.counting:
            self.answered += 1
            print(json.dumps({"requests": self.answered}), flush=True)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds in which a request is written
    server: Service

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(HTTPStatus.OK, {"status": "ready"})
        else:
            self.answer(HTTPStatus.NOT_FOUND, {"error": "GET /health or POST /v1/predict"})

    def do_POST(self) -> None:
        self.close_connection = True  # unless the whole request was read
        if self.path != "/v1/predict":
            self.answer(HTTPStatus.NOT_FOUND, {"error": "GET /health or POST /v1/predict"})
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.answer(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"at most {MOST_BYTES} bytes, of a stated length"}
            )
            return
        body = self.rfile.read(int(length))
        self.close_connection = self.headers.get("Connection", "").lower() == "close"
        try:
            answer = predict(self.server.weights, json.loads(body))
        except ValueError as error:
            self.answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        self.answer(HTTPStatus.OK, answer)
        self.server.count()

    def answer(self, status: HTTPStatus, document: dict[str, object]) -> None:
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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("/inputs/model"))
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    (model,) = arguments.model.glob("*.safetensors")
    with Service(load_weights(model), arguments.port) as service:
        # A container's first process dies of no signal that it does not ask for.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=service.shutdown).start())
        print(f"serve-digits: {model.name} on port {service.server_port}", flush=True)
        service.serve_forever()
    print(f"serve-digits: {service.answered} requests answered", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
