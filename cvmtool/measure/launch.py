# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The launch digest: what MEASUREMENT must be for a given firmware, kernel, initrd, command line and virtual CPU.

Zone: measure (shared mathematics). Pure: no I/O.
Spec: AMD 56860 SEV-SNP Firmware ABI, SNP_LAUNCH_UPDATE (PAGE_INFO); QEMU target/i386/sev.c for the order.

The digest starts as 48 zero bytes. Each 4 KiB page that the launch adds turns it into SHA-384(PAGE_INFO), where

    PAGE_INFO (112 bytes) = digest[48] | contents[48] | u16 112 | u8 page type | 5 zero bytes | u64 guest address

Order: firmware pages upwards, metadata sections as the firmware lists them, then one VMSA page a virtual CPU. So the
digest for n virtual CPUs is a step on the way to that for n + 1: one pass gives them all.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from cvmtool.errors import ConfigError
from cvmtool.measure.hashes import TABLE_BYTES, KernelHashes
from cvmtool.measure.ovmf import PAGE_SIZE, Firmware, Section, SectionKind, parse_firmware
from cvmtool.measure.vmsa import BSP_EIP, GUEST_FEATURES_SNP, Vmm, cpu_signature, vmsa_page

DIGEST_BYTES = 48
MAX_VCPUS = 4096
VMSA_GPA = 0xFFFF_FFFF_F000
"""Where KVM says a VMSA page is: the highest page of a 48-bit address space."""

_ZERO = bytes(DIGEST_BYTES)
_PAGE_INFO = struct.Struct("<48s48sHBB3xxQ")
_PAGE_INFO_BYTES = 112


class PageType(IntEnum):
    """PAGE_TYPE of SNP_LAUNCH_UPDATE."""

    NORMAL = 1
    VMSA = 2
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPage:
    """One page of the launch: its type, guest address, and `contents` (48 bytes, zero when the type has none)."""

    kind: PageType
    gpa: int
    contents: bytes


_SECTION_PAGES = {
    SectionKind.SEC_MEM: PageType.ZERO,
    SectionKind.SECRETS: PageType.SECRETS,
    SectionKind.CPUID: PageType.CPUID,
    SectionKind.SVSM_CAA: PageType.ZERO,
}


def extend(digest: bytes, page: LaunchPage) -> bytes:
    """Return the launch digest (48 bytes) after `page` was added to `digest`."""
    info = _PAGE_INFO.pack(digest, page.contents, _PAGE_INFO_BYTES, page.kind, 0, page.gpa)
    return hashlib.sha384(info).digest()


def extend_with_equal(digest: bytes, page: LaunchPage, count: int) -> Iterator[bytes]:
    """Yield the launch digests (48 bytes) after 1, 2, ... `count` pages like `page` were added to `digest`."""
    sha384 = hashlib.sha384
    behind = _PAGE_INFO.pack(_ZERO, page.contents, _PAGE_INFO_BYTES, page.kind, 0, page.gpa)[DIGEST_BYTES:]
    for _ in range(count):
        digest = sha384(digest + behind).digest()
        yield digest


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareSeed:
    """All that a launch digest needs of a firmware image: what it says of itself, and the digest after its pages.

    `digest`: 48 bytes, after every page of the image and before anything else. It depends on neither kernel nor CPUs, so it
    is worked out once for an image; others publish it as the "OVMF hash".
    """

    firmware: Firmware
    digest: bytes


def firmware_seed(firmware: bytes) -> FirmwareSeed:
    """Measure the pages of the firmware image `firmware` (unverified bytes), upwards.

    Raises:
        FormatError: `firmware` is malformed.
    """
    parsed = parse_firmware(firmware)
    digest = _ZERO
    known: dict[bytes, bytes] = {}  # four pages in five are repeats (0xFF)
    pack, sha384 = _PAGE_INFO.pack, hashlib.sha384
    gpa = parsed.gpa
    for offset in range(0, len(firmware), PAGE_SIZE):
        page = firmware[offset : offset + PAGE_SIZE]
        contents = known.get(page)
        if contents is None:
            contents = known[page] = sha384(page).digest()
        digest = sha384(pack(digest, contents, _PAGE_INFO_BYTES, PageType.NORMAL, 0, gpa + offset)).digest()
    return FirmwareSeed(firmware=parsed, digest=digest)


def section_pages(firmware: Firmware, hashes: KernelHashes | None, vmm: Vmm) -> Iterator[LaunchPage]:
    """Yield the pages of the metadata sections, in the order in which the launch adds them behind the firmware.

    Raises:
        ConfigError: `hashes` are given and the firmware would not measure them.
    """
    require_kernel_hashes(firmware, hashes)
    # EC2 adds the CPUID page after every other section.
    cpuid_last = vmm in (Vmm.EC2, Vmm.EC2_RDX0)
    ordered = sorted(firmware.sections, key=lambda s: cpuid_last and s.kind is SectionKind.CPUID)
    for section in ordered:
        yield from _section_pages(firmware, section, hashes, vmm)


def image_digest(firmware: bytes | FirmwareSeed, hashes: KernelHashes | None, vmm: Vmm) -> bytes:
    """Return the digest (48 bytes) after everything that does not depend on the virtual CPUs.

    Raises:
        FormatError: `firmware` is malformed.
        ConfigError: `hashes` are given and the firmware would not measure them.
    """
    seed = seed_of(firmware)
    digest = seed.digest
    for page in section_pages(seed.firmware, hashes, vmm):
        digest = extend(digest, page)
    return digest


def seed_of(firmware: bytes | FirmwareSeed) -> FirmwareSeed:
    """Return the seed of a firmware that may be one already.

    Raises:
        FormatError: `firmware` is malformed.
    """
    return firmware if isinstance(firmware, FirmwareSeed) else firmware_seed(firmware)


def require_kernel_hashes(firmware: Firmware, hashes: KernelHashes | None) -> None:
    """Refuse a kernel with a firmware that would boot it unmeasured.

    Raises:
        ConfigError: `hashes` are given, and the firmware lacks the table, its room or the measured section.
    """
    if hashes is None:
        return
    if not firmware.has_kernel_hashes:
        raise ConfigError(
            "firmware has no SNP_KERNEL_HASHES section, so kernel, initrd and command line would not be measured",
            hint="use OVMF.amdsev.fd (Debian package ovmf-amdsev)",
        )
    if firmware.hash_table_size < TABLE_BYTES:
        raise ConfigError(f"firmware hash table has {firmware.hash_table_size} bytes; required: {TABLE_BYTES}")


def _section_pages(firmware: Firmware, section: Section, hashes: KernelHashes | None, vmm: Vmm) -> Iterator[LaunchPage]:
    kind, contents = PageType.ZERO, _ZERO
    if section.kind is not SectionKind.KERNEL_HASHES:
        kind = _SECTION_PAGES[section.kind]
        if section.kind is SectionKind.SEC_MEM and vmm is Vmm.GCE:
            kind = PageType.UNMEASURED
    elif hashes is not None and firmware.hash_table_gpa is not None:
        offset = firmware.hash_table_gpa - section.gpa
        page = (bytes(offset) + hashes.table()).ljust(PAGE_SIZE, b"\0")
        kind, contents = PageType.NORMAL, hashlib.sha384(page).digest()
    for gpa in range(section.gpa, section.gpa + section.size, PAGE_SIZE):
        yield LaunchPage(kind=kind, gpa=gpa, contents=contents)


def vcpu_pages(reset_eip: int, *, cpu: str | int, vcpus: int, guest_features: int, vmm: Vmm) -> Iterator[LaunchPage]:
    """Yield one VMSA page a virtual CPU: the boot processor first, then `vcpus` - 1 equal application processors.

    Raises:
        ConfigError: `cpu`, `vcpus` or `guest_features` cannot be those of an SNP guest.
    """
    signature = cpu_signature(cpu)
    if not 1 <= vcpus <= MAX_VCPUS:
        raise ConfigError(f"vcpus is {vcpus}; required: 1 to {MAX_VCPUS}")
    if not 0 <= guest_features < 1 << 64 or not guest_features & GUEST_FEATURES_SNP:
        raise ConfigError(f"guest features is {guest_features:#x}; required: 64 bits with bit 0 (snp active) set")
    for number in range(min(vcpus, 2)):
        eip = reset_eip if number else BSP_EIP
        page = vmsa_page(eip=eip, bsp=not number, signature=signature, guest_features=guest_features, vmm=vmm)
        entry = LaunchPage(kind=PageType.VMSA, gpa=VMSA_GPA, contents=hashlib.sha384(page).digest())
        for _ in range(vcpus - 1 if number else 1):
            yield entry


def launch_digests(
    firmware: bytes | FirmwareSeed,
    *,
    hashes: KernelHashes | None,
    cpu: str | int,
    vcpus: int,
    guest_features: int = GUEST_FEATURES_SNP,
    vmm: Vmm = Vmm.QEMU,
) -> tuple[bytes, ...]:
    """Return the launch digests (48 bytes each) for 1, 2, ... `vcpus` virtual CPUs, in one pass.

    `firmware` is the whole image, or its seed; `hashes` are those of the kernel that QEMU boots, None when it boots none;
    `cpu` is a QEMU model or a CPUID signature; `guest_features` is SEV_FEATURES (64 bits, 1 on Linux 6.8 and later).

    Raises:
        FormatError: `firmware` is malformed.
        ConfigError: a kernel with a firmware that would not measure it, or an impossible CPU, count or feature set.
    """
    seed = seed_of(firmware)
    reset_eip = seed.firmware.reset_eip
    vcpu = vcpu_pages(reset_eip, cpu=cpu, vcpus=vcpus, guest_features=guest_features, vmm=vmm)
    digest = image_digest(seed, hashes, vmm)
    digests: list[bytes] = []
    for page in vcpu:
        digest = extend(digest, page)
        digests.append(digest)
    return tuple(digests)


def launch_digest(
    firmware: bytes | FirmwareSeed,
    *,
    hashes: KernelHashes | None,
    cpu: str | int,
    vcpus: int,
    guest_features: int = GUEST_FEATURES_SNP,
    vmm: Vmm = Vmm.QEMU,
) -> bytes:
    """Return the launch digest (48 bytes) for exactly `vcpus` virtual CPUs, as `launch_digests` does."""
    return launch_digests(firmware, hashes=hashes, cpu=cpu, vcpus=vcpus, guest_features=guest_features, vmm=vmm)[-1]
