# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import threading

import pytest

from cvmtool.formats.control import LogReader, Stream
from cvmtool.guest.log import LogBook


@pytest.fixture
def log(tmp_path):
    return LogBook(tmp_path / "log", limit=1000)


def test_records_and_their_digest(log):
    log.add(Stream.STDOUT, b"one")
    log.add(Stream.STDERR, b"two")
    log.end()
    data = b"".join(log.follow(0))
    records = LogReader().feed(data)
    assert [(record.stream, record.data) for record in records] == [(Stream.STDOUT, b"one"), (Stream.STDERR, b"two")]
    assert records[0].microseconds <= records[1].microseconds
    assert (log.size, log.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_limit_holds_and_the_cut_is_marked_once(log):
    for _ in range(100):
        log.add(Stream.STDOUT, b"x" * 50)
    log.end()
    data = b"".join(log.follow(0))
    records = LogReader().feed(data)
    assert len(data) <= 1000
    assert [record.stream for record in records].count(Stream.TRUNCATED) == 1
    assert records[-1].stream is Stream.TRUNCATED
    assert len(records) == 1 + (1000 - 13) // 63


def test_one_record_that_is_too_big_is_dropped_whole(log):
    log.add(Stream.STDOUT, b"x" * 2000)
    log.end()
    assert [record.stream for record in LogReader().feed(b"".join(log.follow(0)))] == [Stream.TRUNCATED]


@pytest.mark.parametrize("offset", [0, 5, 16, 32, 99])
def test_follow_begins_where_it_is_told(log, offset):
    log.add(Stream.STDOUT, b"one")
    log.add(Stream.STDOUT, b"two")
    log.end()
    whole = b"".join(log.follow(0))
    assert b"".join(log.follow(offset)) == whole[offset:]


def test_follower_gets_what_comes_and_ends_with_the_log(log):
    got = []
    follower = threading.Thread(target=lambda: got.extend(log.follow(0)))
    follower.start()
    for word in (b"a", b"b", b"c"):
        log.add(Stream.STDOUT, word)
    log.end()
    follower.join(20)
    assert not follower.is_alive()
    assert [record.data for record in LogReader().feed(b"".join(got))] == [b"a", b"b", b"c"]
