# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The bytes of a domain's port, between libvirt's event loop and a socket.

Zone: host. libvirt comes in as an argument: its only door is `cvmtool.host.hypervisor`.
"""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, suppress
from types import ModuleType
from typing import Any

from cvmtool.host.events import Event, Events, Happening


class StreamPump:
    """Carries bytes between a libvirt stream and a socket pair, in the event loop; the far end is `outside`."""

    def __init__(self, libvirt: ModuleType, connection: Any, domain: Any, port: str, *, steal: bool) -> None:  # noqa: ANN401
        """`steal`: whoever holds the port loses it."""
        self._libvirt = libvirt
        self._hangup = libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR
        self._stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
        domain.openChannel(port, self._stream, libvirt.VIR_DOMAIN_CHANNEL_FORCE if steal else 0)
        self._inside, self.outside = socket.socketpair()
        self._inside.setblocking(False)  # noqa: FBT003
        self._to_guest = b""
        self._from_guest = b""
        self._over = False
        self._lock = threading.RLock()
        self._listening = ExitStack()
        with self._lock:
            self._handle = libvirt.virEventAddHandle(
                self._inside.fileno(), libvirt.VIR_EVENT_HANDLE_READABLE, self._on_socket, None
            )
            self._stream.eventAddCallback(libvirt.VIR_STREAM_EVENT_READABLE | self._hangup, self._on_stream, None)

    def end_with_connection(self, events: Events, name: str) -> None:
        """End when the connection does: libvirt tells a stream nothing of that, and its reader would wait for ever."""
        with self._lock:
            if not self._over:
                self._listening.enter_context(events.listen(name, self._on_event))

    def _on_event(self, event: Event) -> None:
        with self._lock:
            if event.what is Happening.DISCONNECTED and not self._over:
                self._stop(clean=False)

    def _on_stream(self, _stream: object, events: int, _opaque: object) -> None:
        with self._lock:
            if self._over:
                return
            try:
                if events & self._libvirt.VIR_STREAM_EVENT_READABLE and not self._from_guest:
                    data = self._stream.recv(65_536)
                    if data == b"":
                        self._stop(clean=True)
                        return
                    if data != -2:  # it would block
                        self._from_guest = data
                elif events & self._hangup:
                    self._stop(clean=False)
                    return
                self._move()
            except (self._libvirt.libvirtError, OSError):
                self._stop(clean=False)

    def _on_socket(self, _watch: int, _fd: int, events: int, _opaque: object) -> None:
        readable = self._libvirt.VIR_EVENT_HANDLE_READABLE | self._libvirt.VIR_EVENT_HANDLE_HANGUP
        with self._lock:
            if self._over:
                return
            try:
                if events & readable and not self._to_guest:
                    self._to_guest = self._inside.recv(65_536)
                    if not self._to_guest:
                        self._stop(clean=True)
                        return
                self._move()
            except BlockingIOError:
                return
            except (self._libvirt.libvirtError, OSError):
                self._stop(clean=False)

    def _move(self) -> None:
        if self._to_guest:
            sent = self._stream.send(self._to_guest)
            if sent > 0:
                self._to_guest = self._to_guest[sent:]
        with suppress(BlockingIOError):
            while self._from_guest:
                self._from_guest = self._from_guest[self._inside.send(self._from_guest) :]
        libvirt = self._libvirt
        libvirt.virEventUpdateHandle(
            self._handle,
            (0 if self._to_guest else libvirt.VIR_EVENT_HANDLE_READABLE)
            | (libvirt.VIR_EVENT_HANDLE_WRITABLE if self._from_guest else 0),
        )
        self._stream.eventUpdateCallback(
            (0 if self._from_guest else libvirt.VIR_STREAM_EVENT_READABLE)
            | (libvirt.VIR_STREAM_EVENT_WRITABLE if self._to_guest else 0)
            | self._hangup
        )

    def _stop(self, *, clean: bool) -> None:
        self._over = True
        self._listening.close()
        self._libvirt.virEventRemoveHandle(self._handle)
        with suppress(self._libvirt.libvirtError):
            self._stream.eventRemoveCallback()
        with suppress(self._libvirt.libvirtError):
            if clean:
                self._stream.finish()
            else:
                self._stream.abort()
        self._inside.close()
