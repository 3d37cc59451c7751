# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Firmware that this file makes itself, one field wrong at a time."""

import contextlib
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.measure.ovmf import MAX_FIRMWARE_BYTES, Firmware, Section, SectionKind, check_size, parse_firmware

FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
RESET = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
HASH_TABLE = "7255371f-3a3b-4b04-927b-1da6efa8d454"
METADATA = "dc886566-984a-4798-a75e-5585a7bf67cc"

SECTIONS = (
    (0x800000, 0x9000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x810000, 0x1000, 0x10),
)


def entry(guid: str, data: bytes, length: int | None = None) -> bytes:
    return data + struct.pack("<H", len(data) + 18 if length is None else length) + uuid.UUID(guid).bytes_le


def metadata(sections=SECTIONS, *, magic=b"ASEV", version=1, count=None, size=None) -> bytes:
    body = b"".join(struct.pack("<III", *section) for section in sections)
    count = len(sections) if count is None else count
    return struct.pack("<4sIII", magic, 16 + len(body) if size is None else size, version, count) + body


def firmware(
    *,
    meta: bytes | None = None,
    offset: int | None = None,
    table=(0x810C00, 0x400),
    reset: bytes = struct.pack("<I", 0x80B004),
    extra: bytes = b"",
    total: int | None = None,
    pages: int = 2,
    footer_guid: str = FOOTER,
) -> bytes:
    meta = metadata() if meta is None else meta
    image = bytearray(pages * 4096)
    where = 2048
    image[-where : -where + len(meta)] = meta
    table_entry = b"" if table is None else entry(HASH_TABLE, struct.pack("<II", *table))
    entries = (
        extra
        + table_entry
        + entry(METADATA, struct.pack("<I", where if offset is None else offset))
        + entry(RESET, reset)
    )
    footer = entries + entry(footer_guid, b"", len(entries) + 18 if total is None else total)
    image[-32 - len(footer) : -32] = footer
    return bytes(image)


def test_reads_every_field():
    assert parse_firmware(firmware()) == Firmware(
        size=8192,
        gpa=0x1_0000_0000 - 8192,
        reset_eip=0x80B004,
        hash_table_gpa=0x810C00,
        hash_table_size=0x400,
        sections=tuple(Section(gpa=g, size=s, kind=SectionKind(k)) for g, s, k in SECTIONS),
    )


def test_a_foreign_footer_entry_is_passed_over():
    extra = entry("4c2eb361-7d9b-4cc3-8081-127c90d3d294", bytes(8))
    assert parse_firmware(firmware(extra=extra)) == parse_firmware(firmware())


def test_has_kernel_hashes_needs_table_and_section():
    assert parse_firmware(firmware()).has_kernel_hashes
    without_section = firmware(meta=metadata(SECTIONS[:3]))
    assert not parse_firmware(without_section).has_kernel_hashes


@pytest.mark.parametrize(
    ("image", "field"),
    [
        (b"", "firmware size"),
        (firmware() + b"\0", "firmware size"),
        (bytes(8192), "no guided footer"),
        (firmware(footer_guid=RESET), "no guided footer"),
        (firmware(total=17), "footer length"),
        (firmware(total=9000), "footer length"),
        (firmware(total=18), "no ap reset address"),
        (firmware(extra=b"123"), "stray bytes"),
        (firmware(extra=entry(RESET, bytes(4))), "occurs twice"),
        (firmware(extra=entry("4c2eb361-7d9b-4cc3-8081-127c90d3d294", bytes(8), 17)), "entry length"),
        (firmware(extra=entry("4c2eb361-7d9b-4cc3-8081-127c90d3d294", bytes(8), 27)), "entry length"),
        (firmware(reset=bytes(5)), "ap reset has 5 bytes"),
        (firmware(offset=15), "metadata offset"),
        (firmware(offset=8193), "metadata offset"),
        (firmware(offset=2047), "metadata is"),
        (firmware(meta=metadata(magic=b"ASEW")), "metadata is"),
        (firmware(meta=metadata(version=2)), "metadata is"),
        (firmware(meta=metadata(count=0)), "0 sections"),
        (firmware(meta=metadata(count=65)), "65 sections"),
        (firmware(meta=metadata(size=63)), "metadata size"),
        (firmware(meta=metadata(((0x800000, 0x1000, 5),))), "section type is 0x5"),
        (firmware(meta=metadata(((0x800800, 0x1000, 1),))), "SEC_MEM is 0x1000 bytes at 0x800800"),
        (firmware(meta=metadata(((0x800000, 0x1800, 1),))), "SEC_MEM is 0x1800 bytes"),
        (firmware(meta=metadata(((0x800000, 0, 1),))), "SEC_MEM is 0x0 bytes"),
        (firmware(meta=metadata(((0x800000, 0x2000, 2),))), "SECRETS is 0x2000 bytes"),
        (firmware(meta=metadata(((0x800000, 0x2000, 3),))), "CPUID is 0x2000 bytes"),
        (firmware(meta=metadata(((0x800000, 0x2000, 1), (0x801000, 0x1000, 2)))), "SECRETS at 0x801000 overlaps"),
        (firmware(meta=metadata(((0xFFFFE000, 0x1000, 1),))), "metadata ends at 0xfffff000"),
        (firmware(meta=metadata(((0x100000, 0x4001000, 1),))), "covers more than"),
        (firmware(meta=metadata(((0x810000, 0x1000, 16), (0x820000, 0x1000, 16)))), "more than one KERNEL_HASHES"),
        (firmware(table=None), "no hash table entry"),
        (firmware(table=(0x80FC00, 0x400)), "firmware hash table is 0x400 bytes at 0x80fc00"),
        (firmware(table=(0x810C01, 0x400)), "firmware hash table is 0x400 bytes at 0x810c01"),
    ],
)
def test_one_wrong_field_is_refused(image, field):
    with pytest.raises(FormatError) as refusal:
        parse_firmware(image)
    assert field in refusal.value.message


def test_metadata_that_runs_off_the_image_is_refused():
    image = bytearray(firmware(meta=b""))
    image[-16:] = metadata(count=4, size=64)[:16]  # header in the last 16 bytes, sections beyond the end
    with pytest.raises(FormatError) as refusal:
        parse_firmware(bytes(image[:-32]) + bytes(image[-32:-16]) + bytes(image[-16:]))
    assert "metadata" in refusal.value.message
    at_the_end = bytearray(firmware(offset=16, meta=b""))
    at_the_end[-16:] = struct.pack("<4sIII", b"ASEV", 64, 1, 4)
    with pytest.raises(FormatError) as refusal:
        parse_firmware(bytes(at_the_end))
    assert "metadata size" in refusal.value.message


@given(st.binary(max_size=600), st.integers(0, 3))
def test_any_bytes_give_firmware_or_format_error(tail, pages):
    """Random tails of whole pages: mostly refused, never anything but FormatError."""
    image = tail.rjust(4096 * pages, b"\xff") if pages else tail
    with contextlib.suppress(FormatError):
        parse_firmware(image)


@given(st.data())
def test_any_damage_to_a_real_layout_gives_firmware_or_format_error(data):
    image = bytearray(firmware())
    for _ in range(data.draw(st.integers(1, 4))):
        # The descriptor and the footer are where a parser can be led astray.
        start = data.draw(st.sampled_from([len(image) - 2048, len(image) - 32 - 90]))
        image[start + data.draw(st.integers(0, 89))] = data.draw(st.integers(0, 255))
    try:
        parsed = parse_firmware(bytes(image))
    except FormatError:
        return
    assert all(s.gpa % 4096 == 0 and s.gpa + s.size <= parsed.gpa for s in parsed.sections)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "firmware size is 0 bytes"),
        (-4096, "firmware size is -4096"),
        (4097, "a multiple of 4096"),
        (MAX_FIRMWARE_BYTES + 4096, f"required: at most {MAX_FIRMWARE_BYTES}"),
    ],
)
def test_a_size_that_no_firmware_has_is_refused(size, said):
    with pytest.raises(FormatError, match=said):
        check_size(size)


@pytest.mark.parametrize("size", [4096, MAX_FIRMWARE_BYTES])
def test_the_least_and_the_largest_size_are_accepted(size):
    check_size(size)
