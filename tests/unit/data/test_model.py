# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from cvmtool.data.model import INDEX, Model, check_model
from cvmtool.errors import ConfigError, FormatError
from tests.unit.formats.test_pickles import OBJECTS, tarred, zipped


def shard(path, *names):
    save_file({name: np.zeros((2, 3), np.float32) for name in names}, path)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"dropout": 0.1}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    shard(folder / "model-1.safetensors", "a", "b")
    shard(folder / "model-2.safetensors", "c")
    index(folder, {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})
    return folder


def index(folder, weights):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1.0}, "weight_map": weights}))


def test_shards_with_an_index_are_a_model(model):
    assert check_model(model) == Model(shards=2, tensors=3)


def test_one_file_without_an_index_is_a_model(model):
    (model / INDEX).unlink()
    (model / "model-2.safetensors").unlink()
    assert check_model(model) == Model(shards=1, tensors=2)


def test_a_head_whose_length_looks_like_a_pickle_is_weights(model):
    body = b"{}" + b" " * 638
    (model / "odd.safetensors").write_bytes(len(body).to_bytes(8, "little") + body)
    assert (model / "odd.safetensors").read_bytes()[:2] == b"\x80\x02"
    assert check_model(model).shards == 3


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.PTH", "a.ckpt", "sub/x.pkl", "x.joblib"])
def test_pickles_are_refused_by_name(model, name):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"pickle.*runs whatever program"):
        check_model(model)


CONTENTS = {
    **{f"protocol {n}": pickle.dumps({"a": 1}, protocol=n) for n in (2, 4)},
    "torch's zip": zipped("archive/data.pkl"),
    "torch's old tar": tarred("pickle"),
    "numpy's objects": OBJECTS,
}


@pytest.mark.parametrize("content", CONTENTS)
def test_pickles_are_refused_by_content(model, content):
    (model / "weights").write_bytes(CONTENTS[content])
    with pytest.raises(ConfigError, match="its content is a pickle"):
        check_model(model)


def test_a_pickle_under_the_name_of_weights_is_no_weights(model):
    (model / "model-2.safetensors").write_bytes(CONTENTS["protocol 4"])
    with pytest.raises(FormatError, match="model-2"):
        check_model(model)


@pytest.mark.parametrize("content", [zipped("a.txt"), tarred("a"), b"PK nothing", b""])
def test_other_archives_are_no_pickles(model, content):
    (model / "extra").write_bytes(content)
    check_model(model)


BROKEN = {
    "shard missing": lambda m: (m / "model-2.safetensors").unlink(),
    "shard torn": lambda m: (m / "model-1.safetensors").write_bytes((m / "model-1.safetensors").read_bytes()[:-1]),
    "tensor missing": lambda m: shard(m / "model-1.safetensors", "a"),
    "tensor too many": lambda m: shard(m / "model-2.safetensors", "c", "d"),
    "index leads out": lambda m: index(m, {"a": "../model-1.safetensors"}),
    "index empty": lambda m: index(m, {}),
    "index is text": lambda m: (m / INDEX).write_text("weights"),
    "config is text": lambda m: (m / "config.json").write_text("dropout: 0.1"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_model_that_does_not_hold_together_is_refused(model, how):
    check_model(model)
    BROKEN[how](model)
    with pytest.raises(FormatError):
        check_model(model)


MISSING = {
    "config": lambda m: (m / "config.json").unlink(),
    "weights": lambda m: [path.unlink() for path in m.glob("*.safetensors")],
    "content": lambda m: (m / "link").symlink_to("../blobs/x"),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_no_model_is_named(model, what):
    MISSING[what](model)
    with pytest.raises(ConfigError):
        check_model(model)


def test_a_file_is_no_model(model):
    with pytest.raises(ConfigError):
        check_model(model / "config.json")
