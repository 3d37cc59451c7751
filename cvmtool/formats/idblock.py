# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""ID block and ID authentication: who signed a launch, so that the firmware refuses every other image.

Zone: shared. Pure: no I/O, no signature check (`owner.launchsign` makes and checks them).
Spec: AMD 56860 SEV-SNP Firmware ABI, SNP_LAUNCH_FINISH (ID_BLOCK, ID_AUTH). Little-endian throughout.

    ID block   96 bytes     digest[48] | FAMILY_ID[16] | IMAGE_ID[16] | u32 version 1 | u32 GUEST_SVN | u64 POLICY
    ID auth    4096 bytes   0x000 u32 algorithm 1 | u32 author's algorithm 1
                            0x040 signature of the ID block by the ID key        0x240 ID key
                            0x680 signature of the ID key by the author key      0x880 author key
    key        1028 bytes   u32 curve 2 (P-384) | QX[72] | QY[72] | zeros
    signature  512 bytes    R[72] | S[72] | zeros

What no field covers is zero. Without an author its signature, its key and (by some writers) its algorithm are zero.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from cvmtool.errors import FormatError
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.formats.report import P384_ORDER

ID_BLOCK_BYTES = 96
ID_AUTH_BYTES = 4096
KEY_BYTES = 0x404
SIGNATURE_BYTES = 512
NAME_BYTES = 16  # FAMILY_ID and IMAGE_ID
ID_BLOCK_VERSION = 1
ALGORITHM_P384_SHA384 = 1
CURVE_P384 = 2

P384_PRIME = (1 << 384) - (1 << 128) - (1 << 96) + (1 << 32) - 1
_P384_B = int("b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aef", 16)

_BLOCK = struct.Struct("<48s16s16sIIQ")
_COORDINATE = 72
_AUTH = struct.Struct("<II56s512s1028s60s512s1028s892s")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdBlock:
    """What a signer vouches for: a launch `digest` (48 bytes), names of 16 bytes, `guest_svn` (32 bits), the policy."""

    digest: bytes
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    guest_svn: int = 0
    policy: GuestPolicy = field(default_factory=lambda: GuestPolicy(0x30000))

    def __post_init__(self) -> None:
        for name, size in (("digest", 48), ("family_id", NAME_BYTES), ("image_id", NAME_BYTES)):
            if len(getattr(self, name)) != size:
                raise FormatError(f"id block {name} has {len(getattr(self, name))} bytes; required: {size}")
        if not 0 <= self.guest_svn < 1 << 32:
            raise FormatError(f"id block guest_svn is {self.guest_svn}; required: 32 bits")

    def encode(self) -> bytes:
        """Return the 96 bytes that the ID key signs."""
        return _BLOCK.pack(
            self.digest, self.family_id, self.image_id, ID_BLOCK_VERSION, self.guest_svn, self.policy.value
        )


def parse_id_block(data: bytes) -> IdBlock:
    """Read the 96 bytes of an ID block (unverified).

    Raises:
        FormatError: another size or version, or a policy with reserved bits.
    """
    if len(data) != ID_BLOCK_BYTES:
        raise FormatError(f"id block has {len(data)} bytes; required: {ID_BLOCK_BYTES}")
    digest, family_id, image_id, version, guest_svn, policy = _BLOCK.unpack(data)
    if version != ID_BLOCK_VERSION:
        raise FormatError(f"id block version is {version}; required: {ID_BLOCK_VERSION}")
    return IdBlock(
        digest=digest, family_id=family_id, image_id=image_id, guest_svn=guest_svn, policy=GuestPolicy(policy)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class P384Key:
    """A public key: a point of the curve, by its coordinates."""

    x: int
    y: int

    def __post_init__(self) -> None:
        # A point off the curve would make a verifier compute on another, weaker one.
        inside = 0 <= self.x < P384_PRIME and 0 <= self.y < P384_PRIME
        if not inside or (self.y**2 - self.x**3 + 3 * self.x - _P384_B) % P384_PRIME:
            raise FormatError("id key is no point of its curve; required: a point of p-384")

    def encode(self) -> bytes:
        """Return the 1028 bytes that stand in the ID authentication, and that an author signs."""
        data = struct.pack("<I", CURVE_P384)
        return (data + _little(self.x) + _little(self.y)).ljust(KEY_BYTES, b"\0")

    @property
    def digest(self) -> bytes:
        """SHA-384 of the 1028 bytes: ID_KEY_DIGEST or AUTHOR_KEY_DIGEST of a report, 48 bytes."""
        return hashlib.sha384(self.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """An ECDSA signature over P-384: two numbers, each from 1 to the order of the curve less one."""

    r: int
    s: int

    def __post_init__(self) -> None:
        for name in ("r", "s"):
            if not 0 < getattr(self, name) < P384_ORDER:
                raise FormatError(f"signature {name} is out of range; required: 1 to the order of p-384 less one")

    def encode(self) -> bytes:
        """Return the 512 bytes."""
        return (_little(self.r) + _little(self.s)).ljust(SIGNATURE_BYTES, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who vouches for the ID key: the author's `key`, and its `signature` of the ID key's 1028 bytes."""

    key: P384Key
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class IdAuth:
    """Who signed an ID block: the ID key, its signature of the 96 bytes, and its author if it has one."""

    key: P384Key
    signature: Signature
    author: Author | None = None

    def encode(self) -> bytes:
        """Return the 4096 bytes."""
        return _AUTH.pack(
            ALGORITHM_P384_SHA384,
            ALGORITHM_P384_SHA384,
            b"",
            self.signature.encode(),
            self.key.encode(),
            b"",
            b"" if self.author is None else self.author.signature.encode(),
            b"" if self.author is None else self.author.key.encode(),
            b"",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchIdentity:
    """What a launch is signed as: the ID block, and who signed it."""

    block: IdBlock
    auth: IdAuth


def parse_id_auth(data: bytes) -> IdAuth:
    """Read the 4096 bytes of an ID authentication (unverified).

    Raises:
        FormatError: another size, algorithm or curve, a point off the curve, a number out of range, or a byte that is
            not zero where none may be.
    """
    if len(data) != ID_AUTH_BYTES:
        raise FormatError(f"id auth has {len(data)} bytes; required: {ID_AUTH_BYTES}")
    algorithm, author_algorithm, gap, signature, key, gap2, author_signature, author_key, gap3 = _AUTH.unpack(data)
    if any(gap) or any(gap2) or any(gap3):
        raise FormatError("id auth has bytes that are not zero in its reserved parts; required: zero")
    if algorithm != ALGORITHM_P384_SHA384:
        raise FormatError(f"id auth algorithm is {algorithm}; required: {ALGORITHM_P384_SHA384} (ecdsa p-384, sha-384)")
    author = None
    if any(author_key) or any(author_signature):
        author = Author(key=parse_key(author_key), signature=_signature(author_signature))
    if author_algorithm != ALGORITHM_P384_SHA384 and (author is not None or author_algorithm):
        raise FormatError(f"id auth author's algorithm is {author_algorithm}; required: {ALGORITHM_P384_SHA384}")
    return IdAuth(key=parse_key(key), signature=_signature(signature), author=author)


def parse_key(data: bytes) -> P384Key:
    """Read the 1028 bytes of a key (unverified).

    Raises:
        FormatError: another size or curve, a point off the curve, or bytes in use that must be zero.
    """
    if len(data) != KEY_BYTES:
        raise FormatError(f"id key has {len(data)} bytes; required: {KEY_BYTES}")
    curve = int.from_bytes(data[:4], "little")
    if curve != CURVE_P384:
        raise FormatError(f"id key curve is {curve}; required: {CURVE_P384} (p-384)")
    if any(data[4 + 2 * _COORDINATE :]):
        raise FormatError("id key has bytes that are not zero behind its coordinates; required: zero")
    return P384Key(x=_number(data, 4), y=_number(data, 4 + _COORDINATE))


def _signature(data: bytes) -> Signature:
    if any(data[2 * _COORDINATE :]):
        raise FormatError("signature has bytes that are not zero behind its numbers; required: zero")
    return Signature(r=_number(data, 0), s=_number(data, _COORDINATE))


def _number(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + _COORDINATE], "little")


def _little(number: int) -> bytes:
    return number.to_bytes(_COORDINATE, "little")
