# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a host's libvirt says that it can start, and the launch that follows from it.

Zone: host. Pure. Claims: a host that lies here gets a machine that its firmware refuses, or a report that the owner does.

libvirt lists `sev-snp` whenever its QEMU knows the word and plain SEV works, so that being listed is needed and proves little;
`cvmtool doctor` looks further.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from cvmtool.errors import HostError
from cvmtool.host.domain import MACHINE, SnpLaunch

_MAX_XML = 4 << 20  # characters
_DOCTOR = "cvmtool doctor says what is missing, and how to mend it"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCapabilities:
    """A host's claims. `cbitpos` and `reduced_phys_bits` are None where there is no SEV."""

    emulator: str
    machine: str
    """The newest q35 machine type, with its version."""
    cpus: frozenset[str]
    """CPU models that this host can run as they are."""
    launch_security: frozenset[str]
    cbitpos: int | None
    reduced_phys_bits: int | None
    max_es_guests: int | None
    """ASIDs for SEV-ES and SEV-SNP guests."""


def parse_capabilities(xml: str) -> HostCapabilities:
    """Read libvirt's domain capabilities.

    Raises:
        HostError: they cannot be read, or name no QEMU.
    """
    if len(xml) > _MAX_XML:
        raise HostError(f"the host's capabilities have {len(xml)} characters; at most {_MAX_XML} are allowed")
    try:
        root = ET.fromstring(xml)  # noqa: S314 - libvirtd's answer over its socket; expat has no network entities
        sev = root.find("features/sev[@supported='yes']")
        kinds = root.findall("features/launchSecurity[@supported='yes']/enum[@name='sectype']/value")
        models = root.findall("cpu/mode[@name='custom']/model[@usable='yes']")
        emulator = root.findtext("path")
        if not emulator:
            raise HostError("the host names no QEMU for x86-64", hint="apt-get install qemu-system-x86")
        return HostCapabilities(
            emulator=emulator,
            machine=root.findtext("machine") or "",
            cpus=frozenset(model.text or "" for model in models),
            launch_security=frozenset(kind.text or "" for kind in kinds),
            cbitpos=_number(sev, "cbitpos"),
            reduced_phys_bits=_number(sev, "reducedPhysBits"),
            max_es_guests=_number(sev, "maxESGuests"),
        )
    except (ET.ParseError, ValueError) as error:
        raise HostError("the host's capabilities cannot be read", detail=str(error)) from error


def snp_launch(host: HostCapabilities, *, cpu: str) -> SnpLaunch:
    """Return the SEV-SNP launch of this host for a CPU model.

    Raises:
        HostError: it has no SEV-SNP, or not this model; the message says which, and what it has.
    """
    if "sev-snp" not in host.launch_security:
        has = ", ".join(sorted(host.launch_security)) or "none"
        raise HostError(f"this host offers launch security {has}; sev-snp is required", hint=_DOCTOR)
    if host.cbitpos is None or host.reduced_phys_bits is None:
        raise HostError("this host does not say where its encryption bit is; cbitpos is required", hint=_DOCTOR)
    if not MACHINE.fullmatch(host.machine):
        raise HostError(f"this host's machine type is {host.machine[:64]!r}; a versioned q35 is required", hint=_DOCTOR)
    if cpu not in host.cpus:
        usable = sorted(model for model in host.cpus if model.startswith("EPYC"))
        raise HostError(
            f"this host cannot run the CPU model {cpu}; the job requires it",
            hint=f"set resources.cpu to one that it can: {', '.join(usable) or 'none of AMD: is it an EPYC?'}",
        )
    return SnpLaunch(machine=host.machine, cbitpos=host.cbitpos, reduced_phys_bits=host.reduced_phys_bits)


def _number(parent: ET.Element | None, name: str) -> int | None:
    text = None if parent is None else parent.findtext(name)
    return None if text is None else int(text)
