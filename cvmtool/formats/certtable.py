# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The certificate table beside an extended report: GUIDs and blobs that the host chose.

Zone: shared. Pure: no I/O.
Spec: AMD 56421 GHCB, "SNP Extended Guest Request"; Linux configfs-tsm `auxblob`.

    entries of 24 bytes: GUID[16] in RFC 4122 byte order | u32 LE offset | u32 LE length
    an all-zero entry, then the blobs

Nothing here is authenticated: a certificate counts only once it chains to a pinned root.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from enum import StrEnum

from cvmtool.errors import FormatError

MAX_TABLE_BYTES = 64 << 10
MAX_ENTRY_BYTES = 16 << 10
MAX_ENTRIES = 16

_ENTRY = struct.Struct("<16sII")


class CertKind(StrEnum):
    """GUIDs with a known meaning."""

    VCEK = "63da758d-e664-4564-adc5-f4b93be8accd"
    VLEK = "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
    ASK = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
    ARK = "c0b406a4-a803-4952-9743-3fb6014cd0ae"
    CRL = "92f81bc3-5811-4d3d-97ff-d19f88dc67ea"


@dataclass(frozen=True, slots=True)
class CertTable:
    """GUID (lower-case text) and blob of each entry, in table order. Unverified."""

    entries: tuple[tuple[str, bytes], ...] = ()

    def get(self, kind: CertKind) -> bytes | None:
        """Return the blob of `kind`, None when the table has none."""
        return next((blob for guid, blob in self.entries if guid == kind), None)

    def encode(self) -> bytes:
        """Return the table with its blobs behind it in order; no entries: no bytes.

        Raises:
            FormatError: the table would break a bound that `parse_cert_table` enforces.
        """
        if not self.entries:
            return b""
        offset = _ENTRY.size * (len(self.entries) + 1)
        header = bytearray()
        for guid, blob in self.entries:
            header += _ENTRY.pack(uuid.UUID(guid).bytes, offset, len(blob))
            offset += len(blob)
        data = bytes(header) + bytes(_ENTRY.size) + b"".join(blob for _, blob in self.entries)
        parse_cert_table(data)
        return data


def parse_cert_table(data: bytes) -> CertTable:
    """Read a certificate table of at most 64 KiB (unverified). No bytes at all: an empty table.

    Raises:
        FormatError: out of bounds, overlapping, duplicate or oversized entries, no end, or bytes that no entry covers.
    """
    if len(data) > MAX_TABLE_BYTES:
        raise FormatError(f"certificate table has {len(data)} bytes; required: at most {MAX_TABLE_BYTES}")
    if not any(data):
        return CertTable()
    rows = _rows(data)
    start = _ENTRY.size * (len(rows) + 1)
    cursor = start
    for guid, offset, length in sorted(rows, key=lambda row: row[1]):
        if not 0 < length <= MAX_ENTRY_BYTES:
            raise FormatError(f"certificate {guid} has {length} bytes; required: 1 to {MAX_ENTRY_BYTES}")
        if offset < cursor or offset + length > len(data):
            raise FormatError(
                f"certificate {guid} is at {offset} to {offset + length}; required: inside {cursor} to {len(data)}, "
                "clear of the table and of every other"
            )
        if any(data[cursor:offset]):
            raise FormatError(f"certificate table has bytes before {guid} that no entry covers")
        cursor = offset + length
    if any(data[cursor:]):
        raise FormatError(f"certificate table has bytes after {cursor} that no entry covers")
    return CertTable(tuple((guid, data[offset : offset + length]) for guid, offset, length in rows))


def _rows(data: bytes) -> list[tuple[str, int, int]]:
    """Read the header up to the all-zero entry: GUID, offset, length."""
    rows: list[tuple[str, int, int]] = []
    for at in range(0, len(data), _ENTRY.size):
        entry = data[at : at + _ENTRY.size]
        if len(entry) < _ENTRY.size:
            break
        if not any(entry):
            return rows
        raw, offset, length = _ENTRY.unpack(entry)
        guid = str(uuid.UUID(bytes=raw))
        if any(guid == known for known, _, _ in rows):
            raise FormatError(f"certificate {guid} occurs twice; required: once")
        if len(rows) == MAX_ENTRIES:
            raise FormatError(f"certificate table has more than {MAX_ENTRIES} entries")
        rows.append((guid, offset, length))
    raise FormatError("certificate table has no all-zero entry at its end")
