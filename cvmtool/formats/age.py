# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""age files: where header and chunks stand, and what the keys in them are derived with.

Zone: shared. Pure: no I/O, no cryptography. Written by `cvmtool.guest.age`, opened by `cvmtool.owner.ageopen`.
Spec: age-encryption.org/v1. A file is a text header with one stanza for each recipient and a MAC, a nonce of 16 bytes, and the
content in chunks of 64 KiB, each with a tag of 16 bytes; the last one says that it is.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cvmtool.errors import FormatError

INTRO = b"age-encryption.org/v1\n"
X25519 = "X25519"
KEY_LABEL = b"age-encryption.org/v1/X25519"
MAC_LABEL = b"header"
PAYLOAD_LABEL = b"payload"
FILE_KEY = 16  # bytes
MAC = 32  # bytes
NONCE = 16  # bytes, between header and chunks
CHUNK = 65_536  # bytes of content; the last chunk may have fewer
TAG = 16  # bytes
SEALED_CHUNK = CHUNK + TAG
MAX_HEADER = 65_536  # bytes
MAX_STANZAS = 256
SUFFIX = ".age"
_COLUMNS = 64  # characters of a full line of a stanza's body
_ARGUMENT = re.compile(rb"[!-~]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stanza:
    """What one recipient needs: for `X25519` one argument, the ephemeral share, and the wrapped file key as body."""

    kind: str
    arguments: tuple[str, ...]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The text before the nonce."""

    stanzas: tuple[Stanza, ...]
    authenticated: bytes
    """What the MAC is over: all up to and with `---`."""
    mac: bytes
    """HMAC-SHA256, 32 bytes."""
    size: int
    """Bytes of the whole header: the nonce follows."""


def encode_stanzas(stanzas: Sequence[Stanza]) -> bytes:
    """Return the header up to and with `---`: what its MAC is over."""
    lines = [INTRO]
    for stanza in stanzas:
        lines.append(" ".join(("->", stanza.kind, *stanza.arguments)).encode("ascii") + b"\n")
        body = unpadded(stanza.body)
        lines += [body[at : at + _COLUMNS] + b"\n" for at in range(0, len(body) + 1, _COLUMNS)]
    return b"".join((*lines, b"---"))


def encode_mac(mac: bytes) -> bytes:
    """Return what closes the header after `---`."""
    return b" " + unpadded(mac) + b"\n"


def parse_header(data: bytes) -> Header:
    """Read the header at the beginning of `data` (unverified): an age file, or its first `MAX_HEADER` bytes.

    Raises:
        FormatError: it is no age file of version 1, or its header is malformed or longer.
    """
    if not data.startswith(INTRO):
        raise FormatError(f"age file begins with {data[:24]!r}; {INTRO.decode().strip()} is required")
    lines = data[:MAX_HEADER].split(b"\n")[1:-1]  # what follows the last line break is no whole line
    at, number = len(INTRO), 0
    stanzas: list[Stanza] = []
    while number < len(lines):
        line = lines[number]
        if line.startswith(b"--- "):
            if not stanzas:
                raise FormatError("age header names no recipient")
            return Header(
                stanzas=tuple(stanzas),
                authenticated=data[: at + 3],
                mac=_base64(line[4:], what="age header MAC", size=MAC),
                size=at + len(line) + 1,
            )
        if len(stanzas) == MAX_STANZAS:
            raise FormatError(f"age header has more than {MAX_STANZAS} stanzas")
        body = _body_lines(lines, number + 1)
        stanzas.append(_stanza(line, b"".join(body)))
        at += len(line) + 1 + sum(len(part) + 1 for part in body)
        number += 1 + len(body)
    raise FormatError(f"age header has no end within {MAX_HEADER} bytes")


def _body_lines(lines: list[bytes], first: int) -> list[bytes]:
    """Return a stanza's lines from `first` on: full ones, and the one that is shorter, which ends it."""
    for last in range(first, len(lines)):
        if len(lines[last]) != _COLUMNS:
            return lines[first : last + 1]
    raise FormatError("age stanza has no end")


def _stanza(line: bytes, body: bytes) -> Stanza:
    words = line.split(b" ")
    if words[0] != b"->" or len(words) < 2 or not all(_ARGUMENT.fullmatch(word) for word in words[1:]):
        raise FormatError(f"age stanza begins with {line[:48]!r}; '->' and its kind are required")
    kind, *arguments = (word.decode("ascii") for word in words[1:])
    return Stanza(kind=kind, arguments=tuple(arguments), body=_base64(body, what=f"age stanza {kind[:16]}"))


def parse_share(text: str) -> bytes:
    """Read the ephemeral share in an X25519 stanza, 32 bytes.

    Raises:
        FormatError: it is none.
    """
    return _base64(text.encode("utf-8"), what="age X25519 share", size=32)


def unpadded(data: bytes) -> bytes:
    """Return base64 without padding, as all of an age header has it."""
    return base64.b64encode(data).rstrip(b"=")


def _base64(text: bytes, *, what: str, size: int | None = None) -> bytes:
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{what} is not base64: {error}") from error
    if unpadded(data) != text:
        raise FormatError(f"{what} is not canonical base64 without padding")
    if size is not None and len(data) != size:
        raise FormatError(f"{what} has {len(data)} bytes; {size} are required")
    return data


def chunk_nonce(index: int, *, last: bool) -> bytes:
    """Return the nonce of a chunk, 12 bytes: its number, big-endian, and whether it is the last."""
    return index.to_bytes(11, "big") + bytes((last,))


def chunks_of(size: int) -> int:
    """Return how many chunks a content of `size` bytes has; one that is empty has one, empty too."""
    return max(1, -(-size // CHUNK))


def sealed_size(size: int, recipients: int) -> int:
    """Return the bytes of the age file of a content of `size` bytes for that many X25519 recipients."""
    stanza = Stanza(kind=X25519, arguments=(unpadded(bytes(32)).decode(),), body=bytes(FILE_KEY + TAG))
    header = len(encode_stanzas([stanza] * recipients)) + len(encode_mac(bytes(MAC)))
    return header + NONCE + size + TAG * chunks_of(size)
