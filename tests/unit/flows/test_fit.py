# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs, disks and a host, looked at together. The host's libvirt is a name; all else is real."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import load_settings, private_dir
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows.fit import refuse_unfit, survey
from cvmtool.flows.fitsources import pack_size
from cvmtool.flows.hosts import Host
from cvmtool.host.files import LocalFiles
from cvmtool.host.store import Artefact, Store
from cvmtool.owner.fit import Verdict
from cvmtool.owner.jobfile import parse_job_file
from tests.unit.data.oci_images import Image, layer, member

MIB = 1 << 20
IMAGE = Image(layer(member("app", os.urandom(MIB))))
QEMU = shutil.which("qemu-system-x86_64")


@pytest.fixture
def base(tmp_path):
    (tmp_path / "data").write_bytes(os.urandom(MIB))
    IMAGE.write(tmp_path / "layout")
    return tmp_path


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "rootfs").write_bytes(b"rootfs" * MIB)
    item = SimpleNamespace(file="rootfs", sha256="ab" * 32, size=6 * MIB)
    manifest = SimpleNamespace(firmware=item, kernel=item, initrd=item, rootfs=item)
    return SimpleNamespace(manifest=manifest, path=lambda found: tmp_path / found.file)


@pytest.fixture
def host(tmp_path):
    (tmp_path / "locks").mkdir()
    files, machines = LocalFiles(), str(tmp_path / "machines")
    return Host(
        name="lab",
        uri="u",
        hypervisor=SimpleNamespace(
            capabilities=lambda *, virt_type: SimpleNamespace(emulator=QEMU or "qemu-system-x86_64"), close=lambda: None
        ),
        files=files,
        machines=machines,
        store=Store(files, machines, uploader="0" * 12, locks=tmp_path / "locks"),
        local=True,
        accelerator="qemu",
    )


def job(text=""):
    return parse_job_file(
        f"name: j\ncontainer: {{image: 'oci:layout', digest: '{IMAGE.digest}'}}\n"
        f"inputs: {{data: data}}\noutputs: {{o: {{kind: file, max: 1MiB}}}}\n{text}"
    )


def look(job, base, bundle, host, *, simulated=True):
    settings = replace(load_settings(), state_dir=private_dir(base / "state"))
    lines = survey(job, base, bundle, settings=settings, simulated=simulated, results=base / "r", reach=lambda _: host)
    return {line.code: line for line in lines}


def test_a_small_job_fits_here(base, bundle, host):
    found = look(job(), base, bundle, host)
    assert {line.verdict for line in found.values()} <= {Verdict.OK, Verdict.CLOSE}
    # On one disk: two packs around a MiB each, and again as the host's; the image; outputs and log.
    shared = found["disk.packs"]
    assert shared.needs == pytest.approx(4 * pack_size(MIB) + 4 * 6 * MIB + 17 * MIB, abs=MIB)
    assert shared.has == pytest.approx(shutil.disk_usage(base).free, rel=0.2)


def test_nothing_is_made(base, bundle, host):
    look(job(), base, bundle, host)
    assert not (base / "machines").exists()
    assert not (base / "r").exists()
    assert list((base / "state").iterdir()) == []


def test_what_the_host_has_need_not_be_sent(base, bundle, host):
    before = look(job(), base, bundle, host)["disk.packs"].needs
    source = Artefact(path=base / "rootfs", sha256="ab" * 32, size=6 * MIB)
    kept = Path(host.machines, ".store/sha256", source.sha256)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"rootfs" * MIB)
    assert look(job(), base, bundle, host)["disk.packs"].needs == before - 4 * 6 * MIB


def test_a_checkpoint_volume_takes_room_on_the_host(base, bundle, host):
    before = look(job(), base, bundle, host)["disk.packs"].needs
    text = "checkpoint: {size: 1GiB}"
    assert look(job(text), base, bundle, host)["disk.packs"].needs == before + (1 << 30)


@pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")
def test_emulation_lacks_avx512(base, bundle, host):
    found = look(job("resources: {requires: [avx2, avx512f]}"), base, bundle, host)
    assert found["cpu"].verdict is Verdict.SHORT
    assert look(job("resources: {requires: [avx2]}"), base, bundle, host)["cpu"].verdict is Verdict.OK


def test_a_dry_run_is_reckoned_emulated_unless_its_host_says_kvm(base, bundle, host):
    emulated = look(job(), base, bundle, host)["memory.host"].needs
    assert look(job(), base, bundle, replace(host, accelerator="kvm"))["memory.host"].needs < emulated
    remote = replace(host, accelerator=None)
    assert look(job(), base, bundle, remote, simulated=False)["memory.host"].needs < emulated


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("resources: {memory: 16TiB}", HostError, r"memory\.host needs 16384\.4 GiB"),
        ("training: {activations: 2GiB}", ConfigError, r"memory\.container needs 21\d\d MiB, has 800 MiB"),
    ],
)
def test_what_cannot_fit_is_refused_with_numbers(base, bundle, host, text, kind, message):
    settings = replace(load_settings(), state_dir=private_dir(base / "state"))
    with pytest.raises(kind, match=message):
        refuse_unfit(
            job(text), base, bundle, settings=settings, simulated=True, reporter=JsonReporter(), reach=lambda _: host
        )


def test_what_is_close_is_said(base, bundle, host, capsys):
    settings = replace(load_settings(), state_dir=private_dir(base / "state"))
    text = "limits: {memory: 800MiB, outputs: 64MiB, scratch: 700MiB}"
    refuse_unfit(
        job(text), base, bundle, settings=settings, simulated=True, reporter=JsonReporter(), reach=lambda _: host
    )
    assert "close: memory.container needs 701 MiB, has 800 MiB" in capsys.readouterr().out
