"""Make the example's inputs: pretrain a small GPT-2 on Python's documentation, and lay out other texts to fine-tune it on.

    prepare.py [--model inputs/model] [--data inputs/data] [--steps 1500]

Both texts come with the packages of the container, so they are the same everywhere; nothing is downloaded. The model learns
from what Python's help() shows (the module pydoc_data.topics; PSF licence). The data are the licence texts of Debian's
base-files, each of which may be copied verbatim; one, MPL-2.0, is held out. Run it with the container's own Python:

    python examples/native.py examples/transformer/job.yaml examples/transformer/prepare.py
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from gpt2 import Adam, Shape, batches, initial_weights, loss
from layout import write_model

HELD_OUT = "MPL-2.0"


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=here / "inputs" / "model")
    parser.add_argument("--data", type=Path, default=here / "inputs" / "data")
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()

    texts = licences(Path(sys.prefix) / "share" / "common-licenses")
    arguments.data.mkdir(parents=True, exist_ok=True)
    (arguments.data / "held-out.txt").write_bytes(texts.pop(HELD_OUT))
    (arguments.data / "train.txt").write_bytes(b"\n\n".join(texts.values()))
    print(f"{arguments.data}: {len(texts)} licences to learn from, {HELD_OUT} held out")

    shape = Shape()
    weights = pretrain("\n\n".join(topics.values()).encode(), shape, steps=arguments.steps)
    arrays = {name: tensor.detach().numpy() for name, tensor in weights.items()}
    write_model(arguments.model, arrays, config(shape), shards=2)
    print(f"{arguments.model}: {sum(array.size for array in arrays.values()):,} weights in 2 shards")


def licences(folder: Path) -> dict[str, bytes]:
    """Read the licence texts of a Debian system by their names, links left out."""
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()
    }


def pretrain(text: bytes, shape: Shape, *, steps: int) -> dict[str, torch.Tensor]:
    """Train a fresh model on a text."""
    weights = initial_weights(shape, seed=0)
    adam = Adam([weight.requires_grad_() for weight in weights.values()], rate=3e-3)
    started = time.monotonic()
    seen = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    for step, windows in enumerate(batches(seen, shape, batch=16, steps=steps, seed=0), 1):
        now = loss(weights, windows, shape)
        adam.step(now, warmth=min(step / 100, 1) * 0.5 * (1 + math.cos(math.pi * step / steps)))
        if step % 250 == 0 or step == steps:
            bits = now.item() / math.log(2)
            print(f"step {step}/{steps}: {bits:.2f} bits a character, {time.monotonic() - started:.0f} s", flush=True)
    return weights


def config(shape: Shape) -> dict[str, object]:
    """Return config.json as transformers reads it."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 256,
        "n_positions": shape.context,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "activation_function": "relu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


if __name__ == "__main__":
    main()
