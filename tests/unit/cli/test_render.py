# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.cli.render import JsonReporter, TerminalReporter, checks_lines, print_table, printable, show_error
from cvmtool.errors import AppraisalError, Finding, HostError
from cvmtool.flows.reporter import Stage
from cvmtool.formats.control import LogRecord, Stream
from cvmtool.owner.checks import Check

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


def test_a_containers_output_is_not_embellished(capsys):
    reporter = TerminalReporter()
    said = 'loss :100: [bold]x[/bold] [/] 12 "a" ' + "w" * 300
    for stream in (Stream.STDOUT, Stream.STDERR):
        reporter.log(LogRecord(stream=stream, microseconds=0, data=f"{said}\n".encode()))
    assert capsys.readouterr() == (f"{said}\n", f"{said}\n")


def test_a_character_may_be_cut_by_the_borders_of_records(capsys):
    reporter = TerminalReporter()
    data = "é漢\U0001f600\n".encode()
    for byte in data:
        for stream in (Stream.STDOUT, Stream.STDERR):
            reporter.log(LogRecord(stream=stream, microseconds=0, data=bytes((byte,))))
    assert capsys.readouterr() == (data.decode(), data.decode())


def test_a_character_that_never_ends_is_replaced_at_the_end(capsys):
    reporter = TerminalReporter()
    reporter.log(LogRecord(stream=Stream.STDOUT, microseconds=0, data="x é".encode()[:-1]))
    assert capsys.readouterr().out == ""
    reporter.flush()
    reporter.flush()
    assert capsys.readouterr().out == "x \ufffd\n"


def test_a_truncated_log_is_noticed_once(capsys):
    reporter = TerminalReporter()
    for _ in range(3):
        reporter.log(LogRecord(stream=Stream.TRUNCATED, microseconds=0, data=b""))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("limit") == 1


def test_a_hint_cannot_draw_either(capsys):
    show_error(HostError("m", hint=f"its console: /x{CLEAR}"), as_json=False)
    assert CONTROL.search(capsys.readouterr().err) is None


def test_every_part_of_an_error_is_shown(capsys):
    finding = Finding(code="code", field="field", actual="actual", required="required", why="because")
    show_error(AppraisalError("message", findings=(finding,), detail="one\ntwo", hint="do this"), as_json=False)
    said = capsys.readouterr().err
    for part in (
        "cvmtool: error: message",
        "code: field",
        "actual",
        "required",
        "because",
        "one",
        "two",
        "cvmtool: hint: do this",
    ):
        assert part in said


def test_findings_are_in_the_json_too(capsys):
    finding = Finding(code="code", field="field", actual="actual", required="required", why="because")
    show_error(AppraisalError("message", findings=(finding,), detail="d"), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["findings"] == [
        {"code": "code", "field": "field", "actual": "actual", "required": "required", "why": "because"}
    ]
    assert (document["detail"], document["hint"], document["exit_code"]) == ("d", None, 6)


@pytest.mark.parametrize("reporter", [TerminalReporter, JsonReporter])
def test_a_stage_that_fails_says_so_and_hides_nothing(capsys, reporter):
    with pytest.raises(KeyboardInterrupt), reporter().stage(Stage.BOOT, "booting [the] guest"):
        raise KeyboardInterrupt
    said = capsys.readouterr()
    if reporter is JsonReporter:
        states = [json.loads(line)["state"] for line in said.out.splitlines()]
        assert states == ["begun", "failed"]
    else:
        assert said.out == ""
        assert "booting [the] guest" in said.err


def test_the_stages_of_a_run_as_json_lines(capsys):
    with JsonReporter().stage(Stage.PACK, "sealing"):
        JsonReporter().notice("n")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["schema"] for line in lines} == {"cvmtool/event/v1"}
    assert [(line["event"], line.get("state")) for line in lines] == [
        ("stage", "begun"),
        ("notice", None),
        ("stage", "done"),
    ]
    assert lines[-1]["seconds"] >= 0


def test_a_table_neither_cuts_nor_folds(capsys):
    print_table(("NAME", "DIGEST"), [("a", "f" * 96), (f"b{CLEAR}", "8\t9")])
    head, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["a", "f" * 96]
    assert head.index("DIGEST") == first.index("f") == second.index("8 9")
    assert CONTROL.search(second) is None


def check(**changes):
    values = {"code": "title", "actual": "found", "required": "needed", "passed": True, "why": "w"}
    return Check(**values | changes)


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=4), st.integers(40, 200))
def test_a_verdict_is_one_line_a_check_however_wide(rows, width):
    checks = tuple(check(code=title, actual=actual, required=required) for title, actual, required in rows)
    lines = checks_lines(checks, (), width)
    assert len(lines) == len(rows) + 1
    assert all(line.cell_len <= width and "\n" not in line.plain for line in lines)


def test_a_verdict_names_what_failed_and_what_nobody_asked_for():
    digest = "0123456789abcdef" * 6
    lines = checks_lines((check(actual=digest), check(code="debug", passed=False)), ("chips",), 80)
    assert [line.plain[:2] for line in lines] == ["  ", "ok", "NO", "--"]
    assert "01234567..cdef" in lines[1].plain
    assert digest not in lines[1].plain
    assert "chips" in lines[3].plain
