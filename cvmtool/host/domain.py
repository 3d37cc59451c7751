# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Render the libvirt domain of a virtual machine, and read back what a live domain was really given.

Zone: host. Pure but for reading the template. The only door to jinja2.
What `LiveDomain` returns are the host's claims.
"""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2

from cvmtool.errors import ConfigError, HostError
from cvmtool.formats.channel import AGENT_PORT, PSP_PORT
from cvmtool.host.storage import VM_NAME

NAMESPACE = uuid.UUID("5d1a3c1e-6a55-4d0c-9c6f-0a6f0b3b9a57")  # of machine names; a name always has the same UUID
ROOT_SERIAL = "cvmtool-root"
_CVM = "{urn:cvmtool:1}"
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_LOADER = re.compile(r"loader,addr=(0x[0-9a-f]+),file=([^,]+),force-raw=on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A read-only disk, found in the guest by its serial."""

    path: str
    serial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSpec:
    """A dry-run machine. Paths are the host's."""

    name: str
    job: str
    image: str
    accelerator: str
    """libvirt domain type: `qemu` (TCG) or `kvm`."""
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
    hash_table: str
    hash_table_gpa: int
    disks: tuple[Disk, ...]
    console: str


def domain_uuid(name: str) -> str:
    """Return the UUID of a machine's name, so that defining it again replaces it."""
    return str(uuid.uuid5(NAMESPACE, name))


def render_domain(spec: DomainSpec, templates: Path) -> str:
    """Return the domain XML.

    Raises:
        ConfigError: the name cannot be a machine's, or a path holds a comma (QEMU's options end there).
    """
    if not VM_NAME.fullmatch(spec.name):
        raise ConfigError(f"machine name is {spec.name!r}; lower-case letters, digits, '.', '_' and '-' are required")
    if "," in spec.hash_table:
        raise ConfigError(
            f"the path {spec.hash_table} holds a comma; QEMU cannot take it", hint="choose another machines_dir"
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates), autoescape=True, undefined=jinja2.StrictUndefined
    )
    values = asdict(spec)
    values["disks"] = [{**asdict(disk), "target": f"vd{chr(97 + i)}"} for i, disk in enumerate(spec.disks)]
    template = environment.get_template("domain-dryrun.xml.j2")
    return template.render(values, uuid=domain_uuid(spec.name), agent_port=AGENT_PORT, psp_port=PSP_PORT) + "\n"


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
    hash_table: str
    hash_table_gpa: int
    disks: tuple[Disk, ...]
    console: str


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
        arguments = [item.get("value", "") for item in root.findall(f"{_QEMU}commandline/{_QEMU}arg")]
        loaders = [match for match in map(_LOADER.fullmatch, arguments) if match]
        if len(loaders) != 1:
            raise HostError(f"the domain has {len(loaders)} hash table loaders; 1 is required")
        return LiveDomain(
            name=_text(root, "name"),
            job=_text(cvm, f"{_CVM}job"),
            image=_text(cvm, f"{_CVM}image"),
            simulated=_text(cvm, f"{_CVM}simulated") == "true",
            host_data=_text(cvm, f"{_CVM}host-data"),
            policy=_text(cvm, f"{_CVM}policy"),
            vcpus=int(_text(root, "vcpu")),
            cpu=_text(root, "cpu/model"),
            firmware=_text(root, "os/loader"),
            kernel=_text(root, "os/kernel"),
            initrd=_text(root, "os/initrd"),
            cmdline=_text(root, "os/cmdline"),
            hash_table=loaders[0][2],
            hash_table_gpa=int(loaders[0][1], 16),
            disks=tuple(
                Disk(path=_one(disk, "source").get("file", ""), serial=_text(disk, "serial"))
                for disk in root.findall("devices/disk")
            ),
            console=_one(root, "devices/serial/source").get("path", ""),
        )
    except (ET.ParseError, ValueError) as error:
        raise HostError("the host's domain XML cannot be read", detail=str(error)) from error


def _one(parent: ET.Element, path: str) -> ET.Element:
    found = parent.find(path)
    if found is None:
        raise HostError(f"the host's domain XML has no {path}")
    return found


def _text(parent: ET.Element, path: str) -> str:
    return _one(parent, path).text or ""
