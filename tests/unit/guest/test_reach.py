# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
import socket
import threading

import pytest

from cvmtool.formats.control import ControlError
from cvmtool.formats.jobterms import Access
from cvmtool.formats.receipt import Accesses
from cvmtool.formats.wire import Frame, Kind, read_frame
from cvmtool.guest import reach
from cvmtool.guest.container import Rooms
from cvmtool.guest.reach import MOST_AT_ONCE, Reach
from cvmtool.guest.refusal import RefusedError
from cvmtool.guest.tunnel import Namespace
from tests.unit.guest import samples

PORT = 8000
TUNNEL = Access(tunnels=(PORT,))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A job's reach, whose container listens where the test says: a namespace of its own is `test_tunnel.py`'s."""
    places = {}
    monkeypatch.setattr(Namespace, "connect", lambda _, port: socket.create_connection(places[port]))

    def make(access=TUNNEL, server=None):
        places[PORT] = server.getsockname() if server else ("127.0.0.1", 1)
        return Reach(samples.manifest(access=access), Rooms(work=tmp_path, cgroups=tmp_path))

    return make


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        yield server


class Talking:
    """An owner who talks in a thread of his own."""

    def __init__(self, talk):
        self.owner, self.guest = socket.socketpair()
        self.owner.settimeout(20)
        self.refused = None
        self.thread = threading.Thread(target=self.run, args=(talk,))
        self.thread.start()

    def run(self, talk):
        with self.guest:
            try:
                talk(self.guest)
            except RefusedError as refused:
                self.refused = refused

    def frame(self):
        return read_frame(lambda size: self.owner.recv(size, socket.MSG_WAITALL))

    def end(self):
        self.owner.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


def test_a_port_that_the_manifest_names(make, server):
    reached = make(server=server)
    talking = Talking(lambda owner: reached.tunnel(PORT, owner))
    assert json.loads(talking.frame().payload) == {"ok": True}
    inside, _ = server.accept()
    with inside:
        talking.owner.sendall(Frame(Kind.DATA, b"ask").encode())
        assert inside.recv(3) == b"ask"
        inside.sendall(b"answer")
        assert talking.frame() == Frame(Kind.DATA, b"answer")
    talking.end()
    assert reached.close() == Accesses(tunnels=1)  # one connection, however much went through it


def test_a_connection_that_carried_nothing_does_not_count(make, server):
    reached = make(server=server)
    talking = Talking(lambda owner: reached.tunnel(PORT, owner))
    talking.frame()
    talking.end()
    assert reached.close() == Accesses()


@pytest.mark.parametrize("access", [Access(), Access(tunnels=(PORT + 1,)), Access(exec=True)], ids=str)
def test_a_port_that_the_manifest_does_not_name(make, server, access):
    reached = make(access, server)
    with pytest.raises(RefusedError) as refused:
        reached.tunnel(PORT, socket.socket())
    assert refused.value.error is ControlError.ACCESS
    server.settimeout(0)
    with pytest.raises(BlockingIOError):
        server.accept()  # nobody connected
    assert reached.close() == Accesses()


def test_a_port_that_does_not_answer(make):
    with pytest.raises(RefusedError, match="access") as refused:
        make().tunnel(PORT, socket.socket())
    assert "Connection refused" in refused.value.detail


def test_so_many_at_once_and_places_are_given_back(make, server):
    reached = make(server=server)
    with contextlib.ExitStack() as stack:
        talking = [Talking(lambda owner: reached.tunnel(PORT, owner)) for _ in range(MOST_AT_ONCE)]
        for one in talking:
            stack.enter_context(server.accept()[0])
            one.frame()
        with pytest.raises(RefusedError, match="access"):
            reached.tunnel(PORT, socket.socket())
        for one in talking:
            one.end()
    again = Talking(lambda owner: reached.tunnel(PORT, owner))
    assert again.frame().kind is Kind.JSON
    again.end()


def test_an_owner_who_is_gone_before_the_answer_keeps_no_place(make, server):
    reached = make(server=server)
    for _ in range(MOST_AT_ONCE + 1):
        owner, guest = socket.socketpair()
        owner.close()
        with guest, pytest.raises(BrokenPipeError):
            reached.tunnel(PORT, guest)


def test_commands_are_counted_by_name(make, monkeypatch):
    ran = []
    monkeypatch.setattr(reach, "run_command", lambda *given, name, owner: ran.append((given[1], name)))
    reached = make(Access(exec=True))
    for args in (("id",), ("true",)):
        talking = Talking(lambda owner, args=args: reached.command(args, owner))
        assert json.loads(talking.frame().payload) == {"ok": True}
        talking.end()
    assert ran == [(("id",), "exec-1"), (("true",), "exec-2")]
    assert reached.close() == Accesses(exec=2)


def test_no_command_without_leave(make, monkeypatch):
    monkeypatch.setattr(reach, "run_command", pytest.fail)
    with pytest.raises(RefusedError) as refused:
        make().command(("id",), socket.socket())
    assert refused.value.error is ControlError.ACCESS


def test_no_command_after_the_receipt_was_counted(make, monkeypatch):
    monkeypatch.setattr(reach, "run_command", pytest.fail)
    reached = make(Access(exec=True))
    assert reached.close() == Accesses()
    with pytest.raises(RefusedError) as refused:
        reached.command(("id",), socket.socket())
    assert refused.value.error is ControlError.ORDER
