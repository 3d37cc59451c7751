# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.flows.jobmetrics import MAX_LINE, MAX_VALUES, Metrics, MetricsReader, Pace, parse_metrics
from cvmtool.formats.control import LogRecord, Stream
from tests.unit.formats.test_wire import JSON


def stdout(data, microseconds=0, stream=Stream.STDOUT):
    return LogRecord(stream=stream, microseconds=microseconds, data=data)


@pytest.mark.parametrize(
    "values",
    [
        {"epoch": 1},
        {"epoch": 3, "epochs": 30, "loss": 0.25, "phase": "warm-up"},
        {"val/accuracy": 1e-9, "lr.0": -3},
        {f"m{number}": number for number in range(MAX_VALUES)},
    ],
)
def test_metrics(values):
    assert parse_metrics(json.dumps(values).encode()) == values


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"epoch 1",
        b"[1]",
        b' {"epoch": 1}',
        b'{"epoch": 1',
        b'{"epoch": true}',
        b'{"epoch": null}',
        b'{"epoch": [1]}',
        b'{"epoch": {"a": 1}}',
        b'{"epoch": NaN}',
        b'{"epoch": -Infinity}',
        b'{"epoch": 1e999}',
        b'{"epoch": 1, "epoch": 2}',
        b'{"epoch": 9007199254740992}',
        b'{"only": "text"}',
        b'{"epoch": 1, "text": "\\u001b[2J"}',
        b'{"epoch": 1, "text": "%s"}' % (b"x" * 65),
        b'{"1st": 1}',
        b'{"a b": 1}',
        b'{"%s": 1}' % (b"x" * 65),
        b'{"epoch": 1, "more": "%s"}' % (b"x" * MAX_LINE),
        b'{"epoch": "\xff"}',
        b"{" * 2000,
        json.dumps({f"m{number}": number for number in range(MAX_VALUES + 1)}).encode(),
    ],
)
def test_ordinary_lines(line):
    assert parse_metrics(line) is None


@given(
    st.one_of(
        st.binary(max_size=200), st.dictionaries(st.text(), JSON, max_size=3).map(lambda v: json.dumps(v).encode())
    )
)
def test_any_line_is_metrics_or_none(line):
    values = parse_metrics(line)
    if values is not None:
        assert 0 < len(values) <= MAX_VALUES
        assert all(isinstance(value, str) or math.isfinite(value) for value in values.values())
        assert parse_metrics(json.dumps(values).encode()) == values


LINES = (
    b'begin\n{"epoch": 1}\nno {"epoch": 2}\n{"epoch": 3, "loss": 0.5}\n'
    b"{" + b"x" * MAX_LINE + b'\n{"epoch": 4}\n{"epoch": 5}'
)


@given(st.lists(st.integers(0, len(LINES)), max_size=12))
def test_wherever_the_log_is_cut(cuts):
    edges = [0, *sorted(cuts), len(LINES)]
    reader = MetricsReader()
    found = []
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        found += reader.feed(stdout(LINES[begin:end], number))
        found += reader.feed(stdout(b'{"epoch": 9}\n', stream=Stream.STDERR))
    assert [metrics.values["epoch"] for metrics in found] == [1, 3, 4]
    assert [metrics.microseconds for metrics in found] == sorted(metrics.microseconds for metrics in found)


def test_a_line_without_end_is_not_kept():
    reader = MetricsReader()
    for _ in range(1000):
        assert reader.feed(stdout(b"{" * 1000)) == []
    assert len(reader._line) <= MAX_LINE + 1000
    assert [found.values for found in reader.feed(stdout(b'\n{"step": 1}\n'))] == [{"step": 1}]


def pace(*lines):
    followed = Pace()
    return [followed.seconds_left(Metrics(microseconds=int(at * 1e6), values=values)) for at, values in lines]


def test_what_is_left_follows_from_two_lines():
    lines = [(at, {"epoch": epoch, "epochs": 10}) for at, epoch in ((100, 1), (110, 2), (140, 5), (190, 10))]
    assert pace(*lines) == [None, 80.0, 50.0, 0.0]


def test_another_count_begins_anew():
    assert pace(
        (0, {"step": 0, "steps": 4}),
        (1, {"step": 1, "steps": 4}),
        (2, {"step": 0, "steps": 4}),
        (4, {"step": 1, "steps": 4}),
        (5, {"epoch": 1, "epochs": 2}),
        (6, {"epoch": 2, "epochs": 3}),
    ) == [None, 3.0, None, 6.0, None, None]


@pytest.mark.parametrize(
    "values",
    [
        {"epoch": 3},
        {"epoch": 3, "epochs": 2},
        {"epoch": -1, "epochs": 2},
        {"epoch": "1", "epochs": 2},
        {"epoch": 0, "epochs": 0},
    ],
)
def test_what_says_no_progress(values):
    assert pace((0, values), (1, values)) == [None, None]
