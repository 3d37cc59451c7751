# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A host that attacks, on purpose: what `cvmtool drill` and the scenario tests put in the place of a host.

Zone: flows. It does what a provider could do: change files before the start, edit the domain, sit on the agent port. It is a
Hypervisor like any other, so the code that must refuse it is the code of every run.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import cast

from cvmtool.config import Settings
from cvmtool.flows.hosts import Host, OpenHost, open_host
from cvmtool.flows.machine import Machine
from cvmtool.formats.channel import AGENT_PORT
from cvmtool.host.files import HostFiles
from cvmtool.host.hypervisor import Hypervisor
from cvmtool.host.live import LiveDomain, parse_live_domain
from cvmtool.measure.hashes import kernel_hashes

Tamper = Callable[[LiveDomain, str, HostFiles], str]
"""Gets what the domain would be given, its XML and the host's files, which it may change; returns the XML to define."""
Interpose = Callable[[socket.socket], socket.socket]
"""Gets the agent port and returns what the owner sees instead."""
MAX_FILE = 512 << 20  # bytes of a file that is changed


class HostileHost:
    """Wraps a hypervisor; everything that is not an attack is passed on."""

    def __init__(
        self, hypervisor: Hypervisor, files: HostFiles, tamper: Tamper | None, interpose: Interpose | None
    ) -> None:
        self._hypervisor = hypervisor
        self._files = files
        self._tamper = tamper
        self._interpose = interpose
        self._given: dict[str, LiveDomain] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._hypervisor, name)

    def define(self, xml: str) -> None:
        """Define what the attack makes of the domain."""
        given = parse_live_domain(xml)
        self._given[given.name] = given
        if self._tamper is not None:
            xml = self._tamper(given, xml, self._files)
        self._hypervisor.define(xml)

    def defined(self, name: str) -> LiveDomain:
        """Say that nothing was changed."""
        return self._given[name]

    def open_port(self, name: str, port: str) -> socket.socket:
        """Open a port; the agent's with somebody in between."""
        opened = self._hypervisor.open_port(name, port)
        return self._interpose(opened) if self._interpose is not None and port == AGENT_PORT else opened


def flip_byte(files: HostFiles, path: str, at: int) -> None:
    """Flip the lowest bit of one byte; a negative `at` counts from the end.

    The file becomes the machine's own: what the store holds, and other machines use, stays as it is.
    """
    data = bytearray(files.read(path, MAX_FILE))
    data[at] ^= 1
    files.write(path, bytes(data))


def retable(live: LiveDomain, files: HostFiles, cmdline: str | None = None) -> None:
    """Write the hash table that fits the files as they are now: a host that lies consistently."""
    kernel, initrd = files.read(live.kernel, MAX_FILE), files.read(live.initrd, MAX_FILE)
    files.write(live.hash_table, kernel_hashes(kernel, initrd, cmdline or live.cmdline).table())


def hostile(tamper: Tamper | None, interpose: Interpose | None = None) -> OpenHost:
    """Return what opens a host that attacks."""

    def open_hostile(settings: Settings) -> Host:
        host = open_host(settings)
        return replace(host, hypervisor=cast("Hypervisor", HostileHost(host.hypervisor, host.files, tamper, interpose)))

    return open_hostile


def beset(machine: Machine, interpose: Interpose) -> Machine:
    """Return a machine that runs already, with somebody on its agent port from now on."""
    host = machine.host
    between_them = HostileHost(host.hypervisor, host.files, None, interpose)
    return replace(machine, host=replace(host, hypervisor=cast("Hypervisor", between_them)))


Rewrite = Callable[[bytes], bytes]
"""Gets everything said since the start whenever bytes arrive; returns what may be passed on of it, which only ever grows."""


def between(*, answer: Rewrite, challenge: Rewrite = bytes) -> Interpose:
    """Sit on the agent port; rewrite what the guest answers and what the owner asks."""

    def interpose(port: socket.socket) -> socket.socket:
        ours, owners = socket.socketpair()
        for source, target, rewrite in ((port, ours, answer), (ours, port, challenge)):
            threading.Thread(target=_pass_on, args=(source, target, rewrite), daemon=True).start()
        return owners

    return interpose


def _pass_on(source: socket.socket, target: socket.socket, rewrite: Rewrite) -> None:
    heard, told = b"", 0
    with suppress(OSError):
        while data := source.recv(65_536):
            heard += data
            said = rewrite(heard)
            target.sendall(said[told:])
            told = len(said)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)  # the other thread waits in it: closing alone would tell nobody
    target.close()
