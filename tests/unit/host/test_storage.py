# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError, HostError
from cvmtool.host.storage import (
    MAX_CONSOLE,
    MachineDir,
    MachineRecord,
    process_lives,
    records,
    stage_words,
)

RECORD = MachineRecord(name="m1", job="digits", uri="qemu:///session", pid=1234)


@pytest.fixture
def machine(tmp_path):
    machine = MachineDir(tmp_path / "machines", "m1")
    machine.create()
    return machine


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/", "/etc", "a/b", "a/../..", "A", "a b", "a\n", "a\0", "-a", "a.", "a" * 65]
)
def test_no_name_leads_out_of_the_directory(tmp_path, name):
    with pytest.raises(ConfigError):
        MachineDir(tmp_path, name)


def test_what_the_host_must_read_it_can(machine, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"public")
    source.chmod(0o600)
    placed = machine.place(source, "kernel")
    written = machine.write("hashes.bin", b"table")
    assert (placed.read_bytes(), written.read_bytes()) == (b"public", b"table")
    assert [mode(path) for path in (placed, written, machine.console)] == [0o644] * 3
    assert mode(machine.path) & 0o055 == 0o055


def test_a_machine_exists_once(machine):
    with pytest.raises(HostError) as refusal:
        machine.create()
    assert refusal.value.hint == "cvmtool vm destroy m1"
    machine.remove()
    machine.remove()
    machine.create()


def test_a_place_that_cannot_be_made_is_not_called_an_existing_machine(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError) as refusal:
        MachineDir(tmp_path / "file", "m1").create()
    assert "CVMTOOL_MACHINES_DIR" in refusal.value.hint


def test_what_cannot_be_copied_or_written_is_the_hosts_failure(machine, tmp_path):
    with pytest.raises(HostError):
        machine.place(tmp_path / "missing", "kernel")
    with pytest.raises(HostError):
        machine.write("missing/hashes.bin", b"")


def test_only_the_beginning_of_a_console_is_read(machine):
    assert machine.read_console() == b""
    machine.console.write_bytes(b"x" * (MAX_CONSOLE + 10))
    assert len(machine.read_console()) == MAX_CONSOLE
    machine.remove()
    assert machine.read_console() == b""


def test_a_record_is_found_again(machine):
    machine.save(RECORD)
    assert list(records(machine.path.parent)) == [RECORD]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'{"job": "x"}',
        b'{"job": "x", "uri": "y", "pid": "z"}',
        b'{"job": "x", "uri": "y", "pid": Infinity}',
        b'{"job": "x", "uri": "y", "pid": null}',
        b'{"job": "x", "uri": "y", "pid": -1}',
        b'{"job": "x", "uri": "y", "pid": 0}',
        b"\xff",
    ],
)
def test_a_record_that_cannot_be_read_is_passed_over(machine, content):
    machine.save(RECORD)
    other = MachineDir(machine.path.parent, "m0")
    other.create()
    other.write("machine.json", content)
    assert list(records(machine.path.parent)) == [RECORD]


def test_the_name_of_a_record_is_its_directorys(machine):
    machine.write("machine.json", json.dumps({"name": "../../x", "job": "j", "uri": "u", "pid": 5}).encode())
    assert [record.name for record in records(machine.path.parent)] == ["m1"]


def test_no_machines_at_all(tmp_path):
    assert list(records(tmp_path / "missing")) == []


def test_a_process_lives_until_it_ends(monkeypatch):
    assert process_lives(os.getpid())
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert not process_lives(process.pid)
    assert not process_lives(1 << 70)

    def forbidden(_pid, _signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    assert process_lives(1)


def test_stage_words_are_found_between_anything():
    console = (
        b"\x1b[2Jboot\r\nCVM-STAGE initrd\r\n[ 0.1] x CVM-STAGE root\nCVM-FAIL verity\nCVM-STAGE \xff\nCVM-OTHER x\n"
    )
    assert stage_words(console) == ["CVM-STAGE initrd", "CVM-STAGE root", "CVM-FAIL verity"]


@given(st.binary(max_size=200))
def test_stage_words_of_any_console_are_plain(console):
    for word in stage_words(b"CVM-STAGE " + console):
        assert word.isascii()
        assert word.isprintable()
        assert len(word) <= 42
