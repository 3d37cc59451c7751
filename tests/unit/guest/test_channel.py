# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The bridge between real pipes: a socket pair is the port, a small program stands for sshd."""

import fcntl
import os
import socket
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from cvmtool.formats.channel import Open
from cvmtool.guest.channel import Answer, Bridge

ECHO = ("cat",)
KEY = b"k" * 32


class Host:
    """The other end of the port, with a bridge behind it."""

    def __init__(self, sshd=ECHO, attest=None):
        self.asked = []
        self.port, self.guest = socket.socketpair()
        self.guest.setblocking(False)
        self.port.settimeout(20)
        self.bridge = Bridge(self.guest.fileno(), attest or self.ready, sshd=lambda: sshd)
        self.thread = threading.Thread(target=self.bridge.serve)
        self.seen = b""

    def ready(self, challenge):
        self.asked.append(challenge.nonce)
        return Answer(line=b"\nREADY %b\n" % challenge.nonce[:4], ready=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.bridge.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.port.close()
        self.guest.close()

    def send(self, data):
        self.port.sendall(data)

    def expect(self, data):
        """Read up to and including `data`; return what stood before it."""
        while data not in self.seen:
            piece = self.port.recv(65_536)
            assert piece, f"the port ended before {data!r}; there was {self.seen[-200:]!r}"
            self.seen += piece
        before, _, self.seen = self.seen.partition(data)
        return before


def challenge(mark: bytes) -> bytes:
    return Open(nonce=mark.ljust(32, b"."), owner_key=KEY, manifest_sha256=KEY).encode()


def closed(mark: bytes) -> bytes:
    return b"\nCVM1 CLOSED %b\n" % mark.ljust(32, b".").hex().encode()


def wait_for_end(pid: int) -> None:
    """Wait until a process has gone, or is a zombie that nobody waits for; the test's own time limit is the deadline."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.01)


@pytest.fixture
def host():
    with Host() as host:
        yield host


def test_session_begins_after_the_answer(host):
    host.send(challenge(b"aaaa"))
    assert host.expect(b"\nREADY aaaa\n") == b""
    host.send(b"hello")
    assert host.expect(b"hello") == b""


@pytest.mark.parametrize(
    "garbage",
    [
        os.urandom(1024),
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(1 << 20),
        b"SSH-2.0-x\r\n",
        b"\nCVM1 OPEN 00\n",
        challenge(b"z")[:-9],
    ],
    ids=["noise", "http", "zeros", "ssh banner", "short open", "cut open"],
)
def test_nothing_before_an_open_reaches_the_server(host, garbage):
    host.send(garbage)
    host.send(challenge(b"aaaa"))
    assert host.expect(b"\nREADY aaaa\n") == b""
    host.send(b"hello")
    assert host.expect(b"hello") == b""


def test_open_may_come_in_pieces(host):
    for byte in challenge(b"aaaa"):
        host.send(bytes([byte]))
    host.expect(b"\nREADY aaaa\n")


def test_open_ends_the_session_before_it():
    with Host(sshd=("sh", "-c", "echo $$; exec cat")) as host:
        host.send(challenge(b"aaaa"))
        host.expect(b"\nREADY aaaa\n")
        first = int(host.expect(b"\n"))
        host.send(b"half a packet" + challenge(b"bbbb"))
        host.expect(b"\nREADY bbbb\n")
        second = int(host.expect(b"\n"))
        assert first != second
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        host.send(b"hello")
        assert host.expect(b"hello") == b""


def test_two_opens_may_share_a_line_feed(host):
    host.send(challenge(b"aaaa") + challenge(b"bbbb")[1:])
    host.expect(b"\nREADY bbbb\n")
    host.send(b"hello")
    host.expect(b"hello")


def test_server_that_ends_is_reported():
    with Host(sshd=("head", "-c", "3")) as host:
        host.send(challenge(b"aaaa"))
        host.expect(b"\nREADY aaaa\n")
        host.send(b"abc")
        assert host.expect(closed(b"aaaa")) == b"abc"
        host.send(challenge(b"bbbb"))
        host.expect(b"\nREADY bbbb\n")


def test_server_takes_its_children_along():
    with Host(sshd=("sh", "-c", "sleep 300 <&- >&- 2>&- & echo $!; exec head -c 1")) as host:
        host.send(challenge(b"aaaa"))
        host.expect(b"\nREADY aaaa\n")
        child = int(host.expect(b"\n"))
        host.send(b"x")
        host.expect(closed(b"aaaa"))
        wait_for_end(child)


def test_refused_open_starts_no_server(tmp_path):
    def refuse(opened):
        return Answer(line=b"\nREFUSED\n", ready=False)

    with Host(sshd=("touch", str(tmp_path / "started")), attest=refuse) as host:
        host.send(challenge(b"aaaa"))
        host.expect(b"\nREFUSED\n")
        host.send(b"hello")
        host.send(challenge(b"bbbb"))
        host.expect(b"\nREFUSED\n")
    assert not (tmp_path / "started").exists()


def unread(port):
    """Bytes that were sent and not yet read at the other end."""
    return int.from_bytes(fcntl.ioctl(port.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def test_port_is_drained_while_a_report_is_fetched():
    going, entered = threading.Event(), threading.Event()

    def slow(opened):
        entered.set()
        going.wait(20)
        return Answer(line=b"\nREADY %b\n" % opened.nonce[:4], ready=True)

    with Host(attest=slow) as host:
        host.send(challenge(b"aaaa"))
        assert entered.wait(20)
        host.send(bytes(8 << 20))  # far more than the kernel would hold
        host.send(challenge(b"bbbb"))
        while unread(
            host.port
        ):  # until then the second challenge has not been heard, and the first one's answer counts
            time.sleep(0.01)
        going.set()
        # The first challenge's answer is nobody's any more.
        assert host.expect(b"\nREADY bbbb\n") == b""


def test_bulk_goes_through_unchanged(host):
    host.send(challenge(b"aaaa"))
    host.expect(b"\nREADY aaaa\n")
    data = os.urandom(3 << 20)
    threading.Thread(target=host.send, args=(data + b"the end",)).start()
    assert host.expect(b"the end") == data


def test_news_of_an_earlier_hosts_end_costs_no_challenge(monkeypatch):
    """The kernel tells of a host's end through another queue than its successor's bytes: it may come after them."""
    going, entered = threading.Event(), threading.Event()
    late_end = []

    def slow(opened):
        entered.set()
        going.wait(20)
        return Answer(line=b"\nREADY %b\n" % opened.nonce[:4], ready=True)

    with Host(attest=slow) as host:
        real = os.read

        def read(descriptor, size):
            if descriptor == host.guest.fileno() and late_end:
                return late_end.pop()
            return real(descriptor, size)

        monkeypatch.setattr(os, "read", read)
        host.send(challenge(b"aaaa"))
        assert entered.wait(20)
        late_end.append(b"")
        host.send(b"x")
        while late_end:
            time.sleep(0.01)
        going.set()
        assert host.expect(b"\nREADY aaaa\n") == b""


def test_host_that_leaves_ends_the_session():
    with Host(sshd=("sh", "-c", "echo $$; exec cat")) as host:
        host.send(challenge(b"aaaa"))
        host.expect(b"\nREADY aaaa\n")
        server = int(host.expect(b"\n"))
        host.port.shutdown(socket.SHUT_WR)
        wait_for_end(server)
