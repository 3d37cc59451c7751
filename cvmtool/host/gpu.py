# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""GPUs of the host that a confidential machine is given (PCI passthrough).

Zone: host. Pure.
Spec: libvirt domain XML, `hostdev`; QEMU `-object iommufd`; OVMF `opt/ovmf/X-PciMmio64Mb`.

Nothing of it is measured: no digest shows how many GPUs a machine has, behind which port they sit, or whether they are GPUs.
What is believed of a GPU comes from the GPU's own signed report (`cvmtool.owner.gpu`), after the guest's was appraised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cvmtool.errors import ConfigError

ADDRESS = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
MAX_GPUS = 8  # of one machine: what one NVSwitch board holds
_FIRST_SLOT = 0x10  # of the ports on the root bus; lower ones are libvirt's to give, 0x1d and up are the chipset's
_WINDOW_MIB = 262_144  # of 64-bit MMIO for each GPU: the largest has a BAR of 256 GiB
_MEMLOCK_SPARE_MIB = 4_096
_NATIVE_IOMMUFD = 12_001_000  # libvirt 12.1.0, as libvirt counts versions


class DeviceAccess(StrEnum):
    """How QEMU gets at a device's memory."""

    IOMMUFD = "iommufd"
    """libvirt opens iommufd and hands it on (libvirt 12.1 and later)."""
    IOMMUFD_BY_QEMU = "iommufd-by-qemu"
    """QEMU opens iommufd itself, which its user and cgroup must allow."""
    VFIO = "vfio"
    """VFIO's own containers, which pin through the locked memory limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU by its address on the host: domain:bus:slot.function, such as 0000:41:00.0."""

    address: str

    def __post_init__(self) -> None:
        if not ADDRESS.fullmatch(self.address):
            raise ConfigError(
                f"GPU address is {self.address[:64]!r}; one such as 0000:41:00.0 is required",
                hint="lspci -D -d 10de: lists NVIDIA's devices with their addresses",
            )

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Domain, bus, slot and function, each in hex behind 0x."""
        domain, bus, slot, function = self.address.replace(".", ":").split(":")
        return f"0x{domain}", f"0x{bus}", f"0x{slot}", f"0x{function}"


def parse_gpus(addresses: Sequence[str]) -> tuple[Gpu, ...]:
    """Read the GPUs of one machine as a user names them.

    Raises:
        ConfigError: one is malformed, there are too many, or one is there twice.
    """
    gpus = tuple(Gpu(address=address) for address in addresses)
    _require_possible(gpus)
    return gpus


def device_access(libvirt_version: int, *, iommufd: bool) -> DeviceAccess:
    """Choose how: `libvirt_version` as libvirt counts it (11.3.0 is 11003000); `iommufd`: whether the host has /dev/iommu."""
    if not iommufd:
        return DeviceAccess.VFIO
    return DeviceAccess.IOMMUFD if libvirt_version >= _NATIVE_IOMMUFD else DeviceAccess.IOMMUFD_BY_QEMU


def gpu_values(gpus: tuple[Gpu, ...], access: DeviceAccess, *, memory_mib: int) -> dict[str, object]:
    """Return what the domain template needs to know of the GPUs.

    Raises:
        ConfigError: too many, or one twice.
    """
    _require_possible(gpus)
    return {
        "gpus": [
            {"source": gpu.parts, "bus": number, "slot": f"{_FIRST_SLOT + number - 1:#x}"}
            for number, gpu in enumerate(gpus, 1)
        ],
        "access": access.value,
        "mmio_window_mib": _WINDOW_MIB * len(gpus),
        # A limit for the cgroup too, which a confidential guest fills twice: with its private memory, and with what it shares.
        "memlock_mib": 2 * memory_mib + _MEMLOCK_SPARE_MIB,
    }


def _require_possible(gpus: tuple[Gpu, ...]) -> None:
    if len(gpus) > MAX_GPUS:
        raise ConfigError(f"the machine has {len(gpus)} GPUs; at most {MAX_GPUS} are allowed")
    twice = next((gpu.address for gpu in gpus if gpus.count(gpu) > 1), None)
    if twice is not None:
        raise ConfigError(f"the machine has the GPU {twice} twice")
