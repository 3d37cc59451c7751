# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Drills: each attack against a real dry run, and the refusal it must meet.

Zone: flows. `cvmtool drill` shows them to a user; tests/scenario holds each to its row. Two kinds: lies of the simulated secure
processor (`cvmtool.dryrun.faults`; one machine serves them all), and hostile hosts (a machine each).
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cvmtool.config import Settings, private_dir
from cvmtool.data.pack import TreeSource, make_pack
from cvmtool.dryrun.amd import FakeAmd
from cvmtool.dryrun.faults import REFUSALS, Fault
from cvmtool.errors import AppraisalError, CvmError, FreshnessError
from cvmtool.flows.attach import Challenge, StageOf, attach
from cvmtool.flows.hostile import Interpose, Tamper, between, flip_byte, hostile, retable
from cvmtool.flows.hosts import OpenHost, open_host
from cvmtool.flows.launch import Launch
from cvmtool.flows.machine import Machine, start_machine
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.platform import DryRun, Platform
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.reporter import Reporter, Stage
from cvmtool.flows.run import configure, release_keys
from cvmtool.flows.train import BOOT_SECONDS, job_policy
from cvmtool.formats.channel import OPEN_LINE, answer_to, ready_line
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.job import Container, JobManifest, Limits, Network, Output, OutputKind, Resources
from cvmtool.formats.pack import HEADER_SIZE, Role
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.host.domain import ROOT_SERIAL
from cvmtool.host.files import HostFiles
from cvmtool.host.live import LiveDomain
from cvmtool.image.bundle import Bundle
from cvmtool.owner.amdroots import AmdRoots
from cvmtool.owner.jobfile import DEFAULT_CPU
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.policy import baseline


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
    interpose: Interpose | None = None
    production_policy: bool = False
    """Judge the dry run by a policy for real hardware."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillResult:
    """What happened."""

    drill: Drill
    refused: bool
    """Refused with the exit code (and finding) that the drill requires."""
    exit_code: int
    message: str


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


def _other_keys(heard: bytes) -> bytes:
    """Replace the keys in the guest's evidence by the attacker's own."""
    mark = b"\nCVM1 READY "
    start = heard.find(mark)
    nonce_hex = heard[start + len(mark) : start + len(mark) + 64]
    if start < 0 or len(nonce_hex) < 64:
        return heard[:start] if start >= 0 else b""
    nonce = bytes.fromhex(nonce_hex.decode("ascii"))
    found = answer_to(heard, nonce)
    if found is None:
        return heard[:start]
    evidence, behind = found
    if not isinstance(evidence, Evidence):
        return heard
    forged = replace(evidence, ssh_host_key=secrets.token_bytes(32), hpke_key=secrets.token_bytes(32))
    return heard[:start] + ready_line(nonce, forged) + heard[behind:]


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
        name="man-in-the-middle",
        attack="somebody on the wire shows the guest's report with keys of their own",
        exit_code=7,
        interpose=between(answer=_other_keys),
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


def run_drills(
    drills: Sequence[Drill], bundle: Bundle, *, settings: Settings, reporter: Reporter, stage: StageOf
) -> Iterator[DrillResult]:
    """Run drills one after the other; faults of the processor share a machine.

    Raises:
        HostError: a machine cannot be started at all.
    """
    with _small_job(settings) as (keys, manifest, packs):
        platform = DryRun(amd=FakeAmd.load_or_create(settings.dryrun_dir))
        policy = job_policy(bundle, manifest, platform)
        # Unsigned: what the owner finds is to be seen here, and firmware would refuse most of it before.
        launch = Launch(
            label=manifest.name,
            bundle=bundle,
            mode=platform.mode,
            host_data=manifest.host_data,
            policy=GuestPolicy(0x30000),
            resources=manifest.resources,
            packs=packs,
        )
        challenge = Challenge(
            keys=keys,
            manifest=manifest,
            policy=policy,
            cases_dir=settings.cases_dir,
            boot_seconds=BOOT_SECONDS,
        )

        def start(opener: OpenHost) -> Machine:
            return start_machine(
                f"drill-{secrets.token_hex(4)}",
                launch,
                settings=settings,
                reporter=reporter,
                open_host=opener,
            )

        faults = [drill for drill in drills if drill.fault is not Fault.NONE]
        if faults:
            machine = start(open_host)
            try:
                for drill in faults:
                    yield _outcome(drill, machine, challenge, replace(platform, fault=drill.fault), stage)
            finally:
                machine.remove()
        for drill in drills:
            if drill.fault is not Fault.NONE:
                continue
            production = baseline(roots=AmdRoots(), measurements=policy.measurements, host_data=policy.host_data)
            machine = start(hostile(drill.tamper, drill.interpose))
            try:
                judged_by = production if drill.production_policy else policy
                yield _outcome(drill, machine, replace(challenge, policy=judged_by), platform, stage)
            finally:
                machine.remove()


def _outcome(
    drill: Drill, machine: Machine, challenge: Challenge[JobManifest], platform: Platform, stage: StageOf
) -> DrillResult:
    try:
        with attach(machine, challenge, platform, stage=stage) as attached, stage(Stage.UNLOCK, "releasing the keys"):
            configure(attached, challenge.manifest)
            release_keys(attached, challenge.keys, challenge.manifest)
    except CvmError as error:
        codes = {finding.code for finding in error.findings} if isinstance(error, AppraisalError) else set()
        expected = error.exit_code == drill.exit_code and (drill.code is None or drill.code in codes)
        return DrillResult(drill=drill, refused=expected, exit_code=error.exit_code, message=error.message)
    return DrillResult(drill=drill, refused=False, exit_code=0, message="the guest got the keys")


@contextmanager
def _small_job(settings: Settings) -> Iterator[tuple[OwnerKeys, JobManifest, tuple[SealedPack, ...]]]:
    """Make a job that is never run: one small pack in the place of a container."""
    keys = load_keys(settings)
    with tempfile.TemporaryDirectory(dir=private_dir(settings.state_dir), prefix="drill-") as name:
        folder = Path(name)
        source = folder / "drill"
        source.mkdir()
        (source / "canary").write_text("a drill's data: no attack may ever reach it\n" * 512)
        path = folder / "pack.img"
        descriptor = make_pack(
            TreeSource(path=source), path, name="container", role=Role.CONTAINER, passphrase_for=keys.pack_passphrase
        )
        manifest = JobManifest(
            name="drill",
            salt=secrets.token_hex(32),
            owner_key=keys.public.hex(),
            container=Container(oci_digest=f"sha256:{'0' * 64}", args=("/none",), env=(), workdir="/"),
            packs=(descriptor,),
            outputs=(Output(name="none", kind=OutputKind.FILE, max_bytes=1),),
            resources=Resources(vcpus=1, memory_mib=768, cpu=DEFAULT_CPU),
            limits=Limits(memory_mib=256, pids=16, scratch_mib=1, outputs_mib=1, log_mib=1, seconds=60),
            network=Network.NONE,
        )
        yield keys, manifest, (SealedPack(descriptor=descriptor, path=path, reused=False),)


def select(names: Sequence[str], known: Callable[[], Sequence[Drill]] = all_drills) -> tuple[Drill, ...]:
    """Return the drills of those names, or all.

    Raises:
        ConfigError: a name is unknown.
    """
    from cvmtool.errors import ConfigError

    drills = {drill.name: drill for drill in known()}
    for name in names:
        if name not in drills:
            raise ConfigError(f"there is no drill {name!r}", hint=f"known drills: {', '.join(drills)}")
    return tuple(drills[name] for name in names) if names else tuple(drills.values())
