# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import socket
from types import SimpleNamespace

import pytest

from cvmtool.flows.hostile import HostileHost, beset, between, flip_byte, retable
from cvmtool.flows.hosts import Host
from cvmtool.flows.machine import Machine
from cvmtool.formats.channel import AGENT_PORT, PSP_PORT
from cvmtool.host.files import LocalFiles
from cvmtool.host.live import parse_live_domain
from cvmtool.measure.hashes import kernel_hashes
from tests.unit.host.test_domain import render


class Hypervisor:
    def __init__(self):
        self.defined = []
        self.ports = {}

    def define(self, xml):
        self.defined.append(xml)

    def open_port(self, _name, port):
        ours, self.ports[port] = socket.socketpair()
        return ours

    def state(self, name):
        return f"state of {name}"


def test_a_host_that_does_not_attack_is_an_ordinary_one():
    inner = Hypervisor()
    host = HostileHost(inner, None, None, None)
    host.define(render())
    assert inner.defined == [render()]
    assert host.state("m") == "state of m"
    port = host.open_port("m", AGENT_PORT)
    port.sendall(b"x")
    assert inner.ports[AGENT_PORT].recv(1) == b"x"


def test_a_tamperer_sees_the_domain_and_changes_it():
    inner = Hypervisor()
    seen = []
    host = HostileHost(
        inner,
        "files",
        lambda live, xml, files: (seen.append((live, files)), xml.replace("EPYC-Genoa", "EPYC-Milan"))[1],
        None,
    )
    host.define(render())
    assert seen == [(parse_live_domain(render()), "files")]
    assert parse_live_domain(inner.defined[0]).cpu == "EPYC-Milan"


def exactly(end, size):
    data = b""
    end.settimeout(10)
    while len(data) < size:
        data += end.recv(size - len(data))
    return data


def test_somebody_in_between_rewrites_both_directions_of_the_agents_port_alone():
    inner = Hypervisor()
    interpose = between(answer=lambda heard: heard.replace(b"yes", b"no!"), challenge=bytes.upper)
    host = HostileHost(inner, None, None, interpose)
    owner = host.open_port("m", AGENT_PORT)
    guest = inner.ports[AGENT_PORT]
    owner.sendall(b"question")
    assert exactly(guest, 8) == b"QUESTION"
    guest.sendall(b"yes or yes")
    assert exactly(owner, 10) == b"no! or no!"
    guest.sendall(b", no")
    assert exactly(owner, 4) == b", no"
    guest.close()
    assert owner.recv(1) == b""
    psp = host.open_port("m", PSP_PORT)
    inner.ports[PSP_PORT].sendall(b"yes")
    assert exactly(psp, 3) == b"yes"


def test_somebody_sits_down_between_owner_and_a_machine_that_runs_already():
    inner = Hypervisor()
    host = Host(name="h", uri="u", hypervisor=inner, files=LocalFiles(), machines="/m", store=None, local=True)
    machine = Machine(name="m", host=host, launch=None, started=0.0, reopen=None, forget=None, notice=None)
    listened = beset(machine, between(answer=bytes.upper))
    port = listened.hypervisor.open_port("m", AGENT_PORT)
    inner.ports[AGENT_PORT].sendall(b"answer")
    assert exactly(port, 6) == b"ANSWER"
    assert listened.hypervisor.state("m") == "state of m"
    assert machine.hypervisor is inner


@pytest.mark.parametrize(("at", "expected"), [(0, b"`bc"), (2, b"abb"), (-1, b"abb"), (-3, b"`bc")])
def test_one_bit_is_flipped_and_what_other_machines_use_stays(tmp_path, at, expected):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    (tmp_path / "stored").hardlink_to(path)
    flip_byte(LocalFiles(), str(path), at)
    assert path.read_bytes() == expected
    assert (tmp_path / "stored").read_bytes() == b"abc"


def test_a_consistent_liar_writes_the_table_of_what_there_is(tmp_path):
    for name, data in (("kernel", b"K"), ("initrd", b"I"), ("table", b"")):
        (tmp_path / name).write_bytes(data)
    live = SimpleNamespace(
        kernel=str(tmp_path / "kernel"),
        initrd=str(tmp_path / "initrd"),
        hash_table=str(tmp_path / "table"),
        cmdline="c",
    )
    retable(live, LocalFiles())
    assert (tmp_path / "table").read_bytes() == kernel_hashes(b"K", b"I", "c").table()
    retable(live, LocalFiles(), "other")
    assert (tmp_path / "table").read_bytes() == kernel_hashes(b"K", b"I", "other").table()
