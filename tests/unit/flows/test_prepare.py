# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a job file and a container image become. (The whole run: tests/scenario.)"""

import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.config import load_settings
from cvmtool.data.oci import ImageConfig
from cvmtool.errors import ConfigError
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.prepare import load_keys, make_manifest, read_job
from cvmtool.formats.job import parse_job_manifest
from cvmtool.formats.pack import Role
from cvmtool.owner.jobfile import parse_job_file
from cvmtool.owner.keystore import OwnerKeys
from tests.samples import JOB_YAML, pack

JOB = parse_job_file(JOB_YAML)
KEYS = OwnerKeys(b"seed" * 8)
IMAGE = ImageConfig(args=("image-program",), env={"PATH": "/bin", "THREADS": "8"}, workdir="/image")
PACKS = [
    SealedPack(descriptor=descriptor, path=Path("/p"), reused=True)
    for descriptor in (pack("container", Role.CONTAINER), pack("data"))
]


def make(job=JOB, image=IMAGE, packs=PACKS):
    return make_manifest(job, image, KEYS, packs, salt=b"s" * 32)


def test_the_job_goes_before_the_image():
    manifest = make()
    assert manifest.container.args == JOB.command
    assert manifest.container.env == (("PATH", "/bin"), ("THREADS", "1"))
    assert manifest.container.workdir == "/image"
    assert make(replace(JOB, workdir="/job")).container.workdir == "/job"
    assert make(replace(JOB, command=())).container.args == ("image-program",)


def test_the_manifest_is_the_owners_and_the_guest_reads_it():
    manifest = make()
    assert manifest.owner_key == KEYS.public.hex()
    assert manifest.salt == (b"s" * 32).hex()
    assert manifest.packs == tuple(item.descriptor for item in PACKS)
    assert parse_job_manifest(manifest.encode()) == manifest


def test_a_job_without_a_program_is_refused():
    with pytest.raises(ConfigError) as refusal:
        make(replace(JOB, command=()), replace(IMAGE, args=()))
    assert "command" in refusal.value.hint


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image": replace(IMAGE, env={"MY.VAR": "1"})}, "MY.VAR"),
        ({"image": replace(IMAGE, env={"A": "\0"})}, "env"),
        ({"image": replace(IMAGE, workdir="")}, "workdir"),
        ({"job": replace(JOB, command=("x" * 60_000,) * 5)}, "262144"),
        ({"packs": [*PACKS, replace(PACKS[1], descriptor=replace(PACKS[1].descriptor, name="again"))]}, "twice"),
        ({"packs": PACKS[1:]}, "container"),
    ],
)
def test_what_no_guest_would_take_is_refused_before_anything_starts(changes, named):
    with pytest.raises(ConfigError, match=named):
        make(**changes)


def test_a_job_file_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "job.yaml"
    for content in (None, b"\xff", b"nonsense: 1"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as refusal:
            read_job(path)
        assert str(path) in refusal.value.message
    path.write_text(JOB_YAML)
    assert read_job(path) == JOB


def test_keys_are_made_once_for_their_owner_alone():
    settings = load_settings()
    keys = load_keys(settings)
    assert load_keys(settings) == keys
    assert stat.S_IMODE(settings.keystore.stat().st_mode) == 0o600
    assert [path.name for path in settings.state_dir.iterdir()] == ["owner.key"]


def test_two_first_uses_at_once_agree_on_the_keys():
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: load_keys(load_settings()), range(16)))
    assert {keys.public for keys in made} == {load_keys(load_settings()).public}
