# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A terminal or a command in a guest, over the attested channel: bytes between two descriptors here and a session there.

Zone: host. The session comes in as an argument: paramiko's doors are elsewhere. What comes back is the guest's, and with a
terminal it is the terminal that reads it, as with any ssh.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cvmtool.errors import HostError

_CHUNK = 65_536
_IDLE_SECONDS = 0.5
_WINDOW_SECONDS = 0.02  # until it is looked again whether the guest takes more
_NO_STATUS = -1  # paramiko's word for a session that ended without one


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A terminal: its kind, and its size in characters."""

    term: str
    columns: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """This side's descriptors."""

    stdin: int
    stdout: int
    stderr: int


def converse(session: Any, ends: Ends, *, resized: Callable[[], Window | None] = lambda: None) -> int:  # noqa: ANN401
    """Carry a session's bytes until it ends; return its exit status.

    Args:
        session: a paramiko channel in which something runs.
        ends: where input comes from and output goes.
        resized: the new size of the terminal, once after each change; asked about twice a second.

    Raises:
        HostError: the connection broke.
    """
    try:
        _carry(session, ends, resized)
        status = int(session.recv_exit_status())
    except (OSError, EOFError) as error:
        raise HostError("the connection to the guest broke", detail=str(error)) from error
    finally:
        session.close()
    if status == _NO_STATUS:
        raise HostError("the session ended without a status: the guest is gone, or somebody else connected to it")
    return status


def _carry(session: Any, ends: Ends, resized: Callable[[], Window | None]) -> None:  # noqa: ANN401
    pending, at_end = b"", False
    while True:
        # What cannot be sent yet is no reason to stop reading: the guest may wait for us to read.
        reading = [session] if pending or at_end else [session, ends.stdin]
        ready, _, _ = select.select(reading, [], [], _WINDOW_SECONDS if pending else _IDLE_SECONDS)
        window = resized()
        if window is not None:
            session.resize_pty(window.columns, window.rows)
        if ends.stdin in ready:
            pending = os.read(ends.stdin, _CHUNK)
            if not pending:
                at_end = True
                session.shutdown_write()
        if pending and (session.send_ready() or session.closed):
            try:
                pending = pending[session.send(pending) :]
            except OSError:
                # What ran has ended without reading all of it; its status tells how.
                pending, at_end = b"", True
        over = session.exit_status_ready() or session.closed
        if not _drain(session, ends) and over:
            return


def _drain(session: Any, ends: Ends) -> bool:  # noqa: ANN401
    moved = False
    while session.recv_ready():
        _write(ends.stdout, session.recv(_CHUNK))
        moved = True
    while session.recv_stderr_ready():
        _write(ends.stderr, session.recv_stderr(_CHUNK))
        moved = True
    return moved


def _write(descriptor: int, data: bytes) -> None:
    with suppress(BrokenPipeError):
        while data:
            data = data[os.write(descriptor, data) :]
