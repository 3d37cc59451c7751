# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Read back what a domain was really given.

Zone: host. Pure. What `LiveDomain` holds are the host's claims.
libvirt drops elements that it does not know and fills in others, so a domain is compared with what was meant after it was
defined: a launch that would be refused, or be another one, is then named before it costs a start.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, fields

from cvmtool.errors import FormatError, HostError
from cvmtool.formats.wire import parse_base64, to_base64
from cvmtool.host.domain import Disk, DomainSpec, Simulation, SnpLaunch

_CVM = "{urn:cvmtool:1}"
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_LOADER = re.compile(r"loader,addr=(0x[0-9a-f]+),file=([^,]+),force-raw=on")
_MAX_BLOB = 8192  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSnp:
    """The launch security of a domain."""

    machine: str
    cbitpos: int
    reduced_phys_bits: int
    policy: int
    kernel_hashes: bool
    author_key: bool
    vcek: bool
    host_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveDomain:
    """What a running domain says it was started with."""

    name: str
    job: str
    image: str
    simulated: bool
    host_data: str
    policy: str
    vcpus: int
    cpu: str
    firmware: str
    kernel: str
    initrd: str
    cmdline: str
    disks: tuple[Disk, ...]
    cards: tuple[str, ...]
    """The kind of each network card."""
    console: str
    id_block: bytes
    id_auth: bytes
    """ID block and its authentication as the host holds them; empty: there is none."""
    simulation: Simulation | None
    """Of a dry run."""
    snp: LiveSnp | None
    """Of an SEV-SNP machine."""

    @property
    def hash_table(self) -> str:
        """The file of a dry run's hash table.

        Raises:
            HostError: this is no dry run.
        """
        if self.simulation is None:
            raise HostError("the host's domain is no dry run; one is required here")
        return self.simulation.hash_table


def is_ours(xml: str) -> bool:
    """Say whether a domain carries cvmtool's metadata."""
    return "urn:cvmtool:1" in xml


def parse_live_domain(xml: str) -> LiveDomain:
    """Read the XML of a domain that cvmtool made.

    Raises:
        HostError: something is missing or out of shape.
    """
    try:
        root = ET.fromstring(xml)  # noqa: S314 - libvirtd's answer over its socket; expat has no network entities
        cvm = _one(root, f"metadata/{_CVM}vm")
        simulated = _text(cvm, f"{_CVM}simulated") == "true"
        # libvirt has a place for the launch's identity; a dry run, which has no launch security, keeps it with the rest.
        identity, names = (cvm, (f"{_CVM}id-block", f"{_CVM}id-auth"))
        if not simulated:
            identity, names = (_one(root, "launchSecurity"), ("idBlock", "idAuth"))
        return LiveDomain(
            name=_text(root, "name"),
            job=_text(cvm, f"{_CVM}job"),
            image=_text(cvm, f"{_CVM}image"),
            simulated=simulated,
            host_data=_text(cvm, f"{_CVM}host-data"),
            policy=_text(cvm, f"{_CVM}policy"),
            vcpus=int(_text(root, "vcpu")),
            cpu=_text(root, "cpu/model"),
            firmware=_text(root, "os/loader"),
            kernel=_text(root, "os/kernel"),
            initrd=_text(root, "os/initrd"),
            cmdline=_text(root, "os/cmdline"),
            disks=tuple(
                Disk(
                    path=_one(disk, "source").get("file", ""),
                    serial=_text(disk, "serial"),
                    writable=disk.find("readonly") is None,
                )
                for disk in root.findall("devices/disk")
            ),
            cards=tuple(card.get("type", "") for card in root.findall("devices/interface")),
            console=_one(root, "devices/serial/source").get("path", ""),
            id_block=_blob(identity, names[0]),
            id_auth=_blob(identity, names[1]),
            simulation=_simulation(root) if simulated else None,
            snp=None if simulated else _launch_security(root),
        )
    except (ET.ParseError, ValueError, FormatError) as error:
        raise HostError("the host's domain XML cannot be read", detail=str(error)) from error


def _simulation(root: ET.Element) -> Simulation:
    arguments = [item.get("value", "") for item in root.findall(f"{_QEMU}commandline/{_QEMU}arg")]
    loaders = [match for match in map(_LOADER.fullmatch, arguments) if match]
    if len(loaders) != 1:
        raise HostError(f"the domain has {len(loaders)} hash table loaders; 1 is required")
    return Simulation(accelerator=root.get("type", ""), hash_table=loaders[0][2], hash_table_gpa=int(loaders[0][1], 16))


def _launch_security(root: ET.Element) -> LiveSnp:
    security = _one(root, "launchSecurity")
    if security.get("type") != "sev-snp":
        raise HostError(f"the domain's launch security is {security.get('type', 'none')[:32]!r}; 'sev-snp' is required")
    return LiveSnp(
        machine=_one(root, "os/type").get("machine", ""),
        cbitpos=int(_text(security, "cbitpos")),
        reduced_phys_bits=int(_text(security, "reducedPhysBits")),
        policy=int(_text(security, "policy"), 0),
        kernel_hashes=security.get("kernelHashes") == "yes",
        author_key=security.get("authorKey") == "yes",
        vcek=security.get("vcek", "yes") == "yes",
        host_data=_blob(security, "hostData"),
    )


def require_same(live: LiveDomain, spec: DomainSpec) -> None:
    """Check that a defined domain is what was meant: its network cards, and everything that a launch digest or a report covers.

    No security rests on it: a host that lies here is found out by its report. It names a libvirt that dropped something.

    Raises:
        HostError: it is not; the message lists each field with what the host has and what is required.
    """
    wanted = _measured(spec)
    actual = {name: getattr(live, name) for name in wanted if name != "launch"}
    actual["launch"] = live.simulation or live.snp
    differing = [name for name, value in wanted.items() if actual[name] != value]
    if differing:
        listed = "; ".join(f"{name} is {_short(actual[name])}, required {_short(wanted[name])}" for name in differing)
        raise HostError(
            f"libvirt on this host defined another machine than it was given: {listed}",
            hint="is its libvirt older than 10.5? cvmtool doctor",
        )


def _measured(spec: DomainSpec) -> dict[str, object]:
    same = ("vcpus", "cpu", "firmware", "kernel", "initrd", "cmdline", "disks", "cards", "host_data", "policy")
    wanted: dict[str, object] = {name: getattr(spec, name) for name in same}
    wanted["id_block"] = b"" if spec.identity is None else spec.identity.block.encode()
    wanted["id_auth"] = b"" if spec.identity is None else spec.identity.auth.encode()
    wanted["launch"] = spec.launch if isinstance(spec.launch, Simulation) else _expected(spec, spec.launch)
    return wanted


def _expected(spec: DomainSpec, launch: SnpLaunch) -> LiveSnp:
    return LiveSnp(
        machine=launch.machine,
        cbitpos=launch.cbitpos,
        reduced_phys_bits=launch.reduced_phys_bits,
        policy=int(spec.policy, 16),
        kernel_hashes=True,
        author_key=spec.identity is not None and spec.identity.auth.author is not None,
        vcek=True,
        host_data=bytes.fromhex(spec.host_data),
    )


def _short(value: object) -> str:
    if isinstance(value, LiveSnp):
        parts = ((item.name, getattr(value, item.name)) for item in fields(value))
        return ", ".join(f"{name} {to_base64(part)[:24] if isinstance(part, bytes) else part}" for name, part in parts)
    return repr(value)[:200]


def _blob(parent: ET.Element, path: str) -> bytes:
    text = parent.findtext(path) or ""
    return parse_base64("".join(text.split()), what=path, limit=_MAX_BLOB)


def _one(parent: ET.Element, path: str) -> ET.Element:
    found = parent.find(path)
    if found is None:
        raise HostError(f"the host's domain XML has no {path}")
    return found


def _text(parent: ET.Element, path: str) -> str:
    return _one(parent, path).text or ""
