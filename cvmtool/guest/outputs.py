# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Collect what the job may send: declared files, and those below declared directories, within their limits, of their kind.

Zone: guest (measured).
Spec: docs/protocol.md sections 5 and 15.

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
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cvmtool.errors import FormatError
from cvmtool.formats.job import MAX_FILE_NAMES, MAX_FILES, OUTPUT_NAME, JobManifest, Output, OutputKind, file_below
from cvmtool.formats.wire import JsonObject
from cvmtool.guest.kinds import check_kind

if TYPE_CHECKING:
    from cvmtool.guest.age import AgeFile

_PIECE = 262_144  # bytes sent at a time
_DEEPEST = 8  # names in a path
_MOST_UNDECLARED = 32  # names of files that the job left and did not declare
_SHOWN = 128  # characters of a name that may not be plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A file that may leave."""

    output: Output
    """Of a file below a declared directory: its own path, and the kind that it was checked as."""
    size: int
    sha256: str
    file: io.FileIO
    sealed: Sealed | None

    @property
    def leaving(self) -> int:
        """Bytes that `read_from` has in all."""
        return self.sealed.content.size if self.sealed else self.size

    def to_json(self) -> JsonObject:
        """Return the row for `results`."""
        row: JsonObject = {
            "name": self.output.name,
            "kind": self.output.kind.value,
            "size": self.size,
            "sha256": self.sha256,
        }
        if self.sealed:
            row["sealed"] = {"size": self.sealed.content.size, "sha256": self.sealed.sha256}
        return row

    def read_from(self, offset: int) -> Iterator[bytes]:
        """Yield what leaves from byte `offset`: the age file if there are recipients, else the content."""
        return self.sealed.content.read_from(offset) if self.sealed else _read(self.file, self.size, offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """The age file of an output."""

    content: AgeFile
    sha256: str
    """Of the whole age file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An output that stays, and why."""

    name: str
    reason: str

    def to_json(self) -> JsonObject:
        """Return the row for `results`."""
        return {"name": self.name, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What stands at a path below /outputs; nothing of it is followed."""

    path: str
    is_dir: bool
    size: int


def collect(manifest: JobManifest, directory: Path) -> tuple[list[Accepted], list[Rejected]]:
    """Open, check and hash every declared output below `directory`; name what was left undeclared, too.

    Raises:
        OSError: the directory itself cannot be read.
    """
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        gate = _Gate(manifest, root)
        for output in manifest.outputs:
            gate.judge(output)
        gate.rejected += _undeclared(root, manifest.outputs)
    finally:
        os.close(root)
    return gate.accepted, gate.rejected


class _Gate:
    """Judges one output after the other, and keeps count of what leaves."""

    def __init__(self, manifest: JobManifest, root: int) -> None:
        self._root = root
        self._recipients = tuple(bytes.fromhex(key) for key in manifest.recipients)
        self._most_bytes = self._left = manifest.limits.outputs_mib << 20
        self.accepted: list[Accepted] = []
        self.rejected: list[Rejected] = []

    def judge(self, output: Output) -> None:
        """Accept or reject an output, with all that is below it if it is a directory."""
        try:
            outputs = self._files_of(output) if output.kind is OutputKind.DIRECTORY else [output]
        except FormatError as error:
            self.rejected.append(Rejected(name=output.name, reason=error.message))
            return
        for file in outputs:
            try:
                self.accepted.append(self._accept(file))
            except FormatError as error:
                self.rejected.append(Rejected(name=_shown(file.name), reason=error.message))
            except OSError as error:
                self.rejected.append(Rejected(name=_shown(file.name), reason=error.strerror or "cannot be read"))

    def _files_of(self, directory: Output) -> list[Output]:
        """Return each file below a directory as an output of its own.

        Raises:
            FormatError: as a whole it may not leave.
        """
        found: list[_Found] = []
        try:
            for entry in _walk(self._root, directory.name):
                found.append(entry)
                if len(found) > MAX_FILES:
                    raise FormatError(f"more than {MAX_FILES} files and directories; no more may leave")
        except OSError as error:
            raise FormatError(error.strerror or "cannot be read") from error
        files = [entry for entry in found if not entry.is_dir or _is_too_deep(entry)]
        total = sum(entry.size for entry in files)
        if total > directory.max_bytes:
            raise FormatError(f"{total} bytes; at most {directory.max_bytes} are allowed")
        if not files:
            raise FormatError("no file in it")
        return [file_below(directory, entry.path) for entry in files]

    def _accept(self, output: Output) -> Accepted:
        if not OUTPUT_NAME.fullmatch(output.name):
            raise FormatError("its path is not one of at most 8 plain names")
        names = sum(len(item.output.name) for item in self.accepted) + len(output.name)
        if len(self.accepted) == MAX_FILES or names > MAX_FILE_NAMES:
            raise FormatError(f"{MAX_FILES} files leave a job, with {MAX_FILE_NAMES} characters of names, and no more")
        file = io.FileIO(_open_beneath(self._root, output.name.split("/")), "rb")
        try:
            size = self._inspect(file, output)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            accepted = Accepted(output=output, size=size, sha256=digest, file=file, sealed=self._seal(file, size))
        except (FormatError, OSError):
            file.close()
            raise
        self._left -= size
        return accepted

    def _inspect(self, file: io.FileIO, output: Output) -> int:
        """Return the size of a file that may leave.

        Raises:
            FormatError: it may not.
        """
        status = os.fstat(file.fileno())
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("not a regular file")
        if size > output.max_bytes:
            raise FormatError(f"{size} bytes; at most {output.max_bytes} are allowed")
        if (
            size > self._left
        ):  # a file may claim more than its file system holds: holes, or a name for another's content
            raise FormatError(f"{size} bytes; limits.outputs is {self._most_bytes}, of which {self._left} are left")
        check_kind(file, size, output.kind, name=output.name)
        return size

    def _seal(self, file: io.FileIO, size: int) -> Sealed | None:
        if not self._recipients:
            return None
        from cvmtool.guest.age import AgeFile  # noqa: PLC0415 - its libraries cost the boot of a job that seals nothing

        content = AgeFile(lambda into, at: os.preadv(file.fileno(), [into], at), size, self._recipients)
        digest = hashlib.sha256()
        for piece in content.read_from(0):
            digest.update(piece)
        return Sealed(content=content, sha256=digest.hexdigest())


def _read(file: io.FileIO, size: int, offset: int) -> Iterator[bytes]:
    while offset < size:
        piece = os.pread(file.fileno(), min(_PIECE, size - offset), offset)
        if not piece:
            return
        offset += len(piece)
        yield piece


def _open_beneath(root: int, names: list[str], flags: int = os.O_NONBLOCK | os.O_NOCTTY) -> int:
    """Open a file below `root`, refusing a link at every step, and without waiting for the other end of a pipe."""
    at = root
    try:
        for name in names[:-1]:
            step = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            if at != root:
                os.close(at)
            at = step
        return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=at)
    finally:
        if at != root:
            os.close(at)


def _walk(root: int, top: str) -> Iterator[_Found]:
    """Yield what is below the directory `top`, itself not; of one directory no more than may leave, and nothing below what is
    too deep.

    Raises:
        OSError: a directory cannot be read, or is none.
    """
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        handle = _open_beneath(root, folder.split("/"), os.O_DIRECTORY)
        try:
            with os.scandir(handle) as entries:
                found = [
                    _Found(
                        path=entry.name if folder == "." else f"{folder}/{entry.name}",
                        is_dir=entry.is_dir(follow_symlinks=False),
                        size=entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0,
                    )
                    for entry in islice(entries, MAX_FILES + 1)
                ]
        finally:
            os.close(handle)
        for entry in sorted(found, key=lambda entry: os.fsencode(entry.path)):
            yield entry
            if entry.is_dir and not _is_too_deep(entry):
                waiting.append(entry.path)


def _is_too_deep(entry: _Found) -> bool:
    """Whether no output could have its path."""
    return entry.path.count("/") >= _DEEPEST


def _undeclared(root: int, outputs: tuple[Output, ...]) -> list[Rejected]:
    """Return some names of files that were left and not declared, in a form that is safe to print."""
    declared = {output.name for output in outputs}
    folders = tuple(f"{output.name}/" for output in outputs if output.kind is OutputKind.DIRECTORY)
    found: list[str] = []
    for entry in _walk(root, "."):
        if not entry.is_dir and entry.path not in declared and not entry.path.startswith(folders):
            found.append(_shown(entry.path))
        if len(found) == _MOST_UNDECLARED:
            break
    return [Rejected(name=name, reason="not declared in the job") for name in sorted(found)]


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")[:_SHOWN]
