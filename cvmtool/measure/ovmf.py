# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Read what a firmware image says about its own SEV-SNP launch: hash table, metadata sections, AP reset address.

Zone: measure (shared mathematics). Pure: no I/O.
Spec: edk2 OvmfPkg/ResetVector (GUIDed footer table, SEV metadata "ASEV").

The footer ends 32 bytes before the end of the file and is read backwards: `data | u16 length | GUID`, the outermost
entry giving the length of the whole table. GUIDs are mixed-endian (`bytes_le`), integers little-endian.
Whoever chose the firmware is not trusted here: every offset is checked before it is followed.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from enum import IntEnum

from cvmtool.errors import FormatError

PAGE_SIZE = 4096
ADDRESS_CEILING = 1 << 32
"""Firmware is mapped so that it ends here (4 GiB)."""

MAX_FIRMWARE_BYTES = 64 << 20
MAX_SECTIONS = 64
MAX_SECTION_BYTES = 64 << 20
"""All metadata sections together; edk2 uses 188 KiB."""

_FOOTER_END = 32
_ENTRY_TRAILER = 18
_METADATA_HEADER = 16
_METADATA_ENTRY = 12
_METADATA_MAGIC = b"ASEV"
_METADATA_VERSION = 1

_FOOTER_GUID = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
_RESET_GUID = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e").bytes_le
_HASH_TABLE_GUID = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454").bytes_le
_METADATA_GUID = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc").bytes_le


class SectionKind(IntEnum):
    """Types of the SEV metadata sections (edk2 OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm)."""

    SEC_MEM = 1
    SECRETS = 2
    CPUID = 3
    SVSM_CAA = 4
    KERNEL_HASHES = 0x10


_ONE_PAGE = frozenset({SectionKind.SECRETS, SectionKind.CPUID, SectionKind.KERNEL_HASHES})


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A range of guest memory that the launch prepares: `gpa` and `size` in bytes, both multiples of 4096."""

    gpa: int
    size: int
    kind: SectionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """What the launch needs to know of a firmware image.

    `size` and `gpa` in bytes; `reset_eip` is where application processors start. `hash_table_gpa` is where the 176-byte
    table of kernel hashes goes (None: the firmware cannot check a kernel) and `hash_table_size` the room it has there.
    """

    size: int
    gpa: int
    reset_eip: int
    hash_table_gpa: int | None
    hash_table_size: int
    sections: tuple[Section, ...]

    @property
    def has_kernel_hashes(self) -> bool:
        """Whether a kernel given with this firmware is measured: it has the table *and* the measured section."""
        return self.hash_table_gpa is not None and any(s.kind is SectionKind.KERNEL_HASHES for s in self.sections)


def parse_firmware(data: bytes) -> Firmware:
    """Read the footer table and SEV metadata of the firmware image `data` (unverified bytes).

    Raises:
        FormatError: the image is not whole pages, has no SEV-SNP metadata, or a length or address is out of bounds.
    """
    check_size(len(data))
    entries = _footer_entries(data)
    reset = _fixed_entry(entries, _RESET_GUID, "ap reset", "<I")
    metadata = _fixed_entry(entries, _METADATA_GUID, "sev metadata", "<I")
    if reset is None or metadata is None:
        missing = "ap reset address" if reset is None else "sev metadata"
        raise FormatError(
            f"firmware has no {missing} in its footer; required for sev-snp",
            hint="use an edk2 build with SEV-SNP support, such as OVMF.amdsev.fd",
        )
    sections = _sections(data, metadata[0])
    table_gpa, table_size = _fixed_entry(entries, _HASH_TABLE_GUID, "hash table", "<II") or (None, 0)
    return make_firmware(
        size=len(data), reset_eip=reset[0], hash_table_gpa=table_gpa, hash_table_size=table_size, sections=sections
    )


def make_firmware(
    *, size: int, reset_eip: int, hash_table_gpa: int | None, hash_table_size: int, sections: tuple[Section, ...]
) -> Firmware:
    """Return a firmware whose ranges do not contradict each other; sizes in bytes, addresses of the guest.

    Raises:
        FormatError: sections overlap, reach into the firmware, are too many bytes, or do not hold the hash table.
    """
    gpa = ADDRESS_CEILING - size
    _check_ranges(sections, gpa)
    _check_hash_table(hash_table_gpa, hash_table_size, sections)
    return Firmware(
        size=size,
        gpa=gpa,
        reset_eip=reset_eip,
        hash_table_gpa=hash_table_gpa,
        hash_table_size=hash_table_size,
        sections=sections,
    )


def check_size(size: int) -> None:
    """Refuse a firmware size (bytes) that no image has.

    Raises:
        FormatError: nothing, not whole pages, or more than 64 MiB.
    """
    if size <= 0 or size % PAGE_SIZE:
        raise FormatError(
            f"firmware size is {size} bytes; required: a multiple of {PAGE_SIZE}",
            hint="is this the .fd file of an edk2 build, such as OVMF.amdsev.fd?",
        )
    if size > MAX_FIRMWARE_BYTES:
        raise FormatError(f"firmware size is {size} bytes; required: at most {MAX_FIRMWARE_BYTES}")


def _footer_entries(data: bytes) -> dict[bytes, bytes]:
    """Walk the footer table backwards: GUID -> data. A GUID that occurs twice is refused: readers would differ."""
    end = len(data) - _FOOTER_END
    if data[end - 16 : end] != _FOOTER_GUID:
        raise FormatError(
            "firmware has no guided footer table 32 bytes before its end",
            hint="is this the .fd file of an edk2 build, such as OVMF.amdsev.fd?",
        )
    (total,) = struct.unpack_from("<H", data, end - _ENTRY_TRAILER)
    if not _ENTRY_TRAILER <= total <= end:
        raise FormatError(f"firmware footer length is {total}; required: {_ENTRY_TRAILER} to {end}")
    start, cursor = end - total, end - _ENTRY_TRAILER
    entries: dict[bytes, bytes] = {}
    while cursor > start:
        if cursor - start < _ENTRY_TRAILER:
            raise FormatError(f"firmware footer has {cursor - start} stray bytes; required: whole entries")
        guid = data[cursor - 16 : cursor]
        (length,) = struct.unpack_from("<H", data, cursor - _ENTRY_TRAILER)
        if not _ENTRY_TRAILER <= length <= cursor - start:
            raise FormatError(
                f"firmware footer entry length is {length}; required: {_ENTRY_TRAILER} to {cursor - start}",
                detail=str(uuid.UUID(bytes_le=guid)),
            )
        if guid in entries:
            raise FormatError(f"firmware footer entry {uuid.UUID(bytes_le=guid)} occurs twice; required: once")
        entries[guid] = data[cursor - length : cursor - _ENTRY_TRAILER]
        cursor -= length
    return entries


def _fixed_entry(entries: dict[bytes, bytes], guid: bytes, name: str, layout: str) -> tuple[int, ...] | None:
    value = entries.get(guid)
    if value is None:
        return None
    if len(value) != struct.calcsize(layout):
        raise FormatError(f"firmware footer entry {name} has {len(value)} bytes; required: {struct.calcsize(layout)}")
    return struct.unpack(layout, value)


def _sections(data: bytes, offset_from_end: int) -> tuple[Section, ...]:
    """Read the ASEV descriptor that starts `offset_from_end` bytes before the end of `data`."""
    if not _METADATA_HEADER <= offset_from_end <= len(data):
        raise FormatError(
            f"firmware sev metadata offset is {offset_from_end}; required: {_METADATA_HEADER} to {len(data)}"
        )
    start = len(data) - offset_from_end
    magic, size, version, count = struct.unpack_from("<4sIII", data, start)
    if magic != _METADATA_MAGIC or version != _METADATA_VERSION:
        raise FormatError(
            f"firmware sev metadata is {magic.hex()} version {version}; "
            f"required: {_METADATA_MAGIC.hex()} version {_METADATA_VERSION}"
        )
    if not 1 <= count <= MAX_SECTIONS:
        raise FormatError(f"firmware sev metadata has {count} sections; required: 1 to {MAX_SECTIONS}")
    if size != _METADATA_HEADER + count * _METADATA_ENTRY or size > offset_from_end:
        raise FormatError(
            f"firmware sev metadata size is {size}; required: {_METADATA_HEADER + count * _METADATA_ENTRY} "
            f"for {count} sections, inside the image"
        )
    return tuple(
        make_section(*struct.unpack_from("<III", data, start + _METADATA_HEADER + index * _METADATA_ENTRY))
        for index in range(count)
    )


def make_section(gpa: int, size: int, kind: int) -> Section:
    """Return the section of `size` bytes at `gpa`.

    Raises:
        FormatError: an unknown type, not whole pages, or more than one page where one is the rule.
    """
    try:
        known = SectionKind(kind)
    except ValueError:
        # Skipping it would give a digest that no launch can have, or one that leaves a page out.
        raise FormatError(
            f"firmware sev metadata section type is {kind:#x}; required: one of "
            + ", ".join(f"{k.value:#x}" for k in SectionKind),
            hint="is there a newer cvmtool that knows this firmware?",
        ) from None
    if gpa % PAGE_SIZE or size % PAGE_SIZE or not size:
        raise FormatError(
            f"firmware sev metadata section {known.name} is {size:#x} bytes at {gpa:#x}; required: whole pages"
        )
    if known in _ONE_PAGE and size != PAGE_SIZE:
        raise FormatError(f"firmware sev metadata section {known.name} is {size:#x} bytes; required: {PAGE_SIZE:#x}")
    return Section(gpa=gpa, size=size, kind=known)


def _check_ranges(sections: tuple[Section, ...], firmware_gpa: int) -> None:
    """No two ranges overlap, none reaches into the firmware: the processor adds each page once."""
    end = 0
    for section in sorted(sections, key=lambda s: s.gpa):
        if section.gpa < end:
            raise FormatError(f"firmware sev metadata section {section.kind.name} at {section.gpa:#x} overlaps another")
        end = section.gpa + section.size
    if end > firmware_gpa:
        raise FormatError(f"firmware sev metadata ends at {end:#x}; required: at most {firmware_gpa:#x}")
    if sum(s.size for s in sections) > MAX_SECTION_BYTES:
        raise FormatError(f"firmware sev metadata covers more than {MAX_SECTION_BYTES} bytes")
    if sum(s.kind is SectionKind.KERNEL_HASHES for s in sections) > 1:
        raise FormatError("firmware sev metadata has more than one KERNEL_HASHES section; required: at most one")


def _check_hash_table(gpa: int | None, size: int, sections: tuple[Section, ...]) -> None:
    """The table must lie in the page that is measured; elsewhere the host could change it after the launch."""
    page = next((s for s in sections if s.kind is SectionKind.KERNEL_HASHES), None)
    if page is None:
        return
    if gpa is None:
        raise FormatError("firmware has a KERNEL_HASHES section but no hash table entry in its footer")
    if not page.gpa <= gpa or gpa + size > page.gpa + page.size:
        raise FormatError(
            f"firmware hash table is {size:#x} bytes at {gpa:#x}; "
            f"required: inside the measured page {page.gpa:#x} to {page.gpa + page.size:#x}"
        )
