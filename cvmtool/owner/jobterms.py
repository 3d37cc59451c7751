# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What job.yaml allows beyond running: a service, ways in and out, checkpoints, other readers of the results.

Zone: owner. Pure: names are resolved, and volumes made, by whoever prepares the job.
Spec: docs/protocol.md section 15; `cvmtool.owner.jobkeys` has every key.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.job import Kind, Network
from cvmtool.formats.jobterms import (
    HOST,
    MAX_CLIENTS,
    MAX_DESTINATIONS,
    MAX_GRACE,
    MAX_PORT,
    MAX_RECIPIENTS,
    MAX_TUNNELS,
    Access,
    is_address,
)
from cvmtool.formats.volume import MAX_VOLUME, MIN_VOLUME
from cvmtool.owner.age import parse_recipient
from cvmtool.owner.jobkeys import below
from cvmtool.owner.sshkey import parse_ssh_key
from cvmtool.owner.strictyaml import Reader

_PLACE = re.compile(r"(\[(?P<six>[0-9a-f:.]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One place outside that the container wants to reach."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWish:
    """What a job wants for its checkpoints."""

    size: int
    """Bytes of the volume."""
    every_seconds: int
    """How often the owner has the guest mark what it wrote."""
    grace_seconds: int


def read_kind(job: Reader) -> Kind:
    """Return what the job is for. A ConfigError names what is wrong, here and below."""
    return Kind(job.text("kind", re.compile("|".join(Kind)), "train or serve", Kind.TRAIN))


def read_network(job: Reader) -> tuple[Network, tuple[Wish, ...]]:
    """Return whether the container has a network, and where it may connect to."""
    if not isinstance(job.value.get("network"), dict):
        job.text("network", re.compile(Network.NONE), "none, or a mapping with allow,", Network.NONE)
        return Network.NONE, ()
    network = job.child("network")
    network.only(*below("network"))
    wishes = [_wish(text, tls=True, where="network.allow") for text in network.strings("allow")]
    wishes += [_wish(text, tls=False, where="network.plaintext") for text in network.strings("plaintext")]
    if not 1 <= len(wishes) <= MAX_DESTINATIONS:
        raise ConfigError(
            f"network allows {len(wishes)} destinations; 1 to {MAX_DESTINATIONS} are required",
            hint="network: none is the way to say: nowhere",
        )
    wishes.sort(key=lambda wish: (wish.host, wish.port))
    for wish, other in itertools.pairwise(wishes):
        if (wish.host, wish.port) == (other.host, other.port):
            raise ConfigError(f"network names {wish.host}:{wish.port} twice")
    return Network.ALLOW, tuple(wishes)


def _wish(text: str, *, tls: bool, where: str) -> Wish:
    match = _PLACE.fullmatch(text)
    host = (match["six"] or match["host"]) if match else ""
    port = int(match["port"]) if match else 0
    if not 1 <= port <= MAX_PORT or not (HOST.fullmatch(host) or is_address(host)):
        raise ConfigError(
            f"{where} has {text[:128]!r}; host:port is required, the host in lower case",
            hint="for example: allow: [example.org:443]",
        )
    return Wish(host=host, port=port, tls=tls)


def read_access(job: Reader, kind: Kind) -> Access:
    """Return who may reach into the running job. A service's own port is always among its tunnels."""
    access = job.child("access", default={})
    access.only(*below("access"))
    ports = set(_ports(access))
    if kind is Kind.SERVE:
        serve = job.child("serve")
        serve.only(*below("serve"))
        serve.require("port")
        ports.add(serve.number("port", 0, 1, MAX_PORT))
    elif "serve" in job.value:
        raise ConfigError("serve belongs to kind: serve", hint="add kind: serve, or drop the key")
    if len(ports) > MAX_TUNNELS:
        raise ConfigError(f"access.tunnels has {len(ports)} ports; at most {MAX_TUNNELS} are allowed")
    clients = sorted({_ssh_key(text) for text in access.strings("clients")})
    if len(clients) > MAX_CLIENTS:
        raise ConfigError(f"access.clients has {len(clients)} keys; at most {MAX_CLIENTS} are allowed")
    if clients and not ports:
        raise ConfigError("access.clients names keys, and access.tunnels no port that they could use")
    return Access(exec=access.boolean("exec", default=False), tunnels=tuple(sorted(ports)), clients=tuple(clients))


def _ports(access: Reader) -> list[int]:
    ports = access.value.get("tunnels", [])
    if not isinstance(ports, list) or not all(type(port) is int and 1 <= port <= MAX_PORT for port in ports):
        raise ConfigError(f"access.tunnels is {ports!r:.200}; a list of ports from 1 to {MAX_PORT} is required")
    return ports


def _ssh_key(text: str) -> str:
    """Return the 32 bytes of a client's key, as hex."""
    try:
        return parse_ssh_key(text).hex()
    except FormatError as error:
        raise ConfigError(
            f"access.clients has {text[:64]!r}; the line of an Ed25519 SSH public key is required",
            hint="cvmtool key show prints it to whom it belongs",
        ) from error


def read_checkpoint(job: Reader) -> CheckpointWish | None:
    """Return what the job wants for its checkpoints; None if it wants none."""
    if "checkpoint" not in job.value:
        return None
    wish = job.child("checkpoint")
    wish.only(*below("checkpoint"))
    size = wish.mib("size", f"{MIN_VOLUME >> 20}MiB", most=MAX_VOLUME >> 20) << 20
    if size < MIN_VOLUME:
        raise ConfigError(f"checkpoint.size is {size} bytes; at least {MIN_VOLUME} are required")
    return CheckpointWish(
        size=size,
        every_seconds=wish.seconds("every", "60s"),
        grace_seconds=wish.seconds("grace", "30s", most=MAX_GRACE),
    )


def read_recipients(job: Reader) -> tuple[str, ...]:
    """Return the X25519 keys (hex) to which outputs are sealed."""
    keys = set()
    for text in job.strings("recipients"):
        try:
            keys.add(parse_recipient(text).hex())
        except FormatError as error:
            raise ConfigError(
                f"recipients: {error.message}", hint="age-keygen, or cvmtool key show, prints one"
            ) from error
    if len(keys) > MAX_RECIPIENTS:
        raise ConfigError(f"recipients has {len(keys)} entries; at most {MAX_RECIPIENTS} are allowed")
    return tuple(sorted(keys))
