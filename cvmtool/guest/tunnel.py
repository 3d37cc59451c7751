# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""One connection into the container: frames on the owner's side, bytes on the other, each side closing when it likes.

Zone: guest (measured).
Spec: docs/protocol.md sections 5 and 15.

The container has a network namespace of its own, whose loopback is all that it has; a socket made there stays there for good.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cvmtool.errors import FormatError
from cvmtool.formats.control import TUNNEL_PIECE
from cvmtool.formats.wire import Frame, Kind
from cvmtool.guest.frames import hand_over, receive
from cvmtool.guest.namespace import within

_LOOPBACK = "127.0.0.1"
_CONNECT_SECONDS = 10.0
_PATIENCE_SECONDS = 600.0  # with a container that takes nothing of what it is sent


class Namespace:
    """The container's network."""

    def __init__(self, processes: Path, *, proc: Path = Path("/proc")) -> None:
        """`processes`: the file that names the container's processes (cgroup.procs), the first first."""
        self._processes = processes
        self._proc = proc
        self._finding = threading.Lock()
        self._descriptor: int | None = None

    def connect(self, port: int) -> socket.socket:
        """Connect to a port of the container's loopback address.

        Raises:
            OSError: the container does not run, or nothing listens there.
        """
        inside = within(self._find(), lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        try:
            inside.settimeout(_CONNECT_SECONDS)
            inside.connect((_LOOPBACK, port))
            inside.settimeout(None)
        except BaseException:
            inside.close()
            raise
        return inside

    def close(self) -> None:
        """Let go of it; the kernel drops it with its last process."""
        with self._finding:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _find(self) -> int:
        with self._finding:
            if self._descriptor is None:
                self._descriptor = self._open()
            return self._descriptor

    def _open(self) -> int:
        first = self._processes.read_text("ascii").split("\n", 1)[0]
        if not first:
            raise OSError("the container has no process")
        descriptor = os.open(self._proc / first / "ns/net", os.O_RDONLY | os.O_CLOEXEC)
        # The number may be another process's by now, and before crun has made the namespace it is that of the guest.
        if os.path.samestat(os.fstat(descriptor), (self._proc / "self/ns/net").stat()):
            os.close(descriptor)
            raise OSError("the container has no network of its own yet")
        return descriptor


def carry(owner: socket.socket, inside: socket.socket, *, used: Callable[[], None]) -> None:
    """Carry bytes both ways until both sides have said that there is no more, or one of them has gone.

    `used` is called at each piece, before it is carried.
    """
    owner.settimeout(None)
    outward = threading.Thread(target=_outward, args=(owner, inside, used), name="tunnel", daemon=True)
    outward.start()
    try:
        _inward(owner, inside, used)
    except (OSError, FormatError):
        pass  # either side has gone, or what came is no frame; both ends hear of it
    finally:
        for end in (owner, inside):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        outward.join()


def _inward(owner: socket.socket, inside: socket.socket, used: Callable[[], None]) -> None:
    ended = False
    while True:
        # Also after its end: the owner closes when it has heard ours, and a session that dies is heard of here alone.
        frame = receive(owner, most=TUNNEL_PIECE)
        if ended or frame.kind is Kind.JSON:
            raise FormatError(f"a frame of kind {frame.kind.value!r} is not for a tunnel, or comes after its end")
        if frame.kind is Kind.END:
            ended = True
            inside.shutdown(socket.SHUT_WR)
        else:
            used()
            # The news that an owner has gone may be stuck behind what it sent, so patience has an end.
            hand_over(
                frame.payload,
                lambda data: inside.send(data, socket.MSG_DONTWAIT),
                inside.fileno(),
                owner=owner,
                patience=_PATIENCE_SECONDS,
            )


def _outward(owner: socket.socket, inside: socket.socket, used: Callable[[], None]) -> None:
    try:
        while data := inside.recv(TUNNEL_PIECE):
            used()
            owner.sendall(Frame(Kind.DATA, data).encode())
        owner.sendall(Frame(Kind.END, b"").encode())
    except OSError:
        for end in (owner, inside):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
