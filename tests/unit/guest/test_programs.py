# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import socket
import stat
from pathlib import Path

import pytest

from cvmtool.guest import programs


def test_secret_goes_in_by_standard_input_and_wiped_bytes_will_do():
    ended = programs.run("sh", "-c", "cat; echo trouble >&2; exit 3", stdin=bytearray(b"secret"))
    assert (ended.code, ended.output, ended.complaint) == (3, "secret", "trouble")


def test_nothing_is_inherited(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    assert "SECRET" not in programs.run("env").output


@pytest.mark.parametrize(
    ("argv", "code"), [(("sleep", "30"), 124), (("/nonexistent/program",), 127)], ids=["too long", "absent"]
)
def test_a_program_that_does_not_end_well(argv, code):
    ended = programs.run(*argv, timeout_seconds=0.1)
    assert ended.code == code
    assert argv[0] in ended.complaint


def test_complaints_are_bounded():
    assert len(programs.run("sh", "-c", "yes | head -c 100000 >&2").complaint) <= 1000


def test_captured_program_gets_no_file_as_its_input():
    process = programs.capture("sh", "-c", "sleep 0.2; wc -c")
    kind = Path(f"/proc/{process.pid}/fd/0").stat().st_mode
    output, _ = process.communicate()
    assert stat.S_ISFIFO(kind)
    assert output.split() == [b"0"]


def test_conversation_has_a_process_group_of_its_own():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = programs.converse(("cat",), theirs)
        ours.sendall(b"hello")
        assert ours.recv(5) == b"hello"
        assert os.getpgid(process.pid) == process.pid
        process.kill()
        process.wait()
