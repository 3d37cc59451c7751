# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a job would seal, beside what sealing it makes."""

import json
import os
import struct
from dataclasses import replace

import pytest

from cvmtool.config import load_settings
from cvmtool.data.oci import OciImage
from cvmtool.errors import ConfigError
from cvmtool.flows import fitsources
from cvmtool.flows.fitsources import pack_size, packed_share, sealing_rate, survey_sources
from cvmtool.flows.packs import seal_container, seal_tree
from cvmtool.owner.fit import Weights
from cvmtool.owner.jobfile import parse_job_file
from cvmtool.owner.keystore import OwnerKeys
from tests.unit.data.oci_images import Image, layer, member

KEYS = OwnerKeys(b"seed" * 8)
MIB = 1 << 20


@pytest.fixture
def image():
    return Image(layer(member("app", os.urandom(MIB))))


@pytest.fixture
def base(tmp_path, image):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/random").write_bytes(os.urandom(MIB))
    (tmp_path / "data/zeros").write_bytes(bytes(3 * MIB))
    image.write(tmp_path / "layout")
    return tmp_path


@pytest.fixture
def job(image):
    return parse_job_file(
        f"name: j\ncontainer: {{image: 'oci:layout', digest: '{image.digest}'}}\n"
        "inputs: {data: data}\noutputs: {o: {kind: file, max: 1MiB}}\n"
    )


def survey(job, base, *, keys=KEYS, thorough=False):
    return survey_sources(job, base, settings=load_settings(), keys=keys, thorough=thorough)


def sealed(base, image):
    progress = {"progress": lambda _done, _all: None, "settings": load_settings(), "keys": KEYS}
    container = seal_container(OciImage("oci:layout", image.digest, base=base), **progress)
    return container, seal_tree(base / "data", "data", **progress)


def test_the_guess_is_near_what_sealing_makes(job, base, image):
    guessed = survey(job, base)
    assert guessed.kept == ()
    assert guessed.to_seal == 4 * MIB
    made = sum(pack.descriptor.size for pack in sealed(base, image))
    assert abs(guessed.new - made) < made / 20


def test_what_was_sealed_is_found_again(job, base, image):
    packs = sealed(base, image)
    found = survey(job, base)
    assert [pack.path for pack in found.kept] == [pack.path for pack in packs]
    assert (found.new, found.to_seal) == (0, 0)
    assert survey(job, base, keys=None).kept == ()
    assert survey(job, base, keys=OwnerKeys(b"else" * 8)).kept == ()


def test_large_inputs_are_read_only_if_that_is_asked_for(job, base, image, monkeypatch):
    sealed(base, image)
    monkeypatch.setattr(fitsources, "_READ_WHOLE", 4 * MIB - 1)
    assert survey(job, base).to_seal == 4 * MIB
    assert survey(job, base, thorough=True).to_seal == 0


def test_an_input_that_is_missing_is_named(job, base):
    with pytest.raises(ConfigError, match="nowhere"):
        survey(replace(job, inputs={"data": "nowhere"}), base)


def test_weights_are_counted(job, base):
    head = json.dumps({"a": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [0, 30]}}).encode()
    (base / "data/model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(30))
    (base / "data/broken.safetensors").write_bytes(b"no weights")
    assert survey(job, base).weights == Weights(size=38 + len(head), parameters=15)


def test_the_share_that_is_left_is_sampled_over_all_files(base):
    random, zeros = base / "data/random", base / "data/zeros"
    assert packed_share({random: MIB}) == 1
    assert packed_share({zeros: 3 * MIB}) < 0.02
    assert 0.2 < packed_share({random: MIB, zeros: 3 * MIB}) < 0.3
    assert packed_share({}) == 1


def test_a_large_file_is_not_read_whole(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert packed_share({path: 1 << 40}) < 0.02


def test_the_hash_tree_is_reckoned_with():
    assert pack_size(128 * 4096 * 100) > 128 * 4096 * 101


def test_the_rate_is_measured_and_nothing_stays_behind():
    settings = load_settings()
    assert sealing_rate(settings) > MIB
    assert list(settings.packs_dir.iterdir()) == []
