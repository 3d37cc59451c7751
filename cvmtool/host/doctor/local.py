# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""This machine as a host: its files, the fixed commands, and the question to its secure processor.

Zone: host. Reads alone. A command's output is bounded, and a command that does not end is ended.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
import struct
import subprocess
import tempfile
from pathlib import Path

from cvmtool.host.doctor.facts import PlatformStatus
from cvmtool.host.doctor.source import MAX_TEXT_BYTES, Command, FileKind, FileStat
from cvmtool.host.doctor.texts import PLATFORM_STATUS_BYTES, parse_platform_status

_SEARCH = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
_SEV_ISSUE_CMD = 0xC010_5300
"""_IOWR('S', 0, struct sev_issue_cmd), include/uapi/linux/psp-sev.h: u32 command, u64 address, u32 error, packed."""
_SNP_PLATFORM_STATUS = 9


class LocalView:
    """`HostView` of the machine that cvmtool runs on."""

    def read(self, path: str, *, limit: int, offset: int = 0) -> bytes:
        """Return at most `limit` bytes of a file, from `offset` on."""
        # Unbuffered: a read of the MSR device must be of eight bytes.
        with Path(path).open("rb", buffering=0) as file:
            file.seek(offset)
            data = bytearray()
            while len(data) < limit and (piece := file.read(limit - len(data))):
                data += piece
            return bytes(data)

    def list(self, path: str) -> list[str]:
        """Return the names in a directory."""
        return sorted(entry.name for entry in Path(path).iterdir())

    def stat(self, path: str) -> FileStat:
        """Say what a name stands for."""
        found = Path(path).stat()
        kinds = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.DIRECTORY, stat.S_IFCHR: FileKind.DEVICE}
        return FileStat(
            kind=kinds.get(stat.S_IFMT(found.st_mode), FileKind.OTHER),
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
        )

    def run(self, command: Command) -> bytes:
        """Run a command to its end; its standard error is dropped.

        Raises:
            OSError: it is not there, ends with another code than 0, or not in time.
        """
        environment = {"PATH": ":".join(_SEARCH), "LC_ALL": "C"}
        with tempfile.TemporaryFile() as output:
            try:
                ran = subprocess.run(
                    command.argv,
                    input=command.stdin,
                    stdout=output,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    timeout=command.seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise TimeoutError(errno.ETIMEDOUT, f"no answer within {command.seconds:.0f} s") from error
            if ran.returncode != 0:
                raise OSError(errno.EIO, f"{command.argv[0]} ended with {ran.returncode}")
            output.seek(0)
            return output.read(MAX_TEXT_BYTES)


def platform_status() -> PlatformStatus:
    """Ask the secure processor of this machine for its status and TCBs.

    Raises:
        OSError: there is no /dev/sev, this user may not ask, or the firmware refuses.
    """
    answer = array.array("B", bytes(PLATFORM_STATUS_BYTES))
    # The kernel writes where the address points, so `answer` must outlive the call.
    request = bytearray(struct.pack("<IQI", _SNP_PLATFORM_STATUS, answer.buffer_info()[0], 0))
    device = os.open("/dev/sev", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _SEV_ISSUE_CMD, request)
    finally:
        os.close(device)
    return parse_platform_status(answer.tobytes())
