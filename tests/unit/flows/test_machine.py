# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from cvmtool.errors import HostError
from cvmtool.flows.machine import Machine
from cvmtool.formats.manifest import Mode
from cvmtool.host.storage import MachineDir


class Host:
    """A host whose user presses Ctrl-C during the first `destroy`."""

    def __init__(self, *, interrupted, reachable=True):
        self.interrupted, self.reachable = interrupted, reachable
        self.domains, self.closed = {"m"}, False

    def destroy(self, name):
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt
        if not self.reachable:
            raise HostError("gone")
        self.domains.discard(name)

    def close(self):
        self.closed = True


def machine(tmp_path, host):
    directory = MachineDir(tmp_path, "m")
    directory.create()
    return Machine(name="m", hypervisor=host, directory=directory, bundle=None, mode=Mode.DRYRUN, started=0.0)


def test_an_interrupted_removal_begins_again(tmp_path):
    host = Host(interrupted=True)
    with pytest.raises(KeyboardInterrupt):
        machine(tmp_path, host).remove()
    assert (host.domains, host.closed, list(tmp_path.iterdir())) == (set(), True, [])


def test_the_directory_goes_even_if_the_host_is_gone(tmp_path):
    host = Host(interrupted=False, reachable=False)
    machine(tmp_path, host).remove()
    assert (host.closed, list(tmp_path.iterdir())) == (True, [])


def test_removing_twice_is_no_error(tmp_path):
    made = machine(tmp_path, Host(interrupted=False))
    made.remove()
    made.remove()
