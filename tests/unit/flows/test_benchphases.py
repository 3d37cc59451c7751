# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The phases that a container names, and the seconds that each gets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.flows.benchphases import NAMED, PHASES, Taken, Watch, marks, ratios, split
from cvmtool.formats.control import LogRecord, Stream


def said(*records: tuple[float, bytes], stream=Stream.STDOUT):
    return [LogRecord(stream=stream, microseconds=round(at * 1e6), data=data) for at, data in records]


def phase(name: str) -> bytes:
    return json.dumps({"phase": name}).encode() + b"\n"


def test_a_container_names_its_phases():
    assert marks(said((1, b"hello\n" + phase("compute")), (3, phase("export")))) == [(1.0, "compute"), (3.0, "export")]


def test_a_line_may_come_in_pieces_and_counts_when_it_ends():
    assert marks(said((1, b'{"phase": "com'), (2, b'pute"}\n'))) == [(2.0, "compute")]


def test_what_went_to_standard_error_names_nothing():
    assert marks(said((1, phase("compute")), stream=Stream.STDERR)) == []


@pytest.mark.parametrize(
    "line",
    [
        phase("dream"),
        b'{"phase": 1}\n',
        b'["phase"]\n',
        b'{"epoch": 1}\n',
        b" " + phase("compute"),
        b'{"phase": "compute"\n',
        b'{"phase": "compute", "x": "' + b"x" * 4096 + b'"}\n',
        b'{"phase":' + b"[" * 4000 + b"\n",
    ],
)
def test_what_names_no_phase(line):
    assert marks(said((1, line))) == []


def test_the_time_until_the_first_is_load_and_the_last_lasts_to_the_end():
    assert split([(2.0, "compute"), (5.0, "export")], 6.0) == {"load": 2.0, "compute": 3.0, "export": 1.0}


def test_a_phase_that_comes_again_adds_up():
    named = [(1.0, "compute"), (2.0, "checkpoint"), (3.0, "compute"), (5.0, "checkpoint")]
    assert split(named, 6.0) == {"load": 1.0, "compute": 3.0, "checkpoint": 2.0}


def test_without_names_there_is_one():
    assert split([], 6.0) == {"run": 6.0}


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.sampled_from(NAMED)), max_size=20),
    st.floats(0, 1e6),
)
def test_whatever_a_guests_clock_says_the_phases_are_the_whole_and_none_is_negative(named, whole):
    shares = split(named, whole)
    assert sum(shares.values()) == pytest.approx(whole)
    assert all(share >= 0 for share in shares.values())


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_any_output_has_phases_or_none(pieces):
    assert all(name in NAMED for _, name in marks(said(*((1.0, piece) for piece in pieces))))


def test_bringing_outputs_home_is_part_of_export():
    watch = Watch(start=4, run=6, export=0.5, records=said((2, phase("compute")), (5, phase("export"))))
    taken = watch.taken("native")
    assert taken.seconds == {"start": 4, "load": 2, "compute": 3, "export": 1.5}
    assert list(taken.seconds) == [name for name in PHASES if name in taken.seconds]
    assert taken.total == 10.5


def test_ratios_leave_out_what_took_no_time_there():
    here, there = ({"start": 3.0, "run": 4.0, "export": 1.0}, {"start": 2.0, "run": 2.0, "export": 0.0})
    found = ratios(Taken(where="dry-run", seconds=here), Taken(where="plain-vm", seconds=there))
    assert found == {"start": 1.5, "run": 2.0, "total": 2.0}
