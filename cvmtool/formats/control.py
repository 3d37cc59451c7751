# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Names on the guest's control service: operations, stages, errors, log records.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md sections 5 and 8.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from cvmtool.errors import FormatError

CONTROL_ADDRESS = ("127.0.0.1", 7010)
CLIENT_ADDRESS = ("127.0.0.1", 7011)
"""Where a job's clients reach the agent: `CLIENT_OPS`, and nothing else."""
OWNER_USER = "owner"
TUNNEL_PIECE = 65_536
"""Bytes in one frame of a tunnel, or of a command's input, at most: an agent holds no more of each."""


class Op(StrEnum):
    """What the owner may ask for."""

    STATUS = "status"
    CONFIGURE = "configure"
    GPU_EVIDENCE = "gpu-evidence"
    RELEASE = "release"
    RUN = "run"
    LOGS = "logs"
    RESULTS = "results"
    FETCH = "fetch"
    COMMIT = "commit"
    STOP = "stop"
    USAGE = "usage"
    EXEC = "exec"
    TUNNEL = "tunnel"
    POWEROFF = "poweroff"


CLIENT_OPS = frozenset({Op.STATUS, Op.TUNNEL})


class Stage(StrEnum):
    """How far a guest has come."""

    WAITING = "waiting"
    CONFIGURED = "configured"
    UNLOCKED = "unlocked"
    RUNNING = "running"
    DONE = "done"


class ControlError(StrEnum):
    """Why an operation was refused."""

    ORDER = "order"
    REQUEST = "request"
    MANIFEST = "manifest"
    SEALED = "sealed"
    PACK_MISSING = "pack-missing"
    PACK_INTEGRITY = "pack-integrity"
    PACK_HEADER = "pack-header"
    PACK_KEY = "pack-key"
    OUTPUT = "output"
    GPU = "gpu"
    VOLUME_MISSING = "volume-missing"
    VOLUME_HEADER = "volume-header"
    VOLUME_KEY = "volume-key"
    VOLUME_INTEGRITY = "volume-integrity"
    VOLUME_ROLLED_BACK = "volume-rolled-back"
    SHELL = "shell"
    ACCESS = "access"
    KERNEL = "kernel"


class Stream(IntEnum):
    """Where a log record came from."""

    TRUNCATED = 0
    STDOUT = 1
    STDERR = 2


LOG_HEADER = struct.Struct(">BQI")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """A piece of the container's output."""

    stream: Stream
    microseconds: int
    """Since the container started."""
    data: bytes

    def encode(self) -> bytes:
        """Return the record: 13 bytes of header, then the data."""
        return LOG_HEADER.pack(self.stream, self.microseconds, len(self.data)) + self.data


class LogReader:
    """Cuts a stream of bytes into log records; feed it whatever arrived."""

    def __init__(self, *, limit: int = 1 << 20) -> None:
        self._buffer = b""
        self._limit = limit

    def feed(self, data: bytes) -> list[LogRecord]:
        """Return the records that are complete now.

        Raises:
            FormatError: an unknown stream, or a record over the limit.
        """
        buffer = self._buffer + data
        records = []
        at = 0  # a cut for each record would copy what follows it each time
        while len(buffer) - at >= LOG_HEADER.size:
            stream, microseconds, size = LOG_HEADER.unpack_from(buffer, at)
            if size > self._limit or stream > Stream.STDERR:
                raise FormatError(
                    f"log record of stream {stream} claims {size} bytes; at most {self._limit} are allowed"
                )
            end = at + LOG_HEADER.size + size
            if len(buffer) < end:
                break
            record = buffer[at + LOG_HEADER.size : end]
            records.append(LogRecord(stream=Stream(stream), microseconds=microseconds, data=record))
            at = end
        self._buffer = buffer[at:]
        return records
