# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The ways into a running container: those that its manifest names, so many at once, counted for the receipt.

Zone: guest (measured).
Spec: docs/protocol.md sections 5 and 15.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cvmtool.formats.control import ControlError
from cvmtool.formats.job import JobManifest
from cvmtool.formats.receipt import Accesses
from cvmtool.formats.wire import json_frame
from cvmtool.guest.container import Rooms
from cvmtool.guest.exec import run_command
from cvmtool.guest.refusal import RefusedError
from cvmtool.guest.tunnel import Namespace, carry

MOST_AT_ONCE = 64  # tunnels and commands together
_GRANTED = json_frame({"ok": True})


class Reach:
    """What may be reached of one job, and what was. Every method may be called from any thread.

    Those that talk answer the request themselves once they have what was asked for, and stay until it is over.
    """

    def __init__(self, manifest: JobManifest, rooms: Rooms) -> None:
        self._manifest = manifest
        self._rooms = rooms
        self._namespace = Namespace(rooms.container_cgroup / "cgroup.procs")
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._counting = threading.Lock()
        self._closed = False
        self._commands = 0
        self._tunnels = 0

    def tunnel(self, port: int, owner: socket.socket) -> None:
        """Carry one connection to a port of the container.

        Raises:
            RefusedError: `access`: the manifest does not name the port, nothing listens there, or too many are open.
        """
        if port not in self._manifest.access.tunnels:
            raise RefusedError(ControlError.ACCESS, f"the manifest names no tunnel to port {port}")
        with self._place():
            try:
                inside = self._namespace.connect(port)
            except OSError as error:
                raise RefusedError(
                    ControlError.ACCESS, f"port {port} does not answer: {error.strerror or error}"
                ) from error
            unused = threading.Lock()

            def used() -> None:
                if unused.acquire(blocking=False):
                    with self._counting:
                        self._tunnels += 1

            with inside:
                owner.sendall(_GRANTED)
                carry(owner, inside, used=used)

    def command(self, args: tuple[str, ...], owner: socket.socket) -> None:
        """Run a command in the container.

        Raises:
            RefusedError: `access`: the manifest does not allow it, or too many are open; `order`: the container has ended.
        """
        if not self._manifest.access.exec:
            raise RefusedError(ControlError.ACCESS, "the manifest allows no exec")
        with self._place():
            with self._counting:
                if self._closed:
                    raise RefusedError(ControlError.ORDER, "the container has ended")
                self._commands += 1
                name = f"exec-{self._commands}"
            owner.sendall(_GRANTED)
            run_command(self._manifest, args, self._rooms, name=name, owner=owner)

    def close(self) -> Accesses:
        """Say what was used; nothing is any more, for the container has ended."""
        with self._counting:
            self._closed = True
            self._namespace.close()
            return Accesses(exec=self._commands, tunnels=self._tunnels)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise RefusedError(
                ControlError.ACCESS, f"{MOST_AT_ONCE} tunnels and commands are open; no more are possible"
            )
        try:
            yield
        finally:
            self._places.release()
