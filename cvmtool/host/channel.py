# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The attested channel from the owner's side: challenge, answer, then SSH with the host key that
evidence vouched for.

Zone: host. The only door to paramiko. The owner's private key stays in the owner zone: a function that signs comes in.
Spec: docs/protocol.md sections 2, 4 and 5.
"""

from __future__ import annotations

import hmac
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Self, cast

import paramiko
from paramiko.message import Message

from cvmtool.errors import FormatError, FreshnessError, HostError
from cvmtool.formats.channel import MAX_ANSWER, Refusal, answer_to, closed_line
from cvmtool.formats.control import CONTROL_ADDRESS, OWNER_USER, Op
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.wire import MAX_FRAME, Frame, JsonObject, Kind, json_frame, parse_canonical_json, read_frame
from cvmtool.host.terminal import Window

_ED25519 = "ssh-ed25519"
_SILENCE_SECONDS = 900.0  # in the middle of an answer; unlocking many packs under emulation takes minutes
_LAST_WORD_SECONDS = 10.0
_SSH_SECONDS = 60.0  # for a handshake with an emulated, busy guest

# paramiko logs every failed handshake at ERROR, to standard error when nothing else is configured; we raise instead.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class GuestError(HostError):
    """The guest refused an operation, or could not do it."""

    def __init__(self, op: Op, error: str, detail: str, *, pack: str | None, volume: str | None = None) -> None:
        super().__init__(f"the guest could not {op.value}: {error}", detail=detail)
        self.op = op
        self.error = error
        self.pack = pack
        self.volume = volume


class _OwnerKey(paramiko.PKey):
    """An Ed25519 key whose private half is elsewhere."""

    def __init__(self, public: bytes, sign: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._public = public
        self._sign = sign
        self.public_blob = None

    @property
    def name(self) -> str:
        return _ED25519

    def asbytes(self) -> bytes:
        return _key_blob(self._public)

    def get_name(self) -> str:
        return _ED25519

    def get_bits(self) -> int:
        return 256

    def can_sign(self) -> bool:
        return True

    def sign_ssh_data(self, data: bytes, algorithm: str | None = None) -> Message:  # noqa: ARG002 - paramiko's signature
        message = Message()
        message.add_string(_ED25519)
        message.add_string(self._sign(data))
        return message


def _key_blob(public: bytes) -> bytes:
    """RFC 8709: the SSH wire form of a raw Ed25519 public key."""
    message = Message()
    message.add_string(_ED25519)
    message.add_string(public)
    return message.asbytes()


class _SessionSocket:
    """What paramiko sees of the agent port between READY and CLOSED."""

    def __init__(self, port: socket.socket, buffered: bytes, closed_mark: bytes) -> None:
        self._port = port
        self._mark = closed_mark
        self._tail = b""  # the end of what has arrived, where the mark may have begun
        self._ready = b""  # arrived, searched, and not yet handed on
        self._ended = False
        self._arrive(buffered)

    def settimeout(self, seconds: float | None) -> None:
        self._port.settimeout(seconds)

    def send(self, data: bytes) -> int:
        return self._port.send(data)

    def recv(self, size: int) -> bytes:
        if not self._ready and not self._ended:
            data = self._port.recv(size)
            if not data:
                self._ended = True
            self._arrive(data)
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    def _arrive(self, data: bytes) -> None:
        # Bytes are handed on at once; only the search for the mark looks back. Holding bytes back stalls SSH.
        seen = self._tail + data
        at = seen.find(self._mark)
        if at >= 0:
            self._ended = True
            data = data[: max(0, at - len(self._tail))]
        self._tail = seen[-(len(self._mark) - 1) :]
        self._ready += data

    def close(self) -> None:
        with suppress(OSError):
            self._port.shutdown(socket.SHUT_RDWR)
        self._port.close()

    @property
    def _closed(self) -> bool:
        """What paramiko reads of a socket when it stops."""
        return self._port.fileno() < 0


class AgentChannel:
    """One session with a guest's agent, over a socket that carries its port."""

    def __init__(self, port: socket.socket, *, control: tuple[str, int] = CONTROL_ADDRESS) -> None:
        """`control`: where in the guest requests go to; a client's have a place of their own."""
        self._port = port
        self._control = control
        self._rest = b""
        self._transport: paramiko.Transport | None = None

    def challenge(self, line: bytes, nonce: bytes, *, deadline_seconds: float, alive: Callable[[], None]) -> Evidence:
        """Send OPEN and return the guest's evidence, unverified.

        Args:
            line: the OPEN line.
            nonce: its nonce.
            deadline_seconds: how long the guest may take, booting included.
            alive: called about once a second while waiting; it raises when waiting is pointless.

        Raises:
            FreshnessError: the guest was launched for another owner or job.
            HostError: no answer in time, or the machine closed the channel.
            FormatError: the answer is malformed.
        """
        self._port.settimeout(5)
        try:
            self._port.sendall(line)
        except OSError as error:
            raise HostError("the machine closed the agent port") from error
        seen = b""
        end = time.monotonic() + deadline_seconds
        self._port.settimeout(1)
        while time.monotonic() < end:
            alive()
            try:
                data = self._port.recv(65_536)
            except TimeoutError:
                continue
            except OSError as error:
                raise HostError("the machine closed the agent port") from error
            if not data:
                _await_reason(alive)
                raise HostError("the machine closed the agent port before it answered")
            seen += data
            answer = answer_to(seen, nonce)
            if answer is None:
                # What cannot be the beginning of the answer is an earlier session's and is dropped.
                seen = seen[-(2 * MAX_ANSWER) :]
                continue
            found, behind = answer
            if isinstance(found, Refusal):
                raise _refused(found)
            self._rest = seen[behind:]
            return found
        raise HostError(
            f"the guest's agent did not answer within {deadline_seconds:.0f} s",
            hint="is another client attached to this machine? a slow host needs more: --boot-timeout",
        )

    def connect(self, *, nonce: bytes, ssh_host_key: bytes, owner_key: bytes, sign: Callable[[bytes], bytes]) -> None:
        """Start SSH; only `ssh_host_key` will do. `owner_key`: with which to log in: the owner's, or a client's.

        Raises:
            FreshnessError: somebody with another host key answers (a man in the middle).
            HostError: SSH cannot be established.
        """
        stream = _SessionSocket(self._port, self._rest, closed_line(nonce))
        self._port.settimeout(None)
        transport = paramiko.Transport(cast("Any", stream))
        self._transport = transport
        try:
            transport.start_client(timeout=_SSH_SECONDS)
            shown = transport.get_remote_server_key().asbytes()
            if not hmac.compare_digest(shown, _key_blob(ssh_host_key)):
                raise FreshnessError(
                    f"SSH host key is {shown[-32:].hex()}; the verified report vouches for {ssh_host_key.hex()}",
                    hint="somebody stands between you and the guest; nothing was sent to them",
                )
            transport.auth_publickey(OWNER_USER, _OwnerKey(owner_key, sign))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise HostError("SSH to the guest failed", detail=str(error)) from error

    def request(self, op: Op, **fields: object) -> JsonObject:
        """Run an operation whose answer is one object.

        Raises:
            GuestError: the guest says no.
            HostError: the connection broke.
            FormatError: the answer is malformed.
        """
        with self.converse(op) as conversation:
            return conversation.ask(fields)

    def stream(self, op: Op, *, silence_seconds: float = _SILENCE_SECONDS, **fields: object) -> Iterator[bytes]:
        """Run an operation whose answer is followed by data; yield the pieces. `silence_seconds`: the longest pause.

        Raises:
            GuestError, HostError, FormatError: as `request`.
        """
        with self.converse(op, silence_seconds=silence_seconds) as conversation:
            conversation.ask(fields)
            while True:
                frame = conversation.read()
                if frame.kind is Kind.END:
                    return
                if frame.kind is not Kind.DATA:
                    raise FormatError(f"the guest sent a frame of kind {frame.kind.value!r} among data")
                yield frame.payload

    def converse(self, op: Op, *, silence_seconds: float | None = _SILENCE_SECONDS) -> Conversation:
        """Begin an operation that the caller talks through. `silence_seconds`: the longest pause; None: any.

        Raises:
            HostError: the connection broke.
        """
        return Conversation(self._ssh(), self._control, op, silence_seconds)

    @property
    def alive(self) -> bool:
        """Whether the session still stands."""
        return self._transport is not None and self._transport.is_active()

    def open_session(self, command: str | None, window: Window | None) -> paramiko.Channel:
        """Start a command, or the login shell if there is none, in a guest that gives its owner a shell.

        `window`: the terminal that it gets; None for none.

        Raises:
            HostError: this guest gives no shell, or the connection broke.
        """
        try:
            session = self._ssh().open_session(timeout=_SSH_SECONDS)
            if window is not None:
                session.get_pty(window.term, window.columns, window.rows)
            if command is None:
                session.invoke_shell()
            else:
                session.exec_command(command)
        except paramiko.ChannelException as error:
            raise HostError("the guest gives no shell", hint="vm start --shell, with an image that has one") from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise HostError("the guest does not start the session", detail=str(error)) from error
        return session

    def _ssh(self) -> paramiko.Transport:
        if self._transport is None or not self.alive:
            raise HostError(
                "the connection to the guest is gone", hint="cvmtool vm list says what became of the machine"
            )
        return self._transport

    def close(self) -> None:
        """End the session. The job in the guest goes on."""
        if self._transport is not None:
            self._transport.close()
        with suppress(OSError):
            self._port.close()


class Conversation:
    """One connection to the control service: one request, and what follows it. One thread may send while another reads."""

    def __init__(
        self, transport: paramiko.Transport, control: tuple[str, int], op: Op, silence_seconds: float | None
    ) -> None:
        self._op = op
        self._silence = silence_seconds
        try:
            self._channel = transport.open_channel("direct-tcpip", control, ("127.0.0.1", 0), timeout=_SSH_SECONDS)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise HostError("the guest's control service does not answer", detail=str(error)) from error
        # SSH's own keep-alive is sent without waiting for its answer: a guest that hangs is noticed here or never.
        self._channel.settimeout(silence_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, from any thread; whoever reads hears of it. Idempotent."""
        self._channel.close()

    def send(self, frame: bytes) -> None:
        """Send one encoded frame.

        Raises:
            HostError: the connection broke.
        """
        try:
            self._channel.sendall(frame)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise HostError("the connection to the guest broke", detail=str(error)) from error

    def ask(self, fields: dict[str, object]) -> JsonObject:
        """Send the request and return the answer.

        Raises:
            GuestError: the guest says no.
            HostError: the connection broke.
            FormatError: the answer is malformed.
        """
        self.send(json_frame({"op": self._op.value, **fields}))
        frame = self.read()
        if frame.kind is not Kind.JSON:
            raise FormatError(f"the guest answered {self._op.value} with a frame of kind {frame.kind.value!r}")
        answer = parse_canonical_json(frame.payload, what=f"answer to {self._op.value}", limit=MAX_FRAME)
        if answer.get("ok") is True:
            return answer
        pack, volume = answer.get("pack"), answer.get("volume")
        raise GuestError(
            self._op,
            str(answer.get("error"))[:64],
            str(answer.get("detail") or "")[:2000],
            pack=pack if isinstance(pack, str) else None,
            volume=volume if isinstance(volume, str) else None,
        )

    def read(self) -> Frame:
        """Return the next frame.

        Raises:
            HostError: the connection broke, or ended.
            FormatError: what came is no frame.
        """
        return read_frame(self._read_exactly)

    def _read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self._channel.recv(min(size - len(data), 1 << 18))
            except TimeoutError as error:
                raise HostError(
                    f"the guest has said nothing for {self._silence:.0f} s; it hangs, or its host stopped it"
                ) from error
            except (OSError, EOFError, paramiko.SSHException) as error:
                raise HostError("the connection to the guest broke", detail=str(error)) from error
            if not piece:
                raise HostError("the guest closed the connection in the middle of an answer")
            data += piece
        return data


def _await_reason(alive: Callable[[], None]) -> None:
    """Give the host time to say why the machine is gone: its port closes a moment before its state changes."""
    end = time.monotonic() + _LAST_WORD_SECONDS
    while time.monotonic() < end:
        alive()
        time.sleep(0.2)


def _refused(refusal: Refusal) -> Exception:
    if refusal is Refusal.HOST_DATA:
        return FreshnessError(
            "HOST_DATA of the launch commits to another owner or another job; the guest does not talk to us",
            hint="the machine was started with another job manifest than this one; start it again",
        )
    if refusal is Refusal.BAD_REPORT:
        return FreshnessError(
            "the guest was handed a report over another challenge than ours",
            hint="the host replays reports; nothing was released to it",
        )
    if refusal is Refusal.NO_REPORT:
        return HostError(
            "the guest could not get an attestation report",
            hint="on SNP: does the host's firmware answer guest requests? dmesg | grep -i sev, on the host",
        )
    return HostError("the guest is answering another client", hint="try again in a moment")
