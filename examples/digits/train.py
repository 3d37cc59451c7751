"""Fine-tune the digits network on all ten digits. Runs inside the confidential VM, or natively with the same result.

    train.py [--inputs /inputs] [--outputs /outputs] [--epochs 30] [--seed 1]

Reads   INPUTS/data/{train,test}.safetensors (images float32 (n, 64) in 0..1, labels int64 (n,)) and
        INPUTS/model/pretrained.safetensors (trained on digits 0 to 4 alone)
Writes  OUTPUTS/model.safetensors and OUTPUTS/metrics.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

print("digits: starting", flush=True)

import numpy as np  # noqa: E402 - the first line says that the container runs; NumPy takes its time under emulation
from network import accuracy, load_weights, save_weights, train_epoch  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, default=Path("/inputs"))
    parser.add_argument("--outputs", type=Path, default=Path("/outputs"))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    train = load_file(arguments.inputs / "data" / "train.safetensors")
    test = load_file(arguments.inputs / "data" / "test.safetensors")
    weights = load_weights(arguments.inputs / "model" / "pretrained.safetensors")
    velocity = {name: np.zeros_like(value) for name, value in weights.items()}
    rng = np.random.default_rng(arguments.seed)

    before = accuracy(weights, test["images"], test["labels"])
    print(f"digits: {len(train['labels'])} images to learn from, {len(test['labels'])} held out", flush=True)
    print(f"digits: accuracy before {before:.4f}", flush=True)
    losses = []
    print(json.dumps({"phase": "compute"}), flush=True)  # for `cvmtool bench`
    for epoch in range(1, arguments.epochs + 1):
        order = rng.permutation(len(train["labels"]))
        losses.append(train_epoch(weights, velocity, train["images"], train["labels"], order, rate=0.05, batch=32))
        if epoch % 5 == 0 or epoch == arguments.epochs:
            now = accuracy(weights, test["images"], test["labels"])
            print(f"digits: epoch {epoch}/{arguments.epochs} loss {losses[-1]:.4f} accuracy {now:.4f}", flush=True)
    after = accuracy(weights, test["images"], test["labels"])
    print(json.dumps({"phase": "export"}), flush=True)
    save_weights(arguments.outputs / "model.safetensors", weights)
    metrics = {"accuracy_before": before, "accuracy_after": after, "epochs": arguments.epochs, "loss": losses}
    (arguments.outputs / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"digits: accuracy after {after:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
