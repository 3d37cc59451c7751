# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Reports of every version, one field wrong at a time."""

import contextlib
import hashlib
import re
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.policybits import GuestPolicy, PlatformInfo
from cvmtool.formats.report import (
    P384_ORDER,
    REPORT_BYTES,
    SIGNED_BYTES,
    VMPL_HOST,
    FirmwareVersion,
    Report,
    SigningKey,
    parse_report,
)
from cvmtool.formats.tcb import Cpuid, ProductLine, Tcb
from tests import vectors

TCB = Tcb(line=ProductLine.GENOA, bootloader=10, tee=0, snp=27, microcode=88).encode()
BASE = Report(
    version=5,
    guest_svn=7,
    policy=GuestPolicy(0x30000),
    family_id=b"F" * 16,
    image_id=b"I" * 16,
    vmpl=1,
    current_tcb=TCB,
    platform_info=PlatformInfo(0x25),
    author_key_en=True,
    mask_chip_key=True,
    signing_key=SigningKey.VLEK,
    report_data=b"D" * 64,
    measurement=b"M" * 48,
    host_data=b"H" * 32,
    id_key_digest=b"K" * 48,
    author_key_digest=b"A" * 48,
    report_id=b"R" * 32,
    report_id_ma=b"\xff" * 32,
    reported_tcb=TCB,
    cpuid=Cpuid(family=0x19, model=0x11, stepping=1),
    chip_id=b"C" * 64,
    committed_tcb=TCB,
    current_firmware=FirmwareVersion(major=1, minor=58, build=3),
    committed_firmware=FirmwareVersion(major=1, minor=55, build=40),
    launch_tcb=TCB,
    launch_mit_vector=0x0B,
    current_mit_vector=0x1B,
    signature_r=P384_ORDER - 1,
    signature_s=1,
)
V2 = replace(BASE, version=2, cpuid=None, launch_mit_vector=0, current_mit_vector=0)
V3 = replace(BASE, version=3, launch_mit_vector=0, current_mit_vector=0)
V4 = replace(BASE, version=4)

FIELDS = {
    "guest_svn": (0x004, 7, "<I"),
    "policy": (0x008, 0x30000, "<Q"),
    "vmpl": (0x030, 1, "<I"),
    "algorithm": (0x034, 1, "<I"),
    "platform_info": (0x040, 0x25, "<Q"),
    "signer_info": (0x048, 0b111, "<I"),
    "cpuid": (0x188, 0x011119, "<I"),
    "current_firmware": (0x1E8, 0x013A03, "<I"),
    "committed_firmware": (0x1EC, 0x013728, "<I"),
    "launch_mit_vector": (0x1F8, 0x0B, "<Q"),
    "current_mit_vector": (0x200, 0x1B, "<Q"),
}
BYTES = {
    "family_id": 0x10,
    "image_id": 0x20,
    "report_data": 0x50,
    "measurement": 0x90,
    "host_data": 0xC0,
    "id_key_digest": 0xE0,
    "author_key_digest": 0x110,
    "report_id": 0x140,
    "report_id_ma": 0x160,
    "reported_tcb": 0x180,
    "chip_id": 0x1A0,
    "committed_tcb": 0x1E0,
    "launch_tcb": 0x1F0,
    "current_tcb": 0x38,
}


def patched(offset, data, base=BASE):
    encoded = bytearray(base.encode())
    encoded[offset : offset + len(data)] = data
    return bytes(encoded)


@pytest.mark.parametrize("report", [V2, V3, V4, BASE], ids=lambda r: f"v{r.version}")
def test_round_trip(report):
    assert len(report.encode()) == REPORT_BYTES
    assert parse_report(report.encode()) == report


@pytest.mark.parametrize("name", FIELDS)
def test_numbers_stand_where_the_specification_says(name):
    offset, value, layout = FIELDS[name]
    assert struct.unpack_from(layout, BASE.encode(), offset) == (value,)


@pytest.mark.parametrize("name", BYTES)
def test_bytes_stand_where_the_specification_says(name):
    value = getattr(BASE, name)
    assert BASE.encode()[BYTES[name] : BYTES[name] + len(value)] == value


def test_signature_is_little_endian_behind_the_signed_bytes():
    encoded = BASE.encode()
    assert int.from_bytes(encoded[0x2A0:0x2E8], "little") == P384_ORDER - 1
    assert int.from_bytes(encoded[0x2E8:0x330], "little") == 1
    assert BASE.signed == encoded[:SIGNED_BYTES]


def test_lines_and_mitigations():
    assert BASE.line is ProductLine.GENOA
    assert V2.line is None
    assert replace(BASE, cpuid=Cpuid(family=0x1A, model=0x50, stepping=0)).line is None
    assert BASE.mitigations == (0x0B, 0x1B)
    assert V4.mitigations is None
    assert V3.mitigations is None


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", "report has 0"),
        (BASE.encode()[:-1], "report has 1183"),
        (BASE.encode() + b"\0", "report has 1185"),
        (patched(0, b"\1"), "report version is 1"),
        (patched(0, b"\6"), "report version is 6"),
        (patched(0x008, bytes(8)), "policy"),
        (patched(0x00C, b"\1"), "policy"),
        (patched(0x030, b"\4"), "vmpl"),
        (patched(0x034, b"\2"), "signature_algo"),
        (patched(0x048, b"\x20"), "signer_info"),
        (patched(0x048, b"\x08"), "signing_key is 2"),
        (patched(0x04C, b"\1"), "reserved bytes at 0x4c"),
        (patched(0x04C, b"X"), "reserved bytes at 0x4c"),
        (patched(0x18B, b"\1"), "reserved bytes at 0x18b"),
        (patched(0x19F, b"\1"), "reserved bytes at 0x18b"),
        (patched(0x1EB, b"\1"), "reserved bytes at 0x1eb"),
        (patched(0x1EF, b"\1"), "reserved bytes at 0x1ef"),
        (patched(0x208, b"\1"), "reserved bytes at 0x208"),
        (patched(0x29F, b"\1"), "reserved bytes at 0x208"),
        (patched(0x330, b"\1"), "reserved bytes at 0x330"),
        (patched(0x49F, b"\1"), "reserved bytes at 0x330"),
        (patched(0x2D0, b"\1"), "signature_r has more"),
        (patched(0x2E7, b"\1"), "signature_r has more"),
        (patched(0x2E7, b"X"), "signature_r has more"),
        (patched(0x318, b"\1"), "signature_s has more"),
        (patched(0x2A0, bytes(48)), "signature_r is out of range"),
        (patched(0x2E8, bytes(48)), "signature_s is out of range"),
        (patched(0x2A0, P384_ORDER.to_bytes(48, "little")), "signature_r is out of range"),
        (patched(0x2E8, P384_ORDER.to_bytes(48, "little")), "signature_s is out of range"),
        (patched(0x188, b"\1", V2), "reserved bytes at 0x188"),
        (patched(0x1F8, b"\1", V3), "mitigation vectors"),
        (patched(0x200, b"\1", V3), "mitigation vectors"),
        (patched(0x1F8, b"\1", V2), "mitigation vectors"),
        (patched(0x38 + 3, b"\1"), "current_tcb"),
        (patched(0x180 + 3, b"\1"), "reported_tcb"),
        (patched(0x1E0 + 3, b"\1"), "committed_tcb"),
        (patched(0x1F0 + 3, b"\1"), "launch_tcb"),
        (patched(0x38 + 4, b"\1", V2), "current_tcb"),
    ],
)
def test_one_wrong_field_is_refused(data, field):
    with pytest.raises(FormatError) as refusal:
        parse_report(data)
    assert re.match(rf"{field}\b", refusal.value.message)


def test_a_turin_tcb_is_read_in_its_own_layout():
    tcb = Tcb(line=ProductLine.TURIN, fmc=1, bootloader=2, tee=3, snp=4, microcode=71)
    cpuid = Cpuid(family=0x1A, model=2, stepping=1)
    names = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
    report = replace(BASE, cpuid=cpuid, **dict.fromkeys(names, tcb.encode()))
    assert parse_report(report.encode()).tcbs(ProductLine.TURIN).launch == tcb
    with pytest.raises(FormatError):
        replace(BASE, cpuid=cpuid)


def test_version_2_waits_for_the_line():
    tcb = Tcb(line=ProductLine.TURIN, fmc=1, bootloader=2, tee=3, snp=4, microcode=71).encode()
    report = parse_report(replace(V2, launch_tcb=tcb).encode())
    with pytest.raises(FormatError) as refusal:
        report.tcbs(ProductLine.MILAN)
    assert refusal.value.message.startswith("launch_tcb")


def test_a_report_that_the_host_asked_for_is_read_so_that_it_can_be_shown():
    assert parse_report(replace(BASE, vmpl=VMPL_HOST).encode()).vmpl == VMPL_HOST


def test_a_guest_has_four_privilege_levels():
    assert [parse_report(replace(BASE, vmpl=vmpl).encode()).vmpl for vmpl in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("author", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_each_bit_of_signer_info_is_its_own(author, masked):
    report = parse_report(replace(BASE, author_key_en=author, mask_chip_key=masked).encode())
    assert (report.author_key_en, report.mask_chip_key) == (author, masked)


def test_an_unknown_processor_has_an_unknown_layout():
    unknown = replace(BASE, cpuid=Cpuid(family=0x1A, model=0x50, stepping=0), current_tcb=b"\1" * 8)
    assert parse_report(unknown.encode()).current_tcb == b"\1" * 8


@pytest.mark.parametrize("name", ["current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"])
def test_a_tcb_of_the_wrong_layout_is_named(name):
    turin = Tcb(line=ProductLine.TURIN, fmc=1, bootloader=2, tee=3, snp=4, microcode=71).encode()
    with pytest.raises(FormatError) as refusal:
        replace(V2, **{name: turin}).tcbs(ProductLine.MILAN)
    assert refusal.value.message.startswith(f"{name} ")


def test_an_unsigned_report_is_read_so_that_it_can_be_refused_by_name():
    report = replace(BASE, signing_key=SigningKey.NONE, signature_r=0, signature_s=0)
    assert parse_report(report.encode()).signing_key is SigningKey.NONE


@pytest.mark.parametrize("size", [15, 17])
def test_a_field_of_another_size_is_refused(size):
    with pytest.raises(FormatError) as refusal:
        replace(BASE, image_id=bytes(size))
    assert refusal.value.message.startswith("image_id")


def test_cpuid_belongs_to_version_3_and_later():
    for version, cpuid in ((2, BASE.cpuid), (3, None)):
        with pytest.raises(FormatError) as refusal:
            replace(V3, version=version, cpuid=cpuid)
        assert refusal.value.message.startswith("cpuid")


@pytest.mark.vectors
def test_every_real_report_round_trips_and_reads_as_published():
    vectors.need()
    rows = vectors.reports()
    assert len(rows) >= 21
    for vector in rows:
        report = parse_report(vector.report)
        assert report.encode() == vector.report, vector.name
        row = vector.row
        assert hashlib.sha256(vector.report).hexdigest() == row["sha256"], vector.name
        assert report.version == row["version"], vector.name
        assert report.policy.value == int(row["policy"], 16), vector.name
        assert report.platform_info.value == int(row["platform_info"], 16), vector.name
        assert report.vmpl == row["vmpl"], vector.name
        assert str(report.current_firmware) == row["fw_current"], vector.name
        assert str(report.committed_firmware) == row["fw_committed"], vector.name
        assert report.launch_mit_vector.to_bytes(8, "little").hex() == row["launch_mit"], vector.name
        assert report.current_mit_vector.to_bytes(8, "little").hex() == row["current_mit"], vector.name
        assert report.guest_svn == row["guest_svn"], vector.name
        for name in ("measurement", "report_data", "host_data", "chip_id", "id_key_digest", "author_key_digest"):
            assert getattr(report, name).hex() == row[name], (vector.name, name)
        for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"):
            assert getattr(report, name).hex() == row[name], (vector.name, name)
        if report.cpuid is not None:
            assert report.line == row["product"], vector.name
        if row["product"] and row.get("tcb"):
            short = {"bootloader": "bl", "microcode": "ucode"}
            found = report.tcbs(ProductLine(row["product"])).reported.components()
            assert {short.get(name, name): value for name, value in found.items()} == row["tcb"], vector.name


@pytest.mark.vectors
@pytest.mark.parametrize("path", ["lit-protocol/guest_report_bad_sig.bin", "lit-protocol/guest_report_corrupt.bin"])
def test_a_real_report_of_another_length_is_refused(path):
    with pytest.raises(FormatError) as refusal:
        parse_report(vectors.read(path))
    assert refusal.value.message.startswith("report has")


@given(st.binary(max_size=40) | st.binary(min_size=REPORT_BYTES, max_size=REPORT_BYTES))
def test_any_bytes_give_a_report_or_format_error(data):
    with contextlib.suppress(FormatError):
        parse_report(data)


@given(st.sampled_from([V2, V3, V4, BASE]), st.lists(st.tuples(st.integers(0, REPORT_BYTES - 1), st.integers(0, 255))))
def test_any_damage_gives_the_same_bytes_back_or_format_error(base, damage):
    data = bytearray(base.encode())
    for position, value in damage:
        data[position] = value
    with contextlib.suppress(FormatError):
        assert parse_report(bytes(data)).encode() == bytes(data)
