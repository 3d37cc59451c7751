# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""This machine as a host: bounded reads, fixed commands, ends in time."""

import stat
from pathlib import Path

import pytest

from cvmtool.host.doctor.local import LocalView
from cvmtool.host.doctor.probe import probe
from cvmtool.host.doctor.source import MAX_TEXT_BYTES, Command, FileKind, FileStat, claim


@pytest.fixture
def view():
    return LocalView()


def test_a_read_is_bounded_and_starts_where_it_is_told(view, tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    assert view.read(str(tmp_path / "f"), limit=4) == b"0123"
    assert view.read(str(tmp_path / "f"), limit=99, offset=8) == b"89"


def test_an_endless_file_ends(view):
    assert len(view.read("/dev/zero", limit=1000)) == 1000


def test_names_and_kinds(view, tmp_path):
    (tmp_path / "f").touch(mode=0o640)
    assert view.list(str(tmp_path)) == ["f"]
    assert view.stat(str(tmp_path / "f")).kind is FileKind.FILE
    assert view.stat(str(tmp_path)).kind is FileKind.DIRECTORY
    null = view.stat("/dev/null")
    assert (null.kind, null.mode) == (FileKind.DEVICE, stat.S_IMODE(Path("/dev/null").stat().st_mode))


def test_a_command_gets_its_input_and_a_bound(view):
    assert view.run(Command(argv=("cat",), stdin=b"hello")) == b"hello"
    assert len(view.run(Command(argv=("head", "-c", str(MAX_TEXT_BYTES + 9), "/dev/zero")))) == MAX_TEXT_BYTES


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (Command(argv=("no-such-program-anywhere",)), FileNotFoundError),
        (Command(argv=("false",)), OSError),
        (Command(argv=("sleep", "60"), seconds=0.2), TimeoutError),
    ],
)
def test_a_command_that_gives_no_answer(view, command, error):
    with pytest.raises(error):
        view.run(command)


def test_a_command_sees_nothing_of_our_environment(view, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    assert b"SECRET" not in view.run(Command(argv=("env",)))


def test_a_claim_keeps_why_there_is_none(view, tmp_path):
    absent = claim("f", lambda: view.read(str(tmp_path / "f"), limit=1))
    assert (absent.value, absent.missing, absent.evidence) == (None, True, "f: does not exist")
    # Below a file, not in a directory: the same answer.
    (tmp_path / "f").touch()
    assert claim("f", lambda: view.list(str(tmp_path / "f/g"))).missing
    assert claim("f", lambda: view.run(Command(argv=("false",)))).evidence == "f: false ended with 1"


@pytest.mark.parametrize(
    ("mode", "uid", "groups", "is_open"),
    [
        (0o600, 0, frozenset(), True),
        (0o600, 7, frozenset(), True),
        (0o600, 8, frozenset({9}), False),
        (0o660, 8, frozenset({9}), True),
        (0o660, 8, frozenset(), False),
        (0o666, 8, frozenset(), True),
        (0o606, 8, frozenset({9}), False),  # the group's bits are the group's, whatever others may
        (0o440, 8, frozenset({9}), False),
    ],
)
def test_who_may_open_a_file(mode, uid, groups, is_open):
    assert FileStat(kind=FileKind.DEVICE, mode=mode, uid=7, gid=9).open_to(uid, groups) is is_open


def test_this_machine_is_read_whole(view, tmp_path):
    facts = probe(view, store=str(tmp_path / "not/yet/there"))
    for name in ("cpu", "release", "cmdline", "memory", "disk", "skew"):
        assert getattr(facts, name).value is not None, getattr(facts, name).problem
    assert abs(facts.skew.value) < 5
