# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Rooms that are lent for pieces: used again, and never while what is in them waits to be hashed."""

import hashlib
import threading

import pytest

from cvmtool.data import hashtree
from cvmtool.data.hashtree import HashTree
from cvmtool.formats.verity import BLOCK, block_digests, levels_above

SALT = b"s" * 32


def pieces(count: int) -> list[bytes]:
    return [hashlib.sha256(bytes([number])).digest() * (BLOCK // 32) * 2 for number in range(count)]


def test_what_was_lent_is_hashed_as_it_was_when_it_was_taken(tmp_path, monkeypatch):
    """The thread that hashes begins only when the rooms are all in use, and then has to be waited for."""
    gate = threading.Event()

    def slow(data, salt):
        gate.wait()
        return block_digests(data, salt)

    monkeypatch.setattr(hashtree, "block_digests", slow)
    everything = pieces(12)
    rooms = set()
    with HashTree(tmp_path, SALT) as tree:
        for number, piece in enumerate(everything):
            if number == 3:  # as many as may wait
                gate.set()
            room = tree.lend(len(piece))
            rooms.add(id(room.obj))
            room[:] = piece
            tree.take(number * len(piece), room)
        root = tree.root()
    assert len(rooms) == 4
    assert root == levels_above(block_digests(b"".join(everything), SALT), SALT)[1]


def test_no_room_is_given_twice_before_it_is_hashed(tmp_path, monkeypatch):
    """With a hashing thread that never ends a piece, nobody gets a room that still holds one."""
    gate, lent = threading.Event(), []
    monkeypatch.setattr(hashtree, "block_digests", lambda data, salt: gate.wait() and block_digests(data, salt))
    with HashTree(tmp_path, SALT) as tree:
        for number, piece in enumerate(pieces(3)):
            lent.append(tree.lend(len(piece)))
            tree.take(number * len(piece), lent[-1])
        lent.append(tree.lend(BLOCK))
        assert len({id(room.obj) for room in lent}) == 4
        gate.set()


@pytest.mark.parametrize("size", [BLOCK, 4 << 20])
def test_a_room_is_as_large_as_was_asked_for(tmp_path, size):
    with HashTree(tmp_path, SALT) as tree:
        assert len(tree.lend(size)) == size
