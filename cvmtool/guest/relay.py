# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""One connection from the container to a destination: let in if its first bytes are what they must be, then carried and counted.

Zone: guest (measured).
Spec: docs/protocol.md section 15.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from cvmtool.errors import FormatError
from cvmtool.formats.clienthello import MAX_HELLO, read_client_hello
from cvmtool.formats.egress import Flow
from cvmtool.formats.jobterms import Destination, is_address

HELLO_SECONDS = 10.0  # from one piece of the hello to the next
_PIECE = 65_536  # bytes


class Tally:
    """What is carried to and from one destination. Every method may be called from any thread."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self._changing = threading.Lock()
        self._connections = self._sent = self._received = 0

    def connected(self) -> None:
        """Count a connection."""
        with self._changing:
            self._connections += 1

    def sent(self, size: int) -> None:
        """Count bytes from the container."""
        with self._changing:
            self._sent += size

    def received(self, size: int) -> None:
        """Count bytes to the container."""
        with self._changing:
            self._received += size

    def flow(self) -> Flow:
        """Return the counts."""
        with self._changing:
            return Flow(
                destination=self.destination,
                connections=self._connections,
                sent=self._sent,
                received=self._received,
            )


def admit(inside: socket.socket, tallies: Sequence[Tally]) -> tuple[Tally, bytes]:
    """Return to which of the destinations at one address and port a connection goes, and what was read of it.

    Where TLS is waived for all of them it is the first, and nothing is read. Else a ClientHello must name one of them, or nobody
    if the destination is an address: RFC 6066 has no such name.

    Raises:
        FormatError: it does not begin with a ClientHello, or with one for somebody else.
        OSError: it ended, or nothing came for ten seconds.
    """
    if not any(tally.destination.tls for tally in tallies):
        return tallies[0], b""
    inside.settimeout(HELLO_SECONDS)
    first = b""
    while (hello := read_client_hello(first)) is None:
        piece = inside.recv(MAX_HELLO - len(first))
        if not piece:
            raise FormatError("ClientHello: the connection ended before it was whole")
        first += piece
    for tally in tallies:
        host = tally.destination.host
        if hello.server_name == (None if is_address(host) else host):
            return tally, first
    raise FormatError("ClientHello: it names a server that is none of the destinations here")


def carry(inside: socket.socket, outside: socket.socket, tally: Tally) -> None:
    """Carry bytes both ways until both sides have ended, or one has gone."""
    for end in (inside, outside):
        end.settimeout(None)
    back = threading.Thread(target=_pour, args=(outside, inside, tally.received), name="relay", daemon=True)
    back.start()
    _pour(inside, outside, tally.sent)
    back.join()


def _pour(source: socket.socket, sink: socket.socket, count: Callable[[int], None]) -> None:
    try:
        while data := source.recv(_PIECE):
            sink.sendall(data)
            count(len(data))
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
