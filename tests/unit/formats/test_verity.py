# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.formats.verity import BLOCK, DIGEST, block_digests, levels_above, padded

SALT = bytes(range(32))


def digest(block, salt=SALT):
    return hashlib.sha256(salt + block).digest()


def test_a_digest_is_over_salt_and_block():
    blocks = [bytes([number]) * BLOCK for number in range(3)]
    assert block_digests(b"".join(blocks), SALT) == b"".join(map(digest, blocks))


def test_one_block_is_its_own_root():
    assert levels_above(digest(bytes(BLOCK)), SALT) == ([], digest(bytes(BLOCK)))


@pytest.mark.parametrize(
    ("count", "heights"), [(2, [1]), (128, [1]), (129, [1, 2]), (128 * 128, [1, 128]), (128 * 128 + 1, [1, 2, 129])]
)
def test_each_level_hashes_the_one_below(count, heights):
    digests = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(count))
    levels, root = levels_above(digests, SALT)
    assert [len(level) // BLOCK for level in levels] == heights
    assert levels[-1] == padded(digests)
    for upper, lower in itertools.pairwise(levels):
        assert upper == padded(block_digests(lower, SALT))
    assert root == digest(levels[0])


@given(st.binary(max_size=300))
def test_padding_ends_at_a_block_with_zeros(data):
    level = padded(data)
    assert len(level) % BLOCK == 0
    assert len(level) < len(data) + BLOCK
    assert level == data + bytes(len(level) - len(data))
    assert DIGEST * 128 == BLOCK
