# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows import tunnel
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import load_job
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.tunnel import await_port, comes_to_its_end, listen, serve
from cvmtool.flows.visit import invite, visit
from cvmtool.formats.control import Stage
from cvmtool.formats.jobterms import Access
from cvmtool.guest.tunnel import Namespace
from tests.fakes.running import PORT, post, running_job


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setattr(tunnel, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(tunnel, "_AGAIN_SECONDS", 0.01)
    with running_job(load_settings(), monkeypatch, access=Access(tunnels=(PORT,))) as running:
        yield running


@pytest.fixture
def channel(running, tmp_path):
    settings = load_settings()
    invitation = invite(running.job, settings)
    stage = lambda *_: nullcontext()  # noqa: E731
    with visit(invitation, load_keys(settings), settings, kept_in=tmp_path, stage=stage) as visited:
        yield visited.channel


class Served:
    """A tunnel that is served in a thread of its own."""

    def __init__(self, channel):
        self.over = False
        self.notices = []
        self.raised = None
        self._listening = listen("127.0.0.1", 0)
        self.listener = self._listening.__enter__()
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, args=(channel,))
        self._thread.start()

    def _serve(self, channel):
        try:
            serve(self.listener, channel, PORT, notice=self.notices.append, is_over=lambda: self.over)
        except HostError as error:
            self.raised = error

    def end(self):
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._listening.__exit__(None, None, None)


@pytest.fixture
def served(running, channel):
    served = Served(channel)
    yield served
    running.life.stage = Stage.DONE
    served.end()


def test_connections_come_out_in_the_container_many_at_once(served):
    bodies = [os.urandom(30_000) for _ in range(8)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(lambda body: post(served.url, body), bodies)) == bodies
    assert served.notices == []


def test_it_ends_with_the_container(running, served):
    running.life.stage = Stage.DONE
    served.end()
    assert served.raised is None


def test_a_container_that_has_not_begun_is_waited_for(running, served, monkeypatch):
    asked = threading.Semaphore(0)
    status = running.life.status
    monkeypatch.setattr(running.life, "status", lambda: (asked.release(), status())[1])
    running.life.stage = Stage.UNLOCKED
    for _ in range(3):
        assert asked.acquire(timeout=20)
    running.life.stage = Stage.RUNNING
    assert post(served.url, b"hello") == b"hello"


def test_a_session_that_is_lost_is_said(running, served):
    running.cut()
    served.end()
    assert isinstance(served.raised, HostError)


def test_a_session_that_ends_with_its_job_is_an_end_as_any(running, served):
    served.over = True
    running.cut()
    served.end()
    assert served.raised is None


@pytest.mark.parametrize(("state", "good"), [(JobState.DONE, True), (JobState.FAILED, False)])
def test_a_run_comes_to_its_end_when_its_process_has_cleaned_up(running, state, good):
    job = load_job(load_settings().jobs_dir, running.job.record.id)
    timer = threading.Timer(0.1, running.job.finish, (state,))
    timer.start()
    assert comes_to_its_end(job) is good
    timer.join()


def test_a_run_that_goes_on_does_not_come_to_its_end(running):
    assert not comes_to_its_end(running.job, patience_seconds=0.05)


def test_a_connection_that_the_guest_turns_away_is_closed_and_said(served, monkeypatch):
    def refuse(_, _port):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(Namespace, "connect", refuse)
    with socket.create_connection(served.listener.getsockname(), timeout=20) as connection:
        assert connection.recv(1) == b""
    assert served.notices == ["a connection was turned away: port 8000 does not answer: Connection refused"]


def test_a_port_here_that_is_taken():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="cannot be listened on"),
        listen("127.0.0.1", taken.getsockname()[1]),
    ):
        pass


def test_an_address_that_is_not_here():
    with pytest.raises(ConfigError), listen("192.0.2.1", 0):
        pass


def test_a_port_is_waited_for_until_it_answers(channel, monkeypatch):
    connect = Namespace.connect
    tries = []

    def late(self, port):
        tries.append(port)
        if len(tries) < 3:
            raise ConnectionRefusedError(111, "Connection refused")
        return connect(self, port)

    monkeypatch.setattr(Namespace, "connect", late)
    assert await_port(channel, PORT, give_up=lambda: False)
    assert tries == [PORT] * 3


def test_waiting_can_be_given_up(channel, monkeypatch):
    tries = []

    def never(self, port):
        tries.append(port)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(Namespace, "connect", never)
    assert not await_port(channel, PORT, give_up=lambda: len(tries) > 1)


def test_a_connection_that_only_looked_is_not_counted(running, channel):
    assert await_port(channel, PORT, give_up=lambda: False)
    assert running.life.reach.close().tunnels == 0
