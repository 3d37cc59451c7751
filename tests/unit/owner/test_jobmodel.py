# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from cvmtool.errors import ConfigError
from cvmtool.owner.jobfile import parse_job_file
from cvmtool.owner.jobmodel import ModelWish

JOB = {
    "name": "finetune",
    "container": {"image": "oci:c", "digest": f"sha256:{'0a' * 32}"},
    "inputs": {"data": "d"},
    "outputs": {"m": {"kind": "json", "max": "1KiB"}},
}


def read(**more):
    return parse_job_file(json.dumps(JOB | more))


def test_a_model_is_a_path_and_an_input():
    job = read(model="models/small")
    assert job.model == ModelWish(path="models/small", signer=None)
    assert job.inputs == {"data": "d", "model": "models/small"}


def test_a_model_may_name_its_signer():
    job = read(model={"path": "m", "signer": "k.pem"})
    assert job.model == ModelWish(path="m", signer="k.pem")
    assert job.inputs["model"] == "m"


def test_a_model_may_have_a_path_alone():
    assert read(model={"path": "m"}).model == ModelWish(path="m", signer=None)


@pytest.mark.parametrize("model", ["", {"path": ""}, {"path": "m", "signer": ""}], ids=str)
def test_a_refusal_says_that_a_path_is_required(model):
    with pytest.raises(ConfigError, match="a path is required"):
        read(model=model)


def test_a_job_without_a_model_has_none():
    assert read().model is None


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"model": {"signer": "k"}}, "model.path"),
        ({"model": {"path": "m", "key": "k"}}, "model.key"),
        ({"model": {"path": "m", "signer": ""}}, "model.signer"),
        ({"model": {"path": ""}}, "model.path"),
        ({"model": "m", "inputs": {"model": "m"}}, "inputs.model"),
        ({"model": "m", "inputs": {f"d{n}": "x" for n in range(15)}}, "inputs"),
    ],
)
def test_what_is_no_model_is_refused_by_its_key(more, named):
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        read(**more)
