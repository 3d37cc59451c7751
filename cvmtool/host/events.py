# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What libvirt tells of a host's machines without being asked: they start, stop, die, or wait for room on a disk.

Zone: host. libvirt comes in as an argument: its only door is `cvmtool.host.hypervisor`.
Events are claims, and one may be missed while a connection is down; whoever waits for one looks at the state as well.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType
from typing import Any


class Happening(StrEnum):
    """What happened."""

    STARTED = "started"
    RESUMED = "resumed"
    PAUSED = "paused"
    """By somebody on the host."""
    DISK_FULL = "disk-full"
    """It is paused: the host has no room for what it wrote."""
    DISK_ERROR = "disk-error"
    """A disk failed for another reason; the guest is told, or the machine is paused."""
    ENDED = "ended"
    """The guest powered itself off."""
    STOPPED = "stopped"
    """By somebody on the host."""
    DIED = "died"
    """QEMU was killed, or crashed."""
    DISCONNECTED = "disconnected"
    """The connection to libvirt is gone. The machine may well run on."""


_LOOK_SECONDS = 0.5

GONE = frozenset({Happening.ENDED, Happening.STOPPED, Happening.DIED})
"""After these, a machine does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. `path` is the host's file of the disk, where a disk is what it is about."""

    what: Happening
    path: str = ""


Listener = Callable[[Event], None]


def of_lifecycle(libvirt: ModuleType, event: int, detail: int) -> Happening | None:
    """Return what a lifecycle event means; None if nothing here. A pause for want of room has an event of its own."""
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
        if detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN:
            return Happening.ENDED
        died = (libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED)
        return Happening.DIED if detail in died else Happening.STOPPED
    if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
        return None if detail == libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR else Happening.PAUSED
    return {
        libvirt.VIR_DOMAIN_EVENT_STARTED: Happening.STARTED,
        libvirt.VIR_DOMAIN_EVENT_RESUMED: Happening.RESUMED,
        libvirt.VIR_DOMAIN_EVENT_CRASHED: Happening.DIED,
    }.get(event)


def of_disk(libvirt: ModuleType, path: str, action: int, reason: str) -> Event | None:
    """Return what a disk's error means; None if neither guest nor machine notices."""
    if action == libvirt.VIR_DOMAIN_EVENT_IO_ERROR_NONE:
        return None
    return Event(what=Happening.DISK_FULL if reason == "enospc" else Happening.DISK_ERROR, path=path)


class Events:
    """The events of one connection. Listeners are called from libvirt's event loop: they return at once.

    That the connection is gone is looked for in a thread. libvirt's callback for it is not used: it is called with the connection's
    lock held, from within whatever call noticed, and a listener that ends its stream takes the same lock (seen: the event loop
    stood for ever).
    """

    def __init__(self, libvirt: ModuleType, connection: Any) -> None:  # noqa: ANN401 - the binding has no types
        """Listen.

        Raises:
            libvirt.libvirtError: the connection is gone.
        """
        self._libvirt = libvirt
        self._connection = connection
        self._listeners: list[tuple[str, Listener]] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ids = [
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None),
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._on_disk, None),
        ]

        threading.Thread(target=self._look, name="connection", daemon=True).start()

    @contextmanager
    def listen(self, name: str, listener: Listener) -> Iterator[None]:
        """Tell `listener` of the events of the domain `name`, and of the connection's end, while the block runs."""
        entry = (name, listener)
        with self._lock:
            self._listeners.append(entry)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(entry)

    @contextmanager
    def gather(self, name: str) -> Iterator[queue.SimpleQueue[Event]]:
        """Put the events of the domain `name` into a queue while the block runs."""
        gathered: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with self.listen(name, gathered.put):
            yield gathered

    def close(self) -> None:
        """Stop listening, so that the connection can be closed."""
        self._closed.set()
        with suppress(self._libvirt.libvirtError):
            for number in self._ids:
                self._connection.domainEventDeregisterAny(number)

    def _on_lifecycle(self, _connection: object, domain: Any, event: int, detail: int, _opaque: object) -> None:  # noqa: ANN401
        what = of_lifecycle(self._libvirt, event, detail)
        if what is not None:
            self._tell(Event(what=what), domain.name())

    def _on_disk(
        self,
        _connection: object,
        domain: Any,  # noqa: ANN401
        path: str,
        _device: str,
        action: int,
        reason: str,
        _opaque: object,
    ) -> None:
        event = of_disk(self._libvirt, path, action, reason)
        if event is not None:
            self._tell(event, domain.name())

    def _look(self) -> None:
        """Wait for the end of the connection, and tell everybody."""
        while not self._closed.wait(_LOOK_SECONDS):
            try:
                alive = bool(self._connection.isAlive())
            except self._libvirt.libvirtError:
                alive = False
            if not alive and not self._closed.is_set():
                self._tell(Event(what=Happening.DISCONNECTED), None)
                return

    def _tell(self, event: Event, name: str | None) -> None:
        with self._lock:
            told = [listener for of, listener in self._listeners if name is None or of == name]
        for listener in told:
            listener(event)
