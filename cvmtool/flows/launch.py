# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What is to be launched, whatever the host: an image, what its report commits to, its size and its disks.

Zone: flows. Pure but for reading the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cvmtool.errors import BuildError, ConfigError
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.placing import FIRMWARE_FILE, INITRD_FILE, KERNEL_FILE, ROOTFS_FILE, pack_file
from cvmtool.formats.idblock import LaunchIdentity
from cvmtool.formats.job import Resources
from cvmtool.formats.manifest import Mode
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.host.capabilities import HostCapabilities, snp_launch
from cvmtool.host.domain import ROOT_SERIAL, USER_NETWORK, Disk, DomainSpec, Placement, Simulation, SnpLaunch
from cvmtool.host.gpu import DeviceAccess, Gpu, parse_gpus
from cvmtool.host.storage import CONSOLE_FILE, HASH_TABLE_FILE
from cvmtool.image.bundle import Bundle
from cvmtool.measure.hashes import KernelHashes, kernel_hashes
from cvmtool.measure.ovmf import parse_firmware

_MAX_CPU_DIGITS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Which parts of its host a machine gets."""

    placement: Placement = field(default_factory=Placement)
    gpus: tuple[Gpu, ...] = ()


def parse_site(*, pin: str | None, numa_node: int | None, hugepages_kib: int | None, gpus: Sequence[str]) -> Site:
    """Read a site as a user writes it: `pin` such as `8,9`, a host CPU for each virtual one; `gpus` by PCI address.

    Raises:
        ConfigError: one is malformed.
    """
    words = [] if pin is None else pin.split(",")
    if not all(word.isascii() and word.isdigit() and len(word) <= _MAX_CPU_DIGITS for word in words):
        raise ConfigError(f"the pinned CPUs are {(pin or '')[:80]!r}; numbers of host CPUs are required, such as 8,9")
    placement = Placement(cpus=tuple(map(int, words)), numa_node=numa_node, hugepages_kib=hugepages_kib)
    return Site(placement=placement, gpus=parse_gpus(gpus))


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A machine to be. `label`: what it is for, for people. `host_data`: 32 bytes, what its report commits to."""

    label: str
    bundle: Bundle
    mode: Mode
    host_data: bytes
    policy: GuestPolicy
    resources: Resources
    packs: tuple[SealedPack, ...]
    volumes: tuple[Disk, ...] = ()
    """Disks that outlive the machine. Their paths are the host's, and not below the machine's directory."""
    reachable: bool = False
    """Whether its manifest lets anybody reach into it while it runs, which takes ports."""
    network: bool = False
    """Whether the guest will want a network card: its manifest names destinations."""
    identity: LaunchIdentity | None = None
    """The owner's signature of the one digest that the firmware shall finish."""
    placement: Placement = field(default_factory=Placement)
    gpus: tuple[Gpu, ...] = ()
    """The host's GPUs that the machine is given; as many as `resources` wants."""

    def __post_init__(self) -> None:
        wanted = self.resources.gpus
        if self.mode is Mode.PRODUCTION and len(self.gpus) != wanted:
            raise ConfigError(
                f"{len(self.gpus)} GPUs of the host are named; the job wants {wanted}",
                hint="name each: --gpu 0000:41:00.0 (lspci -D -d 10de: on the host)",
            )

    @property
    def cmdline(self) -> str:
        """The measured command line."""
        return self.bundle.cmdline(self.mode)

    @property
    def hashes(self) -> KernelHashes:
        """What the firmware checks kernel, initrd and command line against."""
        return kernel_hashes(self.bundle.kernel.read_bytes(), self.bundle.initrd.read_bytes(), self.cmdline)

    def simulation(self, directory: str, *, accelerator: str) -> Simulation:
        """Return how a dry run is launched from a machine's `directory` on its host.

        Raises:
            BuildError: the firmware has no place for a kernel hash table.
        """
        gpa = parse_firmware(self.bundle.firmware.read_bytes()).hash_table_gpa
        if gpa is None:
            raise BuildError("the firmware has no place for a kernel hash table", hint="cvmtool image build --force")
        return Simulation(accelerator=accelerator, hash_table=f"{directory}/{HASH_TABLE_FILE}", hash_table_gpa=gpa)

    def confidential(self, host: HostCapabilities) -> SnpLaunch:
        """Return how it is launched on SEV-SNP hardware.

        Raises:
            HostError: the host has no SEV-SNP, or not the CPU model.
        """
        return snp_launch(host, cpu=self.resources.cpu)

    def spec(
        self,
        name: str,
        directory: str,
        *,
        emulator: str,
        launch: Simulation | SnpLaunch,
        access: DeviceAccess = DeviceAccess.VFIO,
    ) -> DomainSpec:
        """Describe the machine `name`; every path but the volumes' is below `directory`. Nothing is read from or written there."""
        disks = [Disk(path=f"{directory}/{ROOTFS_FILE}", serial=ROOT_SERIAL)]
        disks += [Disk(path=f"{directory}/{pack_file(pack)}", serial=pack.descriptor.serial) for pack in self.packs]
        disks += self.volumes
        return DomainSpec(
            name=name,
            job=self.label,
            image=self.bundle.manifest.name,
            emulator=emulator,
            host_data=self.host_data.hex(),
            policy=f"{self.policy.value:#x}",
            memory_mib=self.resources.memory_mib,
            vcpus=self.resources.vcpus,
            cpu=self.resources.cpu,
            firmware=f"{directory}/{FIRMWARE_FILE}",
            kernel=f"{directory}/{KERNEL_FILE}",
            initrd=f"{directory}/{INITRD_FILE}",
            cmdline=self.cmdline,
            disks=tuple(disks),
            cards=USER_NETWORK if self.network else (),
            console=f"{directory}/{CONSOLE_FILE}",
            launch=launch,
            identity=self.identity,
            placement=self.placement,
            gpus=self.gpus,
            device_access=access,
            reachable=self.reachable,
        )
