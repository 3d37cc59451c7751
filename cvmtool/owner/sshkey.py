# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Ed25519 SSH public keys as text: the line of a `.pub` file.

Zone: owner. Pure: no I/O.
Spec: RFC 4253 section 6.6 (strings behind a 32-bit big-endian length), RFC 8709 (ssh-ed25519).
"""

from __future__ import annotations

import base64
import binascii

from cvmtool.errors import FormatError

KEY_SIZE = 32  # bytes
_KIND = "ssh-ed25519"
_HEAD = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"


def render_ssh_key(key: bytes) -> str:
    """Return a public key of 32 bytes as the line that OpenSSH reads, without a comment."""
    return f"{_KIND} {base64.b64encode(_HEAD + key).decode('ascii')}"


def parse_ssh_key(text: str) -> bytes:
    """Return the 32 bytes of a key. What stands behind it is a comment.

    Raises:
        FormatError: it is not the line of an Ed25519 SSH public key.
    """
    words = text.split()
    try:
        blob = base64.b64decode(words[1], validate=True) if words[:1] == [_KIND] and len(words) > 1 else b""
    except (binascii.Error, ValueError):  # ValueError: a letter that is not of ASCII
        blob = b""
    if len(blob) != len(_HEAD) + KEY_SIZE or not blob.startswith(_HEAD):
        raise FormatError(f"{text[:64]!r} is not the line of an Ed25519 SSH public key")
    return blob[len(_HEAD) :]
