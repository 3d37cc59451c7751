# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from cvmtool.errors import HostError
from cvmtool.flows.hosts import Host
from cvmtool.flows.machine import Machine
from cvmtool.host.files import LocalFiles


class Hypervisor:
    """A host whose user presses Ctrl-C during the first `destroy`."""

    def __init__(self, *, interrupted=False, reachable=True):
        self.interrupted, self.reachable = interrupted, reachable
        self.domains, self.closed = {"m"}, 0

    def destroy(self, name):
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt
        if not self.reachable:
            raise HostError("gone")
        self.domains.discard(name)
        return True

    def close(self):
        self.closed += 1


class Owner:
    """A machine `m`, and what its owner is told and keeps."""

    def __init__(self, folder, *hypervisors):
        self.folder, self.hypervisors = folder, list(hypervisors)
        self.recorded, self.notices = True, []
        host = self.open()
        self.machine = Machine(
            name="m", host=host, launch=None, started=0.0, reopen=self.open,
            forget=self.forget, notice=self.notices.append,
        )  # fmt: skip
        self.machine.directory.create()

    def open(self):
        if not self.hypervisors:
            raise HostError("does not answer")
        return Host(
            name="h", uri="u", hypervisor=self.hypervisors.pop(0), files=LocalFiles(), machines=str(self.folder),
            store=None, local=True,
        )  # fmt: skip

    def forget(self):
        self.recorded = False


def test_an_interrupted_removal_begins_again(tmp_path):
    first = Hypervisor(interrupted=True)
    owner = Owner(tmp_path, first)
    with pytest.raises(KeyboardInterrupt):
        owner.machine.remove()
    assert (first.domains, first.closed > 0, list(tmp_path.iterdir()), owner.recorded) == (set(), True, [], False)


def test_a_connection_that_is_gone_is_made_again(tmp_path):
    first, second = Hypervisor(reachable=False), Hypervisor()
    owner = Owner(tmp_path, first, second)
    owner.machine.remove()
    assert (second.domains, list(tmp_path.iterdir()), owner.recorded, owner.notices) == (set(), [], False, [])
    assert (first.closed, second.closed) == (1, 1)


def test_a_machine_on_a_host_that_is_gone_stays_on_record(tmp_path):
    owner = Owner(tmp_path, Hypervisor(reachable=False))
    owner.machine.remove()
    assert owner.recorded
    assert "cvmtool vm destroy m" in owner.notices[0]


def test_removing_twice_is_no_error(tmp_path):
    owner = Owner(tmp_path, Hypervisor())
    owner.machine.remove()
    owner.machine.remove()
