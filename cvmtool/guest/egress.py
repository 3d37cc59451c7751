# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The container's way out: connections to the destinations that its manifest names, and to nothing else.

Zone: guest (measured).
Spec: docs/protocol.md section 15; ADR-0030.

The container's network namespace has a loopback interface alone. It carries every pinned address, and there the agent listens, on
the pinned ports: what the container connects to is this module, which looks at the first bytes, connects from the guest's own
namespace to the same address and port, and carries bytes. So nothing but these bytes leaves: no packet of the container, no name
that it asks for. Anything else fails inside the container, where the kernel counts it.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from cvmtool.errors import FormatError
from cvmtool.formats.egress import Egress
from cvmtool.formats.jobterms import Destination, is_address
from cvmtool.guest.namespace import make_namespace, within
from cvmtool.guest.network import raise_card, raise_loopback
from cvmtool.guest.relay import Tally, admit, carry

MOST_AT_ONCE = 128  # connections; one more is closed at once
_CONNECT_SECONDS = 20.0
_IP_FREEBIND = 15  # linux/in.h
_PROC = Path("/proc/thread-self/net")
_STRAYS = ("IpOutNoRoutes", "Ip6OutNoRoutes", "TcpAttemptFails", "UdpNoPorts", "Udp6NoPorts")

Endpoint = tuple[str, int]
"""Address and port."""


def open_way_out(destinations: tuple[Destination, ...]) -> WayOut:
    """Bring the guest's network card up, and make a namespace for the container.

    Raises:
        OSError: there is no card, or the kernel or a program refuses.
    """
    return WayOut(destinations, card=raise_card(destinations))


class WayOut:
    """A container's network, from before the container starts until it has ended."""

    def __init__(self, destinations: tuple[Destination, ...], *, card: str) -> None:
        """Make the namespace and listen there. `card`: the interface that every connection to the outside goes through.

        Raises:
            OSError: the kernel, or a program, refuses.
        """
        self._card = card
        self._tallies = [Tally(place) for place in destinations]
        self._reached: dict[Endpoint, list[Tally]] = defaultdict(list)
        for tally in self._tallies:
            for address in tally.destination.addresses:
                self._reached[address, tally.destination.port].append(tally)
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._changing = threading.Lock()
        self._carried: set[socket.socket] = set()
        self._closing = False
        self._refused = 0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._namespace = make_namespace()
        listeners = within(self._namespace, self._listen)
        self._thread = threading.Thread(target=self._accept_all, args=(listeners,), name="egress", daemon=True)
        self._thread.start()

    @property
    def namespace(self) -> str:
        """The container's network namespace, as a path for every process of the guest."""
        return f"/proc/{os.getpid()}/fd/{self._namespace}"

    @property
    def hosts(self) -> str:
        """The container's /etc/hosts: it asks no name server."""
        pairs = sorted(
            {(address, tally.destination.host) for (address, _), at in self._reached.items() for tally in at}
        )
        named = [f"{address} {host}" for address, host in pairs if not is_address(host)]
        return "\n".join(["127.0.0.1 localhost", "::1 localhost", *named, ""])

    def close(self) -> Egress:
        """Cut what is left and return what went out. The container has ended."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        with self._changing:
            self._closing = True
            for end in self._carried:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        for _ in range(MOST_AT_ONCE):
            self._places.acquire()  # until every connection has been counted
        strays = within(self._namespace, _count_strays)
        for descriptor in (self._wake, self._namespace):
            os.close(descriptor)
        return Egress(flows=tuple(tally.flow() for tally in self._tallies), turned_away=self._refused + strays)

    def _listen(self) -> list[socket.socket]:
        raise_loopback(sorted({address for address, _ in self._reached}))
        return [_listen_at(endpoint) for endpoint in self._reached]

    def _accept_all(self, listeners: list[socket.socket]) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            for listener in listeners:
                selector.register(listener, selectors.EVENT_READ, listener)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        for listener in listeners:
                            listener.close()
                        return
                    self._accept(key.data)

    def _accept(self, listener: socket.socket) -> None:
        try:
            inside, _ = listener.accept()
        except OSError:
            return  # it has gone again
        if not self._places.acquire(blocking=False):
            inside.close()
            self._refuse()
            return
        endpoint = listener.getsockname()[:2]
        threading.Thread(target=self._serve, args=(inside, endpoint), name="relay", daemon=True).start()

    def _serve(self, inside: socket.socket, endpoint: Endpoint) -> None:
        outside = socket.socket(_family(endpoint[0]), socket.SOCK_STREAM)
        try:
            with inside, outside:
                try:
                    self._keep(inside, outside)
                    tally, first = admit(inside, self._reached[endpoint])
                    # Whatever the routes are: never to the guest itself.
                    outside.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._card.encode("ascii"))
                    outside.settimeout(_CONNECT_SECONDS)
                    outside.connect(endpoint)
                    outside.sendall(first)
                except (OSError, FormatError):
                    self._refuse()
                    return
                tally.connected()
                tally.sent(len(first))
                carry(inside, outside, tally)
        finally:
            with self._changing:
                self._carried -= {inside, outside}
            self._places.release()

    def _keep(self, *ends: socket.socket) -> None:
        with self._changing:
            if self._closing:
                raise OSError("the container has ended")
            self._carried |= set(ends)

    def _refuse(self) -> None:
        with self._changing:
            self._refused += 1


def _listen_at(endpoint: Endpoint) -> socket.socket:
    listener = socket.socket(_family(endpoint[0]), socket.SOCK_STREAM)
    # The kernel takes a moment to call a new IPv6 address its own, on a loopback interface, too.
    listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    listener.bind(endpoint)
    listener.listen(MOST_AT_ONCE)
    return listener


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _count_strays() -> int:
    """Count what the kernel turned down in the namespace that the calling thread is in: no route, nobody there."""
    counts: dict[str, int] = {}
    lines = (_PROC / "snmp").read_text("ascii").splitlines()
    for names, numbers in zip(lines[::2], lines[1::2], strict=True):
        group, *keys = names.split()
        counts |= {group[:-1] + key: int(number) for key, number in zip(keys, numbers.split()[1:], strict=True)}
    for line in (_PROC / "snmp6").read_text("ascii").splitlines():
        key, number = line.split()
        counts[key] = int(number)
    return sum(counts[name] for name in _STRAYS)
