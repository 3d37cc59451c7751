# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Seal an output to its recipients, as an age file that is made while it is sent.

Zone: guest (measured).
Spec: age-encryption.org/v1; docs/protocol.md section 15. Why age: ADR-0029.

The file key, the stanzas and the nonce are made once and kept for the guest's life, so that the same bytes come again from any
offset. A content is sealed under its key once: what is read must not change.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cvmtool.formats.age import (
    CHUNK,
    FILE_KEY,
    KEY_LABEL,
    MAC_LABEL,
    NONCE,
    PAYLOAD_LABEL,
    SEALED_CHUNK,
    X25519,
    Stanza,
    chunk_nonce,
    chunks_of,
    encode_mac,
    encode_stanzas,
    sealed_size,
    unpadded,
)

_AT_ONCE = 15  # chunks: with their tags they fit a control frame

ReadAt = Callable[[int, int], bytes]
"""Gets a number of bytes and an offset; returns them, fewer at the end alone."""


class AgeFile:
    """One content, sealed to X25519 keys (32 bytes each)."""

    def __init__(self, read_at: ReadAt, size: int, recipients: tuple[bytes, ...]) -> None:
        file_key, nonce = secrets.token_bytes(FILE_KEY), secrets.token_bytes(NONCE)
        stanzas = encode_stanzas([_wrap(file_key, recipient) for recipient in recipients])
        mac = hmac.digest(_derive(file_key, b"", MAC_LABEL), stanzas, "sha256")
        self._head = stanzas + encode_mac(mac) + nonce
        self._cipher = ChaCha20Poly1305(_derive(file_key, nonce, PAYLOAD_LABEL))
        self._read_at = read_at
        self._content_size = size
        self.size = sealed_size(size, len(recipients))
        """Bytes of the age file."""

    def read_from(self, offset: int) -> Iterator[bytes]:
        """Yield the age file from byte `offset`, in pieces of less than 1 MiB; each is made while the one before is used."""
        pieces = self._pieces(offset)
        with ThreadPoolExecutor(1, "seal") as worker:
            coming = worker.submit(next, pieces, b"")
            while piece := coming.result():
                coming = worker.submit(next, pieces, b"")
                yield piece

    def _pieces(self, offset: int) -> Iterator[bytes]:
        if offset < len(self._head):
            yield self._head[offset:]
        index, skip = divmod(max(0, offset - len(self._head)), SEALED_CHUNK)
        count = chunks_of(self._content_size)
        while index < count:
            plain = memoryview(self._read_at(_AT_ONCE * CHUNK, index * CHUNK))
            ahead = range(index, min(index + _AT_ONCE, count))
            yield b"".join(
                self._cipher.encrypt(
                    chunk_nonce(number, last=number == count - 1),
                    plain[(number - index) * CHUNK : (number - index + 1) * CHUNK],
                    None,
                )
                for number in ahead
            )[skip:]
            index, skip = ahead.stop, 0


def _wrap(file_key: bytes, recipient: bytes) -> Stanza:
    """Return the stanza from which the owner of `recipient` gets the file key."""
    ephemeral = X25519PrivateKey.generate()
    share = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    # The key is used once, so its nonce may be fixed.
    wrapped = ChaCha20Poly1305(_derive(shared, share + recipient, KEY_LABEL)).encrypt(bytes(12), file_key, None)
    return Stanza(kind=X25519, arguments=(unpadded(share).decode("ascii"),), body=wrapped)


def _derive(secret: bytes, salt: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=label).derive(secret)
