# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Check a LUKS2 header before cryptsetup is shown it: exactly the one shape that cvmtool makes, nothing else.

Zone: guest (measured). Pure: no I/O.
Spec: LUKS2 On-Disk Format Specification 1.1.1, sections 2 and 3; docs/protocol.md sections 10 and 12.

A header decides which cipher protects the payload. One that names the null cipher, a second key slot or a token turns
"the key was accepted" into nothing (CVE-2025-59054 and its like). A pack's header stands in the job manifest by its
digest as well; this check says what such a header may be at all, so that a mistake at the packing end fails closed too. A
volume's header is made in a guest, after the launch: here the check is all there is, and what proves the header to
be ours is that its key slot opens with a passphrase that nobody else has.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.pack import BLOCK, HEADER_SIZE, PACK_CIPHER, VOLUME_KEY_SIZE, PackDescriptor
from cvmtool.formats.volume import Volume
from cvmtool.formats.wire import JsonObject, members, natural, parse_base64, parse_json, typed

# magic[6], version, header size, sequence, label[48], checksum algorithm[32], salt[64], UUID[40], subsystem[48],
# header offset, padding[184], checksum[64], padding[3584]; big endian.
_BINARY = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s3584s")
_CHECKSUM = slice(448, 512)
_AREA = 16_384  # bytes of one copy: 4096 binary, the rest JSON
_MAGIC = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
_STRIPES = 4_000
_MAX_ITERATIONS = 10_000_000  # seconds of work at most, even emulated
_MAC_KEY_SIZE = 32  # bytes, HMAC-SHA-256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What may differ between the headers of packs and of volumes."""

    uuid: str
    key_size: int
    """Bytes of the volume key: of the cipher, and of the authentication where there is one."""
    integrity: JsonObject | None
    volume_key_digest: str | None
    """As base64; None: any."""


def check_header(data: bytes, pack: PackDescriptor) -> None:
    """Check the first `HEADER_SIZE` bytes of a pack's LUKS container (unverified) against its descriptor.

    It must be the header that the manifest names, by SHA-256; and then of the one shape.

    Raises:
        FormatError: anything else.
    """
    _require_size(data)
    found = hashlib.sha256(data).hexdigest()
    if not hmac.compare_digest(found, pack.header_sha256):
        raise FormatError(f"luks header sha-256 is {found}; the manifest requires {pack.header_sha256}")
    shape = _Shape(
        uuid=pack.luks_uuid,
        key_size=VOLUME_KEY_SIZE,
        integrity=None,
        volume_key_digest=pack.volume_key_digest,
    )
    _check(data, shape)


def check_volume_header(data: bytes, volume: Volume) -> None:
    """Check the first `HEADER_SIZE` bytes of a volume (unverified) against what the manifest says of it.

    Raises:
        FormatError: not of the one shape: AES-256-XTS with HMAC-SHA-256 over each sector, and the volume's UUID.
    """
    shape = _Shape(
        uuid=volume.luks_uuid,
        key_size=VOLUME_KEY_SIZE + _MAC_KEY_SIZE,
        integrity={"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"},
        volume_key_digest=None,
    )
    _check(data, shape)


def _check(data: bytes, shape: _Shape) -> None:
    """Check a header.

    1. Both copies are whole and say the same: cryptsetup would take the one with the higher sequence number.
    2. UUID and metadata are the shape's: one key slot, one segment, one digest, no token, no requirement.
    """
    _require_size(data)
    first = _copy(data, 0)
    if _copy(data, 1) != first:
        raise FormatError("luks header copies differ; they must say the same")
    uuid, _, metadata = first
    if uuid != shape.uuid.encode("ascii"):
        raise FormatError(f"luks uuid is {uuid!r}; the manifest requires {shape.uuid}")
    _check_metadata(parse_json(metadata, what="luks metadata", limit=_AREA), shape)


def _require_size(data: bytes) -> None:
    if len(data) != HEADER_SIZE:
        raise FormatError(f"luks header has {len(data)} bytes; {HEADER_SIZE} are required")


def _copy(data: bytes, index: int) -> tuple[bytes, int, bytes]:
    """Return UUID, sequence number and JSON of one copy of the header, after checking its binary part."""
    area = data[index * _AREA : (index + 1) * _AREA]
    if len(area) != _AREA:
        raise FormatError(f"luks header copy {index} has {len(area)} bytes; {_AREA} are required")
    magic, version, size, sequence, label, algorithm, _salt, uuid, subsystem, offset, pad1, checksum, pad2 = (
        _BINARY.unpack_from(area)
    )
    for field, actual, required in (
        ("magic", magic, _MAGIC[index]),
        ("version", version, 2),
        ("size", size, _AREA),
        ("label", label.strip(b"\0"), b""),
        ("checksum algorithm", algorithm.rstrip(b"\0"), b"sha256"),
        ("subsystem", subsystem.strip(b"\0"), b""),
        ("offset", offset, index * _AREA),
        ("padding", (pad1 + pad2).strip(b"\0"), b""),
    ):
        if actual != required:
            raise FormatError(f"luks header copy {index} {field} is {actual!r:.60}; {required!r} is required")
    blank = area[: _CHECKSUM.start] + bytes(64) + area[_CHECKSUM.stop :]
    if checksum != hashlib.sha256(blank).digest().ljust(64, b"\0"):
        raise FormatError(f"luks header copy {index} does not have the checksum it claims")
    metadata = area[_BINARY.size :].rstrip(b"\0")
    if b"\0" in metadata:
        raise FormatError(f"luks header copy {index} has bytes behind its metadata; zeros are required")
    return uuid.rstrip(b"\0"), sequence, metadata


def _check_metadata(metadata: JsonObject, shape: _Shape) -> None:
    what = "luks metadata"
    members(metadata, what=what, required={"keyslots", "tokens", "segments", "digests", "config"})
    if metadata["tokens"] != {}:
        raise FormatError(f"{what}.tokens is not empty; none may be")
    _check_keyslot(_only(metadata, "keyslots"), shape.key_size)
    _check_segment(_only(metadata, "segments"), shape.integrity)
    _check_digest(_only(metadata, "digests"), shape.volume_key_digest)
    config = typed(metadata, "config", dict, what=what)
    members(config, what=f"{what}.config", required={"json_size", "keyslots_size"})  # so: no flags, no requirements
    _equal(config, "json_size", str(_AREA - _BINARY.size), what=f"{what}.config")
    _equal(config, "keyslots_size", str(HEADER_SIZE - 2 * _AREA), what=f"{what}.config")


def _check_keyslot(slot: JsonObject, key_size: int) -> None:
    what = "luks keyslot"
    members(slot, what=what, required={"type", "key_size", "af", "area", "kdf"})
    _equal(slot, "type", "luks2", what=what)
    _equal(slot, "key_size", key_size, what=what)
    if slot["af"] != {"type": "luks1", "stripes": _STRIPES, "hash": "sha256"}:
        raise FormatError(f"{what}.af is {str(slot['af'])[:60]}; luks1 with {_STRIPES} stripes and sha256 is required")
    area = typed(slot, "area", dict, what=what)
    members(area, what=f"{what}.area", required={"type", "offset", "size", "encryption", "key_size"})
    _equal(area, "type", "raw", what=f"{what}.area")
    _equal(area, "encryption", PACK_CIPHER, what=f"{what}.area")
    _equal(area, "key_size", VOLUME_KEY_SIZE, what=f"{what}.area")
    offset, size = _decimal(area, "offset"), _decimal(area, "size")
    if offset < 2 * _AREA or size < key_size * _STRIPES or offset + size > HEADER_SIZE:
        raise FormatError(f"{what}.area is {size} bytes at {offset}; it must lie between metadata and payload")
    kdf = typed(slot, "kdf", dict, what=what)
    members(kdf, what=f"{what}.kdf", required={"type", "hash", "iterations", "salt"})
    _equal(kdf, "type", "pbkdf2", what=f"{what}.kdf")
    _equal(kdf, "hash", "sha256", what=f"{what}.kdf")
    natural(kdf, "iterations", what=f"{what}.kdf", least=1_000, most=_MAX_ITERATIONS)
    parse_base64(kdf["salt"], what=f"{what}.kdf.salt", limit=64)


def _check_segment(segment: JsonObject, integrity: JsonObject | None) -> None:
    what = "luks segment"
    required = {"type", "offset", "size", "iv_tweak", "encryption", "sector_size"}
    if integrity is not None:
        required.add("integrity")
    members(segment, what=what, required=required)
    if segment.get("integrity") != integrity:
        raise FormatError(f"{what}.integrity is {str(segment['integrity'])[:120]}; {integrity} is required")
    for key, value in (
        ("type", "crypt"),
        ("offset", str(HEADER_SIZE)),
        ("size", "dynamic"),
        ("iv_tweak", "0"),
        ("encryption", PACK_CIPHER),
        ("sector_size", BLOCK),
    ):
        _equal(segment, key, value, what=what)


def _check_digest(digest: JsonObject, volume_key_digest: str | None) -> None:
    what = "luks digest"
    members(digest, what=what, required={"type", "keyslots", "segments", "hash", "iterations", "salt", "digest"})
    for key, required in (
        ("type", "pbkdf2"),
        ("keyslots", ["0"]),
        ("segments", ["0"]),
        ("hash", "sha256"),
    ):
        _equal(digest, key, required, what=what)
    if volume_key_digest is not None:
        _equal(digest, "digest", volume_key_digest, what=what)
    if len(parse_base64(digest["digest"], what=f"{what}.digest", limit=32)) != 32:
        raise FormatError(f"{what}.digest is {digest['digest']!r}; base64 of 32 bytes is required")
    natural(digest, "iterations", what=what, least=1_000, most=_MAX_ITERATIONS)
    parse_base64(digest["salt"], what=f"{what}.salt", limit=64)


def _only(metadata: JsonObject, key: str) -> JsonObject:
    """Return the one object, called "0", in a section of the metadata."""
    section = typed(metadata, key, dict, what="luks metadata")
    members(section, what=f"luks metadata.{key}", required={"0"})
    return typed(section, "0", dict, what=f"luks metadata.{key}")


def _equal(value: JsonObject, key: str, required: object, *, what: str) -> None:
    actual = value.get(key)
    if type(actual) is not type(required) or actual != required:
        raise FormatError(f"{what}.{key} is {str(actual)[:60]!r}; {required!r} is required")


def _decimal(value: JsonObject, key: str) -> int:
    """Return a 64-bit number that LUKS2 spells as a decimal string."""
    text = value.get(key)
    if not isinstance(text, str) or not re.fullmatch(r"0|[1-9][0-9]{0,18}", text):
        raise FormatError(f"luks keyslot.area.{key} is {str(text)[:60]!r}; a decimal string is required")
    return int(text)
