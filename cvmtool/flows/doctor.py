# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Examine a host: gather what it claims and what the owner knows, and judge the combination.

Zone: flows. Nothing here decides trust: a host that lies to the doctor gets a machine that does not start, or a report that
the owner refuses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cvmtool.config import Settings
from cvmtool.errors import ConfigError, CvmError, FormatError, HostError
from cvmtool.flows.collateral import KeyService
from cvmtool.flows.hosts import Host, OpenHost, open_host
from cvmtool.formats.manifest import MAX_MANIFEST, parse_image_manifest
from cvmtool.formats.tcb import Cpuid, parse_tcb
from cvmtool.host.doctor.checks import diagnose
from cvmtool.host.doctor.facts import Firmware, HostFacts, Libvirt, OwnerSide, PlatformStatus, Seen, Trials
from cvmtool.host.doctor.line import Line
from cvmtool.host.doctor.local import LocalView, platform_status
from cvmtool.host.doctor.probe import account, probe
from cvmtool.host.doctor.source import Claim, HostView, claim
from cvmtool.host.doctor.trial import try_accelerator
from cvmtool.host.failures import Cause, decode
from cvmtool.image.bundle import MANIFEST_FILE
from cvmtool.measure.ovmf import MAX_FIRMWARE_BYTES, parse_firmware
from cvmtool.owner.floors import built_in_floors, shortfalls
from cvmtool.owner.jobfile import DEFAULT_CPU
from cvmtool.owner.kds import AMD_URL

LEAST_MEMORY_MIB = 1024
LEAST_DISK_BYTES = 2 << 30
"""What the smallest useful machine takes: 768 MiB of memory, an image and its packs."""

_KEY_SERVICE_SECONDS = 4.0
_KEY_SERVICE_PATH = "/vcek/v1/Milan/cert_chain"
_ON_SITE = "tried on the machine itself alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A line, in words alone. `evidence` holds text of the host, as it came."""

    code: str
    verdict: str
    evidence: str
    why: str
    remedy: str
    uses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found on which host: `best` is what it can be used for, `obstacles` what stands first against more."""

    host: str
    lines: tuple[Told, ...]
    best: str | None
    obstacles: dict[str, Told]


def examine(
    settings: Settings, *, dry_run: bool, step: Callable[[str], None], reach: OpenHost = open_host
) -> Examination:
    """Look at the host of the settings, or at this machine.

    Args:
        settings: where the host is.
        dry_run: ask only what a dry run needs.
        step: told what is being looked at.
        reach: how a host is opened.

    Raises:
        HostError: another machine does not answer. On this one that is a finding.
        ConfigError: there is no host of this name.
    """
    step("asking libvirt")
    opened = _open(settings, reach)
    try:
        seen, uri = _look(opened, settings, dry_run=dry_run, step=step)
    finally:
        if isinstance(opened, Host):
            opened.close()
    found = diagnose(seen, dry_run=dry_run)
    return Examination(
        host=uri,
        lines=tuple(_told(line) for line in found.lines),
        best=found.best.value if found.best else None,
        obstacles={use.value: _told(line) for use, line in found.obstacles.items()},
    )


def _look(
    opened: Host | CvmError, settings: Settings, *, dry_run: bool, step: Callable[[str], None]
) -> tuple[Seen, str]:
    """Gather everything; return it, and the URI that the host is reached by."""
    remote = isinstance(opened, Host) and not opened.local
    uri = opened.uri if isinstance(opened, Host) else settings.host or "libvirt"
    libvirt = claim(uri, lambda: _ask_libvirt(opened))
    step("reading what the host says of itself")
    view = view_of(opened)
    host = probe(view, store=opened.machines if isinstance(opened, Host) else str(settings.machines_dir.absolute()))
    # An account that the host does not tell may open what everybody may.
    uid, groups = claim("id", lambda: account(view)).value or (-1, frozenset())
    step("running a guest of 134 bytes")
    trials = _try(host, remote=remote)
    key_service: Claim[str] = Claim(source=AMD_URL, problem="not asked")
    if not dry_run:
        step("asking AMD's key service")
        key_service = _ask_key_service()
    owner = OwnerSide(
        # libvirt's system daemon opens what is closed to this user.
        uid=0 if uri.partition("?")[0].endswith("/system") else uid,
        groups=groups,
        remote=remote,
        libvirt=libvirt,
        firmware=image_firmware(settings.bundles_dir),
        shortfalls=tcb_shortfalls(trials.platform.value, host.cpu.value.cpuid if host.cpu.value else None),
        key_service=key_service,
        memory_mib=LEAST_MEMORY_MIB,
        disk_bytes=LEAST_DISK_BYTES,
    )
    return Seen(host=host, trials=trials, owner=owner), uri


def _told(line: Line) -> Told:
    check, outcome = line.check, line.outcome
    return Told(
        code=check.code,
        verdict=outcome.verdict.value,
        evidence=outcome.evidence,
        why=check.why,
        remedy=outcome.remedy,
        uses=tuple(sorted(check.uses)),
    )


def _open(settings: Settings, reach: OpenHost) -> Host | CvmError:
    try:
        return reach(settings)
    except CvmError as error:
        if settings.host is None or settings.host.startswith("qemu:///"):
            return error
        raise


def explain_failure(text: str) -> tuple[Cause, ...]:
    """Say what is known of an error that a host gave, the likeliest first."""
    return decode(text)


def view_of(opened: Host | CvmError) -> HostView:
    """Return how to look at a host; at this machine if none could be opened.

    Raises:
        HostError: its files cannot be looked at.
    """
    if isinstance(opened, CvmError) or opened.local:
        return LocalView()
    # paramiko is slow to import, and looking at this machine needs none of it.
    from cvmtool.host.doctor.distant import DistantView
    from cvmtool.host.remote import RemoteFiles

    if not isinstance(opened.files, RemoteFiles):
        raise HostError(f"the files of {opened.name} cannot be looked at")
    try:
        return DistantView(opened.files.connection)
    except OSError as error:
        raise HostError(f"the files of {opened.name} cannot be looked at", detail=str(error)) from error


def _ask_libvirt(opened: Host | CvmError) -> Libvirt:
    try:
        if isinstance(opened, CvmError):
            raise opened
        version = opened.hypervisor.version()
    except CvmError as error:
        # A missing binding is mended here, whatever the host has; all else the doctor knows the remedy of.
        remedy = f"; {error.hint}" if isinstance(error, ConfigError) else ""
        raise OSError((error.detail or error.message) + remedy) from error
    security: frozenset[str] = frozenset()
    with suppress(HostError):  # no KVM there, so nothing that needs it
        security = opened.hypervisor.capabilities(virt_type="kvm").launch_security
    return Libvirt(version=version, launch_security=security)


def _try(host: HostFacts, *, remote: bool) -> Trials:
    if remote:
        absent: Claim[str] = Claim(source="a guest of 134 bytes", problem=_ON_SITE)
        return Trials(kvm=absent, tcg=absent, platform=Claim(source="/dev/sev", problem=_ON_SITE))
    emulator = host.qemu.source
    if host.qemu.value is None:
        missing: Claim[str] = Claim(source=emulator, problem=host.qemu.problem)
        kvm = tcg = missing
    else:
        kvm = claim("/dev/kvm", lambda: try_accelerator(emulator, "kvm", DEFAULT_CPU))
        tcg = claim(emulator, lambda: try_accelerator(emulator, "tcg", DEFAULT_CPU))
    return Trials(kvm=kvm, tcg=tcg, platform=claim("/dev/sev", platform_status))


def image_firmware(bundles: Path) -> tuple[Firmware, ...]:
    """Look at the firmware of every guest image that was built."""
    return tuple(_firmware(path) for path in sorted(bundles.glob(f"*/{MANIFEST_FILE}")))


def _firmware(manifest: Path) -> Firmware:
    path = manifest
    try:
        with manifest.open("rb") as file:
            path = manifest.parent / parse_image_manifest(file.read(MAX_MANIFEST)).firmware.file
        with path.open("rb") as file:
            found = parse_firmware(file.read(MAX_FIRMWARE_BYTES))
    except OSError as error:
        return Firmware(path=str(path), problem=error.strerror or "cannot be read")
    except FormatError as error:
        return Firmware(path=str(path), problem=error.message)
    return Firmware(path=str(path), problem="" if found.has_kernel_hashes else "no measured page for kernel hashes")


def tcb_shortfalls(status: PlatformStatus | None, cpuid: Cpuid | None) -> tuple[str, ...] | None:
    """Say which built-in floors the platform's TCBs do not reach; None if there is no TCB, or no known layout for it."""
    if status is None or cpuid is None or cpuid.line is None:
        return None
    found: dict[str, str] = {}
    try:
        for name, data in (("reported", status.reported_tcb), ("current", status.current_tcb)):
            for short in shortfalls(parse_tcb(data, cpuid.line), cpuid.silicon, built_in_floors()):
                floor = short.floor
                said = f"{floor.component} is {short.actual}, {floor.bulletin} requires {floor.value}"
                found.setdefault(said, f"{name} {said}")
    except FormatError:
        return None
    return tuple(found.values())


def _ask_key_service() -> Claim[str]:
    """Ask once. A resolver has no timeout of its own, so the question is left behind when it takes too long."""
    answers: list[Claim[str]] = []

    def ask() -> None:
        answers.append(claim(AMD_URL, _fetch_chain))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * _KEY_SERVICE_SECONDS)
    return answers[0] if answers else Claim(source=AMD_URL, problem="no answer in time")


def _fetch_chain() -> str:
    try:
        size = len(KeyService(timeout=_KEY_SERVICE_SECONDS, attempts=1).get(_KEY_SERVICE_PATH))
    except HostError as error:
        raise OSError(f"not reachable from here ({error.message.partition(';')[0]})") from error
    return f"answers ({size} bytes of certificates)"
