"""Make the example's data set from the UCI handwritten digits that scikit-learn carries. Real data; nothing is downloaded.

    prepare.py [--out examples/digits/inputs/data] [--pretrain examples/digits/inputs/model]

Writes OUT/{train,test}.safetensors: 1,437 and 360 images, split by a fixed seed. With --pretrain it also makes again the
pretrained model that the example ships: a network that has seen digits 0 to 4 alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from network import Weights, accuracy, initial_weights, save_weights, train_epoch
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

TEST_IMAGES = 360


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=here / "inputs" / "data")
    parser.add_argument("--pretrain", type=Path)
    arguments = parser.parse_args()
    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order]
    parts = {"test": slice(0, TEST_IMAGES), "train": slice(TEST_IMAGES, None)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        save_file(
            {"images": np.ascontiguousarray(images[part]), "labels": labels[part]},
            arguments.out / f"{name}.safetensors",
        )
    print(f"{arguments.out}: {len(labels)} images")
    if arguments.pretrain:
        train, test = parts["train"], parts["test"]
        weights = pretrain(images[train], labels[train])
        arguments.pretrain.mkdir(parents=True, exist_ok=True)
        save_weights(arguments.pretrain / "pretrained.safetensors", weights)
        score = accuracy(weights, images[test], labels[test])
        print(f"{arguments.pretrain}: pretrained on digits 0 to 4, accuracy {score:.4f} on all ten")


def pretrain(images: np.ndarray, labels: np.ndarray) -> Weights:
    """Train a fresh network on the digits 0 to 4 of a set."""
    few = labels <= 4
    weights = initial_weights(seed=0)
    velocity = {name: np.zeros_like(value) for name, value in weights.items()}
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(int(few.sum()))
        train_epoch(weights, velocity, images[few], labels[few], order, rate=0.05, batch=32)
    return weights


if __name__ == "__main__":
    main()
