# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""libvirt: connections, domains, and the byte streams of a domain's ports. The only door to libvirt.

Zone: host. Every answer is a claim. Nothing here decides trust.
libvirt is imported when a connection is opened and not before, so the rest of cvmtool works without it.
Errors are mapped by libvirt's code, never by its text; the text goes into `detail`.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

from cvmtool.errors import ConfigError, HostError
from cvmtool.host.capabilities import HostCapabilities, parse_capabilities
from cvmtool.host.embedded import embedded_root, embedded_uri, is_held, prepare, session_fits
from cvmtool.host.events import Events
from cvmtool.host.failures import hint
from cvmtool.host.live import LiveDomain, is_ours, parse_live_domain
from cvmtool.host.stream import StreamPump

_SETTLE_SECONDS = 10.0  # how long a reopened embedded driver may take to find its domains' monitors again


class MachineState(StrEnum):
    """What libvirt says of a domain."""

    RUNNING = "running"
    PAUSED = "paused"
    NO_ROOM = "paused: a disk of its host is full, or failed"
    STOPPED = "stopped"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInfo:
    """A domain of ours, as the host lists it."""

    name: str
    state: MachineState
    job: str
    image: str
    simulated: bool


def libvirt_module() -> ModuleType:
    """Import libvirt.

    Raises:
        ConfigError: the binding is not installed.
    """
    try:
        import libvirt  # noqa: PLC0415 - lazy: verifying needs no libvirt
    except ImportError as error:
        raise ConfigError(
            "libvirt-python is not installed", hint="pip install 'cvmtool[host]' (or: make setup)"
        ) from error
    return libvirt  # type: ignore[no-any-return]


class _EventLoop:
    """libvirt's event loop in a thread; registered once a process, before the first connection."""

    _started = False
    _lock = threading.Lock()

    @classmethod
    def ensure(cls, libvirt: ModuleType) -> None:
        with cls._lock:
            if cls._started:
                return
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=cls._run, args=(libvirt,), name="libvirt-events", daemon=True).start()
            cls._started = True

    @staticmethod
    def _run(libvirt: ModuleType) -> None:
        while True:
            libvirt.virEventRunDefaultImpl()


def choose_uri(*, uid: int, runtime: Path, config: Path) -> str:
    """Choose where a dry run goes when no host is named.

    An ordinary user's session daemon where its sockets have room; for root the system daemon where it answers; else
    libvirt inside this process, with a root directory of this process's own.

    Args:
        uid: the user's number.
        runtime: what stands for the user's XDG_RUNTIME_DIR; the session daemon's sockets lie below.
        config: what stands for the user's XDG_CONFIG_HOME; QEMU's monitors lie below.
    """
    if uid != 0:
        return "qemu:///session" if session_fits(runtime, config) else embedded_uri(uid=uid, pid=os.getpid())
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        probe.connect("/run/libvirt/libvirt-sock")
        return "qemu:///system"
    return embedded_uri(uid=uid, pid=os.getpid())


class Hypervisor:
    """One connection to libvirt."""

    _embedded: Hypervisor | None = None

    def __init__(self, uri: str, *, log: Path) -> None:
        """Connect.

        Args:
            uri: a libvirt URI.
            log: where libvirt itself may write what it has to say.

        Raises:
            HostError: nothing answers there.
            ConfigError: libvirt-python is missing.
        """
        self.uri = uri
        # libvirt inside this process writes to standard error unless told otherwise before it is loaded.
        os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", f"3:file:{log}")
        self._libvirt = libvirt_module()
        _EventLoop.ensure(self._libvirt)
        self._root = embedded_root(uri)
        self._events: Events | None = None
        if self._root is not None:
            prepare(self._root)
        try:
            self._connection = self._libvirt.open(uri)
        except self._libvirt.libvirtError as error:
            raise HostError(
                f"libvirt does not answer at {uri}", detail=str(error), hint=_connect_hint(uri, str(error))
            ) from error

    @classmethod
    def open(cls, uri: str, *, log: Path) -> Hypervisor:
        """Connect, sharing this process's one embedded driver."""
        if embedded_root(uri) is None:
            return cls(uri, log=log)
        if cls._embedded is None or not cls._embedded.alive:
            cls._embedded = cls(uri, log=log)
            atexit.register(cls._embedded.leave)
        if cls._embedded.uri != uri:
            raise HostError(
                "libvirt inside this process serves one machine of cvmtool vm at a time",
                hint="one command for each, or a libvirt daemon: systemctl start libvirtd",
            )
        return cls._embedded

    @property
    def alive(self) -> bool:
        """Whether the connection still stands."""
        with suppress(self._libvirt.libvirtError):
            return bool(self._connection.isAlive())
        return False

    def close(self) -> None:
        """Disconnect. An embedded driver stays open while the process lives: libvirt opens some fifteen and no more."""
        if self._root is None:
            if self._events is not None:
                self._events.close()
            with suppress(self._libvirt.libvirtError):
                self._connection.close()

    def leave(self) -> None:
        """Close the embedded driver as the process ends; without domains it leaves nothing behind."""
        with suppress(HostError, self._libvirt.libvirtError):
            if self._root is not None and not self._domains():
                self._connection.close()
                shutil.rmtree(self._root, ignore_errors=True)

    def version(self) -> tuple[int, int, int]:
        """Ask for the version of the libvirt there: major, minor, micro.

        Raises:
            HostError: it does not say.
        """
        try:
            number = self._connection.getLibVersion()
        except self._libvirt.libvirtError as error:
            raise self._failure("say which libvirt it has", error) from error
        return number // 1_000_000, number // 1_000 % 1_000, number % 1_000

    def capabilities(self, *, virt_type: str = "qemu") -> HostCapabilities:
        """Ask what the host can start with `virt_type`: `qemu` (emulation) or `kvm`.

        Raises:
            HostError: it does not say, has no QEMU, or no KVM.
        """
        try:
            return parse_capabilities(self._connection.getDomainCapabilities(None, "x86_64", "q35", virt_type))
        except self._libvirt.libvirtError as error:
            raise self._failure(f"say what it can start with {virt_type}", error) from error

    def argv(self, xml: str) -> str:
        """Return the QEMU command line that libvirt would run for a domain, as one shell line.

        Raises:
            HostError: libvirt refuses the domain.
        """
        try:
            return str(self._connection.domainXMLToNative("qemu-argv", xml, 0))
        except self._libvirt.libvirtError as error:
            raise self._failure("turn the machine into a QEMU command", error) from error

    def define(self, xml: str) -> None:
        """Define a domain, after libvirt has validated it against its schema.

        Raises:
            HostError: libvirt refuses it, or a running domain has its name.
        """
        try:
            self._connection.defineXMLFlags(xml, self._libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        except self._libvirt.libvirtError as error:
            raise self._failure("define the machine", error) from error

    def start(self, name: str) -> None:
        """Start a defined domain.

        Raises:
            HostError: QEMU does not start; its own words are the detail.
        """
        domain = self._lookup(name)
        try:
            domain.create()
        except self._libvirt.libvirtError as error:
            raise self._failure("start the machine", error) from error

    @property
    def events(self) -> Events:
        """What this connection tells of its domains.

        Raises:
            HostError: the connection is gone.
        """
        if self._events is None:
            try:
                self._events = Events(self._libvirt, self._connection)
            except self._libvirt.libvirtError as error:
                raise self._failure("tell what happens to its machines", error) from error
        return self._events

    def resume(self, name: str) -> None:
        """Let a paused domain go on; what it could not write is tried again.

        Raises:
            HostError: it is not paused.
        """
        domain = self._lookup(name)
        try:
            domain.resume()
        except self._libvirt.libvirtError as error:
            raise self._failure("let the machine go on", error) from error

    def defined(self, name: str) -> LiveDomain:
        """Read what a domain would be started with, as libvirt keeps it.

        Raises:
            HostError: there is no such domain, or its XML is out of shape.
        """
        return self._read(name, self._libvirt.VIR_DOMAIN_XML_INACTIVE)

    def live(self, name: str) -> LiveDomain:
        """Read what the running domain was given.

        Raises:
            HostError: there is no such domain, or its XML is out of shape.
        """
        return self._read(name, 0)

    def _read(self, name: str, flags: int) -> LiveDomain:
        domain = self._lookup(name)
        try:
            return parse_live_domain(domain.XMLDesc(flags))
        except self._libvirt.libvirtError as error:
            raise self._failure("read the machine's XML", error) from error

    def state(self, name: str) -> MachineState:
        """Ask for a domain's state.

        Raises:
            HostError: there is no such domain.
        """
        try:
            return self._state(self._lookup(name))
        except self._libvirt.libvirtError as error:
            raise self._failure("ask for the machine's state", error) from error

    def machines(self) -> list[MachineInfo]:
        """List the domains that cvmtool made.

        Raises:
            HostError: the connection is gone.
        """
        found = []
        for domain in self._domains():
            with suppress(self._libvirt.libvirtError):  # gone since it was listed
                xml = domain.XMLDesc(0)
                if is_ours(xml):
                    live = parse_live_domain(xml)
                    state = self._state(domain)
                    info = MachineInfo(
                        name=live.name, state=state, job=live.job, image=live.image, simulated=live.simulated
                    )
                    found.append(info)
        return found

    def destroy(self, name: str) -> bool:
        """Stop a domain at once and forget it; False if there was none. Idempotent.

        Raises:
            HostError: libvirt cannot do it.
        """
        libvirt = self._libvirt
        try:
            domain = self._connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise self._failure("find the machine", error) from error
        self._let_settle(domain)
        try:
            if domain.isActive():
                domain.destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or domain.isActive():
                raise self._failure("stop the machine", error) from error
        with suppress(libvirt.libvirtError):  # a transient domain is gone already
            domain.undefine()
        return True

    def open_port(self, name: str, port: str, *, steal: bool = True) -> socket.socket:
        """Open a domain's virtio-serial port and return a socket that carries its bytes; `steal`: from whoever holds it.

        Raises:
            HostError: the domain does not run, has no such port, or somebody else holds it and keeps it.
        """
        domain = self._lookup(name)
        self._let_settle(domain)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            try:
                pump = StreamPump(self._libvirt, self._connection, domain, port, steal=steal)
                break
            except self._libvirt.libvirtError as error:
                # One process alone has an embedded driver. Who had it before may be killed, and still be a number that libvirt
                # takes for the port's holder, until it is reaped.
                held = error.get_error_code() == self._libvirt.VIR_ERR_OPERATION_FAILED
                if self._root is None or not held or time.monotonic() > deadline:
                    raise self._failure(f"open the port {port}", error) from error
            time.sleep(0.1)
        pump.end_with_connection(self.events, name)
        return pump.outside

    def monitor(self, name: str, command: str) -> str:
        """Run a human monitor command (dry runs only: what a processor's registers show is nobody's secret there).

        Raises:
            HostError: the domain does not run.
        """
        import libvirt_qemu  # noqa: PLC0415

        flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        try:
            return str(libvirt_qemu.qemuMonitorCommand(self._lookup(name), command, flags))
        except self._libvirt.libvirtError as error:
            raise self._failure("ask QEMU's monitor", error) from error

    def _domains(self) -> list[Any]:
        try:
            return list(self._connection.listAllDomains(0))
        except self._libvirt.libvirtError as error:
            raise self._failure("list machines", error) from error

    def _let_settle(self, domain: Any) -> None:  # noqa: ANN401
        """Wait for a driver that has just found its domains again: it says "not running" until it has reached a monitor."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            try:
                if not domain.isActive() or domain.controlInfo()[0] == self._libvirt.VIR_DOMAIN_CONTROL_OK:
                    return
            except self._libvirt.libvirtError:
                return
            time.sleep(0.02)

    def _lookup(self, name: str) -> Any:  # noqa: ANN401 - the binding has no types
        try:
            return self._connection.lookupByName(name)
        except self._libvirt.libvirtError as error:
            raise self._failure(f"find the machine {name}", error) from error

    def _state(self, domain: Any) -> MachineState:  # noqa: ANN401
        libvirt = self._libvirt
        state, reason = domain.state(0)
        if state == libvirt.VIR_DOMAIN_PAUSED:
            return MachineState.NO_ROOM if reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR else MachineState.PAUSED
        if domain.isActive():
            return MachineState.RUNNING
        failed = (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_FAILED)
        return MachineState.CRASHED if reason in failed else MachineState.STOPPED

    def _failure(self, action: str, error: Exception) -> HostError:
        libvirt = self._libvirt
        code = error.get_error_code() if isinstance(error, libvirt.libvirtError) else None
        return HostError(f"the host could not {action}", detail=str(error), hint=hint(str(error), code))


def _connect_hint(uri: str, said: str) -> str:
    known = hint(said, None)
    if known:
        return known
    root = embedded_root(uri)
    if root is not None and is_held(root):
        return "another cvmtool works with this machine; libvirt inside a process lets no second one in, a libvirt daemon would"
    if root is not None:
        return "is the libvirt-daemon-driver-qemu package installed? make setup"
    return f"does it work by hand? virsh -c {uri} list"
