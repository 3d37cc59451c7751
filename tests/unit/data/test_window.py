# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import secrets
import sys

import pytest

from cvmtool.data.tools import run
from cvmtool.data.window import PIECE, Window
from cvmtool.errors import BuildError

MIB = 1 << 20

WRITER = """
import hashlib, os, sys
fd, pieces, back = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for number in range(pieces):
    os.write(fd, hashlib.shake_128(str(number).encode()).digest(1 << 20))
if back >= 0:
    os.pwrite(fd, b"again", back)
os.pwrite(fd, b"HEAD", 0)
"""


class Copy:
    """Puts together what was passed on, and remembers how much the memory file held at most."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.data = bytearray()
        self.held = 0
        self.starts = []

    def take(self, start, view):
        self.held = max(self.held, os.fstat(self.descriptor).st_blocks * 512)
        self.starts.append(start)
        self.data[len(self.data) :] = bytes(max(0, start + len(view) - len(self.data)))
        self.data[start : start + len(view)] = view


@pytest.fixture
def memory():
    descriptor = os.memfd_create("test", 0)
    yield descriptor
    os.close(descriptor)


def written(memory, pieces, back=-1):
    copy = Copy(memory)
    window = Window(memory, copy.take)
    run(
        [sys.executable, "-c", WRITER, str(memory), str(pieces), str(back)],
        pass_fds=[memory],
        beside=window.drain,
        what="writing",
    )
    return copy, window.finish(multiple=4096)


def expected(pieces):
    import hashlib

    data = bytearray(b"".join(hashlib.shake_128(str(number).encode()).digest(MIB) for number in range(pieces)))
    data[:4] = b"HEAD"
    return data


@pytest.mark.parametrize("pieces", [1, 3, 4, 5, 90])
def test_what_is_written_is_passed_on_whole_with_the_head_as_it_is_at_the_end(memory, pieces):
    copy, size = written(memory, pieces)
    assert size == pieces * MIB
    assert copy.data == expected(pieces)
    assert copy.starts[-1] == 0


def test_of_a_large_image_little_is_ever_held(memory):
    copy, _ = written(memory, 300)
    assert copy.held < 200 * MIB  # a busy machine notices late that the writer is ahead
    assert os.fstat(memory).st_blocks * 512 <= PIECE


def test_an_end_within_a_block_is_filled_with_zeros(memory):
    copy = Copy(memory)
    window = Window(memory, copy.take)
    noise = secrets.token_bytes(5000)
    os.write(memory, noise)
    assert window.finish(multiple=4096) == 8192
    assert copy.data == noise + bytes(8192 - 5000)


def test_a_writer_that_goes_back_is_found_out(memory):
    with pytest.raises(BuildError, match="front to back"):
        written(memory, 90, back=20 * MIB)


def test_nothing_is_no_image(memory):
    with pytest.raises(BuildError, match="empty"):
        Window(memory, lambda _start, _view: None).finish(multiple=4096)


def test_what_fails_beside_a_program_ends_it():
    def fails(_running):
        raise KeyError("on purpose")

    with pytest.raises(KeyError):
        run(["sleep", "600"], beside=fails, what="waiting")


def test_a_paused_program_goes_on_when_it_is_resumed():
    seen = []

    def watch(running):
        running.pause()
        running.pause()
        seen.append(running.alive)
        running.resume()
        while running.alive:
            pass

    run(["sleep", "1"], beside=watch, what="waiting")
    assert seen == [True]
