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

from cvmtool.config import Settings, private_dir, resources
from cvmtool.errors import CvmError, HostError
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.reporter import Reporter
from cvmtool.formats.job import JobManifest
from cvmtool.formats.manifest import Mode
from cvmtool.host.accelerator import ProbeBoot, probe_kvm
from cvmtool.host.domain import ROOT_SERIAL, Disk, DomainSpec, render_domain
from cvmtool.host.hypervisor import Hypervisor, MachineState, choose_uri
from cvmtool.host.storage import HASH_TABLE_FILE, LIBVIRT_LOG_FILE, MachineDir, MachineRecord, records
from cvmtool.image.bundle import Bundle
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.ovmf import parse_firmware

GUEST_POLICY = 0x30000
"""Bit 17 (must be one) and bit 16 (SMT allowed); debug, migration and every other bit off."""
_POWEROFF_SECONDS = 15.0

Connect = Callable[[str, Path], Hypervisor]


def connect(uri: str, log: Path) -> Hypervisor:
    """Open a connection to libvirt."""
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
        """Stop the machine and delete what the host holds of it. Idempotent."""
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
    directory.create()
    hypervisor = None
    try:
        uri = settings.host or choose_uri(settings.machines_dir, uid=os.geteuid())
        hypervisor = open_host(uri, private_dir(settings.state_dir) / LIBVIRT_LOG_FILE)
        spec = _place(
            directory,
            bundle,
            manifest,
            packs=packs,
            hypervisor=hypervisor,
            probes=private_dir(settings.probes_dir),
            reporter=reporter,
        )
        directory.save(MachineRecord(name=name, job=manifest.name, uri=uri, pid=os.getpid()))
        hypervisor.define(render_domain(spec, resources("templates")))
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


def _place(
    directory: MachineDir,
    bundle: Bundle,
    manifest: JobManifest,
    *,
    packs: Sequence[SealedPack],
    hypervisor: Hypervisor,
    probes: Path,
    reporter: Reporter,
) -> DomainSpec:
    cmdline = bundle.cmdline(Mode.DRYRUN)
    table = kernel_hashes(bundle.kernel.read_bytes(), bundle.initrd.read_bytes(), cmdline).table()
    gpa = parse_firmware(bundle.firmware.read_bytes()).hash_table_gpa
    if gpa is None:
        raise HostError("the firmware has no place for a kernel hash table", hint="cvmtool image build --force")
    emulator = hypervisor.emulator()
    probe = ProbeBoot(
        emulator=emulator,
        cpu=manifest.resources.cpu,
        firmware=bundle.firmware,
        kernel=bundle.kernel,
        initrd=bundle.initrd,
        cmdline=cmdline,
        hash_table=table,
        hash_table_gpa=gpa,
    )
    acceleration = probe_kvm(probe, cache=probes)
    if acceleration.domain_type == "qemu":
        reporter.notice(f"emulating the CPU (TCG), which is slow: {acceleration.reason}")
    disks = [Disk(path=str(directory.place(bundle.rootfs, "rootfs.img")), serial=ROOT_SERIAL)]
    for pack in packs:
        reporter.step(f"copying the pack {pack.descriptor.name} to the host")
        target = directory.place(pack.path, f"pack-{pack.descriptor.name}.img")
        disks.append(Disk(path=str(target), serial=pack.descriptor.serial))
    return DomainSpec(
        name=directory.path.name,
        job=manifest.name,
        image=bundle.manifest.name,
        accelerator=acceleration.domain_type,
        emulator=emulator,
        host_data=manifest.host_data.hex(),
        policy=f"{GUEST_POLICY:#x}",
        memory_mib=manifest.resources.memory_mib,
        vcpus=manifest.resources.vcpus,
        cpu=manifest.resources.cpu,
        firmware=str(directory.place(bundle.firmware, "firmware.fd")),
        kernel=str(directory.place(bundle.kernel, "vmlinuz")),
        initrd=str(directory.place(bundle.initrd, "initrd")),
        cmdline=cmdline,
        hash_table=str(directory.write(HASH_TABLE_FILE, table)),
        hash_table_gpa=gpa,
        disks=tuple(disks),
        console=str(directory.console),
    )


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
