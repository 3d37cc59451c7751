"""The network that both sides share: one hidden layer, NumPy alone, safetensors in and out.

Deterministic by construction: matrix products go through NumPy's einsum-free `@` in float32 with a fixed order of
operations; random numbers come from a seeded PCG64. Which CPU instructions NumPy picks is pinned by the environment
(see job.yaml), because wider vectors add in another order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HIDDEN = 96
CLASSES = 10
PIXELS = 64

Weights = dict[str, np.ndarray]


def initial_weights(seed: int) -> Weights:
    """Draw He-initialised weights."""
    rng = np.random.default_rng(seed)
    return {
        "hidden.weight": (rng.standard_normal((PIXELS, HIDDEN)) * np.sqrt(2 / PIXELS)).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": (rng.standard_normal((HIDDEN, CLASSES)) * np.sqrt(2 / HIDDEN)).astype(np.float32),
        "output.bias": np.zeros(CLASSES, np.float32),
    }


def logits(weights: Weights, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (batch, 10) logits and the hidden activations (batch, 96)."""
    hidden = np.maximum(images @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    return hidden @ weights["output.weight"] + weights["output.bias"], hidden


def accuracy(weights: Weights, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose largest logit is their label."""
    return float((logits(weights, images)[0].argmax(axis=1) == labels).mean())


def train_epoch(
    weights: Weights,
    velocity: Weights,
    images: np.ndarray,
    labels: np.ndarray,
    order: np.ndarray,
    *,
    rate: float,
    batch: int,
) -> float:
    """Run one epoch of SGD with momentum in place; return the mean loss."""
    total = 0.0
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        x, y = images[rows], labels[rows]
        z, hidden = logits(weights, x)
        z = z - z.max(axis=1, keepdims=True)
        p = np.exp(z)
        p /= p.sum(axis=1, keepdims=True)
        total += float(-np.log(p[np.arange(len(y)), y] + 1e-9).sum())
        p[np.arange(len(y)), y] -= 1
        p /= len(y)
        back = (p @ weights["output.weight"].T) * (hidden > 0)
        gradients = {
            "output.weight": hidden.T @ p,
            "output.bias": p.sum(axis=0),
            "hidden.weight": x.T @ back,
            "hidden.bias": back.sum(axis=0),
        }
        for name, gradient in gradients.items():
            velocity[name] = (np.float32(0.9) * velocity[name] - np.float32(rate) * gradient).astype(np.float32)
            weights[name] = (weights[name] + velocity[name]).astype(np.float32)
    return total / len(order)


def load_weights(path: Path) -> Weights:
    """Read weights from a safetensors file."""
    return dict(load_file(path))


def save_weights(path: Path, weights: Weights) -> None:
    """Write weights as safetensors."""
    save_file(weights, path)
