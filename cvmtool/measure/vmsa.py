# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The initial state of a virtual CPU, as the page that the launch measures, and the CPU models' signatures.

Zone: measure (shared mathematics). Pure: no I/O.
Spec: AMD APM volume 2, appendix B (VMCB state save area, SEV-ES layout); QEMU and KVM for the values.

All that is not named here is zero. The values are those that KVM and the virtual machine monitor set before the first
instruction; one wrong bit gives another digest, so each profile is checked against published digests.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum

from cvmtool.errors import ConfigError

VMSA_BYTES = 4096
BSP_EIP = 0xFFFFFFF0
"""Where the first virtual CPU starts: the x86 reset vector."""

GUEST_FEATURES_SNP = 1
"""Bit 0 of SEV_FEATURES, SNPActive; without it the processor refuses to run the guest as SNP."""


class Vmm(StrEnum):
    """Who prepares the virtual CPU. `qemu-legacy`: Linux before 6.10 (KVM_SEV_INIT), whose FPU state is zero."""

    QEMU = "qemu"
    QEMU_LEGACY = "qemu-legacy"
    EC2 = "ec2"
    EC2_RDX0 = "ec2-rdx0"
    GCE = "gce"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Profile:
    """Where monitors differ. `rdx` None: the CPU signature."""

    cs_bsp: int = 0x9B
    cs_ap: int = 0x9B
    ss: int = 0x93
    tr: int = 0x8B
    g_pat: int = 0x0007_0406_0007_0406
    rdx: int | None = None
    mxcsr: int = 0x1F80
    fcw: int = 0x37F


_PROFILES = {
    Vmm.QEMU: _Profile(),
    Vmm.QEMU_LEGACY: _Profile(mxcsr=0, fcw=0),
    Vmm.EC2: _Profile(cs_bsp=0x9A, ss=0x92, tr=0x83, rdx=0x600, mxcsr=0, fcw=0),
    # An AWS hardware report of 2023 has this value; 0x600 is what newer calculators use.
    Vmm.EC2_RDX0: _Profile(cs_bsp=0x9A, ss=0x92, tr=0x83, rdx=0, mxcsr=0, fcw=0),
    Vmm.GCE: _Profile(g_pat=0x0007_0106, rdx=0x600, mxcsr=0, fcw=0),
}


def signature_of(family: int, model: int, stepping: int) -> int:
    """Return CPUID leaf 1 EAX of a family above 0xF (AMD 25481)."""
    return (family - 0xF) << 20 | (model >> 4) << 16 | 0xF << 8 | (model & 0xF) << 4 | stepping


def _models(name: str, signature: int, versions: int, *extra: str) -> dict[str, int]:
    return dict.fromkeys((name, *(f"{name}-v{number}" for number in range(1, versions + 1)), *extra), signature)


CPU_SIGNATURES: dict[str, int] = {
    **_models("EPYC", signature_of(23, 1, 2), 4, "EPYC-IBPB"),
    **_models("EPYC-Rome", signature_of(23, 49, 0), 4),
    **_models("EPYC-Milan", signature_of(25, 1, 1), 3),
    **_models("EPYC-Genoa", signature_of(25, 17, 0), 2),
    **_models("EPYC-Turin", signature_of(26, 0, 0), 0),
}
"""QEMU's CPU models -> CPUID leaf 1 EAX. `-cpu host` has the signature of the host's own processor: give the number."""


def cpu_signature(cpu: str | int) -> int:
    """Return CPUID leaf 1 EAX of a QEMU CPU model, or check a number that is one already.

    Raises:
        ConfigError: an unknown model, or a number that is not 32 bits.
    """
    if isinstance(cpu, int):
        if not 0 < cpu < 1 << 32:
            raise ConfigError(f"cpu signature is {cpu:#x}; required: cpuid leaf 1 eax, 32 bits, not zero")
        return cpu
    try:
        return CPU_SIGNATURES[cpu]
    except KeyError:
        raise ConfigError(
            f"cpu model is {cpu!r}; required: one of {', '.join(CPU_SIGNATURES)}",
            hint="for another model give its CPUID leaf 1 EAX as a number",
        ) from None


def vmsa_page(*, eip: int, bsp: bool, signature: int, guest_features: int, vmm: Vmm) -> bytes:
    """Return the 4096 bytes of a virtual CPU that starts at `eip` (32 bits): the boot processor if `bsp`."""
    profile = _PROFILES[vmm]
    page = bytearray(VMSA_BYTES)
    for offset, selector, attributes, base in (
        (0x000, 0, 0x93, 0),  # es
        (0x010, 0xF000, profile.cs_bsp if bsp else profile.cs_ap, eip & 0xFFFF_0000),  # cs
        (0x020, 0, profile.ss, 0),  # ss
        (0x030, 0, 0x93, 0),  # ds
        (0x040, 0, 0x93, 0),  # fs
        (0x050, 0, 0x93, 0),  # gs
        (0x060, 0, 0, 0),  # gdtr
        (0x070, 0, 0x82, 0),  # ldtr
        (0x080, 0, 0, 0),  # idtr
        (0x090, 0, profile.tr, 0),  # tr
    ):
        struct.pack_into("<HHIQ", page, offset, selector, attributes, 0xFFFF, base)
    for offset, value in (
        (0x0D0, 0x1000),  # efer: KVM turns SVME on
        (0x148, 0x40),  # cr4: KVM turns MCE on
        (0x158, 0x10),  # cr0
        (0x160, 0x400),  # dr7
        (0x168, 0xFFFF_0FF0),  # dr6
        (0x170, 0x2),  # rflags
        (0x178, eip & 0xFFFF),  # rip
        (0x268, profile.g_pat),
        (0x310, signature if profile.rdx is None else profile.rdx),
        (0x3B0, guest_features),
        (0x3E8, 0x1),  # xcr0
    ):
        struct.pack_into("<Q", page, offset, value)
    struct.pack_into("<I", page, 0x408, profile.mxcsr)
    struct.pack_into("<H", page, 0x410, profile.fcw)
    return bytes(page)
