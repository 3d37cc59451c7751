"""Tell handwritten digits apart over HTTP. Runs inside the confidential VM; only who is let in through a tunnel reaches it.

    serve.py [--model /inputs/model] [--port 8000]

Reads   MODEL/*.safetensors: one file, the network that examples/digits trains
Answers POST /v1/predict {"images": [[64 numbers from 0 to 1, row by row], ...]}, at most 256 images, with
        {"predictions": [{"digit": 7, "probability": 0.98}, ...]}
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from service import serve

print("serve-digits: starting", flush=True)

import numpy as np  # noqa: E402 - the first line says that the container runs; NumPy takes its time under emulation
from network import PIXELS, Weights, load_weights, logits  # noqa: E402 - of the container: examples/digits/network.py

MOST_IMAGES = 256


def predict(weights: Weights, request: dict[str, object]) -> dict[str, object]:
    """Answer one request; ValueError says what is wrong with it."""
    if set(request) != {"images"}:
        raise ValueError("images is required, and nothing else")
    try:
        images = np.array(request["images"], np.float32)
    except (TypeError, ValueError):
        raise ValueError("images is a list of lists of numbers") from None
    if images.ndim != 2 or images.shape[1] != PIXELS or not 1 <= len(images) <= MOST_IMAGES:
        raise ValueError(f"1 to {MOST_IMAGES} images of {PIXELS} numbers are required")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("the numbers are from 0 to 1")
    z = logits(weights, images)[0]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return {"predictions": [{"digit": int(row.argmax()), "probability": round(float(row.max()), 4)} for row in p]}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("/inputs/model"))
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    (model,) = arguments.model.glob("*.safetensors")
    answered = serve("/v1/predict", partial(predict, load_weights(model)), port=arguments.port)
    print(f"serve-digits: {answered} requests answered", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
