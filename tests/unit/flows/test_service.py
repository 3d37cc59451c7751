# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A service is stood by over a real session; the log that is followed is the test's."""

import os
import signal
import threading
from contextlib import nullcontext

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import HostError, JobError
from cvmtool.flows import tunnel
from cvmtool.flows.jobs import JobDir
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.results import Outcome
from cvmtool.flows.run import TrainResult, require_success
from cvmtool.flows.service import stand_by
from cvmtool.flows.visit import invite, visit
from cvmtool.formats.jobterms import Access
from cvmtool.guest.tunnel import Namespace
from tests.fakes.running import PORT, running_job


class Log:
    """A log that ends when the container is stopped."""

    def __init__(self, running):
        self.running = running
        self.ended = threading.Event()
        stop = running.life.stop
        running.life.stop = lambda grace: (stop(grace), self.ended.set())

    def follow(self):
        assert self.ended.wait(20)


class Notices:
    """A reporter, of which only notices are wanted; `then` is called at each."""

    def __init__(self, then=lambda: None):
        self.heard = []
        self.then = then

    def notice(self, text):
        self.heard.append(text)
        self.then()


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setattr(tunnel, "_AGAIN_SECONDS", 0.01)
    with running_job(load_settings(), monkeypatch, access=Access(tunnels=(PORT, PORT + 1))) as running:
        yield running


@pytest.fixture
def channel(running, tmp_path):
    settings = load_settings()
    stage = lambda *_: nullcontext()  # noqa: E731
    with visit(invite(running.job, settings), load_keys(settings), settings, kept_in=tmp_path, stage=stage) as visited:
        yield visited.channel


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C is what it is at a terminal, however these tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_its_owner_is_told_when_each_port_answers(running, channel):
    log = Log(running)
    reporter = Notices(lambda: len(reporter.heard) == 2 and log.ended.set())
    stand_by(channel, running.guest.manifest, "serving-1", log.follow, reporter)
    assert reporter.heard == [
        f"port {PORT} answers: cvmtool jobs tunnel serving-1 {PORT}",
        f"port {PORT + 1} answers: cvmtool jobs tunnel serving-1 {PORT + 1}",
    ]
    assert running.life.stopped == []


def test_an_interruption_ends_the_container_and_not_the_run(running, channel):
    log = Log(running)
    reporter = Notices(lambda: len(reporter.heard) == 2 and os.kill(os.getpid(), signal.SIGINT))
    stand_by(channel, running.guest.manifest, "serving-1", log.follow, reporter)
    assert running.life.stopped == [10]
    assert reporter.heard[-1] == "ending the service"


def test_a_second_interruption_ends_the_run(running, channel):
    over = threading.Event()
    running.life.stop = lambda _grace: os.kill(os.getpid(), signal.SIGINT)
    reporter = Notices(lambda: len(reporter.heard) == 2 and os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stand_by(channel, running.guest.manifest, "serving-1", lambda: over.wait(20), reporter)
    over.set()


def test_a_connection_that_breaks_while_the_container_ends_ends_the_run(running, channel):
    log = Log(running)

    def follow():
        log.follow()
        raise HostError("the connection broke")

    reporter = Notices(lambda: len(reporter.heard) == 2 and os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stand_by(channel, running.guest.manifest, "serving-1", follow, reporter)
    assert running.life.stopped == [10]


def test_a_container_that_cannot_be_asked_to_end_ends_the_run(running, channel):
    over = threading.Event()

    def interrupt():
        if len(reporter.heard) == 2:
            channel.close()
            os.kill(os.getpid(), signal.SIGINT)

    reporter = Notices(interrupt)
    with pytest.raises(KeyboardInterrupt):
        stand_by(channel, running.guest.manifest, "serving-1", lambda: over.wait(20), reporter)
    over.set()
    assert running.life.stopped == []


def test_a_lost_connection_is_what_following_the_log_says(running, channel):
    def follow():
        raise HostError("the connection broke")

    with pytest.raises(HostError, match="the connection broke"):
        stand_by(channel, running.guest.manifest, "serving-1", follow, Notices())


def test_a_service_that_never_answers_is_not_said_to(running, channel, monkeypatch):
    tries = threading.Semaphore(0)

    def never(self, port):
        tries.release()
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(Namespace, "connect", never)
    reporter = Notices()

    def follow():
        for _ in range(3):
            assert tries.acquire(timeout=20)

    stand_by(channel, running.guest.manifest, "serving-1", follow, reporter)
    assert reporter.heard == []


def ended(tmp_path, cause, exit_code, *, refused=()):
    outcome = Outcome(
        exit_code=exit_code,
        cause=cause,
        outputs=(),
        refused=refused,
        log_size=0,
        log_sha256="",
        receipt=b"",
    )
    job = JobDir.create(tmp_path / "jobs", "serving", simulated=True)
    return TrainResult(job=job, outcome=outcome, outputs=(), folder=tmp_path)


@pytest.mark.parametrize(
    ("cause", "exit_code"), [("stopped", 0), ("stopped", 143), ("stopped", 137), ("timeout", 137), ("exited", 0)]
)
def test_how_a_service_may_end(tmp_path, cause, exit_code):
    result = ended(tmp_path, cause, exit_code)
    require_success(result, service=True)
    assert result.job.record.exit_code == exit_code


@pytest.mark.parametrize(("cause", "exit_code"), [("exited", 1), ("memory", 137), ("runtime", 125)])
def test_how_a_service_may_not_end(tmp_path, cause, exit_code):
    with pytest.raises(JobError, match=f"exit code {exit_code}"):
        require_success(ended(tmp_path, cause, exit_code), service=True)


@pytest.mark.parametrize("cause", ["stopped", "timeout"])
def test_no_other_job_ends_well_by_being_ended(tmp_path, cause):
    with pytest.raises(JobError):
        require_success(ended(tmp_path, cause, 137))


def test_a_service_too_must_leave_what_it_declared(tmp_path):
    with pytest.raises(JobError, match=r"stats\.json"):
        require_success(ended(tmp_path, "stopped", 0, refused=(("stats.json", "missing"),)), service=True)
