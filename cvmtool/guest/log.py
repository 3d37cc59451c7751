# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The container's output: one file of records in memory-backed storage, capped, hashed, readable while it grows.

Zone: guest (measured).
Spec: docs/protocol.md section 8.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cvmtool.formats.control import LOG_HEADER, LogRecord, Stream

_PIECE = 65_536  # bytes read at a time by a follower


class LogBook:
    """One job's log: `add` by the one thread that reads the container, `follow` by as many as like.

    `limit` is in bytes, of encoded records. What does not fit is dropped, after a marker record of stream 0.
    """

    def __init__(self, path: Path, *, limit: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._limit = limit
        self._digest = hashlib.sha256()
        self._grown = threading.Condition()
        self._size = 0
        self._full = False
        self._ended = False
        self._began = time.monotonic_ns()

    def add(self, stream: Stream, data: bytes) -> None:
        """Append a record, stamped with the time since the log was opened.

        Raises:
            OSError: memory-backed storage is full.
        """
        if self._full or not data:
            return
        microseconds = (time.monotonic_ns() - self._began) // 1000
        record = LogRecord(stream=stream, microseconds=microseconds, data=data).encode()
        # The last record that fits must leave room for the marker.
        if self._size + len(record) > self._limit - LOG_HEADER.size:
            self._full = True
            record = LogRecord(stream=Stream.TRUNCATED, microseconds=microseconds, data=b"").encode()
        with self._grown:
            os.pwrite(self._file, record, self._size)
            self._digest.update(record)
            self._size += len(record)
            self._grown.notify_all()

    def end(self) -> None:
        """Say that nothing more will come."""
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, 64 hex digits."""
        with self._grown:
            return self._digest.hexdigest()

    def follow(self, offset: int) -> Iterator[bytes]:
        """Yield the log from byte `offset`, waiting for what comes, until it ends."""
        while True:
            with self._grown:
                while self._size <= offset and not self._ended:
                    self._grown.wait()
                if self._size <= offset:
                    return
            piece = os.pread(self._file, _PIECE, offset)
            offset += len(piece)
            yield piece
