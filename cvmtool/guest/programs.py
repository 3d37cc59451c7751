# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The guest's one door to other programs: fixed argument lists, an empty environment, no shell.

Zone: guest (measured).
A secret goes in through standard input, never through an argument or the environment. What a program writes to standard
error goes back to the caller, for the owner's eyes; nothing is inherited from PID 1, so nothing can reach the console.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from socket import socket

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C"}
_MOST_KEPT = 1_000  # characters of either output stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended."""

    code: int
    output: str
    """The end of its standard output, at most 1,000 characters."""
    complaint: str
    """The end of its standard error, likewise."""


def run(*argv: str, stdin: bytes | bytearray = b"", timeout_seconds: float = 120) -> Ended:
    """Run a program to its end.

    Code 124 stands for a program that was killed after `timeout_seconds`, 127 for one that could not be started.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            env=_ENVIRONMENT,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Ended(code=124, output="", complaint=f"{argv[0]} did not end within {timeout_seconds:g} s")
    except OSError as error:
        return Ended(code=127, output="", complaint=f"{argv[0]} cannot be started: {error.strerror}")
    return Ended(code=done.returncode, output=_end(done.stdout), complaint=_end(done.stderr))


def _end(stream: bytes) -> str:
    return stream.decode("utf-8", "replace").strip()[-_MOST_KEPT:]


def converse(argv: tuple[str, ...], peer: socket) -> subprocess.Popen[bytes]:
    """Start a program that talks over `peer`, in a process group of its own.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(
        argv,
        stdin=peer.fileno(),
        stdout=peer.fileno(),
        stderr=subprocess.DEVNULL,
        env=_ENVIRONMENT,
        start_new_session=True,
    )


def capture(*argv: str) -> subprocess.Popen[bytes]:
    """Start a program whose two output streams the caller reads; its standard input is at its end.

    Raises:
        OSError: it cannot be started.
    """
    # Not /dev/null: crun gives its standard streams to the container's user, who could then change its mode for all.
    end, nothing = os.pipe2(os.O_CLOEXEC)
    os.close(nothing)
    try:
        return subprocess.Popen(argv, stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_ENVIRONMENT)
    finally:
        os.close(end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piped:
    """A running program, and this side's descriptors of the pipes to it. Writing to it does not block."""

    process: subprocess.Popen[bytes]
    stdin: int
    stdout: int
    stderr: int


def converse_by_pipes(*argv: str) -> Piped:
    """Start a program whose three streams are the caller's, who closes them.

    Raises:
        OSError: it cannot be started.
    """
    stdin, to_it = os.pipe2(os.O_CLOEXEC)
    stdout, its_output = os.pipe2(os.O_CLOEXEC)
    stderr, its_complaints = os.pipe2(os.O_CLOEXEC)
    try:
        process = subprocess.Popen(argv, stdin=stdin, stdout=its_output, stderr=its_complaints, env=_ENVIRONMENT)
    except OSError:
        for end in (to_it, stdout, stderr):
            os.close(end)
        raise
    finally:
        for end in (stdin, its_output, its_complaints):
            os.close(end)
    os.set_blocking(to_it, False)
    return Piped(process=process, stdin=to_it, stdout=stdout, stderr=stderr)
