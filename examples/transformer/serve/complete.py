"""Write a text on over HTTP, as OpenAI's completions do. Runs inside the confidential VM, behind an attested tunnel.

    complete.py [--model /inputs/model] [--port 8000]

Reads   MODEL in Hugging Face layout: what prepare.py makes, with weights of the same shape
Answers POST /v1/completions {"prompt": TEXT, "max_tokens": 1 to 256 (16), "temperature": 0 to 2 (0), "seed": NUMBER (0)}

A token is a byte. With temperature 0 the likeliest byte follows; otherwise one is drawn, the same for the same seed.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from service import serve

print("complete: starting", flush=True)

import torch  # noqa: E402 - the first line says that the container runs; PyTorch takes its time under emulation
from gpt2 import Shape, Weights, logits  # noqa: E402 - these two are the container's: the example's own files
from layout import read_config, tensors  # noqa: E402

MOST_TOKENS = 256
MOST_PROMPT = 65_536  # bytes; the model sees the last of them


def complete(weights: Weights, shape: Shape, request: dict[str, object]) -> dict[str, object]:
    """Answer one request; ValueError says what is wrong with it."""
    unknown = set(request) - {"model", "prompt", "max_tokens", "temperature", "seed"}
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    prompt = request.get("prompt")
    if not isinstance(prompt, str) or not prompt or len(prompt) > MOST_PROMPT:
        raise ValueError(f"prompt is a text of 1 to {MOST_PROMPT} characters")
    given = prompt.encode("utf-8")
    most = int(_number(request, "max_tokens", 16, least=1, most=MOST_TOKENS))
    warmth = _number(request, "temperature", 0, least=0, most=2)
    seed = int(_number(request, "seed", 0, least=0, most=1 << 32))
    written = bytes(follow(weights, shape, given, most=most, warmth=warmth, seed=seed))
    choice = {"index": 0, "text": written.decode("utf-8", "replace"), "finish_reason": "length", "logprobs": None}
    usage = {"prompt_tokens": len(given), "completion_tokens": most, "total_tokens": len(given) + most}
    head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
    return {**head, "model": "transformer", "choices": [choice], "usage": usage}


@torch.no_grad()
def follow(weights: Weights, shape: Shape, given: bytes, *, most: int, warmth: float, seed: int) -> Iterator[int]:
    """Yield `most` bytes that follow."""
    draw = torch.Generator().manual_seed(seed)
    seen = list(given[-shape.context :])
    for _ in range(most):
        last = logits(weights, torch.tensor([seen[-shape.context :]]), shape)[0, -1]
        chances = torch.softmax(last / (warmth or 1), dim=0)
        seen.append(int(torch.multinomial(chances, 1, generator=draw) if warmth else chances.argmax()))
        yield seen[-1]


def _number(request: dict[str, object], name: str, default: float, *, least: float, most: float) -> float:
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} is a number from {least} to {most}")
    return value


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("/inputs/model"))
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    config = read_config(arguments.model)
    shape = Shape(config["n_positions"], config["n_embd"], config["n_layer"], config["n_head"])
    weights = {name: torch.from_numpy(array) for name, array in tensors(arguments.model)}
    answered = serve("/v1/completions", partial(complete, weights, shape), port=arguments.port)
    print(f"complete: {answered} requests answered", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
