# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.cli.render import JsonReporter, TerminalReporter, printable, show_error
from cvmtool.errors import AppraisalError, Finding, HostError
from cvmtool.formats.control import LogRecord, Stream

CLEAR = "\x1b[2J\x1b]0;title\x07\x9b31m\x08\x7f"
# C0 but tab and line feed, DEL, C1: what a terminal acts on.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@given(st.text())
def test_what_a_terminal_acts_on_is_shown_as_its_code(text):
    shown = printable(text)
    assert CONTROL.search(shown) is None
    # Bidirectional overrides and their like turn a line around; none is left.
    assert all(char.isprintable() or char in "\n\t" for char in shown)


def test_printable_text_stays():
    assert printable("a\tb\nc é 漢") == "a\tb\nc é 漢"
    assert printable("\x1b[2J") == "\\x1b[2J"
    assert "\\x202e" in printable("\u202egnp.exe")


def test_a_hostile_error_cannot_draw(capsys):
    finding = Finding(code="measurement", field=f"f{CLEAR}", actual=f"[bold]{CLEAR}", required="x", why="y")
    show_error(AppraisalError(f"m{CLEAR}", findings=(finding,), detail=f"d{CLEAR}"), as_json=False)
    said = capsys.readouterr()
    assert said.out == ""
    assert CONTROL.search(said.err) is None
    # Brackets of a host are no markup of ours.
    assert "[bold]\\x1b[2J" in said.err


def test_an_error_as_json_is_one_document(capsys):
    show_error(HostError(f"m{CLEAR}", hint="try again"), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["exit_code"], document["error"]) == ("cvmtool/error/v1", 8, "HostError")
    assert document["message"] == f"m{CLEAR}"


@pytest.mark.parametrize(("stream", "where"), [(Stream.STDOUT, 0), (Stream.STDERR, 1)])
def test_a_containers_output_keeps_its_stream_and_cannot_draw(capsys, stream, where):
    reporter = TerminalReporter()
    for piece in (b"one\xff", f"{CLEAR}\n[red]two".encode()):
        reporter.log(LogRecord(stream=stream, microseconds=0, data=piece))
    reporter.flush()
    said = capsys.readouterr()[where]
    assert CONTROL.search(said) is None
    assert [line[:3] for line in said.splitlines()] == ["one", "[re"]
    assert capsys.readouterr()[1 - where] == ""


def test_json_lines_escape_what_they_carry(capsys):
    JsonReporter().log(LogRecord(stream=Stream.STDOUT, microseconds=7, data=f"x\n{CLEAR}".encode()))
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert CONTROL.search(line.rstrip("\n")) is None
    assert json.loads(line)["text"] == f"x\n{CLEAR}"
