# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What is known to go wrong between two people who measure the same machine, or between a measurement and its launch.

Zone: measure (shared mathematics). Pure: no I/O.

Each deviation here was seen in practice, and says where. A search over them (`cvmtool.measure.explain`) is as good as this list:
what nobody has done yet stands not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Any

from cvmtool.measure.hashes import KernelHashes
from cvmtool.measure.launch import FirmwareSeed
from cvmtool.measure.vmsa import CPU_SIGNATURES, GUEST_FEATURES_SNP, Vmm, signature_of


class Part(StrEnum):
    """What of a launch may be another than expected, as JSON has it."""

    VCPUS = "vcpus"
    CPU = "cpu"
    FEATURES = "guest-features"
    VMM = "vmm"
    CMDLINE = "cmdline"
    MODE = "mode"
    INITRD = "initrd"
    KERNEL = "kernel"
    FIRMWARE = "firmware"
    IMAGE = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Every input of a launch digest.

    `kernel`, `initrd`, `cmdline`: SHA-256, 32 bytes, the command line's with its NUL; `kernel` None: none of the three is measured.
    `cpu`: CPUID leaf 1 EAX. `guest_features`: SEV_FEATURES.
    """

    firmware: FirmwareSeed
    kernel: bytes | None
    initrd: bytes
    cmdline: bytes
    cpu: int
    guest_features: int
    vmm: Vmm
    vcpus: int

    @property
    def hashes(self) -> KernelHashes | None:
        """What goes into the table that the firmware checks, None without a kernel."""
        if self.kernel is None:
            return None
        return KernelHashes(kernel=self.kernel, initrd=self.initrd, cmdline=self.cmdline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """One thing that is not as expected: `values` are fields of `Launch`; `actual` says it behind "launched with"."""

    part: Part
    actual: str
    values: Mapping[str, Any]


SILICON: dict[str, int] = {
    "Milan": signature_of(0x19, 0x01, 1),
    "Milan-X": signature_of(0x19, 0x01, 2),
    "Genoa": signature_of(0x19, 0x11, 1),
    "Genoa-X": signature_of(0x19, 0x11, 2),
    "Bergamo": signature_of(0x19, 0xA0, 1),
    "Bergamo or Siena": signature_of(0x19, 0xA0, 2),
    "Turin": signature_of(0x1A, 0x02, 1),
    "Turin Dense": signature_of(0x1A, 0x11, 0),
}
"""Processors on sale -> CPUID leaf 1 EAX: what `-cpu host` measures. Milan's and QEMU's EPYC-Milan are the same."""

FEATURE_NAMES: dict[int, str] = {
    0: "SNPActive",
    1: "vTOM",
    2: "ReflectVC",
    3: "RestrictedInjection",
    4: "AlternateInjection",
    5: "DebugSwap",
    6: "PreventHostIBS",
    7: "BTBIsolation",
    8: "VmplSSS",
    9: "SecureTSC",
    10: "VmgexitParameter",
    11: "PmcVirtualization",
    12: "IbsVirtualization",
    13: "GuestInterceptControl",
    14: "VmsaRegProt",
    15: "SmtProtection",
    16: "SecureAVIC",
    21: "IbpbOnEntry",
}
"""Bits of SEV_FEATURES (AMD APM volume 2, table B-4; those from 16 on as Linux names them)."""

MOST_FEATURES = 6
"""Bits of SEV_FEATURES that are tried together, besides SNPActive: no host is known to set more than two."""

COMMON_FEATURES = (
    0x1,  # what QEMU asks for since Linux 6.8
    0x21,  # DebugSwap: Linux 6.6 and 6.7 turn it on by themselves (AMDESE/AMDSEV issue 195); QEMU's debug-swap=on
    0x201,  # SecureTSC: QEMU's secure-tsc=on with Linux 6.16
    0x221,  # both
    0x9,  # RestrictedInjection: hosts patched for a Secure VM Service Module
    0x11,  # AlternateInjection: the same
    0x29,  # RestrictedInjection on a host that also turns DebugSwap on
    0x31,  # AlternateInjection on such a host
    0x81,  # BTBIsolation, patched hosts
    0x801,  # PmcVirtualization, patched hosts
    0x8001,  # SmtProtection, patched hosts
    0x10001,  # SecureAVIC: QEMU's secure-avic=on, with patched hosts
    0x10201,  # SecureAVIC and SecureTSC
    0x200001,  # IbpbOnEntry, patched hosts
    0x3,  # vTOM: not KVM's; monitors that emulate Hyper-V
)

ADDED_WORDS = (
    # to see it boot
    *("console=ttyS0", "console=ttyS0,115200", "console=ttyS0,115200n8", "console=hvc0", "console=tty0"),
    *("earlyprintk=serial", "earlyprintk=ttyS0", "earlycon", "debug", "ignore_loglevel", "loglevel=7", "nokaslr"),
    # what launch scripts add out of habit
    *("quiet", "ro", "rw", "panic=1", "panic=-1", "reboot=k", "acpi=off", "noapic"),
    # to get in
    *("init=/bin/sh", "init=/bin/bash", "rdinit=/bin/sh", "single", "rd.break", "systemd.debug-shell=1"),
    # edk2 adds it to the line that it has checked: behind, and before since 2025. So /proc/cmdline in the guest shows it.
    "initrd=initrd",
)

_PROCESSORS = ((0x19, (*range(0x20), *range(0xA0, 0xB0))), (0x1A, tuple(range(0x20))))
"""Family -> models of processors with SEV-SNP: Milan, Genoa, Bergamo and Siena; Turin."""


def features_text(features: int) -> str:
    """Return SEV_FEATURES as hex and names, without SNPActive, which every guest has."""
    bits = [bit for bit in range(64) if features >> bit & 1 and 1 << bit != GUEST_FEATURES_SNP]
    names = ", ".join(FEATURE_NAMES.get(bit, f"bit {bit}") for bit in bits)
    return f"SEV_FEATURES {features:#x} ({names or 'SNP alone'})"


def cpu_text(signature: int) -> str:
    """Return a CPU signature as hex, with the QEMU models and processors that have it."""
    models = [name for name, value in CPU_SIGNATURES.items() if value == signature and "-v" not in name]
    hosts = [f"-cpu host on {name}" for name, value in SILICON.items() if value == signature]
    names = ", ".join((*models, *hosts))
    return f"CPU signature {signature:#x}" + (f" ({names})" if names else "")


def vcpus_text(count: int) -> str:
    """Return a number of virtual CPUs in words."""
    return "1 vCPU" if count == 1 else f"{count} vCPUs"


VMM_TEXT = {
    Vmm.QEMU: "the initial CPU state of QEMU on Linux 6.10 or later (vmm qemu)",
    Vmm.QEMU_LEGACY: "the initial CPU state of QEMU on Linux before 6.10, its FPU zeroed (vmm qemu-legacy)",
    Vmm.EC2: "the initial CPU state of EC2 (vmm ec2)",
    Vmm.EC2_RDX0: "the initial CPU state of EC2 with rdx 0 (vmm ec2-rdx0)",
    Vmm.GCE: "the initial CPU state of Google's monitor (vmm gce)",
}


def virtual_cpus(host: int | None = None) -> tuple[Deviation, ...]:
    """Return CPU signatures, SEV_FEATURES and monitors, likely ones first. `host`: the signature of the report's processor."""
    signatures = dict.fromkeys((*((host,) if host else ()), *CPU_SIGNATURES.values(), *SILICON.values()))
    return (
        *(_cpu(signature) for signature in signatures),
        *(_features(features) for features in COMMON_FEATURES),
        *(Deviation(part=Part.VMM, actual=text, values={"vmm": vmm}) for vmm, text in VMM_TEXT.items()),
    )


def every_signature() -> Iterator[Deviation]:
    """Yield every signature that a processor with SEV-SNP may have: `-cpu host` on a stepping that no list has."""
    for family, models in _PROCESSORS:
        for model in models:
            for stepping in range(16):
                yield _cpu(signature_of(family, model, stepping))


def every_feature_set() -> Iterator[Deviation]:
    """Yield every set of at most `MOST_FEATURES` documented bits of SEV_FEATURES besides SNPActive, small sets first."""
    bits = [1 << bit for bit in FEATURE_NAMES if 1 << bit != GUEST_FEATURES_SNP]
    for count in range(MOST_FEATURES + 1):
        for chosen in combinations(bits, count):
            yield _features(GUEST_FEATURES_SNP | sum(chosen))


def boot_files() -> tuple[Deviation, ...]:
    """Return what may be missing of kernel, initrd and command line."""
    return (
        Deviation(
            part=Part.KERNEL,
            actual="no measured kernel, initrd and command line (kernel-hashes=off, or none given)",
            # All three: without a kernel the other two do not matter.
            values={"kernel": None, "initrd": b"", "cmdline": b""},
        ),
        Deviation(part=Part.INITRD, actual="no initrd", values={"initrd": hashlib.sha256(b"").digest()}),
    )


def command_lines(line: str) -> tuple[Deviation, ...]:
    """Return what people and programs make of the command line `line`."""
    found = {
        f"{line}\n": "a command line that ends in a line feed",
        f"{line} ": "a command line that ends in a space",
        f" {line}": "a command line that begins with a space",
        f" {line} ": "a command line with a space at both ends",
        f"{line}\r\n": "a command line that ends in carriage return and line feed",
        f'"{line}"': "a command line in double quotes",
        f"'{line}'": "a command line in single quotes",
        line.strip(): "a command line without the white space at its ends",
        " ".join(line.split()): "a command line with single spaces",
        "": "an empty command line",
    }
    for word in ADDED_WORDS:
        found.setdefault(f"{line} {word}".lstrip(), f"{word!r} added behind the command line")
        found.setdefault(f"{word} {line}".rstrip(), f"{word!r} added before the command line")
    words = line.split()
    for at, word in enumerate(words):
        found.setdefault(" ".join(words[:at] + words[at + 1 :]), f"a command line without {word!r}")
        # What a script leaves where one of its variables is empty.
        found.setdefault(" ".join((*words[:at], "", *words[at:])), f"a command line with two spaces before {word!r}")
    return (
        *(command_line(text, actual) for text, actual in found.items()),
        _cmdline(line.encode(), "a command line that was hashed without its closing NUL"),
        _cmdline(line.encode() + b"\0\0", "a command line that was hashed with two closing NULs"),
    )


def command_line(line: str, actual: str) -> Deviation:
    """Return another command line, `actual` in words."""
    return _cmdline(line.encode() + b"\0", actual)


def _cmdline(hashed: bytes, actual: str) -> Deviation:
    return Deviation(part=Part.CMDLINE, actual=actual, values={"cmdline": hashlib.sha256(hashed).digest()})


def _cpu(signature: int) -> Deviation:
    return Deviation(part=Part.CPU, actual=cpu_text(signature), values={"cpu": signature})


def _features(features: int) -> Deviation:
    return Deviation(part=Part.FEATURES, actual=features_text(features), values={"guest_features": features})
