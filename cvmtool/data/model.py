# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Is a directory a model as Hugging Face lays it out, with safetensors weights and nothing that runs when it is read?

Zone: data (the owner's machine). Reads only; of weights, the heads.
Spec: transformers' file names (config.json, model.safetensors.index.json); the safetensors format; pickle protocols 0 to 5.

A pickle is a program: whoever loads it runs it. So weights that are pickled are refused, by their name and by their content.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.pickles import find_pickle
from cvmtool.formats.safetensors import read_tensor_names

INDEX = "model.safetensors.index.json"
_CONFIGS = ("config.json", "adapter_config.json")
_WEIGHTS = ".bin"  # what transformers called a pickle of weights; elsewhere it may be anything
_MAX_JSON = 128 << 20  # bytes; a tokenizer of a quarter of a million words has 35 MB
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_WHY = "loading a pickle runs whatever program is in it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What was found in a model's directory."""

    shards: int
    tensors: int


def check_model(folder: Path) -> Model:
    """Check a model's directory.

    Raises:
        ConfigError: no directory, no config.json, no weights, pickled weights, or a link that leads out of it.
        FormatError: a JSON file or a shard does not parse, or the index and the shards do not name the same tensors.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a directory; a model in Hugging Face layout is required")
    files = sorted(_files(folder))
    for file in files:
        _refuse_pickle(file)
    if not any((folder / name).is_file() for name in _CONFIGS):
        raise ConfigError(
            f"{folder} has neither {' nor '.join(_CONFIGS)}; a model in Hugging Face layout is required",
            hint="pack it as a plain tree: --kind tree",
        )
    for file in files:
        if file.suffix == ".json":
            _json(file)
    shards = {file: _tensors(file) for file in files if file.suffix == ".safetensors"}
    if not shards:
        raise ConfigError(f"{folder} has no weights: no file ends in .safetensors")
    if (folder / INDEX).exists():
        _check_index(folder, shards)
    return Model(shards=len(shards), tensors=sum(map(len, shards.values())))


def _files(folder: Path) -> Iterator[Path]:
    whole = folder.resolve()
    for base, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(base, name)
            # A download cache keeps links into a folder beside the model; in the pack they would lead nowhere.
            if path.is_symlink() and not path.resolve().is_relative_to(whole):
                raise ConfigError(
                    f"{path} is a link out of the model's directory",
                    hint=f"copy what the links lead to: cp -rL {folder} NEW",
                )
        yield from (Path(base, name) for name in names)


def _refuse_pickle(path: Path) -> None:
    if path.suffix == ".safetensors":
        return  # that one is parsed; its length may look like a mark
    try:
        with path.open("rb") as file:
            reason = "it ends in .bin" if path.suffix.lower() == _WEIGHTS else find_pickle(path.name, file)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error
    if reason:
        raise ConfigError(
            f"{path} would be weights in pickle format ({reason}), which are refused: {_WHY}",
            hint="convert it to safetensors where running it does no harm, and leave the pickle out",
        )


def _json(path: Path) -> dict[str, object]:
    size = path.stat().st_size
    if size > _MAX_JSON:
        raise FormatError(f"{path} has {size} bytes; at most {_MAX_JSON} are allowed")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _tensors(path: Path) -> frozenset[str]:
    try:
        with path.open("rb") as file:
            return read_tensor_names(file.read, path.stat().st_size)
    except FormatError as error:
        raise FormatError(f"{path}: {error.message}") from error


def _check_index(folder: Path, shards: dict[Path, frozenset[str]]) -> None:
    """Each tensor of the index is in the shard that it names, and no shard of the index holds another."""
    weights = _json(folder / INDEX).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise FormatError(f"{folder / INDEX} has no weight_map; an object of tensor names to shards is required")
    named: dict[str, set[str]] = {}
    for tensor, shard in weights.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise FormatError(f"{folder / INDEX} names the shard {str(shard)[:80]!r}; a .safetensors file is required")
        named.setdefault(shard, set()).add(tensor)
    for shard, tensors in named.items():
        found = shards.get(folder / shard)
        if found is None:
            raise FormatError(f"{folder / INDEX} names the shard {shard}, which is missing")
        if found != tensors:
            odd = min(found ^ tensors)
            raise FormatError(f"{folder / shard} and its index differ in {len(found ^ tensors)} tensors: {odd[:80]!r}")
