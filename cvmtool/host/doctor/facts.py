# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What is known of a host, as values. Every one of them is the host's claim; none is trusted to be more than a hint.

Zone: host. Pure: no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmtool.formats.tcb import Cpuid
from cvmtool.host.doctor.source import Claim, FileStat

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The first processor of /proc/cpuinfo; `flags` are the kernel's names."""

    vendor: str
    name: str
    cpuid: Cpuid
    flags: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AsidRange:
    """How kvm_amd shares out ASIDs: `state` is `enabled`, `disabled` or `unusable`; from `first` to `last`."""

    state: str
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLog:
    """The lines of the kernel's log that speak of SEV-SNP. A message that is None was not seen.

    `whole`: the log reaches back to the boot, so that a message which is not there was never written.
    `rmp_size`: bytes of a contiguous RMP table; `rmp_segmented`: it is in segments, whose sizes the kernel checked itself.
    """

    whole: bool
    rmp_size: int | None
    rmp_segmented: bool
    rmp_error: str | None
    iommu_snp: bool
    iommu_error: str | None
    psp: bool
    psp_error: str | None
    sev_error: str | None
    """Of plain SEV alone."""
    snp_api: Version | None
    """Major, minor, build of the firmware that SNP was initialised with."""
    sev_api: Version | None
    asids: dict[str, AsidRange]
    """By `SEV`, `SEV-ES`, `SEV-SNP`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvmAmd:
    """Parameters of the kvm_amd module, True for `Y` or `1`; None where the module has no such parameter."""

    sev: bool | None
    sev_es: bool | None
    sev_snp: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformStatus:
    """SNP_PLATFORM_STATUS (AMD 56860, STRUCT_PLATFORM_STATUS): TCBs are the 8 bytes as they stand there."""

    api: Version
    initialised: bool
    rmp_initialised: bool
    mask_chip_id: bool
    mask_chip_key: bool
    guests: int
    current_tcb: bytes
    reported_tcb: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Asids:
    """SEV-ES and SEV-SNP guests share `total` ASIDs, of which `used` are taken."""

    total: int
    used: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """What QEMU says of itself over QMP."""

    version: Version
    package: str
    confidential: frozenset[str]
    """Objects that implement confidential-guest-support."""
    sev: tuple[int, int] | None
    """C-bit position and reduced physical address bits, if query-sev-capabilities answers."""
    sev_problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Libvirt:
    """What libvirt says of itself; `launch_security` as in its domain capabilities for KVM."""

    version: Version
    launch_security: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """The libvirt daemon's process: `memlock` bytes it may lock (None: without limit), `may_raise` that limit itself."""

    memlock: int | None
    may_raise: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """In KiB, as in /proc/meminfo. `huge` is set aside for huge pages, `huge_free` of it is used by nobody."""

    total: int
    available: int
    huge: int
    huge_free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """An NVIDIA function on the PCI bus, the driver it is bound to (empty: none), and its IOMMU group's size."""

    slot: str
    driver: str
    group: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Everything that was read of a host."""

    cpu: Claim[Cpu]
    release: Claim[str]
    cmdline: Claim[tuple[str, ...]]
    log: Claim[KernelLog]
    syscfg: Claim[int]
    """MSR C001_0010 of the first processor."""
    modules: Claim[frozenset[str]]
    kvm_amd: Claim[KvmAmd]
    asids: Claim[Asids]
    dev_sev: Claim[FileStat]
    dev_kvm: Claim[FileStat]
    qemu: Claim[Qemu]
    daemon: Claim[Daemon]
    memory: Claim[Memory]
    disk: Claim[int]
    """Free bytes where machines are kept."""
    gpus: Claim[tuple[Gpu, ...]]
    skew: Claim[float]
    """By how many seconds the host's clock is ahead of the owner's."""
    synchronised: Claim[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """What is found by doing it, on the machine itself alone."""

    kvm: Claim[str]
    """A value: a guest ran; a problem: why it did not."""
    tcg: Claim[str]
    platform: Claim[PlatformStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """A guest firmware and what the owner found in it: a `problem`, or none."""

    path: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerSide:
    """What the owner knows and the host is measured by."""

    uid: int
    """Of whoever starts the machines, 0 where libvirt's system daemon does it."""
    groups: frozenset[int]
    remote: bool
    libvirt: Claim[Libvirt]
    firmware: tuple[Firmware, ...]
    shortfalls: tuple[str, ...] | None
    """How the platform's TCB falls short of the floors; None where no TCB was read."""
    key_service: Claim[str]
    memory_mib: int
    disk_bytes: int
    """What the smallest useful machine needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that the checks look at."""

    host: HostFacts
    trials: Trials
    owner: OwnerSide
