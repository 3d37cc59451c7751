# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What drills do to a conversation and to a host's files. That it is refused is tests/scenario/test_attacks.py's to show."""

import secrets
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.attacks import all_drills, select
from cvmtool.formats.channel import Open, answer_to, find_last_open, ready_line
from cvmtool.host.domain import ROOT_SERIAL, Disk
from cvmtool.host.files import LocalFiles
from cvmtool.host.live import parse_live_domain
from tests.unit.formats.test_evidence import EVIDENCE
from tests.unit.host.test_domain import render

DRILLS = {drill.name: drill for drill in all_drills()}
NONCE = secrets.token_bytes(32)
OPEN = Open(nonce=NONCE, owner_key=bytes(32), manifest_sha256=bytes(32)).encode()
STALE = ready_line(bytes(32), EVIDENCE)


def all_of(end, size):
    end.settimeout(10)
    data = b""
    while len(data) < size:
        piece = end.recv(65_536)
        assert piece, "the other side closed"
        data += piece
    return data


class Talk:
    """An owner and a guest, and an attacker between them. Of a session before this one something is still on its way."""

    def __init__(self, name):
        self.guest, port = socket.socketpair()
        self.owner = DRILLS[name].interpose(port)
        self.guest.sendall(STALE)

    def ask(self, *, noise=0):
        """Return what the guest hears of the owner's challenge, behind so many bytes of noise."""
        self.owner.sendall(OPEN)
        return all_of(self.guest, noise + len(OPEN))

    def answer(self, answer):
        """Return what the owner makes of the guest's answer, and what came behind it."""
        self.guest.sendall(answer + b"SSH")
        told = b""
        while (found := answer_to(told, NONCE)) is None or len(told) < found[1] + 3:
            told += all_of(self.owner, 1)
        return found[0], told[found[1] :]

    def close(self):
        self.guest.close()
        self.owner.close()


@pytest.fixture
def talk():
    begun = []

    def begin(name):
        begun.append(Talk(name))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


@pytest.mark.parametrize("_use", range(2))
def test_somebody_in_the_middle_changes_the_keys_and_nothing_else(talk, _use):
    somebody = talk("man-in-the-middle")
    assert somebody.ask() == OPEN
    forged, behind = somebody.answer(ready_line(NONCE, EVIDENCE))
    assert forged.ssh_host_key != EVIDENCE.ssh_host_key
    assert forged.hpke_key != EVIDENCE.hpke_key
    assert replace(forged, ssh_host_key=EVIDENCE.ssh_host_key, hpke_key=EVIDENCE.hpke_key) == EVIDENCE
    assert behind == b"SSH"


def test_a_relay_asks_with_a_nonce_of_its_own(talk):
    relay = talk("relayed-evidence")
    heard = relay.ask()
    asked = find_last_open(heard)[0].nonce
    assert asked != NONCE
    shown, _ = relay.answer(ready_line(asked, EVIDENCE))
    assert shown == EVIDENCE


def test_garbage_goes_both_ways(talk):
    host = talk("garbage")
    heard = host.ask(noise=65_536)
    assert heard.endswith(OPEN)
    assert len(set(heard[:65_536])) == 256
    with pytest.raises(FormatError):
        host.answer(ready_line(NONCE, EVIDENCE))


def test_one_bit_of_a_session_is_changed_when_its_keys_have_long_been_agreed(talk):
    host = talk("changed-session")
    assert host.ask() == OPEN
    said = secrets.token_bytes(10_000)
    host.owner.sendall(said)
    heard = all_of(host.guest, len(said))
    (at,) = [place for place, (one, other) in enumerate(zip(said, heard, strict=True)) if one != other]
    assert (at, said[at] ^ heard[at]) == (6_000, 1)


def test_disks_are_swapped_and_the_root_disk_is_none_of_them(tmp_path):
    disks = tuple(Disk(path=str(tmp_path / serial), serial=serial) for serial in (ROOT_SERIAL, "a", "b"))
    for disk in disks:
        Path(disk.path).write_text(disk.serial)
    xml = render(disks=disks)
    assert DRILLS["swapped-disks"].tamper(parse_live_domain(xml), xml, LocalFiles()) == xml
    assert [Path(disk.path).read_text() for disk in disks] == [ROOT_SERIAL, "b", "a"]


def test_drills_by_name():
    assert [drill.name for drill in select(["garbage", "old-tcb"])] == ["garbage", "old-tcb"]
    assert select([]) == all_drills()
    with pytest.raises(ConfigError, match="no such thing"):
        select(["no such thing"])
