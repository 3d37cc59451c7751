# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Check a LUKS2 header before cryptsetup is shown it: exactly the one shape that cvmtool makes, nothing else.

Zone: guest (measured). Pure: no I/O.
Spec: LUKS2 On-Disk Format Specification 1.1.1, sections 2 and 3; docs/protocol.md section 10.

A header decides which cipher protects the payload. One that names the null cipher, a second key slot or a token turns
"the key was accepted" into nothing (CVE-2025-59054 and its like). The header's digest already stands in the job
manifest; this check says what such a header may be at all, so that a mistake at the packing end fails closed too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct

from cvmtool.errors import FormatError
from cvmtool.formats.pack import BLOCK, HEADER_SIZE, PACK_CIPHER, VOLUME_KEY_SIZE, PackDescriptor
from cvmtool.formats.wire import JsonObject, members, natural, parse_base64, parse_json, typed

# magic[6], version, header size, sequence, label[48], checksum algorithm[32], salt[64], UUID[40], subsystem[48],
# header offset, padding[184], checksum[64], padding[3584]; big endian.
_BINARY = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s3584s")
_CHECKSUM = slice(448, 512)
_AREA = 16_384  # bytes of one copy: 4096 binary, the rest JSON
_MAGIC = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
_STRIPES = 4_000
_MAX_ITERATIONS = 10_000_000  # seconds of work at most, even emulated
_AF_SIZE = VOLUME_KEY_SIZE * _STRIPES  # bytes of key material in the slot


def check_header(data: bytes, pack: PackDescriptor) -> None:
    """Check the first `HEADER_SIZE` bytes of a pack's LUKS container (unverified) against its descriptor.

    1. It is the header that the manifest names, by SHA-256.
    2. Both copies are whole and say the same: cryptsetup would take the one with the higher sequence number.
    3. UUID and metadata are the descriptor's: one key slot, one segment, one digest, no token, no requirement.

    Raises:
        FormatError: anything else.
    """
    if len(data) != HEADER_SIZE:
        raise FormatError(f"luks header has {len(data)} bytes; {HEADER_SIZE} are required")
    found = hashlib.sha256(data).hexdigest()  # (1)
    if not hmac.compare_digest(found, pack.header_sha256):
        raise FormatError(f"luks header sha-256 is {found}; the manifest requires {pack.header_sha256}")
    first = _copy(data, 0)  # (2)
    if _copy(data, 1) != first:
        raise FormatError("luks header copies differ; they must say the same")
    uuid, _, metadata = first
    if uuid != pack.luks_uuid.encode("ascii"):  # (3)
        raise FormatError(f"luks uuid is {uuid!r}; the manifest requires {pack.luks_uuid}")
    _check_metadata(parse_json(metadata, what="luks metadata", limit=_AREA), pack.volume_key_digest)


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


def _check_metadata(metadata: JsonObject, volume_key_digest: str) -> None:
    what = "luks metadata"
    members(metadata, what=what, required={"keyslots", "tokens", "segments", "digests", "config"})
    if metadata["tokens"] != {}:
        raise FormatError(f"{what}.tokens is not empty; none may be")
    _check_keyslot(_only(metadata, "keyslots"))
    _check_segment(_only(metadata, "segments"))
    _check_digest(_only(metadata, "digests"), volume_key_digest)
    config = typed(metadata, "config", dict, what=what)
    members(config, what=f"{what}.config", required={"json_size", "keyslots_size"})  # so: no flags, no requirements
    _equal(config, "json_size", str(_AREA - _BINARY.size), what=f"{what}.config")
    _equal(config, "keyslots_size", str(HEADER_SIZE - 2 * _AREA), what=f"{what}.config")


def _check_keyslot(slot: JsonObject) -> None:
    what = "luks keyslot"
    members(slot, what=what, required={"type", "key_size", "af", "area", "kdf"})
    _equal(slot, "type", "luks2", what=what)
    _equal(slot, "key_size", VOLUME_KEY_SIZE, what=what)
    if slot["af"] != {"type": "luks1", "stripes": _STRIPES, "hash": "sha256"}:
        raise FormatError(f"{what}.af is {str(slot['af'])[:60]}; luks1 with {_STRIPES} stripes and sha256 is required")
    area = typed(slot, "area", dict, what=what)
    members(area, what=f"{what}.area", required={"type", "offset", "size", "encryption", "key_size"})
    _equal(area, "type", "raw", what=f"{what}.area")
    _equal(area, "encryption", PACK_CIPHER, what=f"{what}.area")
    _equal(area, "key_size", VOLUME_KEY_SIZE, what=f"{what}.area")
    offset, size = _decimal(area, "offset"), _decimal(area, "size")
    if offset < 2 * _AREA or size < _AF_SIZE or offset + size > HEADER_SIZE:
        raise FormatError(f"{what}.area is {size} bytes at {offset}; it must lie between metadata and payload")
    kdf = typed(slot, "kdf", dict, what=what)
    members(kdf, what=f"{what}.kdf", required={"type", "hash", "iterations", "salt"})
    _equal(kdf, "type", "pbkdf2", what=f"{what}.kdf")
    _equal(kdf, "hash", "sha256", what=f"{what}.kdf")
    natural(kdf, "iterations", what=f"{what}.kdf", least=1_000, most=_MAX_ITERATIONS)
    parse_base64(kdf["salt"], what=f"{what}.kdf.salt", limit=64)


def _check_segment(segment: JsonObject) -> None:
    what = "luks segment"
    members(segment, what=what, required={"type", "offset", "size", "iv_tweak", "encryption", "sector_size"})
    for key, required in (
        ("type", "crypt"),
        ("offset", str(HEADER_SIZE)),
        ("size", "dynamic"),
        ("iv_tweak", "0"),
        ("encryption", PACK_CIPHER),
        ("sector_size", BLOCK),
    ):
        _equal(segment, key, required, what=what)


def _check_digest(digest: JsonObject, volume_key_digest: str) -> None:
    what = "luks digest"
    members(digest, what=what, required={"type", "keyslots", "segments", "hash", "iterations", "salt", "digest"})
    for key, required in (
        ("type", "pbkdf2"),
        ("keyslots", ["0"]),
        ("segments", ["0"]),
        ("hash", "sha256"),
        ("digest", volume_key_digest),
    ):
        _equal(digest, key, required, what=what)
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
