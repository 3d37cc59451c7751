# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The bridge between the agent port and `sshd -i`: evidence first, then one SSH session at a time.

Zone: guest (measured).
Spec: docs/protocol.md sections 2 and 4.

The port stays open for ever, so both directions are ordered byte streams that outlive every session. An OPEN line in
the stream ends whatever was there and starts afresh; that is what makes reconnecting safe. Nothing before an answered
OPEN reaches sshd. The port is always drained, also while a report is being fetched (which happens in another thread),
so a host that talks too much or stops reading can hurt nobody but itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cvmtool.formats.channel import OPEN_SIZE, Open, closed_line, find_last_open
from cvmtool.guest import programs

_CHUNK = 65_536  # bytes read from either side at a time
_BUFFER = 1 << 20  # bytes in the socket to sshd: fewer turns of the loop on a bulk transfer
_ABSENCE_SECONDS = 1.0  # before a host that left is believed to have left
_MOST_UP = 262_144  # bytes held for an sshd that does not read
_LOOK_BACK = OPEN_SIZE  # bytes of the stream in which an OPEN may have begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the guest says to one OPEN: the line, and whether a session follows it."""

    line: bytes
    ready: bool


Attest = Callable[[Open], Answer]


class _Attester(threading.Thread):
    """Answers OPENs one after the other; a newer one replaces one that is still waiting."""

    def __init__(self, attest: Attest) -> None:
        super().__init__(name="attester", daemon=True)
        self._attest = attest
        self._changed = threading.Condition()
        self._next: Open | None = None
        self._done: tuple[Open, Answer] | None = None
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ask(self, challenge: Open) -> None:
        with self._changed:
            self._next = challenge
            self._changed.notify()

    def take(self) -> tuple[Open, Answer] | None:
        """Return the last answer, once."""
        try:
            os.eventfd_read(self.wake)
        except BlockingIOError:
            return None
        with self._changed:
            done, self._done = self._done, None
            return done

    def run(self) -> None:
        while True:
            with self._changed:
                while self._next is None:
                    self._changed.wait()
                challenge, self._next = self._next, None
            answer = self._attest(challenge)
            with self._changed:
                self._done = (challenge, answer)
            os.eventfd_write(self.wake, 1)


class _Session:
    """One sshd and the socket to it."""

    def __init__(self, nonce: bytes, sshd: tuple[str, ...]) -> None:
        self.nonce = nonce
        self.sock, child = socket.socketpair()
        self.sock.settimeout(0)
        for end in (self.sock, child):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        with child:
            self._process = programs.converse(sshd, child)

    def end(self) -> None:
        """Cut the connection and end every process of the session; there is nothing in one that wants to be saved."""
        self.sock.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Bridge:
    """Serves the agent port until `stop` is called.

    `port` is a non-blocking descriptor of the port; `attest` answers an OPEN and may take its time; `sshd` gives the
    server's argument list for the session that begins.
    """

    def __init__(self, port: int, attest: Attest, *, sshd: Callable[[], tuple[str, ...]]) -> None:
        self._port = port
        self._sshd = sshd
        self._attester = _Attester(attest)
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._masks: dict[int, int] = {}
        self._session: _Session | None = None
        self._pending: Open | None = None
        self._up = b""  # for sshd
        self._down = b""  # for the host
        self._tail = b""  # the end of what came, where an OPEN may have begun
        self._host = True  # somebody holds the other end
        self._left: float | None = None  # when nobody did any more (monotonic seconds), until that has been acted on

    def stop(self) -> None:
        """End `serve`, from any thread."""
        os.eventfd_write(self._stop, 1)

    def serve(self) -> None:
        """Carry bytes and answer OPENs until `stop`.

        Raises:
            OSError: the port is gone.
        """
        self._attester.start()
        for descriptor in (self._stop, self._attester.wake):
            self._watch(descriptor, select.EPOLLIN)
        while True:
            self._watch_all()
            events = dict(self._epoll.poll(self._patience()))
            self._act_on_absence()
            if self._stop in events:
                self._end_session()
                return
            if self._attester.wake in events:
                self._answer()
            if self._port in events:
                self._from_host(gone=bool(events[self._port] & select.EPOLLHUP))
            if self._session is not None and self._session.sock.fileno() in events:
                self._from_sshd(self._session)
            self._flush()

    def _patience(self) -> float | None:
        """How long to wait for events, in seconds; None: for ever."""
        return None if self._left is None else max(0.0, self._left + _ABSENCE_SECONDS - time.monotonic())

    def _act_on_absence(self) -> None:
        """End the session of a host that has gone."""
        if self._patience() == 0:
            self._left = None
            self._end_session()
            self._down = b""

    def _watch_all(self) -> None:
        if self._host:
            reading = select.EPOLLIN if len(self._up) < _MOST_UP else 0
            self._watch(self._port, reading | (select.EPOLLOUT if self._down else 0))
        else:
            # Hang-up is level-triggered and cannot be masked: edge-triggered, it wakes us when a host connects, not
            # before.
            self._watch(self._port, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        if self._session is not None:
            reading = 0 if self._down else select.EPOLLIN
            self._watch(self._session.sock.fileno(), reading | (select.EPOLLOUT if self._up else 0))

    def _watch(self, descriptor: int, mask: int) -> None:
        known = self._masks.get(descriptor)
        if known is None:
            self._epoll.register(descriptor, mask)
        elif known != mask:
            self._epoll.modify(descriptor, mask)
        self._masks[descriptor] = mask

    def _from_host(self, *, gone: bool) -> None:
        if len(self._up) >= _MOST_UP and not gone:
            return  # woken for writing
        data, eof = _read_all(lambda: os.read(self._port, _CHUNK))
        if eof:
            # Bytes and the news of who holds the other end come through different queues: an end that is read now may be
            # an earlier host's, after the next one's OPEN. So nothing that was asked is dropped, and the session of
            # whoever left ends a moment later, when nobody has come.
            if self._host:
                self._left = time.monotonic()
            self._host = False
            return
        self._host = True
        self._left = None
        seen = self._tail + data
        opened = find_last_open(seen)
        if opened is None:
            self._tail = seen[-_LOOK_BACK:]
            if self._session is not None:
                self._up += data
            return
        self._pending, end = opened
        self._end_session()
        self._down = b""
        self._tail = seen[end - 1 :][-_LOOK_BACK:]  # a line's last feed may be the first of the next line
        self._attester.ask(self._pending)

    def _answer(self) -> None:
        done = self._attester.take()
        if done is None or done[0] is not self._pending:
            return  # its owner has gone, or has asked again
        challenge, answer = done
        self._pending = None
        self._down += answer.line
        if answer.ready:
            self._session = _Session(challenge.nonce, self._sshd())

    def _from_sshd(self, session: _Session) -> None:
        if self._down:
            return
        try:
            self._down, eof = _read_all(lambda: session.sock.recv(_CHUNK))
        except ConnectionError:
            eof = True
        if eof:
            self._end_session()
            self._down += closed_line(session.nonce)

    def _flush(self) -> None:
        if self._down and self._host:
            self._down = _write_some(lambda data: os.write(self._port, data), self._down)
        if self._up and self._session is not None:
            try:
                self._up = _write_some(self._session.sock.send, self._up)
            except OSError:
                self._up = b""  # sshd is going; its end of file follows

    def _end_session(self) -> None:
        if self._session is not None:
            descriptor = self._session.sock.fileno()
            self._epoll.unregister(descriptor)
            del self._masks[descriptor]
            self._session.end()
            self._session = None
        self._up = b""


def _read_all(read: Callable[[], bytes]) -> tuple[bytes, bool]:
    """Gather up to about 64 KiB (the kernel hands out 4 KiB at a time); the flag says that the other side has gone."""
    pieces: list[bytes] = []
    size = 0
    while size < _CHUNK:
        try:
            data = read()
        except BlockingIOError:
            break
        if not data:
            return b"".join(pieces), not pieces
        pieces.append(data)
        size += len(data)
    return b"".join(pieces), False


def _write_some(write: Callable[[bytes], int], data: bytes) -> bytes:
    """Write as much as is taken now; return the rest."""
    try:
        while data:
            data = data[write(data) :]
    except BlockingIOError:
        pass
    return data


def open_port(path: Path) -> int:
    """Open a virtio-serial port for the life of the guest.

    Raises:
        OSError: it cannot be opened, or somebody else holds it.
    """
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
