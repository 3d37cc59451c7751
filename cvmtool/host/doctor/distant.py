# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A host behind SSH, seen as this machine is: files through SFTP, the same fixed commands, and nothing left there.

Zone: host. A door to paramiko, whose connection is opened elsewhere (`cvmtool.host.remote`, strict host keys).
"""

from __future__ import annotations

import errno
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import paramiko

from cvmtool.host.doctor.source import MAX_ENTRIES, MAX_TEXT_BYTES, Command, FileKind, FileStat

_SILENCE_SECONDS = 20.0
_PIECE = 32_768
_NOT_FOUND = 127  # what a shell ends with for a program that is not there
_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.DIRECTORY, stat.S_IFCHR: FileKind.DEVICE}


class DistantView:
    """`HostView` of a host that a connection leads to."""

    def __init__(self, client: paramiko.SSHClient) -> None:
        """Open a file channel of its own.

        Raises:
            OSError: the host has no SFTP.
        """
        self._client = client
        with _as_os_errors():
            self._sftp = client.open_sftp()
            channel = self._sftp.get_channel()
            if channel is not None:
                channel.settimeout(_SILENCE_SECONDS)

    def read(self, path: str, *, limit: int, offset: int = 0) -> bytes:
        """Return at most `limit` bytes of a file, from `offset` on. Sizes are not asked for: /proc shows none."""
        with _as_os_errors(), self._sftp.open(path, "rb", bufsize=0) as file:
            file.seek(offset)
            data = bytearray()
            while len(data) < limit and (piece := file.read(min(_PIECE, limit - len(data)))):
                data += piece
            return bytes(data)

    def list(self, path: str) -> list[str]:
        """Return the names in a directory, as many as are looked at."""
        with _as_os_errors():
            return sorted(entry.filename for entry in islice(self._sftp.listdir_iter(path), MAX_ENTRIES))

    def stat(self, path: str) -> FileStat:
        """Say what a name stands for."""
        with _as_os_errors():
            found = self._sftp.stat(path)
        mode = found.st_mode or 0
        return FileStat(
            kind=_KINDS.get(stat.S_IFMT(mode), FileKind.OTHER),
            mode=stat.S_IMODE(mode),
            uid=found.st_uid or 0,
            gid=found.st_gid or 0,
        )

    def run(self, command: Command) -> bytes:
        """Run a command to its end; its standard error is dropped.

        Raises:
            OSError: it is not there, ends with another code than 0, or not in time.
        """
        deadline = time.monotonic() + command.seconds
        with _as_os_errors():
            transport = self._client.get_transport()
            if transport is None:
                raise ConnectionError(errno.ENOTCONN, "the connection is closed")
            with transport.open_session(timeout=command.seconds) as channel:
                channel.settimeout(command.seconds)
                channel.exec_command(shlex.join(command.argv))
                channel.sendall(command.stdin)
                channel.shutdown_write()
                output = bytearray()
                while len(output) < MAX_TEXT_BYTES and (piece := channel.recv(_PIECE)):
                    output += piece
                    if time.monotonic() > deadline:
                        raise TimeoutError(errno.ETIMEDOUT, f"no end within {command.seconds:.0f} s")
                # What is longer than is looked at is not waited for, so its exit code is unknown.
                if len(output) >= MAX_TEXT_BYTES:
                    return bytes(output[:MAX_TEXT_BYTES])
                if not channel.status_event.wait(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(errno.ETIMEDOUT, f"no answer within {command.seconds:.0f} s")
                code = channel.recv_exit_status()
        if code == _NOT_FOUND:
            raise FileNotFoundError(errno.ENOENT, f"{command.argv[0]} is not there")
        if code != 0:
            raise OSError(errno.EIO, f"{command.argv[0]} ended with {code}")
        return bytes(output)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except (EOFError, paramiko.SSHException) as error:
        raise ConnectionError(
            errno.ECONNRESET, f"the connection fails: {str(error) or type(error).__name__}"
        ) from error
