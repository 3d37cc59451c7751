# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The attacks that drills know, each with the refusal that it must meet.

Zone: flows. Three kinds: lies of the simulated secure processor (`cvmtool.dryrun.faults`), somebody between owner and guest, and
hosts that change what they were given. `cvmtool.flows.drill` carries them out.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cvmtool.dryrun.faults import REFUSALS, Fault
from cvmtool.errors import AppraisalError, ConfigError, FreshnessError
from cvmtool.flows.hostile import MAX_FILE, Interpose, Tamper, between, flip_byte, retable
from cvmtool.formats.channel import OPEN_LINE, answer_to, ready_line
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.pack import HEADER_SIZE
from cvmtool.formats.wire import to_base64
from cvmtool.host.domain import ROOT_SERIAL
from cvmtool.host.files import HostFiles
from cvmtool.host.live import LiveDomain

_INSIDE_THE_SESSION = (
    6_000  # bytes: SSH has agreed on keys after some 2,500, and the manifest alone has more than what is left
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """An attack and the refusal it must meet."""

    name: str
    attack: str
    exit_code: int
    code: str | None = None
    """The finding that must be among those listed, when the refusal lists findings."""
    fault: Fault = Fault.NONE
    tamper: Tamper | None = None
    """Before the start; such a machine is of no use to another drill."""
    interpose: Interpose | None = None
    production_policy: bool = False
    """Judge the dry run by a policy for real hardware."""
    turned_back: bool = False
    """Give a later launch the checkpoint volume as it was before the last mark."""


def _flip(field: str, at: int) -> Tamper:
    def tamper(live: LiveDomain, xml: str, files: HostFiles) -> str:
        flip_byte(files, getattr(live, field), at)
        return xml

    return tamper


def _flip_disk(role: str, at: int) -> Tamper:
    def tamper(live: LiveDomain, xml: str, files: HostFiles) -> str:
        path = next(disk.path for disk in live.disks if (disk.serial == ROOT_SERIAL) == (role == "root"))
        flip_byte(files, path, at)
        return xml

    return tamper


def _swap_packs(live: LiveDomain, xml: str, files: HostFiles) -> str:
    one, other = (disk.path for disk in live.disks if disk.serial != ROOT_SERIAL)
    contents = files.read(one, MAX_FILE), files.read(other, MAX_FILE)
    files.write(other, contents[0])
    files.write(one, contents[1])
    return xml


def _cmdline(_live: LiveDomain, xml: str, _files: HostFiles) -> str:
    return xml.replace("<cmdline>", "<cmdline>init=/bin/sh ")


def _cmdline_with_table(live: LiveDomain, xml: str, files: HostFiles) -> str:
    retable(live, files, f"{live.cmdline} cvmtool.extra=1")
    return xml.replace("</cmdline>", " cvmtool.extra=1</cmdline>")


def _vcpus(_live: LiveDomain, xml: str, _files: HostFiles) -> str:
    return xml.replace(">1</vcpu>", ">2</vcpu>").replace("cores='1'", "cores='2'")


def _no_table(live: LiveDomain, xml: str, files: HostFiles) -> str:
    files.write(live.hash_table, bytes(176))
    return xml


def _other_job(live: LiveDomain, xml: str, _files: HostFiles) -> str:
    return xml.replace(live.host_data, secrets.token_hex(32))


def _answering(forge: Callable[[bytes, Evidence], bytes], *, noise: bytes = b"") -> Interpose:
    """Give the owner another answer than the guest's; `forge` gets the owner's nonce and what the guest showed.

    `noise` goes to both of them first.
    """

    def interpose(port: socket.socket) -> socket.socket:
        nonces: list[bytes] = []

        def challenge(said: bytes) -> bytes:
            found = OPEN_LINE.search(said)
            if found is not None:
                nonces[:] = [bytes.fromhex(found[1].decode("ascii"))]
            return noise + said

        def answer(said: bytes) -> bytes:
            found = answer_to(said, nonces[0]) if nonces else None
            if found is None:
                return noise
            evidence, behind = found
            forged = forge(nonces[0], evidence) if isinstance(evidence, Evidence) else said[:behind]
            return noise + forged + said[behind:]

        return between(answer=answer, challenge=challenge)(port)

    return interpose


def _with_other_keys(nonce: bytes, evidence: Evidence) -> bytes:
    return ready_line(nonce, replace(evidence, ssh_host_key=secrets.token_bytes(32), hpke_key=secrets.token_bytes(32)))


def _nonsense(nonce: bytes, _evidence: Evidence) -> bytes:
    return f"\nCVM1 READY {nonce.hex()} {to_base64(secrets.token_bytes(4096))}\n".encode("ascii")


def _relay() -> Interpose:
    """Ask the guest with a challenge of the host's own, and show the owner what it answered."""
    ours = secrets.token_hex(32).encode("ascii")
    owners: list[bytes] = []

    def challenge(said: bytes) -> bytes:
        found = OPEN_LINE.search(said)
        if found is None:
            return b""
        owners[:] = [found[1]]
        return said.replace(found[1], ours)

    def answer(said: bytes) -> bytes:
        return said.replace(ours, owners[0]) if owners else said

    return between(answer=answer, challenge=challenge)


def _changed_session() -> Interpose:
    """Change a bit of what the owner says to the verified guest, well after the keys of the session were agreed."""

    def change(said: bytes) -> bytes:
        found = OPEN_LINE.search(said)
        at = found.end() + _INSIDE_THE_SESSION if found else len(said)
        return said[:at] + bytes([said[at] ^ 1]) + said[at + 1 :] if at < len(said) else said

    return between(answer=bytes, challenge=change)


HOSTILE: tuple[Drill, ...] = (
    Drill(
        name="changed-kernel",
        attack="the host starts another kernel (one bit)",
        exit_code=6,
        code="boot-kernel",
        tamper=_flip("kernel", 1 << 20),
    ),
    Drill(
        name="changed-initrd",
        attack="the host starts another initrd (one bit)",
        exit_code=6,
        code="boot-initrd",
        tamper=_flip("initrd", 1 << 16),
    ),
    Drill(
        name="changed-cmdline",
        attack="the host adds init=/bin/sh to the command line",
        exit_code=6,
        code="boot-cmdline",
        tamper=_cmdline,
    ),
    Drill(
        name="changed-cmdline-and-table",
        attack="the host changes the command line and the hash table to match: it boots, and measures differently",
        exit_code=6,
        code="measurement",
        tamper=_cmdline_with_table,
    ),
    Drill(
        name="empty-hash-table",
        attack="the host hands the firmware an empty hash table",
        exit_code=4,
        tamper=_no_table,
    ),
    Drill(
        name="changed-rootfs",
        attack="the host changes one bit of the root disk",
        exit_code=6,
        code="boot-rootfs",
        tamper=_flip_disk("root", 96),
    ),
    Drill(
        name="more-vcpus",
        attack="the host starts the guest with two CPUs instead of one",
        exit_code=6,
        code="measurement",
        tamper=_vcpus,
    ),
    Drill(
        name="other-job",
        attack="the job manifest was changed after sealing: HOST_DATA commits to another job",
        exit_code=7,
        tamper=_other_job,
    ),
    Drill(
        name="flipped-pack-block",
        attack="the host flips one bit of the encrypted input",
        exit_code=5,
        tamper=_flip_disk("pack", HEADER_SIZE + 40),
    ),
    Drill(
        name="replaced-luks-header",
        attack="the host changes the LUKS header of the encrypted input",
        exit_code=5,
        tamper=_flip_disk("pack", 4096 + 300),
    ),
    Drill(
        name="flipped-hash-tree",
        attack="the host flips one bit of the hash tree over the encrypted input",
        exit_code=5,
        tamper=_flip_disk("pack", -100),
    ),
    Drill(
        name="swapped-disks",
        attack="the host gives each of two encrypted inputs in the place of the other",
        exit_code=5,
        tamper=_swap_packs,
    ),
    Drill(
        name="old-checkpoint",
        attack="the host starts the job again with its checkpoints as they were before the last mark",
        exit_code=7,
        turned_back=True,
    ),
    Drill(
        name="garbage",
        attack="the host pours garbage into the agent port, both ways",
        exit_code=4,
        interpose=_answering(_nonsense, noise=secrets.token_bytes(65_536)),
    ),
    Drill(
        name="changed-session",
        attack="the host changes one bit of what the owner says to the verified guest: the connection ends",
        exit_code=8,
        interpose=_changed_session(),
    ),
    Drill(
        name="man-in-the-middle",
        attack="somebody on the wire shows the guest's report with keys of their own",
        exit_code=7,
        interpose=_answering(_with_other_keys),
    ),
    Drill(
        name="relayed-evidence",
        attack="the host asks the guest with a nonce of its own and shows the owner that answer",
        exit_code=7,
        interpose=_relay(),
    ),
    Drill(
        name="simulated-as-real",
        attack="a dry run is shown to a policy for real hardware",
        exit_code=5,
        production_policy=True,
    ),
)


def all_drills() -> tuple[Drill, ...]:
    """Return every drill: the processor's faults, then the hostile hosts."""
    faults = tuple(
        Drill(
            name=fault.value,
            attack=refusal.attack,
            # The guest reads its own report before it shows it: what it notices never reaches the owner's checks.
            exit_code=refusal.exit_code if refusal.refused_by == "owner" else _guest_exit(fault),
            code=refusal.code
            if refusal.refused_by == "owner" and refusal.exit_code == AppraisalError.exit_code
            else None,
            fault=fault,
        )
        for fault, refusal in REFUSALS.items()
    )
    return faults + HOSTILE


def _guest_exit(fault: Fault) -> int:
    return REFUSALS[fault].exit_code if fault is not Fault.WRONG_HOST_DATA else FreshnessError.exit_code


def select(names: Sequence[str]) -> tuple[Drill, ...]:
    """Return the drills of those names, or all.

    Raises:
        ConfigError: a name is unknown.
    """
    drills = {drill.name: drill for drill in all_drills()}
    for name in names:
        if name not in drills:
            raise ConfigError(f"there is no drill {name!r}", hint=f"known drills: {', '.join(drills)}")
    return tuple(drills[name] for name in names) if names else tuple(drills.values())
