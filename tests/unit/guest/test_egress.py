# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A container's way out in real network namespaces: the outside is the loopback of one, the container lives in another."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cvmtool.formats.jobterms import Destination
from cvmtool.guest import egress
from cvmtool.guest.egress import WayOut
from cvmtool.guest.namespace import make_namespace, within
from tests.fakes.namespaces import lend_namespaces, own_network
from tests.unit.formats.test_clienthello import openssl

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces")

NAMED, WAIVED, OTHER = "203.0.113.1", "203.0.113.2", "203.0.113.3"
SIX = "2001:db8::1"


@pytest.fixture(autouse=True)
def network(monkeypatch):
    lend_namespaces(monkeypatch)
    with own_network(f"{NAMED}/32", f"{WAIVED}/32", f"{OTHER}/32", f"{SIX}/128"):
        yield


class Outside:
    """A server that keeps what it hears, and answers each connection once it has ended with what it heard, twice."""

    def __init__(self, address):
        self.listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.port = self.listener.getsockname()[1]
        self.heard = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.attend, args=(peer,), daemon=True).start()

    def attend(self, peer):
        with peer:
            heard = b""
            while data := peer.recv(65_536):
                heard += data
            self.heard.append(heard)
            peer.sendall(heard * 2)

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def outside():
    servers = {address: Outside(address) for address in (NAMED, WAIVED, SIX)}
    yield servers
    for server in servers.values():
        server.close()


def places(outside):
    return (
        Destination(host=SIX, port=outside[SIX].port, addresses=(SIX,), tls=False),
        Destination(host=NAMED, port=outside[NAMED].port, addresses=(NAMED,), tls=True),
        Destination(host="api.example.org", port=outside[NAMED].port, addresses=(NAMED,), tls=True),
        Destination(host="plain.example.org", port=outside[WAIVED].port, addresses=(WAIVED,), tls=False),
    )


@pytest.fixture
def way(outside):
    way = WayOut(places(outside), card="lo")
    yield way
    if way._closing is False:
        way.close()


def inside(way, act):
    """Do something as the container would."""
    with Path(way.namespace).open() as descriptor:
        return within(descriptor.fileno(), act)


def talk(way, endpoint, data):
    """Connect, send, end, and return what comes back; None if the connection is cut."""

    def act():
        with socket.create_connection(endpoint, timeout=20) as peer:
            try:
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)
                answer = b""
                while piece := peer.recv(65_536):
                    answer += piece
            except TimeoutError:
                raise
            except OSError:
                return None
            return answer or None

    return inside(way, act)


def test_a_named_destination_is_reached_and_what_goes_both_ways_is_counted(way, outside):
    hello = openssl("api.example.org")
    endpoint = (NAMED, outside[NAMED].port)
    assert talk(way, endpoint, hello + b"x" * 300_000) == (hello + b"x" * 300_000) * 2
    assert talk(way, endpoint, openssl(None)) == openssl_was(outside[NAMED]) * 2
    assert talk(way, (WAIVED, outside[WAIVED].port), b"GET /") == b"GET /" * 2
    assert talk(way, (SIX, outside[SIX].port), b"six") == b"sixsix"
    flows = {flow.destination.host: flow for flow in way.close().flows}
    named, plain = flows["api.example.org"], flows["plain.example.org"]
    size = len(hello) + 300_000
    assert (named.connections, named.sent, named.received) == (1, size, 2 * size)
    assert (plain.connections, plain.sent, plain.received) == (1, 5, 10)
    assert (flows[NAMED].connections, flows[SIX].sent) == (1, 3)


def openssl_was(server):
    return server.heard[-1]


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        openssl("evil.example.org"),
        openssl("plain.example.org"),
        openssl("api.example.org")[:-1],  # and then it ends
        b"",
    ],
)
def test_what_does_not_begin_as_tls_to_a_destination_is_cut_before_a_byte_leaves(way, outside, first):
    assert talk(way, (NAMED, outside[NAMED].port), first) is None
    assert outside[NAMED].heard == []
    result = way.close()
    assert result.turned_away == 1
    assert all(flow.connections == flow.sent == 0 for flow in result.flows)


def test_silence_does_not_last(way, outside, monkeypatch):
    monkeypatch.setattr("cvmtool.guest.relay.HELLO_SECONDS", 0.2)

    def act():
        with socket.create_connection((NAMED, outside[NAMED].port), timeout=20) as peer:
            return peer.recv(1)

    assert inside(way, act) == b""
    assert way.close().turned_away == 1


def test_where_one_destination_demands_tls_no_other_lifts_it(outside):
    port = outside[NAMED].port
    shared = (
        Destination(host="a.example", port=port, addresses=(NAMED,), tls=False),
        Destination(host="b.example", port=port, addresses=(NAMED,), tls=True),
    )
    way = WayOut(shared, card="lo")
    assert talk(way, (NAMED, port), b"plain") is None
    assert talk(way, (NAMED, port), openssl("a.example"))
    assert [flow.connections for flow in way.close().flows] == [1, 0]


def test_everything_else_fails_in_the_container_and_is_counted(way, outside):
    other = Outside(OTHER)  # a neighbour that the manifest does not name

    def act():
        refusals = []
        for family, kind, endpoint in (
            (socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 443)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)),
            (socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::2", 443)),
            (socket.AF_INET, socket.SOCK_STREAM, (NAMED, 22)),  # the right address, another port
            (socket.AF_INET, socket.SOCK_STREAM, (OTHER, other.port)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 53)),  # no name server
        ):
            with socket.socket(family, kind) as sender:
                try:
                    sender.connect(endpoint)
                    sender.send(b"x")
                    sender.settimeout(10)
                    sender.recv(1)
                except OSError as error:
                    refusals.append(type(error).__name__)
        return refusals

    assert inside(way, act) == ["OSError"] * 3 + ["ConnectionRefusedError", "OSError", "ConnectionRefusedError"]
    assert way.close().turned_away == 6
    other.close()


def test_the_container_has_a_loopback_and_no_other_interface(way):
    shown = inside(way, lambda: subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout)
    assert len(shown.splitlines()) == 1
    assert "lo:" in shown


def test_an_unanswered_destination_ends_the_connection(outside, way):
    outside[WAIVED].close()
    assert talk(way, (WAIVED, outside[WAIVED].port), b"x") is None
    result = way.close()
    assert [flow.connections for flow in result.flows] == [0, 0, 0, 0]
    assert result.turned_away == 1


def test_a_way_through_an_interface_that_is_not_there_leads_nowhere(outside):
    way = WayOut(places(outside), card="none0")
    assert talk(way, (WAIVED, outside[WAIVED].port), b"x") is None
    assert way.close().turned_away == 1


def test_no_more_connections_than_there_are_places(outside, monkeypatch):
    monkeypatch.setattr(egress, "MOST_AT_ONCE", 2)
    way = WayOut(places(outside), card="lo")
    endpoint = (WAIVED, outside[WAIVED].port)

    def act():
        held = [socket.create_connection(endpoint, timeout=20) for _ in range(2)]
        for peer in held:
            peer.sendall(b"held")
        with socket.create_connection(endpoint, timeout=20) as third:
            assert third.recv(1) == b""
        return held

    for peer in inside(way, act):
        peer.close()
    assert way.close().turned_away == 1


def test_closing_cuts_what_is_left(way, outside):
    held = inside(way, lambda: socket.create_connection((NAMED, outside[NAMED].port), timeout=20))
    carried = inside(way, lambda: socket.create_connection((WAIVED, outside[WAIVED].port), timeout=20))
    carried.sendall(b"some")
    while not any(flow.sent for flow in (tally.flow() for tally in way._tallies)):
        time.sleep(0.01)
    result = way.close()
    assert [flow.sent for flow in result.flows] == [0, 0, 0, 4]
    with held, carried:
        assert held.recv(1) == b""
        assert carried.recv(1) == b""
    assert not Path(way.namespace).exists()


def test_a_real_client_of_another_process_gets_in_by_the_path_of_the_namespace(outside, way):
    """As crun starts one."""
    script = (
        "import ctypes, os, socket, ssl, sys\n"
        "inside = os.open(sys.argv[1], os.O_RDONLY)\n"
        "assert ctypes.CDLL(None).setns(inside, 0x40000000) == 0\n"
        "peer = socket.create_connection((sys.argv[2], int(sys.argv[3])))\n"
        "ssl.create_default_context().wrap_socket(peer, server_hostname='api.example.org')\n"
    )
    argv = [sys.executable, "-c", script, way.namespace, NAMED, str(outside[NAMED].port)]
    with subprocess.Popen(argv) as client:
        while way._tallies[2].flow().sent == 0:
            assert client.poll() is None
            time.sleep(0.01)
        client.kill()
    assert way.close().flows[2].connections == 1


def here():
    return Path("/proc/thread-self/ns/net").readlink()


def test_what_is_done_in_a_namespace_raises_here_and_leaves_this_thread_where_it_is():
    before = here()
    namespace = make_namespace()
    assert within(namespace, here) != before
    with pytest.raises(ZeroDivisionError):
        within(namespace, lambda: 1 // 0)
    assert here() == before
    os.close(namespace)
