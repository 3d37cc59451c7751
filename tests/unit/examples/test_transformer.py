# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The transformer example, as far as it goes without PyTorch: what it writes is a model, and what it reads is read lazily."""

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from cvmtool.data.model import check_model
from cvmtool.owner.jobfile import parse_job_file

EXAMPLE = Path(__file__).parents[3] / "examples" / "transformer"
WEIGHTS = {f"transformer.h.{n}.w": np.full((n + 1, 3), n, np.float32) for n in range(5)}


def imported(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layout = imported("layout")


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_what_it_writes_is_a_model_to_cvmtool(tmp_path, shards):
    layout.write_model(tmp_path, WEIGHTS, {"model_type": "gpt2"}, shards=shards)
    model = check_model(tmp_path)
    assert (model.shards, model.tensors) == (shards, len(WEIGHTS))


def test_tensors_come_back(tmp_path):
    layout.write_model(tmp_path, WEIGHTS, {"n_embd": 3}, shards=2)
    assert layout.read_config(tmp_path) == {"n_embd": 3}
    found = dict(layout.tensors(tmp_path))
    assert found.keys() == WEIGHTS.keys()
    assert all(np.array_equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_each_byte_has_its_token():
    tokenizer = layout.byte_tokenizer()
    vocabulary = tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(256))
    assert (vocabulary["A"], vocabulary["Ġ"], vocabulary["Ċ"]) == (65, 32, 10)  # as in GPT-2's own vocabulary
    json.dumps(tokenizer)


LAZY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import layout
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
name, tensor = next(layout.tensors(Path(sys.argv[2])))
assert (name, tensor.sum()) == ("a", 6), (name, tensor)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_tensor_of_a_large_shard_is_read_without_the_rest_of_it(tmp_path):
    """The shard stands in the guest as it does here: as a file that is mapped. 1 GiB of it is a hole."""
    size = 1 << 30
    header = {
        "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
        "b": {"dtype": "F32", "shape": [size // 4], "data_offsets": [12, 12 + size]},
    }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head + np.array([1, 2, 3], np.float32).tobytes())
        file.truncate(8 + len(head) + 12 + size)
    (tmp_path / layout.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(header, "model.safetensors")}))
    (tmp_path / "config.json").write_text("{}")
    check_model(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", LAZY, EXAMPLE, tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(ran.stdout) < 64  # MiB


def test_the_job_is_one_and_its_container_has_what_it_runs():
    job = parse_job_file((EXAMPLE / "job.yaml").read_text())
    files = tomllib.loads((EXAMPLE / "container" / "container.toml").read_text())["files"]
    assert job.command[:2] == ("python3", "/app/train.py")
    assert {f"/{path}" for path in files} == {"/app/train.py", "/app/gpt2.py", "/app/layout.py"}
    assert all((EXAMPLE / "container" / source).is_file() for source in files.values())
    assert job.model is not None
