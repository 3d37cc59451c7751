# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""This side of a tunnel and of a command in a job's container: frames on the guest's side, a socket or a descriptor on ours.

Zone: host. What comes out is the container's.
Spec: docs/protocol.md section 5.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from cvmtool.errors import CvmError, FormatError
from cvmtool.formats.control import TUNNEL_PIECE, LogReader, LogRecord, Op
from cvmtool.formats.wire import MAX_FRAME, Frame, Kind, natural, parse_canonical_json
from cvmtool.host.channel import AgentChannel, Conversation

_END = Frame(Kind.END, b"").encode()
_ABRUPT = struct.pack("ii", 1, 0)  # SO_LINGER: a reset, so that nobody takes a cut for an end


def open_tunnel(channel: AgentChannel, port: int) -> Conversation:
    """Have the guest connect to a port of the container.

    Raises:
        GuestError: it does not: the job does not allow it, nothing listens there, or the container does not run.
        HostError: the connection broke.
    """
    conversation = channel.converse(Op.TUNNEL, silence_seconds=None)
    try:
        conversation.ask({"port": port})
    except BaseException:
        conversation.close()
        raise
    return conversation


def carry(local: socket.socket, tunnel: Conversation) -> None:
    """Carry bytes both ways until both sides have said that there is no more, or one of them has gone; close both."""
    incoming = threading.Thread(target=_incoming, args=(local, tunnel), name="tunnel", daemon=True)
    incoming.start()
    try:
        while data := local.recv(TUNNEL_PIECE):
            tunnel.send(Frame(Kind.DATA, data).encode())
        tunnel.send(_END)
    except (OSError, CvmError):
        tunnel.close()
    incoming.join()
    tunnel.close()
    local.close()


def _incoming(local: socket.socket, tunnel: Conversation) -> None:
    try:
        while (frame := tunnel.read()).kind is Kind.DATA:
            local.sendall(frame.payload)
        if frame.kind is not Kind.END:
            raise FormatError(f"the guest sent a frame of kind {frame.kind.value!r} through a tunnel")
        local.shutdown(socket.SHUT_WR)
    except (OSError, CvmError):
        tunnel.close()
        with suppress(OSError):
            local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABRUPT)
            local.shutdown(socket.SHUT_RD)


def run_command(channel: AgentChannel, args: tuple[str, ...], *, stdin: int, show: Callable[[LogRecord], None]) -> int:
    """Run a command in the container and return its exit code.

    Args:
        channel: to the guest.
        args: the command.
        stdin: the descriptor that its input is read from.
        show: is given its output as it comes, in pieces of at most `TUNNEL_PIECE` bytes.

    Raises:
        GuestError: the job does not allow it, or its container does not run.
        HostError: the connection broke, and with it the command.
        FormatError: what came back is malformed.
    """
    reader = LogReader()
    with channel.converse(Op.EXEC, silence_seconds=None) as command:
        command.ask({"args": list(args)})
        over = threading.Event()
        threading.Thread(target=_feed, args=(stdin, command, over), name="input", daemon=True).start()
        try:
            while (frame := command.read()).kind is Kind.DATA:
                for record in reader.feed(frame.payload):
                    show(record)
        finally:
            over.set()
        if frame.kind is not Kind.JSON:
            raise FormatError(f"the guest ended a command with a frame of kind {frame.kind.value!r}")
        ended = parse_canonical_json(frame.payload, what="end of a command", limit=MAX_FRAME)
        return natural(ended, "exit_code", what="end of a command", most=255)


def _feed(stdin: int, command: Conversation, over: threading.Event) -> None:
    with suppress(OSError, CvmError):
        while not over.is_set():
            # So that what is typed after the end is left for the shell.
            if not select.select([stdin], [], [], 0.2)[0]:
                continue
            data = os.read(stdin, TUNNEL_PIECE)
            if not data:
                command.send(_END)
                return
            command.send(Frame(Kind.DATA, data).encode())
