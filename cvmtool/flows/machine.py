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
from dataclasses import dataclass, replace

from cvmtool.config import Settings, private_dir, resources
from cvmtool.errors import BuildError, ConfigError, CvmError, HostError
from cvmtool.flows.hosts import Host, OpenHost, open_host
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.placing import FIRMWARE_FILE, INITRD_FILE, KERNEL_FILE, ROOTFS_FILE, pack_file, place
from cvmtool.flows.records import (
    MachineRecord,
    forget_record,
    load_record,
    process_lives,
    records,
    save_record,
)
from cvmtool.flows.reporter import Reporter
from cvmtool.formats.job import JobManifest
from cvmtool.formats.manifest import Mode
from cvmtool.host.accelerator import Acceleration, ProbeBoot, probe_kvm
from cvmtool.host.domain import ROOT_SERIAL, Disk, DomainSpec, Simulation, render_domain
from cvmtool.host.files import LocalFiles
from cvmtool.host.hypervisor import Hypervisor, MachineState
from cvmtool.host.live import require_same
from cvmtool.host.storage import CONSOLE_FILE, HASH_TABLE_FILE, MachineDir, stage_words
from cvmtool.image.bundle import Bundle
from cvmtool.measure.hashes import KernelHashes, kernel_hashes
from cvmtool.measure.ovmf import parse_firmware

GUEST_POLICY = 0x30000
"""Bit 17 (must be one) and bit 16 (SMT allowed); debug, migration and every other bit off."""
_POWEROFF_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that was started, and what it was meant to be."""

    name: str
    host: Host
    bundle: Bundle
    mode: Mode
    started: float
    """time.monotonic() of the start."""
    reopen: Callable[[], Host]
    """Connects to the host anew."""
    forget: Callable[[], None]
    """Removes the owner's record of it."""
    notice: Callable[[str], None]

    @property
    def hypervisor(self) -> Hypervisor:
        """The libvirt that runs it."""
        return self.host.hypervisor

    @property
    def directory(self) -> MachineDir:
        """What the host holds of it."""
        return self.host.directory(self.name)

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
        """Stop the machine and delete what the host holds of it. Idempotent; an interruption does not leave half of it.

        A host that does not answer keeps it, and the owner's record stays: `cvmtool vm destroy` tries again.
        """
        try:
            self._remove()
        except KeyboardInterrupt:
            self._remove()
            raise

    def _remove(self) -> None:
        try:
            _clear(self.host, self.name)
        except HostError:
            try:
                host = self.reopen()  # the connection may be all that is gone
                _clear(host, self.name)
                host.close()
            except CvmError:
                self.notice(
                    f"{self.name} may still run: its host does not answer; later: cvmtool vm destroy {self.name}"
                )
                return
        finally:
            self.host.close()
        self.forget()


def _clear(host: Host, name: str) -> bool:
    directory = host.directory(name)
    found = host.hypervisor.destroy(name)
    return directory.remove() or found


def start_machine(
    name: str,
    *,
    bundle: Bundle,
    manifest: JobManifest,
    packs: Sequence[SealedPack],
    settings: Settings,
    reporter: Reporter,
    open_host: OpenHost = open_host,
) -> Machine:
    """Give the host what it needs, define the dry-run domain and start it.

    Raises:
        HostError: the host cannot take or start it; nothing is left behind, or the owner's record says where.
    """
    host = open_host(settings)
    try:
        directory = host.directory(name)
        record = MachineRecord(
            name=name, job=manifest.name, host=host.name, uri=host.uri, machines=host.machines, pid=os.getpid()
        )
        # Before the clean-up below is answerable for it: what stands under this name is another machine's.
        save_record(settings.records_dir, record)
    except BaseException:
        host.close()
        raise
    machine = Machine(
        name=name,
        host=host,
        bundle=bundle,
        mode=Mode.DRYRUN,
        started=time.monotonic(),
        reopen=lambda: open_host(settings),
        forget=lambda: forget_record(settings.records_dir, name),
        notice=reporter.notice,
    )
    try:
        directory.create()
    except BaseException:
        machine.forget()
        host.close()
        raise
    try:
        probe = _probe(bundle, manifest, host.hypervisor.capabilities().emulator)
        acceleration = _acceleration(host, probe, settings)
        if acceleration.domain_type == "qemu":
            reporter.notice(f"emulating the CPU (TCG), which is slow: {acceleration.reason}")
        spec = domain_spec(
            name,
            f"{host.machines}/{name}",
            bundle=bundle,
            manifest=manifest,
            packs=packs,
            emulator=probe.emulator,
            accelerator=acceleration.domain_type,
        )
        place(host, directory, bundle, packs, reporter)
        host.files.write(directory.path(HASH_TABLE_FILE), measured_hashes(bundle).table())
        reporter.step("defining and starting it")
        host.hypervisor.define(render_domain(spec, resources("templates")))
        require_same(host.hypervisor.defined(name), spec)
        host.hypervisor.start(name)
    except BaseException:
        machine.remove()
        raise
    return replace(machine, started=time.monotonic())


def _acceleration(host: Host, probe: ProbeBoot, settings: Settings) -> Acceleration:
    if host.local:
        return probe_kvm(probe, cache=private_dir(settings.probes_dir))
    return Acceleration(domain_type="qemu", reason="whether KVM works on another host cannot be tried from here")


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


def measured_hashes(bundle: Bundle) -> KernelHashes:
    """Return what the firmware checks kernel, initrd and command line against in a dry run."""
    return kernel_hashes(bundle.kernel.read_bytes(), bundle.initrd.read_bytes(), bundle.cmdline(Mode.DRYRUN))


def domain_spec(
    name: str,
    directory: str,
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
    disks = [Disk(path=f"{directory}/{ROOTFS_FILE}", serial=ROOT_SERIAL)]
    disks += [Disk(path=f"{directory}/{pack_file(pack)}", serial=pack.descriptor.serial) for pack in packs]
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
        firmware=f"{directory}/{FIRMWARE_FILE}",
        kernel=f"{directory}/{KERNEL_FILE}",
        initrd=f"{directory}/{INITRD_FILE}",
        cmdline=bundle.cmdline(Mode.DRYRUN),
        disks=tuple(disks),
        console=f"{directory}/{CONSOLE_FILE}",
        launch=Simulation(accelerator=accelerator, hash_table=f"{directory}/{HASH_TABLE_FILE}", hash_table_gpa=gpa),
    )


def render_machine(
    name: str, *, bundle: Bundle, manifest: JobManifest, packs: Sequence[SealedPack], settings: Settings
) -> str:
    """Return the domain XML that `start_machine` would define, under emulation; nothing is started or copied."""
    spec = domain_spec(
        name,
        str(settings.machines_dir.absolute() / name),
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
    return [_status(record, settings) for record in records(settings.records_dir)]


def _status(record: MachineRecord, settings: Settings) -> MachineStatus:
    state, stage = "unknown: its host does not answer", "unknown"
    if record.uri.startswith("qemu:///embed") and process_lives(record.pid):
        # libvirt inside another process: that one alone can be asked, and it removes the machine when it ends.
        state = f"in use by process {record.pid}"
        stage = _stage(MachineDir(LocalFiles(), record.machines, record.name))
    else:
        with suppress(HostError, ConfigError):
            host = open_host(replace(settings, host=record.host))
            stage = _stage(host.directory(record.name))
            try:
                state = host.hypervisor.state(record.name).value
            except HostError:
                state = "lost"
            finally:
                host.close()
    return MachineStatus(name=record.name, state=state, job=record.job, stage=stage, uri=record.uri)


def _stage(directory: MachineDir) -> str:
    words = stage_words(directory.read_console())
    return words[-1].partition(" ")[2] if words else "none"


def destroy_machine(name: str, settings: Settings) -> bool:
    """Stop a machine by name, whichever process started it, and delete its directory; False if there was none.

    It is looked for where the owner's record says, and without one on the host of the settings. Idempotent.

    Raises:
        HostError: the host does not let go of it.
        ConfigError: no machine can have the name.
        FormatError: the owner's record of it is damaged.
    """
    record = load_record(settings.records_dir, name)
    host = open_host(settings if record is None else replace(settings, host=record.host))
    if record is not None:
        host = replace(host, machines=record.machines)
    try:
        found = _clear(host, name)
    finally:
        host.close()
    forget_record(settings.records_dir, name)
    return found or record is not None
