# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Open age files with X25519 identities: those that guests seal, and any that age writes for such keys.

Zone: owner. Pure: bytes come from a function that reads, and go out piece by piece.
Spec: age-encryption.org/v1. Nothing is given out before its chunk's tag held; that a file was cut short shows at its end alone,
so whoever keeps what came before the refusal keeps too much.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cvmtool.errors import FormatError, VerificationError
from cvmtool.formats.age import (
    FILE_KEY,
    KEY_LABEL,
    MAC_LABEL,
    MAX_HEADER,
    NONCE,
    PAYLOAD_LABEL,
    SEALED_CHUNK,
    TAG,
    X25519,
    Header,
    Stanza,
    chunk_nonce,
    parse_header,
    parse_share,
)


def open_age(read: Callable[[int], bytes], identities: Sequence[X25519PrivateKey]) -> Iterator[bytes]:
    """Yield the content of an age file (unverified) that `read(n)` returns the next n bytes of, fewer at its end.

    Raises:
        FormatError: it is no age file.
        VerificationError: it is sealed to none of the identities, or was changed or cut short.
    """
    begun = _fill(read, b"", MAX_HEADER)
    header = parse_header(begun)
    file_key = _file_key(header, identities)
    mac = hmac.digest(_derive(file_key, b"", MAC_LABEL), header.authenticated, "sha256")
    if not hmac.compare_digest(mac, header.mac):
        raise VerificationError("the header of the age file was changed: its MAC does not hold")
    rest = _fill(read, begun[header.size :], NONCE)
    if len(rest) < NONCE:
        raise VerificationError("the age file was cut short: it ends before its nonce")
    cipher = ChaCha20Poly1305(_derive(file_key, rest[:NONCE], PAYLOAD_LABEL))
    rest, index, last = rest[NONCE:], 0, False
    while not last:
        rest = _fill(read, rest, SEALED_CHUNK + 1)
        chunk, rest = rest[:SEALED_CHUNK], rest[SEALED_CHUNK:]
        last = not rest
        try:
            plain = cipher.decrypt(chunk_nonce(index, last=last), chunk, None)
        except (InvalidTag, ValueError) as error:
            raise VerificationError(f"the age file was changed or cut short: chunk {index} does not open") from error
        if not plain and index:
            raise VerificationError(f"the age file was changed: chunk {index} is empty, which only a first one may be")
        yield plain
        index += 1


def _file_key(header: Header, identities: Sequence[X25519PrivateKey]) -> bytes:
    if any(stanza.kind == "scrypt" for stanza in header.stanzas):
        raise FormatError("the age file is sealed with a passphrase; one that is sealed to keys is required")
    for stanza in header.stanzas:
        for identity in identities if stanza.kind == X25519 else ():
            if key := _unwrap(stanza, identity):
                return key
    raise VerificationError(
        f"the age file is sealed to {len(header.stanzas)} keys, and yours is none of them",
        hint="cvmtool key show prints your recipient; --identity FILE names another key",
    )


def _unwrap(stanza: Stanza, identity: X25519PrivateKey) -> bytes | None:
    """Return the file key, if the stanza is for this identity.

    Raises:
        FormatError: it is malformed, for whomever it is.
    """
    if len(stanza.arguments) != 1 or len(stanza.body) != FILE_KEY + TAG:
        raise FormatError(f"age X25519 stanza has {len(stanza.arguments)} arguments and {len(stanza.body)} bytes")
    share, own = parse_share(stanza.arguments[0]), identity.public_key().public_bytes_raw()
    try:
        shared = identity.exchange(X25519PublicKey.from_public_bytes(share))
    except ValueError as error:
        raise FormatError("age X25519 share is a point of small order") from error
    try:
        return ChaCha20Poly1305(_derive(shared, share + own, KEY_LABEL)).decrypt(bytes(12), stanza.body, None)
    except InvalidTag:
        return None


def _derive(secret: bytes, salt: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=label).derive(secret)


def _fill(read: Callable[[int], bytes], data: bytes, size: int) -> bytes:
    """Return `data` with what follows it, at least `size` bytes unless the file ends before."""
    while len(data) < size:
        piece = read(size - len(data))
        if not piece:
            break
        data += piece
    return data
