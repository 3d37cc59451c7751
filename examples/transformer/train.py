"""Fine-tune a small GPT-2 with LoRA. Runs inside the confidential VM, or natively with the same result.

    train.py [--inputs /inputs] [--outputs /outputs] [--epochs 6] [--steps 10] [--batch 4] [--rank 8] [--seed 1] [--merged]

Reads   INPUTS/model (Hugging Face layout, shards opened lazily), INPUTS/data/{train,held-out}.txt
Writes  OUTPUTS/adapter_model.safetensors and adapter_config.json (PEFT's), metrics.json, and with --merged
        model.safetensors: the whole model, adapters added in

Each epoch is a line of JSON on standard output: epoch, epochs, loss.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

print("transformer: starting", flush=True)

import torch  # noqa: E402 - the first line says that the container runs; PyTorch takes its time under emulation
from gpt2 import Adam, Adapters, Shape, Weights, batches, loss, windows_of  # noqa: E402
from layout import read_config, tensors  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, default=Path("/inputs"))
    parser.add_argument("--outputs", type=Path, default=Path("/outputs"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--merged", action="store_true")
    arguments = parser.parse_args()

    config = read_config(arguments.inputs / "model")
    shape = Shape(config["n_positions"], config["n_embd"], config["n_layer"], config["n_head"])
    weights = {name: torch.from_numpy(array) for name, array in tensors(arguments.inputs / "model")}
    text, held_out = (read_text(arguments.inputs / "data" / name) for name in ("train.txt", "held-out.txt"))
    adapters = Adapters(weights, layers=shape.layers, rank=arguments.rank, seed=arguments.seed)
    trained = sum(item.numel() for item in adapters.parameters())
    print(f"transformer: {sum(item.numel() for item in weights.values()):,} weights, {trained:,} to train", flush=True)

    before = bits_per_character(weights, held_out, shape)
    print(json.dumps({"epoch": 0, "epochs": arguments.epochs, "bits_per_character": round(before, 4)}), flush=True)
    adam = Adam(adapters.parameters(), rate=1e-2)
    steps = arguments.epochs * arguments.steps
    losses: list[float] = []
    for step, windows in enumerate(batches(text, shape, batch=arguments.batch, steps=steps, seed=arguments.seed), 1):
        now = loss(weights, windows, shape, adapters)
        adam.step(now, warmth=0.5 * (1 + math.cos(math.pi * step / steps)))
        losses.append(now.item())
        if step % arguments.steps == 0:
            mean = sum(losses[-arguments.steps :]) / arguments.steps
            row = {"epoch": step // arguments.steps, "epochs": arguments.epochs, "step": step, "loss": round(mean, 4)}
            print(json.dumps(row), flush=True)
    merged = adapters.merged(weights)
    after = bits_per_character(merged, held_out, shape)
    print(f"transformer: {before:.3f} bits a character of a text never seen, {after:.3f} after training", flush=True)
    save_file(adapters.tensors(), arguments.outputs / "adapter_model.safetensors")
    write(arguments.outputs / "adapter_config.json", adapters.config())
    if arguments.merged:
        save_file(merged, arguments.outputs / "model.safetensors", metadata={"format": "pt"})
    metrics = {"bits_per_character_before": before, "bits_per_character_after": after, "loss": losses}
    write(arguments.outputs / "metrics.json", metrics)
    return 0


def read_text(path: Path) -> torch.Tensor:
    """Read a text as its bytes."""
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()


@torch.no_grad()
def bits_per_character(weights: Weights, text: torch.Tensor, shape: Shape, *, most: int = 4096) -> float:
    """Return what the next of the first `most` characters costs on average (ASCII: a character is a byte)."""
    windows = windows_of(text[:most], shape)
    rows = [loss(weights, part, shape) * len(part) for part in windows.split(16)]
    return float(sum(rows) / len(windows) / math.log(2))


def write(path: Path, value: object) -> None:
    """Write JSON for people to read."""
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
