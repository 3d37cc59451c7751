# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a job manifest may allow beyond running: ways in and out, a volume for checkpoints, other readers of its results.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md section 15. Each of these stands in a manifest only if the job asks for it: what a manifest does not name, a
guest does not do.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cvmtool.errors import FormatError
from cvmtool.formats.volume import Volume, parse_volume
from cvmtool.formats.wire import JsonObject, members, natural, parse_hex, typed

CHECKPOINT = "checkpoint"
"""The name of the one volume that a job may have; the container sees it as /checkpoint."""
MAX_GRACE = 3_600  # seconds
MAX_TUNNELS = 16  # ports
MAX_CLIENTS = 64  # keys
MAX_RECIPIENTS = 20  # keys, each with its stanza before every output
MAX_DESTINATIONS = 64
MAX_ADDRESSES = 32  # of one destination
MAX_PORT = 65_535
KEY_SIZE = 32  # bytes, of an Ed25519 or X25519 public key
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a job keeps what a later launch of the same job goes on from."""

    volume: Volume
    grace_seconds: int
    """How long the container has after SIGTERM to write its last checkpoint."""

    def to_json(self) -> JsonObject:
        """Return the checkpoint as it stands in a manifest."""
        return {"volume": self.volume.to_json(), "grace_seconds": self.grace_seconds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may reach into the running job, and how. The empty one: nobody."""

    exec: bool = False
    """Whether its owner may run commands in the container."""
    tunnels: tuple[int, ...] = ()
    """Ports of the container that its owner, and `clients`, may be connected to. Ascending."""
    clients: tuple[str, ...] = ()
    """Ed25519 SSH keys (32 bytes as hex) that may open tunnels and ask for the stage, and nothing else. Ascending."""

    def to_json(self) -> JsonObject:
        """Return the access as it stands in a manifest."""
        return {"exec": self.exec, "tunnels": list(self.tunnels), "clients": list(self.clients)}


NO_ACCESS = Access()


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """One place outside that the container may connect to."""

    host: str
    """A DNS name in lower case, or an address."""
    port: int
    addresses: tuple[str, ...]
    """What the name stands for, as the owner resolved it: the guest asks nobody. Ascending as text."""
    tls: bool
    """Whether a connection must begin as TLS to `host`; false only if the job waives that by name."""

    def to_json(self) -> JsonObject:
        """Return the destination as it stands in a manifest."""
        return {"host": self.host, "port": self.port, "addresses": list(self.addresses), "tls": self.tls}


def parse_checkpoint(value: object) -> Checkpoint:
    """Read a manifest's checkpoint.

    Raises:
        FormatError: a key is missing, unknown or out of range, or the volume has another name.
    """
    what = "manifest.checkpoint"
    found = _object(value, what)
    members(found, what=what, required=set(Checkpoint.__slots__))
    volume = parse_volume(typed(found, "volume", dict, what=what))
    if volume.name != CHECKPOINT:
        raise FormatError(f"{what}.volume.name is {volume.name!r}; {CHECKPOINT!r} is required")
    return Checkpoint(volume=volume, grace_seconds=natural(found, "grace_seconds", what=what, most=MAX_GRACE))


def parse_access(value: object) -> Access:
    """Read who may reach into the job.

    Raises:
        FormatError: a key is missing, unknown or out of range, a list is not ascending, or it allows nothing.
    """
    what = "manifest.access"
    found = _object(value, what)
    members(found, what=what, required=set(Access.__slots__))
    tunnels = _entries(found, "tunnels", MAX_TUNNELS, what=what)
    clients = _entries(found, "clients", MAX_CLIENTS, what=what)
    access = Access(
        exec=typed(found, "exec", bool, what=what),
        tunnels=tuple(natural({"port": port}, "port", what=what, least=1, most=MAX_PORT) for port in tunnels),
        clients=tuple(parse_hex(key, KEY_SIZE, what=f"{what}.clients").hex() for key in clients),
    )
    _require_ascending(access.tunnels, f"{what}.tunnels")
    _require_ascending(access.clients, f"{what}.clients")
    if access == NO_ACCESS:
        raise FormatError(f"{what} allows nothing; then the key must be absent")
    if access.clients and not access.tunnels:
        raise FormatError(f"{what}.clients names keys, and tunnels no port that they could use")
    return access


def parse_recipients(value: object) -> tuple[str, ...]:
    """Read to whom outputs are sealed: X25519 public keys, 32 bytes each as hex, ascending, at least one.

    Raises:
        FormatError: something else.
    """
    what = "manifest.recipients"
    listed = _entries({"recipients": value}, "recipients", MAX_RECIPIENTS, what="manifest")
    recipients = tuple(parse_hex(key, KEY_SIZE, what=what).hex() for key in listed)
    if not recipients:
        raise FormatError(f"{what} is empty; then the key must be absent")
    _require_ascending(recipients, what)
    return recipients


def parse_destinations(value: object) -> tuple[Destination, ...]:
    """Read where the container may connect to: at least one place, ascending by host and port.

    Raises:
        FormatError: something else.
    """
    what = "manifest.destinations"
    listed = _entries({"destinations": value}, "destinations", MAX_DESTINATIONS, what="manifest")
    destinations = tuple(_destination(_object(item, what)) for item in listed)
    if not destinations:
        raise FormatError(f"{what} is empty; then network is 'none', and the key must be absent")
    _require_ascending([(item.host, item.port) for item in destinations], what)
    return destinations


def _destination(value: JsonObject) -> Destination:
    what = "manifest.destinations"
    members(value, what=what, required=set(Destination.__slots__))
    host = typed(value, "host", str, what=what)
    if not HOST.fullmatch(host) and not is_address(host):
        raise FormatError(f"{what}.host is {host[:64]!r}; a DNS name in lower case, or an address, is required")
    addresses = _entries(value, "addresses", MAX_ADDRESSES, what=what)
    for address in addresses:
        if not isinstance(address, str) or not is_address(address):
            raise FormatError(
                f"{what}.addresses has {str(address)[:64]!r}; an IP address in its shortest form is required"
            )
        if not is_outside(address):
            raise FormatError(f"{what}.addresses has {address}, which is no machine outside the guest")
    if not addresses:
        raise FormatError(f"{what}.addresses of {host} is empty; at least one is required")
    texts = tuple(str(address) for address in addresses)
    _require_ascending(texts, f"{what}.addresses")
    return Destination(
        host=host,
        port=natural(value, "port", what=what, least=1, most=MAX_PORT),
        addresses=texts,
        tls=typed(value, "tls", bool, what=what),
    )


def is_address(text: str) -> bool:
    """Whether `text` is an IP address in its one shortest form, without a zone. An IPv4 address in IPv6's clothes has none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return str(address) == text and "%" not in text and getattr(address, "ipv4_mapped", None) is None


def is_outside(address: str) -> bool:
    """Whether an IP address may be another machine's: not a loopback, link-local, multicast or unspecified one, nor reserved."""
    parsed = ipaddress.ip_address(address)
    within = parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified
    # Much of IPv6 is reserved only until somebody uses it.
    return not (within or (parsed.version == 4 and (parsed.is_reserved or parsed in _THIS_NETWORK)))


def _entries(value: JsonObject, key: str, most: int, *, what: str) -> list[object]:
    listed = typed(value, key, list, what=what)
    if len(listed) > most:
        raise FormatError(f"{what}.{key} has {len(listed)} entries; at most {most} are allowed")
    return listed


def _object(value: object, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise FormatError(f"{what} is a {type(value).__name__}; an object is required")
    return value


def _require_ascending(listed: Iterable[Any], what: str) -> None:
    entries = list(listed)
    if entries != sorted(set(entries)):
        raise FormatError(f"{what} is not ascending, or names something twice")
