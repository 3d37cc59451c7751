# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Machines without a job: started, started again, stopped and destroyed by name, from any process of their owner.

Zone: flows. What is said to their guests is in `cvmtool.flows.vmsession`.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from cvmtool.config import Settings, session_dirs
from cvmtool.errors import ConfigError, CvmError, HostError
from cvmtool.flows.attach import Challenge
from cvmtool.flows.attempts import Attempt, now
from cvmtool.flows.gpu import GpuWish, refuse_gpus_in_a_dry_run
from cvmtool.flows.hosts import Host, OpenHost, open_host
from cvmtool.flows.launch import Launch, Site
from cvmtool.flows.lifeline import presence
from cvmtool.flows.machine import Machine, destroy_machine, restart_machine, start_machine
from cvmtool.flows.platform import Platform, dry_run, sev_snp
from cvmtool.flows.prepare import load_keys, signed_launch
from cvmtool.flows.records import load_record
from cvmtool.flows.reporter import Reporter
from cvmtool.flows.train import BOOT_SECONDS, job_policy
from cvmtool.flows.vmrecords import GPU_POLICY_FILE, MANIFEST_FILE, POLICY_FILE, VmDir, VmRecord, find_vm
from cvmtool.flows.vmstate import Milestone
from cvmtool.flows.volumes import VolumeRecord, Volumes, make_volume, remove_volumes
from cvmtool.formats.job import Resources
from cvmtool.formats.machine import SHELL_WORD, MachineManifest, parse_machine_manifest
from cvmtool.host.embedded import embedded_machine_uri, embedded_root
from cvmtool.host.hypervisor import MachineState, choose_uri
from cvmtool.image.bundle import Bundle
from cvmtool.owner.jobfile import Restart
from cvmtool.owner.kds import AMD_URL
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.launchsign import public_key
from cvmtool.owner.policy import Policy
from cvmtool.owner.policyfile import encode_policy

_ALIVE = frozenset({MachineState.RUNNING, MachineState.PAUSED, MachineState.NO_ROOM})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A machine to be."""

    name: str
    bundle: Bundle
    resources: Resources
    """Without its GPUs: `gpus` counts them."""
    shell: bool
    restart: Restart
    simulated: bool
    volumes: tuple[tuple[str, int], ...] = ()
    """New ones: names and sizes in bytes."""
    disks: tuple[str, ...] = ()
    """Volumes that there are: UUIDs, or the host's paths of their files."""
    policy: Policy | None = None
    """What is acceptable; None is the same baseline as for jobs."""
    gpus: GpuWish = GpuWish()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """A machine in hand."""

    folder: VmDir
    machine: Machine
    challenge: Challenge[MachineManifest]
    platform: Platform
    volumes: Volumes

    @property
    def record(self) -> VmRecord:
        """The owner's record of it."""
        return self.folder.record

    def state(self) -> MachineState | None:
        """Ask its host; None if that does not know it.

        Raises:
            HostError: the host does not answer.
        """
        return presence(self.machine.host, self.machine.name)

    @property
    def runs(self) -> bool:
        """Whether the host says that it is there, running or paused."""
        return self.state() in _ALIVE

    def close(self) -> None:
        """Disconnect. The machine goes on."""
        self.machine.host.close()


def start_vm(wanted: Wanted, settings: Settings, reporter: Reporter, *, reach: OpenHost = open_host) -> VmDir:
    """Make a machine and start it. It stays when this process ends.

    Raises:
        ConfigError: the image gives no shell, a disk is not one of this owner's volumes, there is no such host, or a dry run is
            asked for GPUs.
        HostError: there is a machine of that name, or the host cannot start it; nothing is left behind then.
        FormatError: the image has no launch digest for this CPU model and count.
    """
    if wanted.simulated:
        refuse_gpus_in_a_dry_run(len(wanted.gpus.devices))
    platform = _platform(settings, wanted.gpus, simulated=wanted.simulated)
    if wanted.shell and SHELL_WORD not in wanted.bundle.cmdline(platform.mode).split():
        raise ConfigError(
            f"the image {wanted.bundle.manifest.name} gives no shell: its measured command line does not say {SHELL_WORD}",
            hint="an image that does: operator",
        )
    target = host_of(settings, wanted.name)
    record = VmRecord(
        name=wanted.name,
        image=wanted.bundle.manifest.name,
        image_digest=wanted.bundle.digest,
        simulated=wanted.simulated,
        host=target,
        restart=wanted.restart,
        created=now(),
        gpus=[gpu.address for gpu in wanted.gpus.devices],
    )
    folder = VmDir.create(settings.vms_dir, record)
    volumes = Volumes(settings.volumes_dir)
    made: list[VolumeRecord] = []
    try:
        with folder.alone():
            folder.keep_image(wanted.bundle)
            here = replace(settings, host=target)
            used = [*_existing(wanted, volumes, target)]
            host = reach(here)
            try:
                for name, size in wanted.volumes:
                    made.append(make_volume(host, volumes, name, size, machine=wanted.name, target=target))
            finally:
                host.close()
            used += made
            keys = load_keys(settings)
            _commit(wanted, folder, used, volumes, keys=keys, platform=platform)
            launch = _launch(folder, volumes, platform, keys, wanted.gpus)
            folder.record.attempts.append(Attempt(started=now()))
            machine = start_machine(wanted.name, launch, settings=here, reporter=reporter, open_host=reach)
            machine.host.close()
            folder.reach(Milestone.STARTED)
    except BaseException:
        _undo(folder, made, volumes, settings, reach)
        raise
    return folder


def host_of(settings: Settings, name: str) -> str:
    """Return where a machine goes: the host of the settings, or one on this computer.

    libvirt inside a process ends its domains' day with the process's; so such a machine has a libvirt root of its own, which each
    command opens in its turn.
    """
    if settings.host is not None:
        return settings.host
    runtime, config = session_dirs()
    uri = choose_uri(uid=os.geteuid(), runtime=runtime, config=config)
    return uri if embedded_root(uri) is None else embedded_machine_uri(uid=os.geteuid(), name=name)


def open_vm(folder: VmDir, settings: Settings, reporter: Reporter, *, boot_seconds: float = BOOT_SECONDS) -> Vm:
    """Connect to a machine's host, whichever process started the machine.

    Raises:
        HostError: the host does not answer.
        ConfigError, FormatError, BuildError: the record is not whole.
    """
    record = folder.record
    keys = load_keys(settings)
    volumes = Volumes(settings.volumes_dir)
    gpus = GpuWish.named(record.gpus, folder.gpu_policy())
    platform = _platform(settings, gpus, simulated=record.simulated)
    launch = _launch(folder, volumes, platform, keys, gpus)
    challenge = Challenge(
        keys=keys,
        manifest=folder.manifest(),
        policy=folder.policy(),
        cases_dir=settings.cases_dir,
        boot_seconds=boot_seconds,
    )
    known = load_record(settings.records_dir, record.name)
    here = replace(settings, host=record.host)

    def reopen() -> Host:
        host = open_host(here)
        return host if known is None else replace(host, machines=known.machines)

    machine = Machine(
        name=record.name,
        host=reopen(),
        launch=launch,
        started=time.monotonic(),
        reopen=reopen,
        forget=lambda: None,
        notice=reporter.notice,
    )
    return Vm(folder=folder, machine=machine, challenge=challenge, platform=platform, volumes=volumes)


def start_again(vm: Vm, settings: Settings, reporter: Reporter, *, cause: str | None = None) -> Vm:
    """Start a machine that does not run: the same disks and manifest, another guest, which has proven nothing yet.

    `cause`: why it ended, if that is known.

    Raises:
        HostError: the host cannot start it.
    """
    folder = vm.folder
    if folder.record.attempts and folder.record.attempts[-1].ended is None:
        folder.record.attempts[-1].end(cause)
    folder.record.attempts.append(Attempt(started=now()))
    folder.record.error = None
    folder.save()
    machine = restart_machine(vm.machine, settings=settings, reporter=reporter)
    folder.reach(Milestone.STARTED)
    return replace(vm, machine=machine)


def destroy_vm(name: str, settings: Settings, *, keep_volumes: bool = False, forget: bool = False) -> bool:
    """Stop a machine at once and delete what its host holds of it; False if there was none. Idempotent.

    Args:
        name: a machine of `vm start`, or of a job.
        settings: where things are.
        keep_volumes: leave its volumes, and what opens them: another machine can have them.
        forget: drop the owner's record alone, of a host that is gone for good.

    Raises:
        HostError: the host does not let go of it; the record stays.
        ConfigError: no machine can have the name.
        FormatError: the owner's record of it is damaged.
    """
    folder = find_vm(settings.vms_dir, name)
    if folder is None:
        return destroy_machine(name, settings, forget=forget)
    with folder.alone():
        here = replace(settings, host=folder.record.host)
        destroy_machine(name, here, forget=forget)
        volumes = Volumes(settings.volumes_dir)
        own = [record for record in volumes.all() if record.machine == name]
        if keep_volumes or forget:
            for record in own:
                volumes.save(replace(record, machine=""))
        elif own:
            remove_volumes(own, volumes, here, open_host)
        folder.remove()
    return True


def resume_machine(name: str, settings: Settings) -> None:
    """Let a paused machine go on, of a job or without.

    Raises:
        HostError: it is not paused, or its host does not answer.
        ConfigError: there is none of that name.
    """
    record = load_record(settings.records_dir, name)
    if record is None:
        raise ConfigError(f"there is no machine {name!r}", hint="cvmtool vm list")
    host = open_host(replace(settings, host=record.host))
    try:
        host.hypervisor.resume(name)
    finally:
        host.close()


def remove_volume(record: VolumeRecord, settings: Settings) -> None:
    """Delete a volume that no machine has, or of a job that no machine runs: its file on the host, and what opens it.

    Raises:
        ConfigError: a machine has it.
        HostError: the host does not answer.
    """
    owner = record.machine
    if owner and (find_vm(settings.vms_dir, owner) or load_record(settings.records_dir, owner)):
        raise ConfigError(
            f"the volume {record.name} belongs to {record.machine}", hint=f"cvmtool vm destroy {record.machine}"
        )
    remove_volumes([record], Volumes(settings.volumes_dir), replace(settings, host=record.host), open_host)


def _platform(settings: Settings, gpus: GpuWish, *, simulated: bool) -> Platform:
    return dry_run(settings) if simulated else sev_snp(settings, key_service=AMD_URL, gpu_policy=gpus.judged_by)


def _existing(wanted: Wanted, volumes: Volumes, target: str) -> list[VolumeRecord]:
    known = list(volumes.all())
    found = []
    for disk in wanted.disks:
        record = next((item for item in known if disk in {item.luks_uuid, item.path, item.name}), None)
        if record is None:
            raise ConfigError(
                f"{disk} is no volume of yours", hint="cvmtool vm volumes lists them; --volume NAME:SIZE makes one"
            )
        if record.machine:
            raise HostError(
                f"the volume {record.name} belongs to the machine {record.machine}",
                hint=f"cvmtool vm destroy --keep-volumes {record.machine}",
            )
        if embedded_root(record.host) is None and record.host != target:
            raise ConfigError(f"the volume {record.name} is on {record.host}; the machine would be on {target}")
        found.append(record)
    return found


def _commit(
    wanted: Wanted, folder: VmDir, used: list[VolumeRecord], volumes: Volumes, *, keys: OwnerKeys, platform: Platform
) -> None:
    """Write down what the launch commits to, and what will be accepted."""
    manifest = MachineManifest(
        name=wanted.name,
        salt=secrets.token_hex(32),
        owner_key=keys.public.hex(),
        volumes=tuple(record.volume() for record in used),
        shell=wanted.shell,
        resources=replace(wanted.resources, gpus=len(wanted.gpus.devices)),
    )
    try:
        parse_machine_manifest(manifest.encode())  # what the guest would refuse is refused here
    except CvmError as error:
        raise ConfigError(f"the machine {wanted.name} cannot be made: {error.message}") from error
    policy = wanted.policy or job_policy(wanted.bundle, manifest, platform, id_key=public_key(keys.launch_key()))
    folder.write(MANIFEST_FILE, manifest.encode())
    folder.write(POLICY_FILE, encode_policy(policy).encode("utf-8"))
    if wanted.gpus.policy is not None:
        folder.write(GPU_POLICY_FILE, wanted.gpus.policy.encode("utf-8"))
    folder.record.volumes = [record.luks_uuid for record in used]
    folder.save()
    for record in used:
        volumes.save(replace(record, machine=wanted.name))


def _launch(folder: VmDir, volumes: Volumes, platform: Platform, keys: OwnerKeys, gpus: GpuWish) -> Launch:
    disks = tuple(volumes.load(luks_uuid).disk() for luks_uuid in folder.record.volumes)
    site = Site(gpus=gpus.devices)
    return signed_launch(folder.manifest(), folder.image(), platform.mode, keys, volumes=disks, site=site)


def _undo(folder: VmDir, made: list[VolumeRecord], volumes: Volumes, settings: Settings, reach: OpenHost) -> None:
    """Take back a start that failed; the record stays if the host keeps anything."""
    here = replace(settings, host=folder.record.host)
    with suppress(CvmError):
        if load_record(settings.records_dir, folder.record.name) is not None:
            return  # its host does not answer; `vm destroy` tries again
        if made:
            remove_volumes(made, volumes, here, reach)
        for luks_uuid in folder.record.volumes:
            with suppress(ConfigError):
                volumes.save(replace(volumes.load(luks_uuid), machine=""))
        folder.remove()
