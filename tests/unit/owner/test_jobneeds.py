# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a job file says of its own needs, one key wrong at a time."""

import pytest

from cvmtool.errors import ConfigError
from cvmtool.owner.jobfile import parse_job_file
from cvmtool.owner.jobneeds import Needs, Optimizer, Training
from tests.samples import DIGEST

HEAD = f"name: j\ncontainer: {{image: 'oci:c', digest: '{DIGEST}'}}\noutputs: {{o: {{kind: file, max: 1MiB}}}}\n"


def needs(text: str) -> Needs:
    return parse_job_file(HEAD + text).needs


def test_a_job_that_says_nothing_needs_nothing():
    assert needs("") == Needs()


def test_every_key():
    found = needs(
        "resources: {requires: [avx2, avx512-bf16, sse4.1]}\n"
        "training: {trained: 0.5%, optimizer: momentum, activations: 2GiB}\n"
    )
    assert found.features == {"avx2", "avx512-bf16", "sse4.1"}
    assert found.training == Training(trained=0.005, optimizer=Optimizer.MOMENTUM, activations=2 << 30)


def test_an_empty_training_trains_everything_with_adam():
    assert needs("training: {}").training == Training(trained=1.0, optimizer=Optimizer.ADAM, activations=0)


def test_the_kinds_of_optimizers_are_spelled_as_in_the_file():
    assert " ".join(Optimizer) == "none sgd momentum adam"


def test_activations_are_bounded():
    assert needs("training: {activations: 1024TiB}").training.activations == 1 << 50
    with pytest.raises(ConfigError, match=r"training\.activations"):
        needs("training: {activations: 1025TiB}")


def test_64_features_are_the_most():
    assert len(needs(f"resources: {{requires: [{', '.join(f'f{n}' for n in range(64))}]}}").features) == 64


def test_what_an_optimizer_keeps_of_each_parameter():
    assert [kind.state_bytes for kind in Optimizer] == [0, 0, 4, 8]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("resources: {requires: [AVX2]}", "resources.requires"),
        ("resources: {requires: avx2}", "resources.requires"),
        (f"resources: {{requires: [{', '.join(f'f{n}' for n in range(65))}]}}", "resources.requires"),
        ("training: {trained: 101%}", "training.trained"),
        ("training: {trained: 0.5}", "training.trained is 0.5; a share such as 100% or 0.5% is required"),
        ("training: {trained: 1e3%}", "training.trained"),
        ("training: {optimizer: adamw}", "training.optimizer"),
        ("training: {activations: 5}", "training.activations"),
        ("training: {batch: 5}", "training.batch"),
        ("training: [adam]", "training"),
    ],
)
def test_what_is_no_need_is_refused_by_its_name(text, named):
    with pytest.raises(ConfigError) as refusal:
        needs(text)
    assert named in refusal.value.message
