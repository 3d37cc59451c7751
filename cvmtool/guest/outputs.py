# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Collect what the job may send: declared regular files, within their limits, of their kind.

Zone: guest (measured).
Spec: docs/protocol.md section 5.

The container's file names and links are untrusted: a path is walked one name at a time, and no link is ever followed.
An accepted file stays open, so what is sent later is what was hashed.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import FormatError
from cvmtool.formats.job import Output
from cvmtool.formats.wire import JsonObject
from cvmtool.guest.kinds import check_kind

_PIECE = 262_144  # bytes sent at a time
_MOST_UNDECLARED = 32  # names of files that the job left and did not declare


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """An output that may leave."""

    output: Output
    size: int
    sha256: str
    file: io.FileIO

    def to_json(self) -> JsonObject:
        """Return the row for `results`."""
        return {"name": self.output.name, "kind": self.output.kind.value, "size": self.size, "sha256": self.sha256}

    def read_from(self, offset: int) -> Iterator[bytes]:
        """Yield the content from byte `offset`."""
        while offset < self.size:
            piece = os.pread(self.file.fileno(), min(_PIECE, self.size - offset), offset)
            if not piece:
                return
            offset += len(piece)
            yield piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An output that stays, and why."""

    name: str
    reason: str

    def to_json(self) -> JsonObject:
        """Return the row for `results`."""
        return {"name": self.name, "reason": self.reason}


def collect(declared: tuple[Output, ...], directory: Path) -> tuple[list[Accepted], list[Rejected]]:
    """Open, check and hash every declared output below `directory`; name what was left undeclared, too.

    Raises:
        OSError: the directory itself cannot be read.
    """
    accepted, rejected = [], []
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for output in declared:
            try:
                accepted.append(_accept(output, root))
            except FormatError as error:
                rejected.append(Rejected(name=output.name, reason=error.message))
            except OSError as error:
                rejected.append(Rejected(name=output.name, reason=error.strerror or "cannot be read"))
    finally:
        os.close(root)
    names = {output.name for output in declared}
    rejected += [Rejected(name=name, reason="not declared in the job") for name in _undeclared(directory, names)]
    return accepted, rejected


def _accept(output: Output, root: int) -> Accepted:
    file = io.FileIO(_open_beneath(root, output.name.split("/")), "rb")
    try:
        size, sha256 = _inspect(file, output)
    except (FormatError, OSError):
        file.close()
        raise
    return Accepted(output=output, size=size, sha256=sha256, file=file)


def _inspect(file: io.FileIO, output: Output) -> tuple[int, str]:
    """Return size and SHA-256 of a file that may leave.

    Raises:
        FormatError: it may not.
    """
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise FormatError("not a regular file")
    if status.st_size > output.max_bytes:
        raise FormatError(f"{status.st_size} bytes; at most {output.max_bytes} are allowed")
    check_kind(file, status.st_size, output.kind, name=output.name)
    file.seek(0)
    return status.st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _open_beneath(root: int, names: list[str]) -> int:
    """Open a file below `root`, refusing a link at every step, and without waiting for the other end of a pipe."""
    at = root
    try:
        for name in names[:-1]:
            step = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            if at != root:
                os.close(at)
            at = step
        return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=at)
    finally:
        if at != root:
            os.close(at)


def _undeclared(directory: Path, declared: set[str]) -> list[str]:
    """Return some names of files that were left and not declared, in a form that is safe to print."""
    found: list[str] = []
    for parent, _, files in os.walk(directory):
        for name in files:
            path = os.path.relpath(os.path.join(parent, name), directory)  # noqa: PTH118 (os.walk's strings)
            if path not in declared:
                found.append(path.encode("utf-8", "backslashreplace").decode("utf-8")[:128])
            if len(found) == _MOST_UNDECLARED:
                return sorted(found)
    return sorted(found)
