# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Drills: each attack against a real dry run, and the refusal it must meet.

Zone: flows. `cvmtool drill` shows them to a user; tests/scenario holds each to its row. The attacks are in
`cvmtool.flows.attacks`. Those that leave a guest as it was share one machine, which its owner unlocks after the last of them: so
it was the attack that was refused, and nothing else.
"""

from __future__ import annotations

import secrets
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cvmtool.config import Settings, private_dir
from cvmtool.data.pack import TreeSource, make_pack
from cvmtool.dryrun.amd import FakeAmd
from cvmtool.errors import AppraisalError, CvmError
from cvmtool.flows.attach import Attached, Challenge, StageOf, attach
from cvmtool.flows.attacks import Drill
from cvmtool.flows.hostile import MAX_FILE, beset, hostile
from cvmtool.flows.hosts import OpenHost, open_host
from cvmtool.flows.keeper import Keeper
from cvmtool.flows.launch import Launch
from cvmtool.flows.machine import Machine, start_machine
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.platform import DryRun
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.reporter import Reporter, Stage
from cvmtool.flows.run import configure, release_keys
from cvmtool.flows.train import BOOT_SECONDS, job_policy
from cvmtool.formats.job import Container, JobManifest, Limits, Network, Output, OutputKind, Resources
from cvmtool.formats.jobterms import CHECKPOINT, Checkpoint
from cvmtool.formats.pack import Role
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.formats.volume import MIN_VOLUME, Volume
from cvmtool.host.files import HostFiles
from cvmtool.host.live import LiveDomain
from cvmtool.image.bundle import Bundle
from cvmtool.owner.amdroots import AmdRoots
from cvmtool.owner.jobfile import DEFAULT_CPU
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.policy import baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillResult:
    """What happened."""

    drill: Drill
    refused: bool
    """Refused with the exit code (and finding) that the drill requires."""
    exit_code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """Where drills take place: one small job that is never run, launched as often as it takes."""

    settings: Settings
    reporter: Reporter
    stage: StageOf
    platform: DryRun
    challenge: Challenge[JobManifest]
    launch: Launch
    keeper: Keeper

    @contextmanager
    def machine(self, opener: OpenHost = open_host) -> Iterator[Machine]:
        """Start a machine, and remove it at the end."""
        name = f"drill-{secrets.token_hex(4)}"
        launch = replace(self.launch, volumes=self.keeper.make(name))
        machine = start_machine(name, launch, settings=self.settings, reporter=self.reporter, open_host=opener)
        try:
            yield machine
        finally:
            machine.remove()

    def unlock(self, machine: Machine) -> bytes:
        """Unlock a machine that nobody attacks and mark its volume; return what that held before the mark, if there is one.

        Raises:
            CvmError: the guest refuses its owner: then no refusal shows anything.
        """
        with attach(machine, self.challenge, self.platform, stage=self.stage) as attached:
            self._release(attached)
            older = b"".join(machine.host.files.read(disk.path, MAX_FILE) for disk in machine.launch.volumes)
            self.keeper.begin().commit(attached.channel)
        return older

    def attacked(self, drill: Drill, machine: Machine) -> DrillResult:
        """Try to unlock a machine under attack."""
        challenge, platform = self.challenge, replace(self.platform, fault=drill.fault)
        if drill.production_policy:
            policy = challenge.policy
            policy = baseline(roots=AmdRoots(), measurements=policy.measurements, host_data=policy.host_data)
            challenge = replace(challenge, policy=policy)
        try:
            with attach(machine, challenge, platform, stage=self.stage) as attached:
                self._release(attached)
        except CvmError as error:
            codes = {finding.code for finding in error.findings} if isinstance(error, AppraisalError) else set()
            expected = error.exit_code == drill.exit_code and (drill.code is None or drill.code in codes)
            return DrillResult(drill=drill, refused=expected, exit_code=error.exit_code, message=error.message)
        return DrillResult(drill=drill, refused=False, exit_code=0, message="the guest got the keys")

    def _release(self, attached: Attached) -> None:
        with self.stage(Stage.UNLOCK, "releasing the keys"):
            configure(attached, self.challenge.manifest)
            states = self.keeper.begin()
            release_keys(attached, self.challenge.keys, self.challenge.manifest, states=states)


def run_drills(
    drills: Sequence[Drill], bundle: Bundle, *, settings: Settings, reporter: Reporter, stage: StageOf
) -> Iterator[DrillResult]:
    """Run drills: first those that share a machine, then those that have their own.

    Raises:
        HostError: a machine cannot be started at all.
        CvmError: a guest that nobody attacks refuses its owner.
    """
    with _range(bundle, settings, reporter, stage) as place:
        shared = [drill for drill in drills if not (drill.tamper or drill.turned_back)]
        if shared:
            with place.machine() as machine:
                for drill in shared:
                    yield place.attacked(drill, beset(machine, drill.interpose) if drill.interpose else machine)
                place.unlock(machine)
        for drill in drills:
            if drill.tamper:
                with place.machine(hostile(drill.tamper)) as machine:
                    yield place.attacked(drill, machine)
    for drill in drills:
        if drill.turned_back:
            with _range(bundle, settings, reporter, stage, checkpoint=_checkpoint()) as place:
                yield _turned_back(drill, place)


def _turned_back(drill: Drill, place: _Range) -> DrillResult:
    with place.machine() as machine:
        older = place.unlock(machine)
        (volume,) = machine.launch.volumes

    def turn_back(_live: LiveDomain, xml: str, files: HostFiles) -> str:
        files.write(volume.path, older)
        return xml

    with place.machine(hostile(turn_back)) as machine:
        return place.attacked(drill, machine)


@contextmanager
def _range(
    bundle: Bundle, settings: Settings, reporter: Reporter, stage: StageOf, *, checkpoint: Checkpoint | None = None
) -> Iterator[_Range]:
    platform = DryRun(amd=FakeAmd.load_or_create(settings.dryrun_dir))
    with _small_job(settings, checkpoint) as (keys, manifest, packs):
        keeper = Keeper(manifest, settings, every_seconds=0)
        try:
            yield _Range(
                settings=settings,
                reporter=reporter,
                stage=stage,
                platform=platform,
                keeper=keeper,
                challenge=Challenge(
                    keys=keys,
                    manifest=manifest,
                    policy=job_policy(bundle, manifest, platform),
                    cases_dir=settings.cases_dir,
                    boot_seconds=BOOT_SECONDS,
                ),
                # Unsigned: what the owner finds is to be seen here, and firmware would refuse most of it before.
                launch=Launch(
                    label=manifest.name,
                    bundle=bundle,
                    mode=platform.mode,
                    host_data=manifest.host_data,
                    policy=GuestPolicy(0x30000),
                    resources=manifest.resources,
                    packs=packs,
                ),
            )
        finally:
            keeper.settle(done=True, notice=reporter.notice)


def _checkpoint() -> Checkpoint:
    volume = Volume(name=CHECKPOINT, luks_uuid=str(uuid.uuid4()), size=MIN_VOLUME, create=True)
    return Checkpoint(volume=volume, grace_seconds=0)


@contextmanager
def _small_job(
    settings: Settings, checkpoint: Checkpoint | None
) -> Iterator[tuple[OwnerKeys, JobManifest, tuple[SealedPack, ...]]]:
    """Make a job that is never run: two small packs, one of them in the place of a container."""
    keys = load_keys(settings)
    with tempfile.TemporaryDirectory(dir=private_dir(settings.state_dir), prefix="drill-") as name:
        folder = Path(name)
        packs = tuple(_small_pack(folder, role, keys) for role in (Role.CONTAINER, Role.INPUT))
        manifest = JobManifest(
            name="drill",
            salt=secrets.token_hex(32),
            owner_key=keys.public.hex(),
            container=Container(oci_digest=f"sha256:{'0' * 64}", args=("/none",), env=(), workdir="/"),
            packs=tuple(pack.descriptor for pack in packs),
            outputs=(Output(name="none", kind=OutputKind.FILE, max_bytes=1),),
            resources=Resources(vcpus=1, memory_mib=768, cpu=DEFAULT_CPU),
            limits=Limits(memory_mib=256, pids=16, scratch_mib=1, outputs_mib=1, log_mib=1, seconds=60),
            network=Network.NONE,
            checkpoint=checkpoint,
        )
        yield keys, manifest, packs


def _small_pack(folder: Path, role: Role, keys: OwnerKeys) -> SealedPack:
    source, path = folder / role.value, folder / f"{role.value}.img"
    source.mkdir()
    (source / "canary").write_text(f"a drill's {role.value}: no attack may ever reach it\n" * 512)
    descriptor = make_pack(
        TreeSource(path=source), path, name=role.value, role=role, passphrase_for=keys.pack_passphrase
    )
    return SealedPack(descriptor=descriptor, path=path, reused=False)
