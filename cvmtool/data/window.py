# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A file system image passed on while it is written, of which only the end is ever held.

Zone: data (the owner's machine).
A packing program writes an image of any size to a memory file: front to back, and at the very end once more to its head.
What is complete is taken and then cut out of the memory file, so that the plaintext is never whole anywhere; the program
is made to wait when it runs too far ahead. A program that would write, or want to read, anything else than that is found out.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable

from cvmtool.data.tools import Running
from cvmtool.errors import BuildError

PIECE = 4 << 20  # bytes taken at once
_SLACK = 2 << 20  # bytes before the end that may still be in the writing; a block of squashfs has at most one MiB
_MOST = 32 << 20  # bytes that the program may be ahead
_PAUSE_SECONDS = 0.002

Take = Callable[[int, memoryview], None]
"""Gets an offset and the bytes that stand there, for as long as the call lasts; the first piece comes twice, last as well."""


class Window:
    """What of a memory file has not been passed on yet."""

    def __init__(self, descriptor: int, take: Take) -> None:
        """Watch `descriptor`, a memory file that is empty; `take` gets every piece of it."""
        self._descriptor = descriptor
        self._take = take
        self._done = 0
        self._buffer = bytearray(PIECE)

    def drain(self, writer: Running) -> None:
        """Pass on what is complete until the writer has ended."""
        while writer.alive:
            ahead = self._size() - self._done
            if ahead > _MOST:
                writer.pause()
            if not self._pass_on(_SLACK):
                writer.resume()
                time.sleep(_PAUSE_SECONDS)

    def finish(self, *, multiple: int) -> int:
        """Pass on the rest, filled with zeros to a multiple of `multiple` bytes, and the head again; return the size.

        Raises:
            BuildError: the image is empty, or the writer went back to what had been passed on.
        """
        size = self._size()
        if size == 0:
            raise BuildError("packing wrote an empty file system")
        padded = -(-size // multiple) * multiple
        os.ftruncate(self._descriptor, padded)
        if self._done > PIECE and self._first_data() < self._done:
            raise BuildError("the packing program went back to what it had written; required: front to back")
        while self._pass_on(0):
            pass
        self._piece(0, min(PIECE, padded))
        return padded

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _first_data(self) -> int:
        """Return where the first byte is that was not cut out, behind the head."""
        try:
            return os.lseek(self._descriptor, PIECE, os.SEEK_DATA)
        except OSError:
            return self._size()  # nothing is left

    def _pass_on(self, slack: int) -> bool:
        """Pass on one piece that ends at least `slack` bytes before the end; False if there is none."""
        size = self._size()
        length = min(PIECE, size - self._done)
        if length <= 0 or (slack and self._done + PIECE > size - slack):
            return False
        self._piece(self._done, length)
        self._done += length
        return True

    def _piece(self, start: int, length: int) -> None:
        # Read, not mapped: the faults of a mapping cost more than a copy.
        with memoryview(self._buffer)[:length] as view:
            if os.preadv(self._descriptor, [view], start) != length:
                raise BuildError("the packing program cut its image short")
            self._take(start, view)
        if start:  # the head is written last
            with mmap.mmap(self._descriptor, length, offset=start) as mapped:
                mapped.madvise(mmap.MADV_REMOVE)
