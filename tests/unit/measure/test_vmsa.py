# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import struct

import pytest

from cvmtool.errors import ConfigError
from cvmtool.measure.vmsa import BSP_EIP, CPU_SIGNATURES, VMSA_BYTES, Vmm, cpu_signature, vmsa_page


def page(**changes):
    arguments = {"eip": BSP_EIP, "bsp": True, "signature": 0xA10F10, "guest_features": 1, "vmm": Vmm.QEMU}
    return vmsa_page(**{**arguments, **changes})


def field(data, offset, layout):
    return struct.unpack_from(layout, data, offset)


def test_a_boot_processor_under_qemu():
    data = page()
    assert len(data) == VMSA_BYTES
    assert field(data, 0x010, "<HHIQ") == (0xF000, 0x9B, 0xFFFF, 0xFFFF0000)
    assert field(data, 0x178, "<Q") == (0xFFF0,)
    assert field(data, 0x310, "<Q") == (0xA10F10,)
    assert field(data, 0x3B0, "<Q") == (1,)
    assert field(data, 0x408, "<I") == (0x1F80,)
    assert field(data, 0x410, "<H") == (0x37F,)


def test_an_application_processor_starts_where_the_firmware_says():
    data = page(eip=0x80B004, bsp=False)
    assert field(data, 0x010, "<HHIQ") == (0xF000, 0x9B, 0xFFFF, 0x800000)
    assert field(data, 0x178, "<Q") == (0xB004,)


def test_the_boot_processor_alone_differs_on_ec2():
    assert field(page(vmm=Vmm.EC2), 0x012, "<H") == (0x9A,)
    assert field(page(vmm=Vmm.EC2, bsp=False), 0x012, "<H") == (0x9B,)


def test_every_profile_gives_another_page():
    assert len({page(vmm=vmm) for vmm in Vmm}) == len(Vmm)


@pytest.mark.parametrize(
    ("model", "signature"),
    [
        ("EPYC", 0x800F12),
        ("EPYC-v4", 0x800F12),
        ("EPYC-IBPB", 0x800F12),
        ("EPYC-Rome-v4", 0x830F10),
        ("EPYC-Milan-v3", 0xA00F11),
        ("EPYC-Genoa-v2", 0xA10F10),
        ("EPYC-Turin", 0xB00F00),
    ],
)
def test_signatures(model, signature):
    assert cpu_signature(model) == signature
    assert cpu_signature(signature) == signature


@pytest.mark.parametrize("cpu", ["host", "EPYC-v5", "EPYC-Turin-v1", "", 0, -1, 1 << 32])
def test_another_cpu_is_refused(cpu):
    with pytest.raises(ConfigError) as refusal:
        cpu_signature(cpu)
    assert refusal.value.message.startswith("cpu")


def test_a_refused_model_is_told_the_known_ones():
    with pytest.raises(ConfigError) as refusal:
        cpu_signature("EPIC")
    assert all(model in refusal.value.message for model in CPU_SIGNATURES)
