# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""dm-verity's arithmetic: digests of blocks, and the tree above them.

Zone: shared. Pure: no I/O.
Spec: Linux Documentation/admin-guide/device-mapper/verity.rst, hash type 1, SHA-256, 4096-byte blocks: a digest is over salt and
block; 128 digests fill a block of the level above, the last one padded with zeros; the highest level has one block, whose
digest is the root hash. On disk the levels follow each other from the highest down.
"""

from __future__ import annotations

import hashlib

BLOCK = 4096  # bytes, of data and of the tree
DIGEST = 32  # bytes


def block_digests(data: bytes | bytearray | memoryview, salt: bytes) -> bytes:
    """Return the digests (32 bytes each) of the blocks of `data`, whose length is a multiple of a block."""
    seed = hashlib.sha256(salt)
    digests = bytearray()
    with memoryview(data) as view:
        for at in range(0, len(view), BLOCK):
            state = seed.copy()
            state.update(view[at : at + BLOCK])
            digests += state.digest()
    return bytes(digests)


def padded(level: bytes) -> bytes:
    """Return the digests of one level as whole blocks."""
    return level + bytes(-len(level) % BLOCK)


def levels_above(digests: bytes, salt: bytes) -> tuple[list[bytes], bytes]:
    """Return the levels above some blocks, highest first, each in whole blocks, and the root hash (32 bytes).

    `digests`: those of the blocks, at least one. One block alone has no level above it: its digest is the root hash.
    """
    levels: list[bytes] = []
    while len(digests) > DIGEST:
        level = padded(digests)
        levels.insert(0, level)
        digests = block_digests(level, salt)
    return levels, digests
