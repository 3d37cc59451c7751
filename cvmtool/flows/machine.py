# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Start a virtual machine on a host, and take it away again.

Zone: flows. What the host holds of a machine lies in one directory (`cvmtool.host.storage`); nothing in it is secret.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cvmtool.config import Settings, private_dir, resources
from cvmtool.errors import CvmError, HostError
from cvmtool.flows.guard import guarded
from cvmtool.flows.hosts import Host, OpenHost, open_host
from cvmtool.flows.launch import Launch
from cvmtool.flows.placing import place
from cvmtool.flows.records import (
    MachineRecord,
    forget_record,
    load_record,
    save_record,
)
from cvmtool.flows.reporter import Reporter
from cvmtool.formats.manifest import Mode
from cvmtool.host.accelerator import Acceleration, ProbeBoot, probe_kvm
from cvmtool.host.domain import DomainSpec, render_domain
from cvmtool.host.events import GONE
from cvmtool.host.gpu import DeviceAccess, device_access
from cvmtool.host.hypervisor import Hypervisor, MachineState
from cvmtool.host.live import require_same
from cvmtool.host.storage import HASH_TABLE_FILE, MachineDir

_EMULATOR = "/usr/bin/qemu-system-x86_64"  # where no host was asked
_IOMMUFD = "/dev/iommu"  # of a host
_POWEROFF_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that was started, and what it was meant to be."""

    name: str
    host: Host
    launch: Launch
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
        try:
            with guarded(self.hypervisor, self.name, self.notice) as guard:
                # The event may have come before anybody listened.
                off = self.hypervisor.state(self.name) is not MachineState.RUNNING
                return off or guard.wait_over(_POWEROFF_SECONDS) in GONE
        except HostError:
            return True  # a transient domain is gone when it stops

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
    launch: Launch,
    *,
    settings: Settings,
    reporter: Reporter,
    open_host: OpenHost = open_host,
) -> Machine:
    """Give the host what it needs, define the domain and start it.

    Raises:
        HostError: the host cannot take or start it; nothing is left behind, or the owner's record says where.
    """
    host = open_host(settings)
    try:
        directory = host.directory(name)
        record = MachineRecord(
            name=name, job=launch.label, host=host.name, uri=host.uri, machines=host.machines, pid=os.getpid()
        )
        # Before the clean-up below is answerable for it: what stands under this name is another machine's.
        save_record(settings.records_dir, record)
    except BaseException:
        host.close()
        raise
    machine = Machine(
        name=name,
        host=host,
        launch=launch,
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
        _start(machine, settings, reporter)
    except BaseException:
        machine.remove()
        raise
    return replace(machine, started=time.monotonic())


def restart_machine(machine: Machine, *, settings: Settings, reporter: Reporter) -> Machine:
    """Make a machine that died anew on its host, and start it: the same disks, the same launch, another guest.

    Raises:
        HostError: the host cannot.
    """
    _clear(machine.host, machine.name)
    machine.directory.create()
    _start(machine, settings, reporter)
    return replace(machine, started=time.monotonic())


def _start(machine: Machine, settings: Settings, reporter: Reporter) -> None:
    name, host, launch = machine.name, machine.host, machine.launch
    spec = _spec(machine, settings, reporter)  # before anything is sent: a host that cannot start it gets nothing
    place(host, machine.directory, launch.bundle, launch.packs, reporter)
    if launch.mode is Mode.DRYRUN:
        host.files.write(machine.directory.path(HASH_TABLE_FILE), launch.hashes.table())
    reporter.step("defining and starting it")
    host.hypervisor.define(render_domain(replace(spec, keep_owner=host.privileged), resources("templates")))
    require_same(host.hypervisor.defined(name), spec)
    host.hypervisor.start(name)


def _spec(machine: Machine, settings: Settings, reporter: Reporter) -> DomainSpec:
    name, host, launch = machine.name, machine.host, machine.launch
    directory = f"{host.machines}/{name}"
    if launch.mode is Mode.PRODUCTION:
        able = host.hypervisor.capabilities(virt_type="kvm")
        how = launch.confidential(able)
        return launch.spec(name, directory, emulator=able.emulator, launch=how, access=_access(host))
    emulator = host.hypervisor.capabilities().emulator
    chosen = acceleration(host, launch, emulator, settings)
    if chosen.domain_type == "qemu":
        reporter.notice(f"emulating the CPU (TCG), which is slow: {chosen.reason}")
    simulation = launch.simulation(directory, accelerator=chosen.domain_type)
    return launch.spec(name, directory, emulator=emulator, launch=simulation)


def _access(host: Host) -> DeviceAccess:
    major, minor, micro = host.hypervisor.version()
    return device_access((major * 1000 + minor) * 1000 + micro, iommufd=host.files.size(_IOMMUFD) is not None)


def acceleration(host: Host, launch: Launch, emulator: str, settings: Settings) -> Acceleration:
    """Say how a dry run is carried out on a host, and why."""
    if host.accelerator is not None:
        return Acceleration(domain_type=host.accelerator, reason=f"the settings of host {host.name} say so")
    if host.local:
        return probe_kvm(_probe(launch, emulator), cache=private_dir(settings.probes_dir))
    return Acceleration(
        domain_type="qemu",
        reason='KVM on another host cannot be tried from here; if it works there: accelerator = "kvm" in [hosts.NAME]',
    )


def _probe(launch: Launch, emulator: str) -> ProbeBoot:
    bundle = launch.bundle
    return ProbeBoot(
        emulator=emulator,
        cpu=launch.resources.cpu,
        firmware=bundle.firmware,
        kernel=bundle.kernel,
        initrd=bundle.initrd,
        cmdline=launch.cmdline,
        hash_table=launch.hashes.table(),
        hash_table_gpa=launch.simulation("", accelerator="kvm").hash_table_gpa,
    )


def render_machine(name: str, launch: Launch, settings: Settings) -> str:
    """Return the domain XML that `start_machine` would define; nothing is started or copied.

    An SEV-SNP machine is rendered for the host of the settings, which is asked; a dry run's for emulation, and nobody is.

    Raises:
        HostError: the host does not answer, or cannot start it.
    """
    directory = str(settings.machines_dir.absolute() / name)
    if launch.mode is Mode.DRYRUN:
        simulation = launch.simulation(directory, accelerator="qemu")
        spec = launch.spec(name, directory, emulator=_EMULATOR, launch=simulation)
        return render_domain(spec, resources("templates"))
    host = open_host(settings)
    try:
        able = host.hypervisor.capabilities(virt_type="kvm")
        access = _access(host)
    finally:
        host.close()
    how = launch.confidential(able)
    spec = launch.spec(name, f"{host.machines}/{name}", emulator=able.emulator, launch=how, access=access)
    return render_domain(spec, resources("templates"))


def render_argv(name: str, launch: Launch, settings: Settings) -> str:
    """Return the QEMU command line that the host's libvirt would run for what `render_machine` returns, as a shell line.

    Raises:
        HostError: as `render_machine`.
    """
    xml = render_machine(name, launch, settings)
    host = open_host(settings)
    try:
        return host.hypervisor.argv(xml)
    finally:
        host.close()


def destroy_machine(name: str, settings: Settings, *, forget: bool = False) -> bool:
    """Stop a machine by name, whichever process started it, and delete its directory; False if there was none.

    It is looked for where the owner's record says, and without one on the host of the settings. Idempotent. `forget` drops
    the record of a machine whose host is gone for good, and asks nobody.

    Raises:
        HostError: the host does not let go of it.
        ConfigError: no machine can have the name.
        FormatError: the owner's record of it is damaged.
    """
    record = load_record(settings.records_dir, name)
    if forget:
        forget_record(settings.records_dir, name)
        return record is not None
    host = open_host(settings if record is None else replace(settings, host=record.host))
    if record is not None:
        host = replace(host, machines=record.machines)
    try:
        found = _clear(host, name)
    finally:
        host.close()
    forget_record(settings.records_dir, name)
    return found or record is not None
