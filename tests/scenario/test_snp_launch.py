# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What libvirt would run for an SEV-SNP machine: everything up to the launch itself, on a machine without SEV-SNP.

libvirt is told that its QEMU has `sev-snp-guest` (tests.fakes.snp_host); the arguments are its own. QEMU then reads the
object for real, and stops where the kernel would have to do something.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cvmtool.formats.idblock import IdBlock, LaunchIdentity
from cvmtool.formats.manifest import Mode
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.host.domain import DomainSpec, SnpLaunch
from cvmtool.image.bundle import Bundle
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import launch_digest
from cvmtool.owner.launchsign import sign_launch
from tests.unit.host.test_snp_domain import SPEC

pytestmark = pytest.mark.vm

HOST_DATA = bytes(range(32))


@pytest.fixture
def folder() -> Iterator[Path]:
    # Short, because libvirt's sockets lie below it, and reachable for a QEMU that runs as another user.
    path = Path(tempfile.mkdtemp(prefix="cvmtool-test-", dir="/run" if os.geteuid() == 0 else "/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def as_qemu_would_run(spec: DomainSpec, folder: Path) -> dict[str, object]:
    (folder / "spec").write_bytes(pickle.dumps(spec))
    command = [sys.executable, "-m", "tests.fakes.snp_host", str(folder / "root"), str(folder / "spec")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def snp_object(argv: list[str]) -> dict[str, object]:
    objects = [json.loads(argv[i + 1]) for i, word in enumerate(argv) if word == "-object" and argv[i + 1][0] == "{"]
    (found,) = [item for item in objects if item["qom-type"] == "sev-snp-guest"]
    return dict(found)


def spec_of(bundle: Bundle) -> DomainSpec:
    digest = bundle.manifest.launch_digest(Mode.PRODUCTION, "EPYC-Genoa", 4)
    block = IdBlock(digest=digest, policy=GuestPolicy(0x30000))
    auth = sign_launch(block, ec.derive_private_key(7, ec.SECP384R1()), ec.derive_private_key(11, ec.SECP384R1()))
    return replace(
        SPEC,
        vcpus=4,
        host_data=HOST_DATA.hex(),
        firmware=str(bundle.firmware),
        kernel=str(bundle.kernel),
        initrd=str(bundle.initrd),
        cmdline=bundle.cmdline(Mode.PRODUCTION),
        disks=(replace(SPEC.disks[0], path=str(bundle.rootfs)),),
        launch=SnpLaunch(machine="pc-q35-10.0", cbitpos=51, reduced_phys_bits=1),
        identity=LaunchIdentity(block=block, auth=auth),
    )


@pytest.mark.image
def test_the_digest_of_what_libvirt_would_run_is_the_expected_one(bundle: Bundle, folder: Path, golden) -> None:
    spec = spec_of(bundle)
    found = as_qemu_would_run(spec, folder)
    assert found["launch_security"] == ["sev", "sev-snp"]
    assert found["cbitpos"] == 51
    argv = found["argv"]
    assert isinstance(argv, list)
    assert spec.identity is not None

    snp = snp_object(argv)
    golden("sev-snp-guest.json", json.dumps({**snp, "id-auth": "-", "id-block": "-"}, indent=1, sort_keys=True) + "\n")
    assert base64.b64decode(str(snp["id-block"])) == spec.identity.block.encode()
    assert base64.b64decode(str(snp["id-auth"])) == spec.identity.auth.encode()
    assert base64.b64decode(str(snp["host-data"])) == HOST_DATA

    # Everything that is measured, from the arguments alone.
    firmware, kernel, initrd = (Path(option(argv, name)).read_bytes() for name in ("-bios", "-kernel", "-initrd"))
    cpu = option(argv, "-cpu")
    vcpus = int(option(argv, "-smp").split(",", 1)[0])
    hashes = kernel_hashes(kernel, initrd, option(argv, "-append"))
    measured = launch_digest(firmware, hashes=hashes, cpu=cpu, vcpus=vcpus)
    assert measured == bundle.manifest.launch_digest(Mode.PRODUCTION, "EPYC-Genoa", 4) == spec.identity.block.digest

    machine = option(argv, "-machine").split(",")
    assert machine[0] == "pc-q35-10.0"
    assert {"smm=off", "vmport=off", "kernel_irqchip=split", "confidential-guest-support=lsec0"} <= set(machine)
    devices = [json.loads(argv[i + 1]) for i, word in enumerate(argv) if word == "-device"]
    dma = [
        device
        for device in devices
        if str(device["driver"]).startswith("virtio-") and device["driver"].endswith("-pci")
    ]
    assert dma
    assert all(device.get("iommu_platform") for device in dma)
    assert not [device for device in devices if "balloon" in device["driver"] or device["driver"] == "loader"]


@pytest.mark.image
def test_qemu_reads_the_launch_and_stops_where_the_kernel_would_have_to_act(bundle: Bundle, folder: Path) -> None:
    argv = as_qemu_would_run(spec_of(bundle), folder)["argv"]
    assert isinstance(argv, list)
    snp = snp_object(argv)

    def tried(**changes: object) -> str:
        command = [
            argv[next(i for i, word in enumerate(argv) if "qemu-system" in word)],
            *("-nodefaults", "-display", "none", "-machine", "q35,confidential-guest-support=lsec0", "-accel", "tcg"),
            *("-object", json.dumps({**snp, **changes})),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        return done.stderr

    assert "KVM" in tried()
    assert "parameter length" in tried(**{"id-block": base64.b64encode(bytes(95)).decode()})
    assert "parameter length" in tried(**{"host-data": base64.b64encode(bytes(31)).decode()})
    assert "nonsense" in tried(nonsense=1)
