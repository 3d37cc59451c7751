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
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

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
    TAG,
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
_WORKERS = 2  # the cipher lets go of the interpreter, so two processors seal at once

ReadInto = Callable[[memoryview, int], int]
"""Gets memory to fill and an offset; returns how many bytes there were, fewer than fit at the end alone. Called by two threads."""


class AgeFile:
    """One content, sealed to X25519 keys (32 bytes each)."""

    def __init__(self, read_into: ReadInto, size: int, recipients: tuple[bytes, ...]) -> None:
        file_key, nonce = secrets.token_bytes(FILE_KEY), secrets.token_bytes(NONCE)
        stanzas = encode_stanzas([_wrap(file_key, recipient) for recipient in recipients])
        mac = hmac.digest(_derive(file_key, b"", MAC_LABEL), stanzas, "sha256")
        self._head = stanzas + encode_mac(mac) + nonce
        self._cipher = ChaCha20Poly1305(_derive(file_key, nonce, PAYLOAD_LABEL))
        self._read_into = read_into
        self._content_size = size
        self.size = sealed_size(size, len(recipients))
        """Bytes of the age file."""

    def read_from(self, offset: int) -> Iterator[bytes]:
        """Yield the age file from byte `offset`, in pieces of less than 1 MiB; the next ones are made while one is used."""
        if offset < len(self._head):
            yield self._head[offset:]
        first, skip = divmod(max(0, offset - len(self._head)), SEALED_CHUNK)
        benches = [_Bench() for _ in range(_WORKERS + 1)]
        with ThreadPoolExecutor(_WORKERS, "seal") as workers:
            coming: deque[Future[memoryview]] = deque()
            for turn, index in enumerate(range(first, chunks_of(self._content_size), _AT_ONCE)):
                # The one before on this bench was yielded: as many are under way as there are workers.
                coming.append(workers.submit(self._seal, index, benches[turn % len(benches)]))
                if len(coming) > _WORKERS:
                    yield bytes(coming.popleft().result()[skip:])
                    skip = 0
            for made in coming:
                yield bytes(made.result()[skip:])
                skip = 0

    def _seal(self, first: int, bench: _Bench) -> memoryview:
        """Seal the chunks from number `first` on, as many as go at once."""
        last = chunks_of(self._content_size) - 1
        size = self._read_into(bench.plain, first * CHUNK)
        end = 0
        for number in range(first, min(first + _AT_ONCE, last + 1)):
            at = (number - first) * CHUNK
            chunk = bench.plain[at : min(at + CHUNK, size)]
            begin, end = end, end + len(chunk) + TAG
            self._cipher.encrypt_into(chunk_nonce(number, last=number == last), chunk, None, bench.sealed[begin:end])
        return bench.sealed[:end]


class _Bench:
    """Memory that is used again and again: fresh pages for each piece would cost as much as the cipher."""

    def __init__(self) -> None:
        self.plain = memoryview(bytearray(_AT_ONCE * CHUNK))
        self.sealed = memoryview(bytearray(_AT_ONCE * SEALED_CHUNK))


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
