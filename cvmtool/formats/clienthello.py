# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The first message of a TLS connection: is it one, and for whom?

Zone: shared. Pure: no I/O.
Spec: RFC 8446 sections 4.1.2, 5.1 and B; RFC 6066 section 3 (server_name).

TLS 1.2 and 1.3 alone. A client that encrypts its hello (ECH) shows the name of whoever decrypts it: that outer name is what is
returned, and what is inside it is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmtool.errors import FormatError

MAX_HELLO = 16_384  # bytes on the wire; an ordinary one has 200 to 2,000
_RECORD_HEADER = 5  # bytes: type, version, length
_MAX_RECORD = 16_384  # bytes of its content
_HANDSHAKE = 22
_RECORD_VERSIONS = {b"\x03\x01", b"\x03\x03"}
_CLIENT_HELLO = 1
_TLS_1_2 = b"\x03\x03"
_SERVER_NAME = 0  # the extension
_HOST_NAME = 0  # the only kind of name in it
_MAX_NAME = 253  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHello:
    """What a client says before anybody answers."""

    server_name: str | None
    """Whom it wants to reach, in lower case; None if it does not say."""


def read_client_hello(data: bytes) -> ClientHello | None:
    """Read the ClientHello that `data` begins with; None: so far it is the beginning of one. What follows it is not looked at.

    Raises:
        FormatError: it is none, whatever may follow, or longer than 16,384 bytes.
    """
    message = _message(data[:MAX_HELLO])
    if message is not None:
        return _parse(message)
    if len(data) >= MAX_HELLO:
        raise FormatError(f"ClientHello: more than {MAX_HELLO} bytes")
    return None


def _message(data: bytes) -> bytes | None:
    """Join the fragments of the first handshake message; None: more of it is needed."""
    message = b""
    at = 0
    while at < len(data):
        header = data[at : at + _RECORD_HEADER]
        if header[0] != _HANDSHAKE:
            raise FormatError(f"ClientHello: the record has type {header[0]}; {_HANDSHAKE} (handshake) is required")
        if len(header) < _RECORD_HEADER:
            return None
        size = int.from_bytes(header[3:5], "big")
        if header[1:3] not in _RECORD_VERSIONS or not 1 <= size <= _MAX_RECORD:
            raise FormatError(f"ClientHello: the record has version {header[1:3].hex()} and {size} bytes")
        at += _RECORD_HEADER
        message += data[at : at + size]
        at += size
        if message and message[0] != _CLIENT_HELLO:
            raise FormatError(f"ClientHello: the message has type {message[0]}; {_CLIENT_HELLO} is required")
        if len(message) >= 4:
            end = 4 + int.from_bytes(message[1:4], "big")
            if end > MAX_HELLO:
                raise FormatError(f"ClientHello: {end} bytes; at most {MAX_HELLO} are allowed")
            if len(message) >= end:
                return message[4:end]
    return None


def _parse(body: bytes) -> ClientHello:
    hello = _Fields(body)
    if (version := hello.take(2)) != _TLS_1_2:
        raise FormatError(f"ClientHello: legacy_version is {version.hex()}; 0303 (TLS 1.2 or 1.3) is required")
    hello.take(32)  # random
    if len(hello.vector(1)) > 32:
        raise FormatError("ClientHello: the session has more than 32 bytes")
    suites = hello.vector(2)
    if not suites or len(suites) % 2:
        raise FormatError(f"ClientHello: the cipher suites have {len(suites)} bytes; pairs are required")
    if 0 not in hello.vector(1):
        raise FormatError("ClientHello: the compression methods lack null")
    name, seen = None, set()
    extensions = _Fields(hello.vector(2) if hello.left else b"")
    hello.finish()
    while extensions.left:
        kind = int.from_bytes(extensions.take(2), "big")
        content = extensions.vector(2)
        if kind in seen:
            raise FormatError(f"ClientHello: extension {kind} is there twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(content)
    return ClientHello(server_name=name)


def _server_name(content: bytes) -> str:
    extension = _Fields(content)
    names = _Fields(extension.vector(2))
    extension.finish()
    kind, name = names.take(1)[0], names.vector(2)
    names.finish()
    if kind != _HOST_NAME or not 1 <= len(name) <= _MAX_NAME or not name.isascii():
        raise FormatError(
            "ClientHello: the server's name is none: 1 to 253 ASCII characters are required, and one name"
        )
    return name.decode("ascii").lower()


class _Fields:
    """A cursor over one vector."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def left(self) -> int:
        """Bytes not taken yet."""
        return len(self._data)

    def take(self, count: int) -> bytes:
        """Take `count` bytes."""
        if count > len(self._data):
            raise FormatError(f"ClientHello: a field has {count} bytes; {len(self._data)} are left")
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def vector(self, width: int) -> bytes:
        """Take what stands behind its length, a number of `width` bytes."""
        return self.take(int.from_bytes(self.take(width), "big"))

    def finish(self) -> None:
        """Require that nothing is left."""
        if self._data:
            raise FormatError(f"ClientHello: {len(self._data)} bytes follow the last field; none may")
