"""A model's directory as Hugging Face lays it out: config.json, tokenizer.json, shards of safetensors and their index.

No PyTorch here: tensors are NumPy arrays. Shards are opened lazily: `tensor` reads the pages of one tensor from the mapped file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

INDEX = "model.safetensors.index.json"


def write_model(folder: Path, weights: dict[str, np.ndarray], config: dict[str, object], *, shards: int) -> None:
    """Write a model of bytes in `shards` shards."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(weights)
    placed = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: weights[key] for key in names[number * len(names) // shards : (number + 1) * len(names) // shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, name)
    size = sum(array.nbytes for array in weights.values())
    _write(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": placed})
    _write(folder / "config.json", config)
    _write(folder / "tokenizer.json", byte_tokenizer())


def read_config(folder: Path) -> dict[str, int]:
    """Read config.json."""
    return dict(json.loads((folder / "config.json").read_text("utf-8")))


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each tensor of a model by its name, one at a time."""
    weight_map: dict[str, str] = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
    for shard in sorted(set(weight_map.values())):
        with safe_open(folder / shard, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - no dictionary
                yield name, file.get_tensor(name)


def byte_tokenizer() -> dict[str, object]:
    """Return tokenizer.json of a tokenizer whose tokens are bytes: byte-level BPE without merges."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocabulary = {character: byte for byte, character in enumerate(_printable_bytes())}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _printable_bytes() -> list[str]:
    """Return the character that GPT-2 writes for each byte: itself if it can be printed, else one above 255."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
