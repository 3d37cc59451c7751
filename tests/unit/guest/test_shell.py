# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import subprocess

import pytest

from cvmtool.formats.control import ControlError
from cvmtool.formats.machine import SHELL_WORD
from cvmtool.guest import shell as module
from cvmtool.guest.programs import Ended
from cvmtool.guest.refusal import RefusedError
from cvmtool.guest.shell import Shell, is_shell_allowed


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        (f"quiet {SHELL_WORD} cvmtool.verity=1:2:3:4\n", True),
        (SHELL_WORD, True),
        ("quiet cvmtool.verity=1:2:3:4\n", False),
        ("quiet cvmtool.shell=0", False),
        (f"x{SHELL_WORD}", False),
        (f"{SHELL_WORD}1", False),
        ("", False),
    ],
)
def test_the_word_stands_on_the_command_line_as_a_word(tmp_path, line, allowed):
    (tmp_path / "cmdline").write_text(line)
    assert is_shell_allowed(tmp_path / "cmdline") is allowed


@pytest.fixture
def mounts(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "run", lambda *argv: calls.append(argv) or Ended(code=0, output="", complaint=""))
    return calls


def test_a_session_gets_a_shell_after_the_grant_only(tmp_path, mounts):
    shell = Shell(allowed=True, terminals=tmp_path / "pts")
    assert shell.server() == ("/usr/sbin/sshd", "-i", "-f", "/etc/cvmtool/sshd_config")
    shell.grant()
    shell.grant()
    assert shell.server() == ("/usr/sbin/sshd", "-i", "-f", "/etc/cvmtool/sshd_shell_config")
    assert [call[:3] for call in mounts] == [("mount", "-t", "devpts")]


def test_an_image_without_the_word_grants_nothing(tmp_path, mounts):
    shell = Shell(allowed=False, terminals=tmp_path / "pts")
    for call in (shell.require_allowed, shell.grant):
        with pytest.raises(RefusedError) as refusal:
            call()
        assert refusal.value.error is ControlError.SHELL
    assert (shell.granted, mounts) == (False, [])


def test_no_terminals_no_shell(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run", lambda *_: Ended(code=1, output="", complaint="no"))
    shell = Shell(allowed=True, terminals=tmp_path / "pts")
    with pytest.raises(RefusedError):
        shell.grant()
    assert not shell.granted


def test_the_owner_s_processes_end_and_no_others(monkeypatch):
    """Real processes under the uid of this run's user, told apart by a uid that nobody has."""
    mine = subprocess.Popen(["sleep", "300"])
    try:
        monkeypatch.setattr(module, "OWNER_ID", 3_999_999_990)
        Shell(allowed=True).end()
        assert mine.poll() is None
        monkeypatch.setattr(module, "_is_left", lambda folder: folder.name == str(mine.pid) and mine.poll() is None)
        Shell(allowed=True).end()
        assert mine.wait(20) == -9
    finally:
        mine.kill()
        mine.wait()


STATUS = "Name:\tsh\nState:\t{state}\nTgid:\t7\nUid:\t{uids}\nGid:\t990\t990\t990\t990\n"


@pytest.mark.parametrize(
    ("state", "uids", "left"),
    [
        ("S (sleeping)", "990\t990\t990\t990", True),
        ("R (running)", "0\t990\t0\t0", True),
        ("Z (zombie)", "990\t990\t990\t990", False),
        ("X (dead)", "990\t990\t990\t990", False),
        ("S (sleeping)", "0\t0\t0\t0", False),
        ("S (sleeping)", "1990\t9900\t99\t0", False),
    ],
)
def test_what_is_left_of_the_owner(tmp_path, state, uids, left):
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text(STATUS.format(state=state, uids=uids))
    assert Shell(allowed=True, processes=tmp_path)._left() == ([7] if left else [])


def test_a_process_that_ends_while_we_look(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "self").mkdir()
    assert Shell(allowed=True, processes=tmp_path)._left() == []


def test_whatever_will_not_end_is_said(tmp_path, monkeypatch):
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text(STATUS.format(state="D (disk sleep)", uids="990\t990\t990\t990"))
    monkeypatch.setattr(module, "_END_SECONDS", 0.05)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    with pytest.raises(OSError, match="left"):
        Shell(allowed=True, processes=tmp_path).end()
