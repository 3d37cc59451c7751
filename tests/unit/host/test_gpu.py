# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.config import resources
from cvmtool.errors import ConfigError
from cvmtool.host.domain import render_domain
from cvmtool.host.gpu import DeviceAccess, Gpu, device_access, parse_gpus
from cvmtool.host.live import parse_live_domain, require_same
from tests.unit.host.test_domain import SPEC as DRY_RUN
from tests.unit.host.test_snp_domain import SPEC

TEMPLATES = resources("templates")
PAIR = (Gpu(address="0000:41:00.0"), Gpu(address="0001:c1:1f.7"))
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def render(gpus=PAIR, access=DeviceAccess.IOMMUFD_BY_QEMU):
    return render_domain(replace(SPEC, gpus=gpus, device_access=access), TEMPLATES)


def arguments(xml):
    return [arg.get("value") for arg in ET.fromstring(xml).iter(f"{QEMU}arg")]


@pytest.mark.parametrize("access", DeviceAccess)
def test_the_domain_is_the_golden_one(golden, access):
    golden(f"domain-gpu-{access}.xml", render(access=access))


@pytest.mark.parametrize("access", [DeviceAccess.IOMMUFD_BY_QEMU, DeviceAccess.VFIO])
def test_libvirts_own_schema_accepts_it(tmp_path, access):
    """The schema of libvirt 11; `iommufd='yes'` came with 12.1."""
    if not Path("/usr/share/libvirt/schemas/domain.rng").exists():
        pytest.skip("libvirt's schemas are not installed")
    file = tmp_path / "domain.xml"
    file.write_text(render(access=access))
    result = subprocess.run(["virt-xml-validate", str(file), "domain"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_gpu_sits_behind_a_port_of_its_own_without_hotplug():
    root = ET.fromstring(render())
    ports = root.findall("devices/controller[@model='pcie-root-port']")
    assert [port.find("target").get("hotplug") for port in ports] == ["off", "off"]
    assert len({port.find("address").get("slot") for port in ports}) == 2
    buses = {f"0x{int(port.get('index')):02x}" for port in ports}
    hostdevs = root.findall("devices/hostdev")
    assert {device.find("address").get("bus") for device in hostdevs} == buses
    assert {device.find("rom").get("bar") for device in hostdevs} == {"off"}
    assert {device.get("managed") for device in hostdevs} == {"yes"}
    assert hostdevs[1].find("source/address").attrib == {
        "domain": "0x0001",
        "bus": "0xc1",
        "slot": "0x1f",
        "function": "0x7",
    }


@pytest.mark.parametrize("count", [1, 8])
def test_the_window_for_their_memory_grows_with_them(count):
    gpus = tuple(Gpu(address=f"0000:{40 + n}:00.0") for n in range(count))
    assert f"name=opt/ovmf/X-PciMmio64Mb,string={262_144 * count}" in arguments(render(gpus))


def test_without_gpus_nothing_of_them_is_in_it():
    xml = render(gpus=())
    assert xml == render_domain(SPEC, TEMPLATES)
    assert not {"hostdev", "memtune", f"{QEMU}commandline"} & {element.tag for element in ET.fromstring(xml).iter()}


def test_the_locked_memory_is_raised_where_vfio_counts_it():
    limit = ET.fromstring(render(access=DeviceAccess.VFIO)).find("memtune/hard_limit")
    assert (limit.get("unit"), int(limit.text)) == ("MiB", 2 * SPEC.memory_mib + 4096)
    for access in (DeviceAccess.IOMMUFD, DeviceAccess.IOMMUFD_BY_QEMU):
        assert ET.fromstring(render(access=access)).find("memtune") is None


def test_nothing_that_is_measured_changes():
    require_same(parse_live_domain(render()), SPEC)


@pytest.mark.parametrize(
    ("version", "iommufd", "access"),
    [
        (12_001_000, True, DeviceAccess.IOMMUFD),
        (12_000_000, True, DeviceAccess.IOMMUFD_BY_QEMU),
        (11_003_000, True, DeviceAccess.IOMMUFD_BY_QEMU),
        (12_001_000, False, DeviceAccess.VFIO),
    ],
)
def test_the_way_to_a_device_follows_from_the_host(version, iommufd, access):
    assert device_access(version, iommufd=iommufd) is access


@pytest.mark.parametrize(
    "address",
    ["", "41:00.0", "0000:41:00", "0000:41:00.8", "0000:41:20.0", "0000:41:00.0 ", "0000:41:0G.0", "0000:4A:00.0",
     "0000:41:00.0'/><x", "\u0660\u0660\u0660\u0660:41:00.0"],
)  # fmt: skip
def test_an_address_out_of_shape_is_refused(address):
    with pytest.raises(ConfigError, match="GPU address"):
        Gpu(address=address)


def test_one_twice_or_nine_are_refused():
    with pytest.raises(ConfigError, match="twice"):
        render((PAIR[0], PAIR[0]))
    with pytest.raises(ConfigError, match="at most 8"):
        render(tuple(Gpu(address=f"0000:{40 + n}:00.0") for n in range(9)))


def test_gpus_are_read_as_they_are_named():
    assert parse_gpus([gpu.address for gpu in PAIR]) == PAIR
    assert parse_gpus(()) == ()
    for addresses, complaint in (([PAIR[0].address] * 2, "twice"), (["x"], "GPU address")):
        with pytest.raises(ConfigError, match=complaint):
            parse_gpus(addresses)
    with pytest.raises(ConfigError, match="at most 8"):
        parse_gpus([f"0000:{40 + n}:00.0" for n in range(9)])


def test_a_dry_run_has_none():
    with pytest.raises(ConfigError, match="dry run"):
        render_domain(replace(DRY_RUN, gpus=PAIR), TEMPLATES)
