# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The guest's one network card, which comes up for a job with destinations alone, behind a packet filter.

Zone: guest (measured). The only door to nft and ip.
Spec: docs/protocol.md section 15; ADR-0030.

The host has the other end of the card, so whatever comes in is hostile. The filter is there before the card is up: out go TCP
packets to pinned addresses and ports, in come the answers, and never the beginning of a connection. No name is asked for, no
address taken from anybody: those of the card are QEMU's user network's.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from cvmtool.formats.jobterms import Destination
from cvmtool.guest.programs import run

CARDS = Path("/sys/class/net")
_SETTINGS = Path("/proc/sys/net")
_FOUR = ("10.0.2.15/24", "10.0.2.2")  # address of the card, address of the way out
_SIX = ("fec0::15/64", "fec0::2")
_MODULES = ("virtio_net", "nf_tables")
_NEIGHBOURS = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept"


def raise_card(destinations: Iterable[Destination], *, cards: Path = CARDS, settings: Path = _SETTINGS) -> str:
    """Bring the card up and return its name.

    Raises:
        OSError: there is not exactly one card, or a program refuses.
    """
    places = {(address, place.port) for place in destinations for address in place.addresses}
    _run("modprobe", "-a", *_MODULES)
    card = _find_card(cards)
    _run("nft", "-f", "-", stdin=render_filter(places).encode("ascii"))
    six = any(_is_six(address) for address, _ in places)
    # Neither of the two asks the network whether an address is free, or for more addresses.
    for name, value in (("disable_ipv6", 0 if six else 1), ("accept_dad", 0), ("accept_ra", 0)):
        (settings / "ipv6/conf" / card / name).write_text(str(value), "ascii")
    _run("ip", "link", "set", card, "up")
    for family, (address, way) in (("-4", _FOUR), ("-6", _SIX))[: 2 if six else 1]:
        _run("ip", family, "address", "add", address, "dev", card)
        _run("ip", family, "route", "add", "default", "via", way, "dev", card)
    return card


def render_filter(places: Iterable[tuple[str, int]]) -> str:
    """Return the packet filter as nft reads it. `places`: the addresses and ports that connections may go to."""
    known = sorted(places)
    four = [f"{address} . {port}" for address, port in known if not _is_six(address)]
    six = [f"{address} . {port}" for address, port in known if _is_six(address)]
    return f"""\
table inet cvmtool {{
  set four {{ type ipv4_addr . inet_service; {_elements(four)} }}
  set six {{ type ipv6_addr . inet_service; {_elements(six)} }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iif "lo" accept
    tcp flags & (syn | ack) == syn drop
    ip saddr . tcp sport @four accept
    ip6 saddr . tcp sport @six accept
    {_NEIGHBOURS if six else ""}
  }}
  chain forward {{ type filter hook forward priority filter; policy drop; }}
  chain output {{
    type filter hook output priority filter; policy drop;
    oif "lo" accept
    ip daddr . tcp dport @four accept
    ip6 daddr . tcp dport @six accept
    {_NEIGHBOURS if six else ""}
  }}
}}
"""


def raise_loopback(addresses: Iterable[str]) -> None:
    """Bring up `lo` of the namespace that the calling thread is in, with `addresses` besides its own.

    Raises:
        OSError: a program refuses.
    """
    _run("ip", "link", "set", "lo", "up")
    for address in addresses:
        _run("ip", "address", "add", f"{address}/{128 if _is_six(address) else 32}", "dev", "lo")


def _find_card(cards: Path) -> str:
    found = sorted(entry.name for entry in cards.iterdir() if (entry / "device").exists())
    if len(found) != 1:
        raise OSError(f"the machine has {len(found)} network cards; the job's destinations need exactly 1")
    return found[0]


def _elements(members: list[str]) -> str:
    return f"elements = {{ {', '.join(members)} }};" if members else ""


def _is_six(address: str) -> bool:
    return ip_address(address).version == 6


def _run(*argv: str, stdin: bytes = b"") -> None:
    ended = run(*argv, stdin=stdin)
    if ended.code != 0:
        raise OSError(f"{' '.join(argv)[:200]}: {ended.complaint or ended.output or f'code {ended.code}'}")
