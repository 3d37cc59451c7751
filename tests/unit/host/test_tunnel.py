# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Tunnels and commands from end to end: the guest's own code at the other side of real SSH, and a real server behind it."""

import http.server
import os
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import paramiko
import pytest

from cvmtool.errors import FormatError, HostError
from cvmtool.formats.control import ControlError, LogRecord, Op, Stream
from cvmtool.formats.jobterms import Access
from cvmtool.formats.wire import Frame, Kind, json_frame
from cvmtool.guest.container import Rooms
from cvmtool.guest.control import ControlService
from cvmtool.guest.reach import Reach
from cvmtool.guest.tunnel import Namespace
from cvmtool.host.channel import AgentChannel, GuestError
from cvmtool.host.tunnel import carry, open_tunnel, run_command
from tests.fakes.guest import OWNER
from tests.unit.guest import samples
from tests.unit.host.test_channel import NONCE, OPEN, Guest

PORT = 8000


class Agent(Guest):
    """A guest whose control service is the real one."""

    def __init__(self, folder, service):
        self.service = service
        super().__init__(folder)

    def _answer(self, channel):
        with socket.create_connection(self.service.address) as there:
            back = threading.Thread(target=self.pump, args=(there.recv, channel), daemon=True)
            back.start()
            self.pump(channel.recv, there)
            with suppress(OSError):
                there.shutdown(socket.SHUT_WR)
            back.join()

    @staticmethod
    def pump(receive, to):
        with suppress(OSError, EOFError):
            while data := receive(65_536):
                to.sendall(data)
        with suppress(OSError, EOFError):
            to.shutdown_write() if isinstance(to, paramiko.Channel) else None


class Life:
    """A life that is a running job's, which may be reached."""

    def __init__(self, folder):
        manifest = samples.manifest(access=Access(exec=True, tunnels=(PORT,)))
        self.reach = Reach(manifest, Rooms(work=folder, cgroups=folder))
        self.job = self
        self.tunnel = self.reach.tunnel

    def command(self, args, owner):
        owner.sendall(json_frame({"ok": True}))
        owner.sendall(Frame(Kind.DATA, LogRecord(stream=Stream.STDERR, microseconds=1, data=b"oh\n").encode()).encode())
        stream = owner.makefile("rb")
        while (head := stream.read(5))[:1] == b"D":
            data = stream.read(int.from_bytes(head[1:], "big")).upper()
            record = LogRecord(stream=Stream.STDOUT, microseconds=2, data=data)
            owner.sendall(Frame(Kind.DATA, record.encode()).encode())
        owner.sendall(json_frame({"exit_code": len(args)}))


class Handler(http.server.BaseHTTPRequestHandler):
    """Says back what it is sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def life(tmp_path):
    return Life(tmp_path)


@pytest.fixture
def channel(tmp_path, life, server, monkeypatch):
    monkeypatch.setattr(Namespace, "connect", lambda _, _port: socket.create_connection(server.server_address))
    service = ControlService(life, pytest.fail, address=("127.0.0.1", 0))
    service.start()
    guest = Agent(tmp_path, service)
    channel = AgentChannel(guest.owner)
    channel.challenge(OPEN.encode(), NONCE, deadline_seconds=20, alive=lambda: None)
    channel.connect(nonce=NONCE, ssh_host_key=guest.keys.ssh_host_key, owner_key=OWNER.public, sign=OWNER.sign)
    channel.guest = guest
    yield channel
    channel.close()
    guest.close()


@pytest.fixture
def local(channel):
    """A listener here, each of whose connections goes through a tunnel."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    tunnel = open_tunnel(channel, PORT)
                    threading.Thread(target=carry, args=(connection, tunnel), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def post(url, body):
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=60) as answer:
        return answer.read()


def test_requests_go_through_and_come_back(local):
    for body in (b"", b"x", os.urandom(2 << 20)):
        assert post(local, body) == body


def test_many_at_once(local):
    bodies = [os.urandom(20_000) for _ in range(12)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(lambda body: post(local, body), bodies)) == bodies


def test_what_was_carried_is_counted(local, life):
    post(local, b"x")
    post(local, b"y")
    assert life.reach.close().tunnels == 2


def test_a_port_that_the_job_does_not_name(channel):
    with pytest.raises(GuestError) as refused:
        open_tunnel(channel, PORT + 1)
    assert refused.value.error == ControlError.ACCESS
    assert channel.alive


def test_a_session_that_is_cut_is_no_orderly_end_for_who_uses_the_tunnel(channel):
    tcp = socket.create_server(("127.0.0.1", 0))
    user = socket.create_connection(tcp.getsockname(), timeout=20)
    local, _ = tcp.accept()
    thread = threading.Thread(target=carry, args=(local, open_tunnel(channel, PORT)))
    thread.start()
    user.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
    channel.close()
    with pytest.raises(ConnectionResetError):
        user.recv(1)
    thread.join(20)
    assert not thread.is_alive()
    for end in (tcp, user):
        end.close()


def run(channel, *args, given=b""):
    """Run a command; return its exit code and what it wrote, by stream."""
    stdin, to = os.pipe()
    os.write(to, given)
    os.close(to)
    written = {Stream.STDOUT: b"", Stream.STDERR: b""}

    def show(record):
        written[record.stream] += record.data

    try:
        return run_command(channel, args, stdin=stdin, show=show), written
    finally:
        os.close(stdin)


def test_a_command_gets_its_input_and_gives_its_output_and_exit_code(channel):
    assert run(channel, "tr", "a-z", "A-Z", given=b"abc") == (3, {Stream.STDOUT: b"ABC", Stream.STDERR: b"oh\n"})


@pytest.mark.parametrize(
    "said",
    [
        Frame(Kind.END, b"").encode(),
        json_frame({"exit_code": 256}),
        json_frame({}),
        Frame(Kind.DATA, b"\7" * 13).encode(),
    ],
    ids=["end", "exit code", "none", "record"],
)
def test_what_is_no_end_of_a_command(channel, life, said):
    life.command = lambda args, owner: owner.sendall(json_frame({"ok": True}) + said)
    with pytest.raises(FormatError):
        run(channel, "id")


def test_a_command_whose_connection_breaks(channel, life):
    life.command = lambda args, owner: owner.sendall(json_frame({"ok": True}))
    with pytest.raises(HostError):
        run(channel, "id")


def test_a_conversation_of_another_kind_in_a_tunnel(channel, life):
    life.tunnel = lambda port, owner: owner.sendall(json_frame({"ok": True}) + json_frame({"op": "run"}))
    left, right = socket.socketpair()
    with left:
        thread = threading.Thread(target=carry, args=(right, channel_tunnel(channel)))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()


def channel_tunnel(channel):
    tunnel = channel.converse(Op.TUNNEL, silence_seconds=None)
    tunnel.ask({"port": PORT})
    return tunnel
