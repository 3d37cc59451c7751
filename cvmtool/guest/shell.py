# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The owner's shell: only in an image whose measured command line has the word for it, and only when the manifest asks for it.

Zone: guest (measured).
Spec: docs/protocol.md sections 4 and 13.

The shell is that of an ordinary user. What the report vouches for stays out of its reach: the keys of the boot, the agent, the
kernel. The next session after the grant has it; sshd reads its configuration once a session.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cvmtool.formats.control import ControlError
from cvmtool.formats.machine import SHELL_WORD
from cvmtool.guest.programs import run
from cvmtool.guest.refusal import RefusedError

OWNER_ID = 990  # of the user and the group `owner`, in the images' skeleton
_SSHD = ("/usr/sbin/sshd", "-i", "-f")
_CHANNEL_ONLY = "/etc/cvmtool/sshd_config"
_WITH_SHELL = "/etc/cvmtool/sshd_shell_config"
_END_SECONDS = 10.0


def is_shell_allowed(cmdline: Path) -> bool:
    """Tell whether the measured command line (/proc/cmdline) holds the word."""
    return SHELL_WORD in cmdline.read_text("ascii", "replace").split()


class Shell:
    """Whether sessions get a shell. `allowed` is the image's word; the grant is the manifest's."""

    def __init__(self, *, allowed: bool, terminals: Path = Path("/dev/pts"), processes: Path = Path("/proc")) -> None:
        self.allowed = allowed
        self.granted = False
        self._terminals = terminals
        self._processes = processes

    def require_allowed(self) -> None:
        """Check that this image may give a shell at all.

        Raises:
            RefusedError: `shell`.
        """
        if not self.allowed:
            raise RefusedError(
                ControlError.SHELL, f"the measured command line does not say {SHELL_WORD}: this image gives no shell"
            )

    def grant(self) -> None:
        """Let sessions from now on have a shell. Again is fine.

        Raises:
            RefusedError: `shell`: this image may not, or there are no terminals.
        """
        self.require_allowed()
        if self.granted:
            return
        self._terminals.mkdir(exist_ok=True)
        options = "nosuid,noexec,gid=5,mode=620,ptmxmode=666"  # gid 5: tty
        mounted = run("mount", "-t", "devpts", "-o", options, "devpts", str(self._terminals))
        if mounted.code != 0:
            raise RefusedError(ControlError.SHELL, mounted.complaint)
        self.granted = True

    def server(self) -> tuple[str, ...]:
        """Return the SSH server's argument list for a session that begins now."""
        return (*_SSHD, _WITH_SHELL if self.granted else _CHANNEL_ONLY)

    def end(self) -> None:
        """Kill whatever the owner left running, so that the volumes can be closed.

        Raises:
            OSError: something would not go.
        """
        end = time.monotonic() + _END_SECONDS
        while left := self._left():
            if time.monotonic() > end:
                raise OSError(f"{len(left)} processes of the owner are left after {_END_SECONDS:g} s")
            for process in left:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)

    def _left(self) -> list[int]:
        return [int(folder.name) for folder in self._processes.iterdir() if folder.name.isdigit() and _is_left(folder)]


def _is_left(folder: Path) -> bool:
    """Say whether a process is the owner's. A zombie does not count: it holds nothing open."""
    try:
        # Not the owner of the folder, which a process can change by asking not to be dumped.
        lines = (folder / "status").read_text("utf-8", "replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False  # it ended while we looked
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return fields["State"][:1] not in {"Z", "X"} and str(OWNER_ID) in fields["Uid"].split("\t")
