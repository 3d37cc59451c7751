# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The guest's card and its packet filter, with the kernel's own: guest and host are network namespaces with a cable between."""

import os
import socket
from pathlib import Path

import pytest

from cvmtool.formats.jobterms import Destination
from cvmtool.guest import network, programs
from cvmtool.guest.namespace import make_namespace, within
from cvmtool.guest.network import raise_card, render_filter
from cvmtool.guest.programs import Ended
from tests.fakes.namespaces import ip, lend_namespaces, own_network

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces")

GATEWAY, SIX_GATEWAY = "10.0.2.2", "fec0::2"
PINNED = Destination(host="a.example", port=8443, addresses=("198.51.100.7", GATEWAY), tls=True)
SIX = Destination(host="six.example", port=8443, addresses=("2001:db8::7",), tls=True)


class Cable:
    """The guest's end is here, in the test's own namespace; the host's is in another, with every address that there is."""

    def __init__(self, cards):
        self.host = make_namespace()
        self.cards = cards
        (cards / "card0/device").mkdir(parents=True)
        (cards / "lo").mkdir()
        ip(
            "link",
            "add",
            "card0",
            "type",
            "veth",
            "peer",
            "name",
            "far0",
            "netns",
            f"/proc/{os.getpid()}/fd/{self.host}",
        )

        def prepare():
            ip("link", "set", "lo", "up")
            for address in (*PINNED.addresses, "198.51.100.8"):
                ip("address", "add", f"{address}/32", "dev", "lo")
            for address in (*SIX.addresses, SIX_GATEWAY):
                ip("address", "add", f"{address}/128", "dev", "lo", "nodad")
            Path("/proc/sys/net/ipv6/conf/far0/accept_dad").write_text("0")
            ip("link", "set", "far0", "up")
            ip("address", "add", f"{GATEWAY}/24", "dev", "far0")
            ip("address", "add", f"{SIX_GATEWAY}/64", "dev", "far0", "nodad")

        within(self.host, prepare)

    def listen(self, address, port):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return within(self.host, lambda: socket.create_server((address, port), family=family))


@pytest.fixture
def cable(monkeypatch, tmp_path):
    lend_namespaces(monkeypatch)

    def run(*argv, **options):
        if argv[0] == "modprobe":  # this kernel is not the guest's
            return Ended(code=0, output="", complaint="")
        return programs.run(*argv, **options)

    monkeypatch.setattr(network, "run", run)
    with own_network():
        cable = Cable(tmp_path)
        yield cable
        os.close(cable.host)


def connect(endpoint, seconds=0.4):
    """Whether a connection comes about; a packet that is dropped is only seen by its absence."""
    try:
        socket.create_connection(endpoint, timeout=seconds).close()
    except TimeoutError:
        return "dropped"
    except OSError as error:
        return error.strerror or str(error)
    return "connected"


def test_connections_go_to_pinned_addresses_and_ports_and_nowhere_else(cable):
    assert raise_card([PINNED], cards=cable.cards) == "card0"
    listeners = [
        cable.listen(address, port)
        for address, port in (("198.51.100.7", 8443), (GATEWAY, 8443), ("198.51.100.7", 22), ("198.51.100.8", 8443))
    ]
    assert connect(("198.51.100.7", 8443)) == "connected"
    assert connect((GATEWAY, 8443)) == "connected"
    assert connect(("198.51.100.7", 22)) != "connected"  # the right address, another port
    assert connect(("198.51.100.8", 8443)) != "connected"
    for listener in listeners:
        listener.close()


def test_six_is_there_for_those_who_have_a_destination_there(cable):
    with cable.listen(SIX.addresses[0], 8443), cable.listen(GATEWAY, 8443):
        raise_card([PINNED, SIX], cards=cable.cards)
        assert connect((SIX.addresses[0], 8443), seconds=10) == "connected"
        assert connect((GATEWAY, 8443)) == "connected"


def test_without_such_a_destination_six_is_off(cable):
    raise_card([PINNED], cards=cable.cards)
    assert "inet6" not in ip("address", "show", "dev", "card0")


def test_the_host_reaches_nothing_of_the_guest(cable):
    """Not a service on every address, not from a pinned address and port, not the agent on its loopback."""
    raise_card([PINNED, SIX], cards=cable.cards)
    with socket.create_server(("", 7010)) as everywhere, socket.create_server(("127.0.0.1", 7011)):
        assert within(cable.host, lambda: connect(("10.0.2.15", 7010))) == "dropped"
        assert within(cable.host, lambda: connect(("fec0::15", 7010))) == "dropped"

        def from_a_pinned_place():
            with socket.socket() as sender:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sender.bind((GATEWAY, 8443))
                sender.settimeout(0.4)
                sender.connect(("10.0.2.15", 7010))

        with pytest.raises(TimeoutError):
            within(cable.host, from_a_pinned_place)
        everywhere.settimeout(0)
        with pytest.raises(BlockingIOError):
            everywhere.accept()

    def ping():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sender:
            sender.settimeout(0.4)
            sender.sendto(b"\x08\0\xf7\xff\0\0\0\0", ("10.0.2.15", 0))
            sender.recv(100)

    with pytest.raises(TimeoutError):
        within(cable.host, ping)


def test_the_filter_is_there_before_the_card_is_up(cable, monkeypatch):
    order = []

    def run(*argv, **options):
        order.append(argv[0])
        return programs.run(*argv, **options) if argv[0] != "modprobe" else Ended(code=0, output="", complaint="")

    monkeypatch.setattr(network, "run", run)
    raise_card([PINNED], cards=cable.cards)
    assert order.index("modprobe") < order.index("nft") < order.index("ip")


@pytest.mark.parametrize("refusing", ["modprobe", "nft", "ip"])
def test_what_refuses_ends_it(cable, monkeypatch, refusing):
    def run(*argv, **_):
        return Ended(code=int(argv[0] == refusing), output="", complaint="it does not want to")

    monkeypatch.setattr(network, "run", run)
    with pytest.raises(OSError, match="does not want to"):
        raise_card([PINNED], cards=cable.cards)


@pytest.mark.parametrize("names", [(), ("card0", "card1")])
def test_there_is_exactly_one_card(cable, tmp_path, names):
    cards = tmp_path / "others"
    cards.mkdir()
    for name in names:
        (cards / name / "device").mkdir(parents=True)
    with pytest.raises(OSError, match=f"has {len(names)} network cards"):
        raise_card([PINNED], cards=cards)


def test_nothing_is_said_of_neighbours_without_ipv6():
    assert "icmp" not in render_filter([("198.51.100.7", 443)])
    assert render_filter([("2001:db8::7", 443)]).count("icmpv6") == 2
