"""A GPT-2 of a few hundred thousand weights that reads bytes, and low-rank adapters for it.

Weights carry the names and shapes that Hugging Face's GPT2LMHeadModel gives them, adapters those of its PEFT, so both load
there as well. Deterministic by construction: two threads, one set of CPU instructions (pinned in job.yaml, because wider
vectors add in another order), seeded draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]

torch.set_num_threads(2)
torch.backends.mkldnn.enabled = False  # oneDNN writes its kernels for the CPU that it finds


@dataclass(frozen=True)
class Shape:
    """Sizes; the vocabulary is the 256 bytes."""

    context: int = 128
    width: int = 96
    layers: int = 3
    heads: int = 4


class Adapters:
    """LoRA (arXiv 2106.09685): beside a frozen matrix W of (inputs, outputs), two thin ones whose product is added to it."""

    TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")

    def __init__(self, weights: Weights, *, layers: int, rank: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.rank = rank
        self.scale = 2.0
        self.a: Weights = {}
        self.b: Weights = {}
        for layer in range(layers):
            for target in self.TARGETS:
                name = f"transformer.h.{layer}.{target}"
                inputs, outputs = weights[f"{name}.weight"].shape
                self.a[name] = (torch.randn(rank, inputs, generator=draw) / inputs**0.5).requires_grad_()
                self.b[name] = torch.zeros(outputs, rank).requires_grad_()  # so at first nothing is added

    def parameters(self) -> list[Tensor]:
        """Return what is trained."""
        return [*self.a.values(), *self.b.values()]

    def add(self, name: str, x: Tensor) -> Tensor:
        """Return what the adapters of the matrix `name` add for its inputs `x`."""
        return (x @ self.a[name].T) @ self.b[name].T * self.scale

    def merged(self, weights: Weights) -> Weights:
        """Return the weights with the adapters added to them: the same function without adapters."""
        merged = dict(weights)
        for name in self.a:
            merged[f"{name}.weight"] = weights[f"{name}.weight"] + (self.b[name] @ self.a[name]).T.detach() * self.scale
        return merged

    def tensors(self) -> Weights:
        """Return the adapters under PEFT's names."""
        return {
            f"base_model.model.{name}.lora_{kind}.weight": matrix.detach()
            for kind, matrices in (("A", self.a), ("B", self.b))
            for name, matrix in matrices.items()
        }

    def config(self) -> dict[str, object]:
        """Return PEFT's adapter_config.json."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": int(self.rank * self.scale),
            "lora_dropout": 0.0,
            "target_modules": list(self.TARGETS),
            "fan_in_fan_out": True,
            "bias": "none",
        }


def initial_weights(shape: Shape, seed: int) -> Weights:
    """Draw weights as GPT-2 does."""
    draw = torch.Generator().manual_seed(seed)
    width = shape.width

    def normal(*size: int, spread: float = 0.02) -> Tensor:
        return torch.randn(*size, generator=draw) * spread

    weights = {"transformer.wte.weight": normal(256, width), "transformer.wpe.weight": normal(shape.context, width)}
    norms = ["transformer.ln_f"]
    for layer in range(shape.layers):
        at = f"transformer.h.{layer}"
        norms += [f"{at}.ln_1", f"{at}.ln_2"]
        for name, inputs, outputs in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            spread = 0.02 / (2 * shape.layers) ** 0.5 if name.endswith("c_proj") else 0.02
            weights[f"{at}.{name}.weight"] = normal(inputs, outputs, spread=spread)
            weights[f"{at}.{name}.bias"] = torch.zeros(outputs)
    for name in norms:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(width), torch.zeros(width)
    return weights


def logits(weights: Weights, tokens: Tensor, shape: Shape, adapters: Adapters | None = None) -> Tensor:
    """Return (batch, length, 256) logits of the byte that follows each of `tokens` (batch, length)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (shape.width,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return y + adapters.add(name, x) if adapters else y

    batch, length = tokens.shape
    x = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][:length]
    for layer in range(shape.layers):
        at = f"transformer.h.{layer}"
        parts = linear(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn").split(shape.width, dim=2)
        query, key, value = (part.view(batch, length, shape.heads, -1).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + linear(seen.transpose(1, 2).reshape(batch, length, shape.width), f"{at}.attn.c_proj")
        inner = functional.relu(
            linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        )  # GELU costs more than all else under TCG
        x = x + linear(inner, f"{at}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ weights["transformer.wte.weight"].T


def loss(weights: Weights, windows: Tensor, shape: Shape, adapters: Adapters | None = None) -> Tensor:
    """Return the mean cross entropy, in nats a byte, of windows (batch, context + 1)."""
    guesses = logits(weights, windows[:, :-1], shape, adapters)
    return functional.cross_entropy(guesses.reshape(-1, 256), windows[:, 1:].reshape(-1))


def batches(text: Tensor, shape: Shape, *, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Yield `steps` times `batch` windows from random places of a text."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(text) - shape.context, (batch,), generator=draw)
        yield torch.stack([text[start : start + shape.context + 1] for start in starts.tolist()])


def windows_of(text: Tensor, shape: Shape) -> Tensor:
    """Return a text as windows (n, context + 1) side by side; what is left over at its end is dropped."""
    return text[: (len(text) - 1) // shape.context * shape.context + 1].unfold(0, shape.context + 1, shape.context)


class Adam:
    """Adam (arXiv 1412.6980). PyTorch's own would load its compiler, which takes longer under emulation than the training."""

    def __init__(self, parameters: list[Tensor], *, rate: float) -> None:
        self._parameters = parameters
        self._rate = rate
        self._step = 0
        self._means = [(torch.zeros_like(item), torch.zeros_like(item)) for item in parameters]

    @torch.no_grad()
    def step(self, value: Tensor, *, warmth: float = 1.0) -> None:
        """Go one step down the gradient of `value`, at `warmth` times the rate."""
        self._step += 1
        gradients = torch.autograd.grad(value, self._parameters)
        for parameter, gradient, (mean, square) in zip(self._parameters, gradients, self._means, strict=True):
            mean.lerp_(gradient, 0.1)
            square.lerp_(gradient * gradient, 0.01)
            ahead = mean / (1 - 0.9**self._step)
            spread = (square / (1 - 0.99**self._step)).sqrt() + 1e-8
            parameter.addcdiv_(ahead, spread, value=-self._rate * warmth)
