# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of the control service, as they come through a connection.

Zone: guest (measured).
Spec: docs/protocol.md section 5.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from cvmtool.errors import FormatError
from cvmtool.formats.wire import FRAME_HEADER, MAX_FRAME, Frame, read_frame


def receive(connection: socket.socket, *, most: int = MAX_FRAME) -> Frame:
    """Return the next frame, whose payload has at most `most` bytes.

    Raises:
        FormatError: what comes is no such frame.
        OSError: the connection ended, or nothing came in its time.
    """

    def read(size: int) -> bytes:
        if size > max(most, FRAME_HEADER):
            raise FormatError(f"frame claims {size} bytes; at most {most} are allowed here")
        data = bytearray()
        while len(data) < size:
            piece = connection.recv(size - len(data))
            if not piece:
                raise ConnectionError("the connection ended within a frame")
            data += piece
        return bytes(data)

    return read_frame(read)


def hand_over(
    data: bytes, write: Callable[[bytes], int], descriptor: int, *, owner: socket.socket, patience: float | None = None
) -> None:
    """Write all of `data` as fast as it is taken; `write` to `descriptor` does not block.

    Raises:
        OSError: nobody takes it any more, or anything of it for `patience` seconds; or the owner's connection has ended, which
            nobody reads meanwhile.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.register(owner, select.POLLRDHUP)
    while data:
        found = poll.poll(None if patience is None else patience * 1000)
        if not found:
            raise TimeoutError(f"nothing was taken for {patience} s")
        if any(ended == owner.fileno() for ended, _ in found):
            raise ConnectionError("the owner has gone")
        try:
            data = data[write(data) :]
        except BlockingIOError:
            continue
