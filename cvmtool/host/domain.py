# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Render the libvirt domain of a virtual machine: a dry run's, or an SEV-SNP one.

Zone: host. Pure but for reading the template. The only door to jinja2.
Both come from one template; what differs is the launch. libvirt accepts launches that no firmware starts, and some that
start something else than was meant, so what is measured is checked here before it is rendered, and read back after it was
defined (`cvmtool.host.live`).
"""

from __future__ import annotations

import re
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jinja2

from cvmtool.errors import ConfigError
from cvmtool.formats.channel import AGENT_PORT, CLIENT_PORTS, PSP_PORT
from cvmtool.formats.evidence import HOST_DATA_SIZE
from cvmtool.formats.idblock import LaunchIdentity
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.formats.wire import parse_hex, to_base64
from cvmtool.host.gpu import DeviceAccess, Gpu, gpu_values
from cvmtool.host.storage import VM_NAME

NAMESPACE = uuid.UUID("5d1a3c1e-6a55-4d0c-9c6f-0a6f0b3b9a57")  # of machine names; a name always has the same UUID
ROOT_SERIAL = "cvmtool-root"
USER_NETWORK = ("user",)
"""One card, behind which QEMU itself makes the connections that the guest asks for: nobody reaches in, and it takes no rights."""
MACHINE = re.compile(r"pc-q35-[0-9]{1,3}\.[0-9]{1,2}(\.[a-z0-9.-]{1,32})?")
"""A machine type with a version: the alias `q35` is another machine after each upgrade of QEMU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk, found in the guest by its serial."""

    path: str
    serial: str
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where on the host a machine runs. Nothing of it is measured: it is between the owner and the host's timing channels."""

    cpus: tuple[int, ...] = ()
    """The host CPU of each virtual one; empty leaves it to the host."""
    numa_node: int | None = None
    hugepages_kib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """The launch of a dry run: what `sev-snp-guest` would place in memory, QEMU's generic loader places."""

    hash_table: str
    hash_table_gpa: int
    accelerator: str = "qemu"
    """libvirt domain type: `qemu` (TCG) or `kvm`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpLaunch:
    """The launch of an SEV-SNP machine. `machine` is a versioned type; the bit positions are the host's to know."""

    machine: str
    cbitpos: int
    reduced_phys_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSpec:
    """A machine. Paths are the host's. `host_data`: 64 hex digits; `policy`: GUEST_POLICY as 0x hex."""

    name: str
    job: str
    image: str
    emulator: str
    host_data: str
    policy: str
    memory_mib: int
    vcpus: int
    cpu: str
    firmware: str
    kernel: str
    initrd: str
    cmdline: str
    disks: tuple[Disk, ...]
    console: str
    launch: Simulation | SnpLaunch
    identity: LaunchIdentity | None = None
    """The owner's signature of the launch digest: without it firmware starts whatever the host gives it."""
    placement: Placement = field(default_factory=Placement)
    gpus: tuple[Gpu, ...] = ()
    """GPUs of the host that the machine is given; no dry run has any."""
    device_access: DeviceAccess = DeviceAccess.VFIO
    cards: tuple[str, ...] = ()
    """The network cards, by what libvirt calls their kind: none, or `USER_NETWORK` for a job with destinations."""
    reachable: bool = False
    """Whether it has ports for sessions beside the owner's."""
    keep_owner: bool = False
    """Read-only disks stay their owner's: other machines use the same files. Only libvirt as root gives disks away."""


def domain_uuid(name: str) -> str:
    """Return the UUID of a machine's name, so that defining it again replaces it."""
    return str(uuid.uuid5(NAMESPACE, name))


def render_domain(spec: DomainSpec, templates: Path) -> str:
    """Return the domain XML.

    Raises:
        ConfigError: the name cannot be a machine's, a path holds a comma (QEMU's options end there), or the placement
            does not fit, or the ID block is for another policy, or the GPUs are too many or a dry run's; of an SEV-SNP
            launch also: a machine type without a version, or a policy that lets the host debug or migrate it.
        FormatError: host data or policy is malformed.
    """
    if not VM_NAME.fullmatch(spec.name):
        raise ConfigError(f"machine name is {spec.name!r}; lower-case letters, digits, '.', '_' and '-' are required")
    pinned = spec.placement.cpus
    if pinned and len(pinned) != spec.vcpus:
        raise ConfigError(
            f"placement names {len(pinned)} host CPUs for {spec.vcpus} virtual ones; one each is required"
        )
    identity = spec.identity
    if identity is not None and identity.block.policy != GuestPolicy(int(spec.policy, 16)):
        raise ConfigError(
            f"the ID block is for policy {identity.block.policy.value:#x} and the launch has {spec.policy}; "
            "the same is required",
            hint="the firmware refuses such a launch at its end: sign the ID block again",
        )
    values = {
        **asdict(spec),
        "disks": [{**asdict(disk), "target": f"vd{chr(97 + i)}"} for i, disk in enumerate(spec.disks)],
        "uuid": domain_uuid(spec.name),
        "agent_port": AGENT_PORT,
        "client_ports": CLIENT_PORTS if spec.reachable else (),
        "id_block": "" if identity is None else to_base64(identity.block.encode()),
        "id_auth": "" if identity is None else to_base64(identity.auth.encode()),
        **(_simulated(spec.launch) if isinstance(spec.launch, Simulation) else _confidential(spec, spec.launch)),
    }
    if spec.gpus and isinstance(spec.launch, Simulation):
        raise ConfigError(f"the dry run {spec.name} has {len(spec.gpus)} GPUs; none is required: nothing simulates one")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = "domain-dryrun.xml.j2" if isinstance(spec.launch, Simulation) else "domain-snp.xml.j2"
    return environment.get_template(template).render(values) + "\n"


def _simulated(launch: Simulation) -> dict[str, object]:
    if "," in launch.hash_table:
        raise ConfigError(
            f"the path {launch.hash_table} holds a comma; QEMU cannot take it", hint="choose another machines_dir"
        )
    return {
        "simulated": "true",
        "accelerator": launch.accelerator,
        "machine": "q35",  # not measured in a dry run, whose digest is for the owner's own machine
        "confidential": False,
        "psp_port": PSP_PORT,
        "hash_table": launch.hash_table,
        "hash_table_gpa": launch.hash_table_gpa,
    }


def _confidential(spec: DomainSpec, launch: SnpLaunch) -> dict[str, object]:
    if not MACHINE.fullmatch(launch.machine):
        raise ConfigError(
            f"machine type is {launch.machine[:64]!r}; one with a version is required, such as pc-q35-10.0"
        )
    policy = GuestPolicy(int(spec.policy, 16))
    if policy.has("debug") or policy.has("migrate-ma"):
        raise ConfigError(f"policy is {spec.policy}; debug (bit 19) and migration (bit 18) off are required")
    identity = spec.identity
    return {
        "simulated": "false",
        "accelerator": "kvm",
        "machine": launch.machine,
        "confidential": True,
        "author_key": "yes" if identity is not None and identity.auth.author is not None else "no",
        "vcek": "yes",  # a provider's key instead of the chip's is the owner's policy to accept, and the host's to have
        "cbitpos": launch.cbitpos,
        "reduced_phys_bits": launch.reduced_phys_bits,
        "launch_host_data": to_base64(parse_hex(spec.host_data, HOST_DATA_SIZE, what="host data")),
        **gpu_values(spec.gpus, spec.device_access, memory_mib=spec.memory_mib),
    }
