# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Remember what was hashed: a firmware's seed and the SHA-256 of kernels and initrds, by content.

Zone: measure (shared mathematics). Pure: no I/O, no files: it lasts as long as the process.

The key is the content itself and no path, time or size, so an entry can never be another file's. Asking again with the same
object costs nothing; with an equal one, a comparison of memory, which is some twenty times as fast as hashing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from cvmtool.measure.hashes import KernelHashes, kernel_hashes
from cvmtool.measure.launch import FirmwareSeed, firmware_seed

MAX_KEPT_BYTES = 512 << 20
"""Of contents that one table keeps alive."""

V = TypeVar("V")


class _Table(Generic[V]):
    """Content -> value; what was used least recently goes when the contents become too many bytes."""

    __slots__ = ("_bytes", "_limit", "_values", "_work")

    def __init__(self, work: Callable[[bytes], V], limit: int) -> None:
        self._work = work
        self._limit = limit
        self._values: OrderedDict[bytes, V] = OrderedDict()
        self._bytes = 0

    def get(self, content: bytes) -> V:
        value = self._values.get(content)
        if value is not None:
            self._values.move_to_end(content)
            return value
        value = self._values[content] = self._work(content)
        self._bytes += len(content)
        while self._bytes > self._limit:
            oldest, _ = self._values.popitem(last=False)
            self._bytes -= len(oldest)
        return value


class MeasureStore:
    """Seeds and file hashes by content, up to `limit` bytes of contents each. Not thread-safe."""

    __slots__ = ("_files", "_firmwares")

    def __init__(self, limit: int = MAX_KEPT_BYTES) -> None:
        self._firmwares: _Table[FirmwareSeed] = _Table(firmware_seed, limit)
        self._files: _Table[bytes] = _Table(lambda content: hashlib.sha256(content).digest(), limit)

    def seed(self, firmware: bytes) -> FirmwareSeed:
        """Return what `launch.firmware_seed` returns.

        Raises:
            FormatError: `firmware` is malformed; that is not remembered.
        """
        return self._firmwares.get(firmware)

    def kernel_hashes(self, kernel: bytes, initrd: bytes, cmdline: str) -> KernelHashes:
        """Return what `hashes.kernel_hashes` returns.

        Raises:
            ConfigError: `cmdline` cannot be one.
        """
        line = kernel_hashes(b"", b"", cmdline).cmdline
        return KernelHashes(kernel=self._files.get(kernel), initrd=self._files.get(initrd), cmdline=line)
