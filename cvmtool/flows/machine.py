# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Start a virtual machine for a job on a host, and take it away again.

Zone: flows. What the host holds of a machine lies in one directory (`cvmtool.host.storage`); nothing in it is secret.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cvmtool.config import Settings, forget_foreign_runtime_dir, private_dir, resources, session_dirs
from cvmtool.errors import BuildError, CvmError, HostError
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.reporter import Reporter
from cvmtool.formats.job import JobManifest
from cvmtool.formats.manifest import Mode
from cvmtool.host.accelerator import ProbeBoot, probe_kvm
from cvmtool.host.domain import ROOT_SERIAL, Disk, DomainSpec, Simulation, render_domain
from cvmtool.host.hypervisor import Hypervisor, MachineState, choose_uri
from cvmtool.host.live import require_same
from cvmtool.host.storage import (
    CONSOLE_FILE,
    HASH_TABLE_FILE,
    LIBVIRT_LOG_FILE,
    MachineDir,
    MachineRecord,
    process_lives,
    records,
    stage_words,
)
from cvmtool.image.bundle import Bundle
from cvmtool.measure.hashes import KernelHashes, kernel_hashes
from cvmtool.measure.ovmf import parse_firmware

GUEST_POLICY = 0x30000
"""Bit 17 (must be one) and bit 16 (SMT allowed); debug, migration and every other bit off."""
_POWEROFF_SECONDS = 15.0

Connect = Callable[[str, Path], Hypervisor]


def connect(uri: str, log: Path) -> Hypervisor:
    """Open a connection to libvirt."""
    forget_foreign_runtime_dir()
    return Hypervisor.open(uri, log=log)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that was started, and what it was meant to be."""

    name: str
    hypervisor: Hypervisor
    directory: MachineDir
    bundle: Bundle
    mode: Mode
    started: float
    """time.monotonic() of the start."""

    def wait_off(self) -> bool:
        """Wait a while for the guest to power itself off; say whether it did."""
        end = time.monotonic() + _POWEROFF_SECONDS
        while time.monotonic() < end:
            try:
                if self.hypervisor.state(self.name) is not MachineState.RUNNING:
                    return True
            except HostError:
                return True  # a transient domain is gone when it stops
            time.sleep(0.1)
        return False

    def remove(self) -> None:
        """Stop the machine and delete what the host holds of it. Idempotent; an interruption does not leave half of it."""
        try:
            self._remove()
        except KeyboardInterrupt:
            with suppress(HostError):
                self._remove()
            raise

    def _remove(self) -> None:
        with suppress(HostError):  # the directory goes even if the host is gone
            self.hypervisor.destroy(self.name)
        self.directory.remove()
        self.hypervisor.close()


def start_machine(
    name: str,
    *,
    bundle: Bundle,
    manifest: JobManifest,
    packs: Sequence[SealedPack],
    settings: Settings,
    reporter: Reporter,
    open_host: Connect = connect,
) -> Machine:
    """Copy what the host needs to its store, define the dry-run domain and start it.

    Raises:
        HostError: the host cannot take or start it; nothing is left behind.
    """
    directory = MachineDir(settings.machines_dir, name)
    # Asked before the clean-up below is answerable for it: what stands there is another machine's.
    directory.refuse_existing()
    hypervisor = None
    try:
        directory.create()
        runtime, config = session_dirs()
        uri = settings.host or choose_uri(uid=os.geteuid(), runtime=runtime, config=config)
        hypervisor = open_host(uri, private_dir(settings.state_dir) / LIBVIRT_LOG_FILE)
        probe = _probe(bundle, manifest, hypervisor.capabilities().emulator)
        acceleration = probe_kvm(probe, cache=private_dir(settings.probes_dir))
        if acceleration.domain_type == "qemu":
            reporter.notice(f"emulating the CPU (TCG), which is slow: {acceleration.reason}")
        spec = domain_spec(
            name,
            directory.path,
            bundle=bundle,
            manifest=manifest,
            packs=packs,
            emulator=probe.emulator,
            accelerator=acceleration.domain_type,
        )
        _place(spec, bundle, packs, directory, reporter)
        directory.save(MachineRecord(name=name, job=manifest.name, uri=uri, pid=os.getpid()))
        hypervisor.define(render_domain(spec, resources("templates")))
        require_same(hypervisor.defined(name), spec)
        hypervisor.start(name)
    except BaseException:
        if hypervisor is not None:
            with suppress(CvmError):
                hypervisor.destroy(name)
            hypervisor.close()
        directory.remove()
        raise
    return Machine(
        name=name,
        hypervisor=hypervisor,
        directory=directory,
        bundle=bundle,
        mode=Mode.DRYRUN,
        started=time.monotonic(),
    )


def _probe(bundle: Bundle, manifest: JobManifest, emulator: str) -> ProbeBoot:
    return ProbeBoot(
        emulator=emulator,
        cpu=manifest.resources.cpu,
        firmware=bundle.firmware,
        kernel=bundle.kernel,
        initrd=bundle.initrd,
        cmdline=bundle.cmdline(Mode.DRYRUN),
        hash_table=measured_hashes(bundle).table(),
        hash_table_gpa=parse_firmware(bundle.firmware.read_bytes()).hash_table_gpa or 0,
    )


def _place(
    spec: DomainSpec, bundle: Bundle, packs: Sequence[SealedPack], directory: MachineDir, reporter: Reporter
) -> None:
    """Copy to the host's store what `domain_spec` names."""
    sources = {
        spec.firmware: bundle.firmware,
        spec.kernel: bundle.kernel,
        spec.initrd: bundle.initrd,
        spec.disks[0].path: bundle.rootfs,
    }
    sources |= {disk.path: pack.path for disk, pack in zip(spec.disks[1:], packs, strict=True)}
    for target, source in sources.items():
        reporter.step(f"copying {Path(target).name} to the host")
        directory.place(source, Path(target).name)
    directory.write(HASH_TABLE_FILE, measured_hashes(bundle).table())


def measured_hashes(bundle: Bundle) -> KernelHashes:
    """Return what the firmware checks kernel, initrd and command line against in a dry run."""
    return kernel_hashes(bundle.kernel.read_bytes(), bundle.initrd.read_bytes(), bundle.cmdline(Mode.DRYRUN))


def domain_spec(
    name: str,
    directory: Path,
    *,
    bundle: Bundle,
    manifest: JobManifest,
    packs: Sequence[SealedPack],
    emulator: str,
    accelerator: str,
) -> DomainSpec:
    """Describe the dry-run machine of a job; every path is below `directory`. Nothing is read from or written there.

    Raises:
        BuildError: the firmware has no place for a kernel hash table.
    """
    gpa = parse_firmware(bundle.firmware.read_bytes()).hash_table_gpa
    if gpa is None:
        raise BuildError("the firmware has no place for a kernel hash table", hint="cvmtool image build --force")
    disks = [Disk(path=str(directory / "rootfs.img"), serial=ROOT_SERIAL)]
    disks += [
        Disk(path=str(directory / f"pack-{pack.descriptor.name}.img"), serial=pack.descriptor.serial) for pack in packs
    ]
    return DomainSpec(
        name=name,
        job=manifest.name,
        image=bundle.manifest.name,
        emulator=emulator,
        host_data=manifest.host_data.hex(),
        policy=f"{GUEST_POLICY:#x}",
        memory_mib=manifest.resources.memory_mib,
        vcpus=manifest.resources.vcpus,
        cpu=manifest.resources.cpu,
        firmware=str(directory / "firmware.fd"),
        kernel=str(directory / "vmlinuz"),
        initrd=str(directory / "initrd"),
        cmdline=bundle.cmdline(Mode.DRYRUN),
        disks=tuple(disks),
        console=str(directory / CONSOLE_FILE),
        launch=Simulation(accelerator=accelerator, hash_table=str(directory / HASH_TABLE_FILE), hash_table_gpa=gpa),
    )


def render_machine(
    name: str, *, bundle: Bundle, manifest: JobManifest, packs: Sequence[SealedPack], settings: Settings
) -> str:
    """Return the domain XML that `start_machine` would define, under emulation; nothing is started or copied."""
    spec = domain_spec(
        name,
        settings.machines_dir / name,
        bundle=bundle,
        manifest=manifest,
        packs=packs,
        emulator="/usr/bin/qemu-system-x86_64",
        accelerator="qemu",
    )
    return render_domain(spec, resources("templates"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineStatus:
    """A machine as `vm list` shows it."""

    name: str
    state: str
    """What the host says, or `in use` when another process of ours holds an embedded driver."""
    job: str
    stage: str
    """The last stage word on its console: the host's claim."""
    uri: str


def list_machines(settings: Settings) -> list[MachineStatus]:
    """Ask the hosts of all our machines how they are."""
    found = []
    for record in records(settings.machines_dir):
        words = stage_words(MachineDir(settings.machines_dir, record.name).read_console())
        found.append(
            MachineStatus(
                name=record.name,
                state=_state(record, settings),
                job=record.job,
                stage=words[-1].partition(" ")[2] if words else "none",
                uri=record.uri,
            )
        )
    return found


def _state(record: MachineRecord, settings: Settings) -> str:
    if record.uri.startswith("qemu:///embed") and process_lives(record.pid):
        # libvirt inside another process: that one alone can be asked, and it removes the machine when it ends.
        return f"in use by process {record.pid}"
    try:
        hypervisor = connect(record.uri, private_dir(settings.state_dir) / LIBVIRT_LOG_FILE)
    except HostError:
        return "unknown: its host does not answer"
    try:
        return hypervisor.state(record.name).value
    except HostError:
        return "lost"
    finally:
        hypervisor.close()


def destroy_machine(name: str, settings: Settings) -> bool:
    """Stop a machine by name, whichever process started it, and delete its directory. Idempotent.

    Raises:
        HostError: the host does not let go of it.
    """
    found = False
    for record in records(settings.machines_dir):
        if record.name == name:
            hypervisor = connect(record.uri, private_dir(settings.state_dir) / LIBVIRT_LOG_FILE)
            found = hypervisor.destroy(name)
            hypervisor.close()
    directory = MachineDir(settings.machines_dir, name)
    found = found or directory.path.exists()
    directory.remove()
    return found
