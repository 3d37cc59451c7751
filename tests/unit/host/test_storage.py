# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError, HostError
from cvmtool.host.files import LocalFiles
from cvmtool.host.storage import MAX_CONSOLE, MachineDir, stage_words


@pytest.fixture
def machine(tmp_path):
    machine = MachineDir(LocalFiles(), str(tmp_path / "machines"), "m1")
    machine.create()
    return machine


def mode(path):
    return Path(path).stat().st_mode & 0o7777


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/", "/etc", "a/b", "a/../..", "A", "a b", "a\n", "a\0", "-a", "a.", "a" * 65, ".store"],
)
def test_no_name_leads_out_of_the_directory_or_into_the_store(name):
    with pytest.raises(ConfigError):
        MachineDir(LocalFiles(), "/machines", name)


def test_qemu_can_reach_it_as_another_user(machine):
    assert (mode(machine.machines), mode(Path(machine.console).parent), mode(machine.console)) == (0o755, 0o755, 0o644)


def test_a_machine_exists_once(machine):
    with pytest.raises(HostError, match="m1"):
        machine.create()
    assert machine.remove() is True
    assert machine.remove() is False
    machine.create()


def test_a_place_that_cannot_be_made_is_not_called_an_existing_machine(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError, match="cannot be made") as refusal:
        MachineDir(LocalFiles(), str(tmp_path / "file"), "m1").create()
    assert "CVMTOOL_MACHINES_DIR" in refusal.value.hint


def test_a_directory_without_a_console_does_not_stay(tmp_path):
    class Full(LocalFiles):
        def write(self, path, data):
            raise HostError("no room")

    with pytest.raises(HostError, match="no room"):
        MachineDir(Full(), str(tmp_path), "m1").create()
    assert list(tmp_path.iterdir()) == []


def test_only_the_beginning_of_a_console_is_read(machine):
    assert machine.read_console() == b""
    Path(machine.console).write_bytes(b"x" * (MAX_CONSOLE + 10))
    assert len(machine.read_console()) == MAX_CONSOLE
    machine.remove()
    assert machine.read_console() == b""


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
