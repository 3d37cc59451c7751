# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What libvirt would tell QEMU of a machine with GPUs, on a machine without any (see test_snp_launch)."""

import base64
import json
from dataclasses import replace

import pytest

from cvmtool.flows.launch import Site
from cvmtool.flows.prepare import signed_launch
from cvmtool.formats.manifest import Mode
from cvmtool.host.gpu import DeviceAccess, Gpu
from cvmtool.image.bundle import load_bundle
from cvmtool.owner.keystore import generate_keys
from tests.scenario.test_snp_launch import as_qemu_would_run, folder, snp_object  # noqa: F401 - a fixture
from tests.unit.formats.test_machine import MANIFEST
from tests.unit.host.test_snp_domain import LAUNCH, SPEC
from tests.unit.image.images import make_image

pytestmark = pytest.mark.vm

GPUS = (Gpu(address="0000:41:00.0"), Gpu(address="0000:c1:00.0"))


def options(argv, name):
    return [argv[at + 1] for at, word in enumerate(argv) if word == name]


def devices(argv):
    return [json.loads(text) for text in options(argv, "-device") if text[0] == "{"]


def test_qemu_is_told_of_the_gpus_of_a_machine_without_a_job(folder):  # noqa: F811
    manifest = replace(MANIFEST, resources=replace(MANIFEST.resources, gpus=len(GPUS)))
    bundle = load_bundle(make_image(folder / "image"))
    launch = signed_launch(manifest, bundle, Mode.PRODUCTION, generate_keys(), site=Site(gpus=GPUS))
    spec = launch.spec("one", str(folder), emulator=SPEC.emulator, launch=LAUNCH, access=DeviceAccess.VFIO)
    argv = as_qemu_would_run(spec, folder)["argv"]
    cards = [device["host"] for device in devices(argv) if device["driver"] == "vfio-pci"]
    assert cards == [gpu.address for gpu in GPUS]
    assert base64.b64decode(snp_object(argv)["host-data"]) == manifest.host_data


@pytest.mark.parametrize("access", [DeviceAccess.IOMMUFD_BY_QEMU, DeviceAccess.VFIO])
def test_qemu_is_told_of_each_gpu_and_its_port(access, folder):  # noqa: F811
    argv = as_qemu_would_run(replace(SPEC, gpus=GPUS, device_access=access), folder)["argv"]
    all_devices = devices(argv)

    ports = [device for device in all_devices if device["driver"] == "pcie-root-port"]
    cards = [device for device in all_devices if device["driver"] == "vfio-pci"]
    assert [card["host"] for card in cards] == [gpu.address for gpu in GPUS]
    assert all(card["rombar"] == 0 for card in cards)
    own = {port["id"]: port for port in ports}
    assert len({card["bus"] for card in cards}) == len(cards)
    assert all(own[card["bus"]]["hotplug"] is False for card in cards)
    shared = {device.get("bus") for device in all_devices if device not in cards}
    assert not shared & {card["bus"] for card in cards}, "a GPU is alone behind its port"

    assert options(argv, "-fw_cfg") == ["name=opt/ovmf/X-PciMmio64Mb,string=524288"]
    by_qemu = access is DeviceAccess.IOMMUFD_BY_QEMU
    assert ("iommufd,id=iommufd0" in options(argv, "-object")) is by_qemu
    assert {card.get("iommufd") for card in cards} == {"iommufd0" if by_qemu else None}
