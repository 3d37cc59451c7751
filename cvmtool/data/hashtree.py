# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The dm-verity tree of a pack, made while the pack is written.

Zone: data (the owner's machine).
veritysetup would read the whole pack once more after it was written; here a piece is hashed while others are read and
written (not while one is encrypted: both are calls of a microsecond, and Python's lock goes to one of them at a time).
The digests of the blocks (public: they are of ciphertext) go to a temporary file, since they grow with the pack; all above
them stays small.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from cvmtool.formats.verity import BLOCK, DIGEST, block_digests, levels_above

_AHEAD = 3  # pieces that may wait to be hashed
_MOST = 4 << 20  # bytes of a piece that is lent
_PIECE = 1 << 20  # bytes of digests that are copied at once


class HashTree:
    """Hashes blocks in a thread of its own, in the order in which they come."""

    def __init__(self, folder: Path, salt: bytes) -> None:
        """Keep digests in a file of `folder` that has no name; `salt` has 32 bytes."""
        self._salt = salt
        self._digests = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the tree
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hash-tree")
        self._waiting: deque[Future[None]] = deque()
        self._rooms: deque[bytearray] = deque()

    def __enter__(self) -> Self:
        """Return the tree."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop hashing."""
        self._thread.shutdown(cancel_futures=True)
        self._digests.close()

    def lend(self, size: int) -> memoryview:
        """Return room for a piece of at most 4 MiB, which is taken before more is lent. It is used again once it is hashed.

        Memory that is new each time is filled with zeros first, page by page: a fifth of the time that sealing takes.
        """
        if len(self._rooms) <= _AHEAD:
            self._rooms.append(bytearray(_MOST))
        else:  # as many as may wait were taken after the first of them, which is hashed therefore
            self._rooms.rotate(-1)
        return memoryview(self._rooms[-1])[:size]

    def take(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Hash the blocks that stand at `start`; what was said of them before is forgotten."""
        self._wait(_AHEAD - 1)
        self._waiting.append(self._thread.submit(self._hash, start, data))

    def _wait(self, most: int) -> None:
        """Wait until at most so many pieces are not hashed yet."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()

    def _hash(self, start: int, data: bytes | bytearray | memoryview) -> None:
        digests = block_digests(data, self._salt)
        os.pwrite(self._digests.fileno(), digests, start // BLOCK * DIGEST)

    def root(self) -> bytes:
        """Return the root hash (32 bytes) of what was taken."""
        return self._above(*self._hashed())[0]

    def write(self, target: int, start: int) -> tuple[bytes, int]:
        """Write the levels to the descriptor `target` from `start` on; return the root hash (32 bytes) and where they end.

        The lowest level is the last on disk and made first, since what it weighs is known: a digest for each block.
        """
        source, size = self._hashed()
        blocks = -(-size // BLOCK)
        above, levels = self._above(source, size)
        for level in levels:
            start += os.pwrite(target, level, start)
        for at in range(0, blocks * BLOCK, _PIECE):
            piece = os.pread(source, min(_PIECE, size - at), at)
            os.pwrite(target, piece + bytes(-len(piece) % BLOCK), start + at)
        return above, start + blocks * BLOCK

    def _hashed(self) -> tuple[int, int]:
        """Return the descriptor and the size of the digests, all of them."""
        self._wait(0)
        return self._digests.fileno(), os.fstat(self._digests.fileno()).st_size

    def _above(self, source: int, size: int) -> tuple[bytes, list[bytes]]:
        digests = bytearray()
        for at in range(0, size, _PIECE):
            piece = os.pread(source, min(_PIECE, size - at), at)
            digests += block_digests(piece + bytes(-len(piece) % BLOCK), self._salt)
        levels, root = levels_above(bytes(digests), self._salt)
        return root, levels
