# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cvmtool.errors import ConfigError
from cvmtool.flows.launch import Launch, Site, parse_site
from cvmtool.formats.job import Resources
from cvmtool.formats.manifest import Mode
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.host.domain import USER_NETWORK, Placement
from cvmtool.host.gpu import DeviceAccess, Gpu
from tests.unit.host.test_snp_domain import LAUNCH as SNP

GPU = Gpu(address="0000:41:00.0")
BUNDLE = SimpleNamespace(manifest=SimpleNamespace(name="base"), cmdline=lambda _mode: "console=ttyS0")
RESOURCES = Resources(vcpus=2, memory_mib=1024, cpu="EPYC-Genoa")
LAUNCH = Launch(
    label="job",
    bundle=BUNDLE,
    mode=Mode.PRODUCTION,
    host_data=bytes(range(32)),
    policy=GuestPolicy(0x30000),
    resources=RESOURCES,
    packs=(),
)


def test_a_site_is_read_as_it_is_written():
    site = parse_site(pin="8,9", numa_node=1, hugepages_kib=2048, gpus=["0000:41:00.0"])
    assert site == Site(placement=Placement(cpus=(8, 9), numa_node=1, hugepages_kib=2048), gpus=(GPU,))
    assert parse_site(pin=None, numa_node=None, hugepages_kib=None, gpus=()) == Site()


@pytest.mark.parametrize("pin", ["", "8,", "a", "-1", "8 9", "1" * 6, "\u0661"])
def test_what_is_no_host_cpu_is_named(pin):
    with pytest.raises(ConfigError, match="host CPUs are required"):
        parse_site(pin=pin, numa_node=None, hugepages_kib=None, gpus=())


def test_a_gpu_that_is_no_address_is_named():
    with pytest.raises(ConfigError, match="GPU address"):
        parse_site(pin=None, numa_node=None, hugepages_kib=None, gpus=["41:00"])


@pytest.mark.parametrize(("wanted", "given"), [(0, (GPU,)), (1, ()), (2, (GPU,))])
def test_a_machine_gets_as_many_gpus_as_its_job_wants(wanted, given):
    with pytest.raises(ConfigError, match=f"{len(given)} GPUs of the host are named; the job wants {wanted}"):
        replace(LAUNCH, resources=replace(RESOURCES, gpus=wanted), gpus=given)


def test_a_spec_is_below_its_directory_and_has_the_gpus():
    launch = replace(LAUNCH, resources=replace(RESOURCES, gpus=1), gpus=(GPU,))
    spec = launch.spec("m", "/host/m", emulator="/qemu", launch=SNP, access=DeviceAccess.IOMMUFD)
    assert {spec.firmware, spec.kernel, spec.initrd, spec.console} == {
        f"/host/m/{name}" for name in ("firmware.fd", "vmlinuz", "initrd", "console.log")
    }
    assert (spec.gpus, spec.device_access) == ((GPU,), DeviceAccess.IOMMUFD)
    assert (spec.host_data, spec.policy) == (bytes(range(32)).hex(), "0x30000")


def test_a_card_is_for_a_guest_that_wants_one():
    for network, cards in ((False, ()), (True, USER_NETWORK)):
        launch = replace(LAUNCH, resources=replace(RESOURCES, gpus=0), network=network)
        assert launch.spec("m", "/host/m", emulator="/qemu", launch=SNP).cards == cards
