# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Connections into a network namespace of the kernel's: a process of its own there stands for the container."""

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvmtool.formats.control import TUNNEL_PIECE
from cvmtool.formats.wire import Frame, Kind, read_frame
from cvmtool.guest import tunnel
from cvmtool.guest.tunnel import Namespace, carry

CLONE_NEWNET = 0x40000000
END = Frame(Kind.END, b"").encode()
RAISE_LOOPBACK = (
    "import fcntl, socket, struct; s = socket.socket(); "
    "fcntl.ioctl(s, 0x8914, struct.pack('16sh14x', b'lo', 1)); l = socket.create_server(('127.0.0.1', 0)); "
    "print(l.getsockname()[1], flush=True); c, _ = l.accept(); c.sendall(b'in here'); c.recv(1)"
)


@pytest.fixture
def setns(monkeypatch):
    """What Python has since 3.12, the image's Python included."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(descriptor, kind):
        if libc.setns(descriptor, kind) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    monkeypatch.setattr(os, "setns", call, raising=False)
    monkeypatch.setattr(os, "CLONE_NEWNET", CLONE_NEWNET, raising=False)


@pytest.fixture
def container(setns, tmp_path):
    """A process in a network namespace of its own, the file that names it, and its port."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace takes root")
    argv = ["unshare", "--net", sys.executable, "-c", RAISE_LOOPBACK]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        file = tmp_path / "cgroup.procs"
        file.write_text(f"{process.pid}\n1\n")
        yield file, port
        process.kill()


def networks():
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add((task / "ns/net").readlink())
    return found


def test_the_connection_is_the_container_s_and_the_agent_stays_where_it_is(container):
    processes, port = container
    before = networks()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))  # nobody listens there outside
    namespace = Namespace(processes)
    with namespace.connect(port) as inside:
        assert inside.recv(7) == b"in here"
    end = time.monotonic() + 30
    while networks() != before and time.monotonic() < end:
        time.sleep(0.01)  # the kernel's part of a thread ends a moment after Python's
    assert networks() == before
    namespace.close()


def test_a_port_where_nobody_listens(container):
    processes, _ = container
    with socket.create_server(("127.0.0.1", 0)) as outside, pytest.raises(ConnectionRefusedError):
        Namespace(processes).connect(outside.getsockname()[1])  # it listens, but not in the container


def test_the_guest_s_own_network_is_never_entered(setns, tmp_path):
    """crun's first process is in the container's group before it has a network of its own."""
    file = tmp_path / "cgroup.procs"
    file.write_text(f"{os.getpid()}\n")
    with socket.create_server(("127.0.0.1", 0)) as agent, pytest.raises(OSError, match="no network of its own yet"):
        Namespace(file).connect(agent.getsockname()[1])


@pytest.mark.parametrize("content", ["", "999999999\n"])
def test_a_container_that_is_gone(setns, tmp_path, content):
    file = tmp_path / "cgroup.procs"
    file.write_text(content)
    with pytest.raises(OSError, match=r"no process|No such file"):
        Namespace(file).connect(80)


class Wire:
    """A tunnel between two sockets that the test holds."""

    def __init__(self, stack):
        self.owner, here = self.pair(stack)
        self.inside, self.there = self.pair(stack)
        self.used = []
        self.thread = threading.Thread(target=self.carry, args=(here,))
        self.thread.start()

    def carry(self, here):
        with here, self.there:  # as `ControlService` and `Reach` do
            carry(here, self.there, used=lambda: self.used.append(1))

    @staticmethod
    def pair(stack):
        with socket.create_server(("127.0.0.1", 0)) as server:
            left = stack.enter_context(socket.create_connection(server.getsockname(), timeout=20))
            right = stack.enter_context(server.accept()[0])
        left.settimeout(20)
        return left, right

    def make_small(self):
        """Have the kernel hold little for a container that does not read."""
        self.inside.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def frame(self):
        return read_frame(self.exactly)

    def exactly(self, size):
        data = b""
        while len(data) < size:
            piece = self.owner.recv(size - len(data))
            assert piece, "the tunnel was cut"
            data += piece
        return data

    def over(self):
        self.thread.join(20)
        return not self.thread.is_alive()


@pytest.fixture
def wire():
    with ExitStack() as stack:
        wire = Wire(stack)
        yield wire
        wire.owner.close()
        assert wire.over()


def test_both_ways_and_each_end_for_itself(wire):
    wire.owner.sendall(Frame(Kind.DATA, b"ask").encode() + END)
    assert wire.inside.recv(16) == b"ask"
    assert wire.inside.recv(16) == b""  # the owner has said all, and still listens
    wire.inside.sendall(b"answer")
    assert wire.frame() == Frame(Kind.DATA, b"answer")
    wire.inside.close()
    assert wire.frame() == Frame(Kind.END, b"")
    wire.owner.close()
    assert wire.over()


def test_the_container_may_end_first(wire):
    wire.inside.shutdown(socket.SHUT_WR)
    assert wire.frame() == Frame(Kind.END, b"")
    wire.owner.sendall(Frame(Kind.DATA, b"still").encode())
    assert wire.inside.recv(16) == b"still"


def test_nothing_carried_is_not_use(wire):
    wire.owner.close()
    assert wire.over()
    assert wire.used == []


def test_bulk_goes_through_unchanged_in_bounded_pieces(wire):
    data = os.urandom(3 << 20)
    threading.Thread(target=lambda: (wire.inside.sendall(data), wire.inside.close())).start()
    got = b""
    while (frame := wire.frame()).kind is Kind.DATA:
        assert len(frame.payload) <= TUNNEL_PIECE
        got += frame.payload
    assert got == data
    assert wire.used


def test_an_owner_that_goes_ends_it_even_while_the_container_reads_nothing(wire):
    wire.make_small()
    wire.owner.sendall(2 * Frame(Kind.DATA, bytes(60_000)).encode())
    while not wire.used:
        time.sleep(0.01)
    wire.owner.close()
    assert wire.over()


def test_a_container_that_takes_nothing_is_given_up(wire, monkeypatch):
    monkeypatch.setattr(tunnel, "_PATIENCE_SECONDS", 0.2)
    wire.make_small()
    wire.owner.settimeout(60)
    with suppress(OSError):
        for _ in range(1000):
            wire.owner.sendall(Frame(Kind.DATA, bytes(TUNNEL_PIECE)).encode())
    assert wire.over()


def test_a_container_that_breaks_off_is_no_orderly_end(wire):
    wire.inside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wire.inside.close()
    assert wire.owner.recv(1) == b""  # and no end frame before


@pytest.mark.parametrize(
    "bad",
    [
        Frame(Kind.JSON, b"{}").encode(),
        Frame(Kind.DATA, bytes(TUNNEL_PIECE + 1)).encode(),
        END + END,
        END + Frame(Kind.DATA, b"x").encode(),
        b"X\0\0\0\0",
        b"D\xff\xff\xff\xff",
    ],
    ids=["json", "too long", "two ends", "data after the end", "unknown kind", "huge"],
)
def test_what_is_no_frame_of_a_tunnel_ends_it(wire, bad):
    wire.owner.sendall(bad)
    assert wire.over()
    assert wire.inside.recv(16) == b""


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=40))
def test_any_bytes_end_it_or_are_carried(data):
    with ExitStack() as stack:
        wire = Wire(stack)
        wire.owner.sendall(data)
        wire.owner.close()
        assert wire.over()
