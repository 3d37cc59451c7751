# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What the names of a job's destinations stand for: asked here, once, and pinned in its manifest.

Zone: flows (owner's machine). The owner's resolver is believed: where the container ends up is then up to TLS.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from ipaddress import ip_address

from cvmtool.errors import ConfigError
from cvmtool.formats.jobterms import MAX_ADDRESSES, Destination, is_address, is_outside
from cvmtool.owner.jobterms import Wish

Resolve = Callable[[str], Collection[str]]
"""Gets a name, gives its addresses; raises OSError if there are none."""


def look_up(name: str) -> set[str]:
    """Ask this machine's resolver.

    Raises:
        OSError: it knows no such name, or does not answer.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return {str(endpoint[0]) for *_, endpoint in found}


def pin(wishes: Collection[Wish], *, resolve: Resolve = look_up) -> tuple[Destination, ...]:
    """Return the destinations of a manifest, ascending by host and port.

    Of a name that has IPv4 addresses these alone are taken: whether a host's user network speaks IPv6 is that host's affair.

    Raises:
        ConfigError: a name stands for nothing, or for nothing outside; or TLS is waived at an address and port where another
            destination demands it.
    """
    known = {host: _addresses(host, resolve) for host in {wish.host for wish in wishes}}
    destinations = sorted(
        (Destination(host=wish.host, port=wish.port, addresses=known[wish.host], tls=wish.tls) for wish in wishes),
        key=lambda place: (place.host, place.port),
    )
    _refuse_mixtures(destinations)
    return tuple(destinations)


def _addresses(host: str, resolve: Resolve) -> tuple[str, ...]:
    try:
        found = {host} if is_address(host) else set(resolve(host))
    except OSError as error:
        raise ConfigError(
            f"network names {host}, which stands for no address: {error.strerror or error}",
            hint="is the name right, and does this machine have a name server? an address can be named instead",
        ) from error
    odd = sorted(address for address in found if not (is_address(address) and is_outside(address)))
    if odd or not found:
        raise ConfigError(
            f"network names {host}, which stands for {', '.join(odd) or 'no address'}; a machine outside the guest is required"
        )
    four = {address for address in found if ip_address(address).version == 4}
    return tuple(sorted(four or found)[:MAX_ADDRESSES])


def _refuse_mixtures(destinations: Collection[Destination]) -> None:
    seen: dict[tuple[str, int], Destination] = {}
    for place in destinations:
        for address in place.addresses:
            other = seen.setdefault((address, place.port), place)
            if other.tls != place.tls:
                waived, held = sorted((other, place), key=lambda item: item.tls)
                raise ConfigError(
                    f"network waives TLS for {waived.host}:{waived.port}, which is at {address} as {held.host}:{held.port} is",
                    hint="one address and port either begins with TLS or need not: name both in allow, or both in plaintext",
                )
