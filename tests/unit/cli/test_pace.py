# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from cvmtool.cli.pace import ProgressLine


def line(*printed, usage=()):
    shown = ProgressLine()
    for at, values in printed:
        assert shown.take(json.dumps(values), int(at * 1e6))
    for at, values in usage:
        shown.use(values, at)
    return shown.text


def test_nothing_is_said_of_what_says_nothing():
    shown = ProgressLine()
    assert not shown.take("epoch 1/30", 0)
    assert shown.text == ""


def test_how_far_it_is_and_how_long_it_takes_yet():
    begun = {"epoch": 1, "epochs": 30, "loss": 1.23456789}
    assert line((0, begun)) == "epoch 1/30, loss 1.235"
    later = {"epoch": 3, "epochs": 30, "loss": 0.5, "phase": "warm-up"}
    assert line((0, begun), (10, later)) == "epoch 3/30, loss 0.5, phase warm-up, 2 min left"


def test_a_line_stays_short():
    many = {f"m{number}": number for number in range(20)}
    assert line((0, many)) == "m0 0, m1 1, m2 2, m3 3"


def test_what_it_uses():
    usage = {"memory_bytes": 300 << 20, "cpu_microseconds": 1_000_000}
    assert line(usage=[(10, usage)]) == "300 MiB"
    later = {**usage, "cpu_microseconds": 4_000_000}
    assert line((0, {"step": 1}), usage=[(10, usage), (12, later)]) == "step 1; 300 MiB, 1.5 CPUs"


@pytest.mark.parametrize("usage", [{}, {"memory_bytes": "x", "cpu_microseconds": None}])
def test_a_guest_that_says_nothing_of_its_use(usage):
    assert line(usage=[(1, usage), (2, usage)]) == ""


def test_a_container_that_began_anew_uses_no_less_than_nothing():
    numbers = [
        (1, {"cpu_microseconds": 5_000_000}),
        (2, {"cpu_microseconds": 1_000_000}),
        (4, {"cpu_microseconds": 2_000_000}),
    ]
    assert line(usage=numbers) == "0.5 CPUs"
