# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from cvmtool.cli.rate import Rate

MIB = 1 << 20


def told(*moments):
    """Return the last text after (seconds, done, total in MiB)."""
    now = 0.0
    rate = Rate(lambda: now)
    text = ""
    for seconds, done, total in moments:
        now = seconds
        text = rate.text(done * MIB, total * MIB)
    return text


def test_how_far_it_is_is_told_at_once():
    assert told((0, 3, 10)) == "3 of 10 MiB"
    assert told((0, 0, 10), (0.5, 5, 10)) == "5 of 10 MiB"


def test_speed_and_time_left_follow():
    assert told((0, 0, 100), (2, 20, 100)) == "20 of 100 MiB, 10.0 MiB/s, 8 s left"
    assert told((0, 0, 10_000), (10, 100, 10_000)) == "100 of 10000 MiB, 10.0 MiB/s, 16 min left"
    assert told((0, 0, 100_000), (10, 100, 100_000)) == "100 of 100000 MiB, 10.0 MiB/s, 2 h 46 min left"


def test_what_was_there_before_is_no_speed():
    assert told((0, 90, 100), (2, 94, 100)) == "94 of 100 MiB, 2.0 MiB/s, 3 s left"


def test_the_next_file_begins_anew():
    assert told((0, 0, 10), (5, 10, 10), (100, 0, 10), (102, 4, 10)) == "4 of 10 MiB, 2.0 MiB/s, 3 s left"
    assert told((0, 0, 10), (5, 10, 10), (100, 10, 20)) == "10 of 20 MiB"


def test_a_transfer_that_stands_still_has_no_end():
    assert told((0, 5, 10), (60, 5, 10)) == "5 of 10 MiB"
