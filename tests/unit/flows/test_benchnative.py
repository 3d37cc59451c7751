# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A job of a shell in a root of its own, from real packs, on this machine's own kernel."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.config import Settings, load_settings
from cvmtool.data.oci import ImageConfig
from cvmtool.data.pack import TreeSource, make_pack
from cvmtool.errors import ConfigError, JobError
from cvmtool.flows import benchnative
from cvmtool.flows.benchnative import run_native
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.prepare import Prepared, load_keys, make_manifest
from cvmtool.formats.pack import Role
from cvmtool.image.bundle import load_bundle
from cvmtool.owner.jobfile import parse_job_file
from tests.samples import JOB_YAML
from tests.unit.image.images import make_image

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a root of its own needs root")
PROGRAM = """
read word </inputs/data/word
echo "$word of $(id -u):$(id -g) at $(pwd) $THREADS"
echo '{"phase": "compute"}'
echo to-stderr >&2
touch /outputs/a /scratch/b /tmp/c
[ -e /proc/self/fd/3 ] && echo descriptor
while read -r line; do case $line in *lo:*|*eth*|*en*) echo "net ${line%%:*}";; esac; done </proc/net/dev
exit $CODE
"""


def shell_root(folder: Path) -> Path:
    """Make a root that holds a shell, and what it is linked with."""
    for program in ("/bin/sh", shutil.which("id"), shutil.which("touch"), shutil.which("sleep")):
        linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for file in (program, *re.findall(r"(/\S+) \(", linked)):
            target = folder / str(file).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return folder


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A container with a shell and an input, packed once."""
    folder = tmp_path_factory.mktemp("native")
    settings = replace(load_settings(), state_dir=folder / "state")
    settings.state_dir.mkdir(mode=0o700)
    keys = load_keys(settings)
    (folder / "data").mkdir()
    (folder / "data/word").write_text("hello\n")
    sources = {"container": (shell_root(folder / "root"), Role.CONTAINER), "data": (folder / "data", Role.INPUT)}
    packs = []
    for name, (source, role) in sources.items():
        path = folder / f"{name}.pack"
        made = make_pack(TreeSource(path=source), path, name=name, role=role, passphrase_for=keys.pack_passphrase)
        packs.append(SealedPack(descriptor=made, path=path, reused=False))
    return folder, settings, keys, tuple(packs)


def job(sealed, program: str = PROGRAM, code: int = 0, **limits) -> tuple[Prepared, Settings]:
    folder, settings, keys, packs = sealed
    file = replace(
        parse_job_file(JOB_YAML), command=("/bin/sh", "-c", program), env={"CODE": str(code), "THREADS": "2"}
    )
    file = replace(file, limits=replace(file.limits, **limits))
    manifest = make_manifest(file, ImageConfig(args=(), env={}, workdir="/tmp"), keys, packs, salt=b"s" * 32)
    image = folder / "image"
    bundle = load_bundle(image if image.exists() else make_image(image))
    return Prepared(file=file, manifest=manifest, packs=packs, keys=keys, bundle=bundle), settings


@as_root
def test_a_container_gets_what_it_gets_in_a_guest(sealed):
    watch = run_native(*job(sealed))
    printed = b"".join(record.data for record in watch.records)
    assert b"hello of 65534:65534 at /tmp 2\n" in printed
    assert b"to-stderr\n" in printed
    assert b"descriptor" not in printed
    assert re.findall(rb"net (\S+)", printed) == [b"lo"]
    assert "compute" in watch.taken("native").seconds


@as_root
def test_nothing_stays(sealed):
    prepared, settings = job(sealed)
    run_native(prepared, settings)
    assert list(settings.state_dir.glob(".bench-*")) == []
    assert ".bench-" not in Path("/proc/self/mounts").read_text()


@as_root
def test_a_container_that_fails_says_why(sealed):
    with pytest.raises(JobError, match="ended with 7 natively") as failed:
        run_native(*job(sealed, code=7))
    assert "to-stderr" in failed.value.detail


@as_root
def test_its_limit_of_time_holds(sealed, monkeypatch):
    monkeypatch.setattr(benchnative, "_SETUP_SECONDS", 0.0)
    with pytest.raises(JobError, match=r"limits\.time"):
        run_native(*job(sealed, program="sleep 600", seconds=1))


def test_another_user_is_told_that_it_is_left_out(sealed, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="root is required"):
        run_native(*job(sealed))


def test_a_program_that_is_missing_is_named(sealed, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(benchnative, "_PATH", "/nowhere")
    with pytest.raises(ConfigError, match="unshare is not installed"):
        run_native(*job(sealed))
