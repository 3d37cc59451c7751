# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What is done when a machine, or the way to it, is lost: on libvirt's own test driver, whose domains really stop and pause."""

import threading
from dataclasses import replace

import pytest

from cvmtool.errors import AppraisalError, Finding, FreshnessError, HostError, JobError, VerificationError
from cvmtool.flows import guard, lifeline
from cvmtool.flows.attempts import Attempt
from cvmtool.flows.hosts import Host
from cvmtool.flows.lifeline import Effort, Lifeline, OtherBootError
from cvmtool.flows.machine import Machine
from cvmtool.formats.control import Op
from cvmtool.host.channel import GuestError
from cvmtool.host.events import Event, Happening
from cvmtool.host.files import LocalFiles
from cvmtool.host.hypervisor import Hypervisor
from cvmtool.owner.jobfile import Restart

pytest.importorskip("libvirt")
NAME = "test"
DOMAIN = f"""
<domain type='test'>
  <name>{NAME}</name>
  <uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
  <memory>8192</memory>
  <os><type>hvm</type></os>
</domain>
"""
BROKE = HostError("the connection to the guest broke")


class Place:
    """A host with one machine, and what was done to it."""

    def __init__(self, folder):
        self.folder = folder
        self.notices: list[str] = []
        self.launches = 0
        self.opened = [self.open()]
        self.away = 0
        self.keeper = self.open()  # the test driver forgets its domains when nobody is connected
        # It is one for the whole process; whatever another test left of it, here the domain runs.
        domain = self.keeper.hypervisor._connection.defineXML(DOMAIN)
        if not domain.isActive():
            domain.create()

    def open(self) -> Host:
        libvirt = Hypervisor("test:///default", log=self.folder / "log")
        return Host(
            name="lab", uri=libvirt.uri, hypervisor=libvirt, files=LocalFiles(), machines="/m", store=None, local=True
        )

    def reopen(self) -> Host:
        if self.away:
            self.away -= 1
            raise HostError("libvirt does not answer")
        self.opened.append(self.open())
        return self.opened[-1]

    def machine(self) -> Machine:
        return Machine(
            name=NAME,
            host=self.opened[0],
            launch=None,
            started=0.0,
            reopen=self.reopen,
            forget=lambda: None,
            notice=self.notices.append,
        )

    def start_again(self, machine: Machine) -> Machine:
        self.launches += 1
        machine.hypervisor._lookup(NAME).create()
        return machine

    def kill(self) -> None:
        self.opened[-1].hypervisor._lookup(NAME).destroy()

    def cut(self) -> None:
        self.opened[-1].hypervisor._connection.close()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(lifeline, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(lifeline, "_RETRY_SECONDS", 0.01)
    found = Place(tmp_path)
    yield found
    for host in [*found.opened, found.keeper]:
        host.hypervisor.close()


def line(place, restart=Restart.ON_FAILURE, **effort) -> tuple[Lifeline, list[Attempt]]:
    attempts = [Attempt(started="now")]
    made = Lifeline(
        place.machine(),
        Effort(restart=restart, **effort),
        start_again=place.start_again,
        attempts=attempts,
        save=lambda: None,
    )
    return made, attempts


def test_what_succeeds_is_done_once(place):
    held, attempts = line(place)
    assert held.hold(lambda machine: machine.name) == NAME
    assert place.launches == 0
    assert len(attempts) == 1


def test_a_machine_that_died_is_started_again(place):
    held, attempts = line(place)

    def work(machine):
        if place.launches < 2:
            place.kill()
            raise BROKE
        return "result"

    assert held.hold(work) == "result"
    assert place.launches == 2
    assert [attempt.cause for attempt in attempts] == ["its host stopped it"] * 2 + [None]


def test_three_launches_and_no_more(place):
    held, attempts = line(place)

    def work(machine):
        place.kill()
        raise BROKE

    with pytest.raises(HostError, match="attempt 3 of 3"):
        held.hold(work)
    assert place.launches == 2
    assert len(attempts) == 3
    assert all(attempt.ended and attempt.cause for attempt in attempts)


def test_nothing_is_started_again_unasked(place):
    held, attempts = line(place, Restart.NEVER)

    def work(machine):
        place.kill()
        raise BROKE

    with pytest.raises(HostError) as failure:
        held.hold(work)
    assert place.launches == 0
    assert failure.value.hint == "restart: on-failure has it started again"
    assert attempts[0].cause == "its host stopped it"


@pytest.mark.parametrize(
    "refusal",
    [
        VerificationError("not genuine"),
        AppraisalError("refused", findings=(Finding(code="x", field="x", actual="1", required="2"),)),
        FreshnessError("stale"),
        JobError("exit code 1"),
        GuestError(Op.RELEASE, "pack-key", "", pack=None),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_is_never_tried_again(place, refusal):
    held, attempts = line(place)
    calls = []

    def work(machine):
        calls.append(machine)
        place.kill()  # even if the machine is gone by then
        raise refusal

    with pytest.raises(type(refusal)):
        held.hold(work)
    assert len(calls) == len(attempts) == 1
    assert place.launches == 0


def test_what_a_living_machine_does_not_answer_is_an_error(place):
    held, _ = line(place)

    def work(machine):
        raise BROKE

    with pytest.raises(HostError) as failure:
        held.hold(work)
    assert failure.value is BROKE
    assert place.launches == 0


@pytest.mark.parametrize("restart", Restart)
def test_a_lost_connection_is_made_again_and_the_machine_goes_on(place, restart):
    held, attempts = line(place, restart)
    place.away = 3
    seen = []

    def work(machine):
        seen.append(machine.host)
        if len(seen) == 1:
            place.cut()
            raise BROKE
        return "result"

    assert held.hold(work) == "result"
    assert seen[0] is not seen[1]
    assert place.launches == 0
    assert len(attempts) == 1


def test_a_machine_that_died_while_nobody_looked(place):
    held, attempts = line(place)

    def work(machine):
        if place.launches:
            return "result"
        place.cut()
        place.keeper.hypervisor._lookup(NAME).destroy()
        raise BROKE

    assert held.hold(work) == "result"
    assert attempts[0].cause == "its host stopped it"


def test_a_host_that_stays_away_is_given_up(place):
    held, _ = line(place, Restart.NEVER, reconnect_seconds=0.05)
    place.away = 1 << 30

    def work(machine):
        place.cut()
        raise BROKE

    with pytest.raises(HostError, match="has not answered") as failure:
        held.hold(work)
    assert "vm destroy test" in failure.value.hint


def test_another_guest_in_its_place_counts_as_a_death(place):
    held, attempts = line(place)

    def work(machine):
        if place.launches:
            return "result"
        place.kill()
        raise OtherBootError("its host started it again, unasked")

    assert held.hold(work) == "result"
    assert attempts[0].cause == "its host started it again, unasked"


def test_a_full_disk_is_told_and_the_machine_goes_on(place, monkeypatch):
    monkeypatch.setattr(guard, "_RETRY_SECONDS", 0.05)
    libvirt = place.opened[0].hypervisor
    told = threading.Event()

    def notice(text):
        place.notices.append(text)
        if "goes on" in text and "again" in text:
            told.set()

    with guard.guarded(libvirt, NAME, notice):
        libvirt._lookup(NAME).suspend()
        libvirt.events._tell(Event(what=Happening.DISK_FULL, path="/m/test/data.img"), NAME)
        assert told.wait(30)
    assert any("no room for /m/test/data.img" in text for text in place.notices)
    assert libvirt.state(NAME).value == "running"


def test_a_machine_that_is_gone_ends_the_wait(place):
    libvirt = place.opened[0].hypervisor
    with guard.guarded(libvirt, NAME, place.notices.append) as watch:
        assert watch.wait_over(0) is None
        place.kill()
        assert watch.wait_over(30) is Happening.STOPPED


def test_a_connection_that_is_cut_ends_the_wait(place):
    libvirt = place.opened[0].hypervisor
    with guard.guarded(libvirt, NAME, place.notices.append) as watch:
        place.cut()
        assert watch.wait_over(30) is Happening.DISCONNECTED


def test_the_machine_in_hand_is_the_one_that_is_removed(place):
    held, _ = line(place)
    removed = []
    other = replace(place.machine(), forget=lambda: removed.append("other"), host=place.opened[0])
    held.machine = other
    held.remove()
    assert removed == ["other"]
