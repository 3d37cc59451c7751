# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""See what happens to a machine while somebody waits for it, say so, and let it go on when its host has room again.

Zone: flows. A machine that could not write is paused by QEMU and loses nothing: the write is tried again when it goes on. So
going on is tried every few seconds, and a host that is still full pauses it again, unnoticed by the guest.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cvmtool.errors import HostError
from cvmtool.host.events import GONE, Event, Happening
from cvmtool.host.hypervisor import Hypervisor, MachineState

_RETRY_SECONDS = 5.0
_OVER = GONE | {Happening.DISCONNECTED}


class Guard:
    """What has happened to one machine over one connection."""

    def __init__(self, hypervisor: Hypervisor, name: str, notice: Callable[[str], None]) -> None:
        self._hypervisor = hypervisor
        self._name = name
        self._notice = notice
        self._full: Event | None = None
        self._last: Happening | None = None
        self._over = threading.Event()

    def wait_over(self, seconds: float) -> Happening | None:
        """Wait until the machine is gone, or the connection to its host; return which, or None if neither came."""
        self._over.wait(seconds)
        return self._last if self._over.is_set() else None

    def serve(self, happened: queue.SimpleQueue[Event | None]) -> None:
        """Handle events until None comes."""
        while True:
            try:
                event = happened.get(timeout=_RETRY_SECONDS if self._full else None)
            except queue.Empty:
                self._go_on()
                continue
            if event is None:
                return
            self._handle(event)

    def _handle(self, event: Event) -> None:
        if event.what in _OVER and not self._over.is_set():
            self._full = None
            self._last = event.what
            self._over.set()
        elif event.what is Happening.DISK_FULL:
            if self._full is None:
                where = f" for {event.path}" if event.path else ""
                self._notice(
                    f"{self._name} is paused: its host has no room{where}. Nothing is lost: free space there, and it goes on"
                )
            self._full = event
        elif event.what is Happening.DISK_ERROR:
            self._notice(f"a disk of {self._name} failed on its host: {event.path}")
        elif event.what is Happening.PAUSED:
            self._notice(f"{self._name} was paused by somebody on its host; cvmtool vm resume {self._name}")

    def _go_on(self) -> None:
        """Try to go on; if the disk is still full, QEMU pauses it at once and another event follows."""
        with suppress(HostError):
            self._hypervisor.resume(self._name)
        time.sleep(0.5)  # QEMU tries the write at once
        with suppress(HostError):
            if self._hypervisor.state(self._name) is MachineState.RUNNING:
                self._full = None
                self._notice(f"its host has room again; {self._name} goes on")


@contextmanager
def guarded(hypervisor: Hypervisor, name: str, notice: Callable[[str], None]) -> Iterator[Guard]:
    """Guard a machine while the block runs. `notice` is called from another thread.

    Raises:
        HostError: the connection is gone.
    """
    guard = Guard(hypervisor, name, notice)
    happened: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    with hypervisor.events.listen(name, happened.put):
        # It may have happened before anybody listened.
        with suppress(HostError):
            if hypervisor.state(name) is MachineState.NO_ROOM:
                happened.put(Event(what=Happening.DISK_FULL))
        thread = threading.Thread(target=guard.serve, args=(happened,), name="guard", daemon=True)
        thread.start()
        try:
            yield guard
        finally:
            happened.put(None)
            thread.join(_RETRY_SECONDS)
