# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.spdm import MAX_REPORT, Opaque, parse_gpu_report
from tests.vectors import need, read


def report(*, request="11e001ff", answer="11600000", count=2, blocks=None, opaque=b"", tail=b""):
    blocks = bytes.fromhex("01010600010300aabbcc" + "02010500010200ddee") if blocks is None else blocks
    return (
        bytes.fromhex(request) + b"q" * 32 + b"\0"
        + bytes.fromhex(answer) + bytes([count]) + len(blocks).to_bytes(3, "little") + blocks
        + b"a" * 32 + len(opaque).to_bytes(2, "little") + opaque + b"s" * 96 + tail
    )  # fmt: skip


def test_a_report_is_read():
    found = parse_gpu_report(report(opaque=bytes.fromhex("03000400") + b"1.2\0"))
    assert found.nonce == b"q" * 32
    assert found.measurements == {1: b"\xaa\xbb\xcc", 2: b"\xdd\xee"}
    assert found.signature == b"s" * 96
    assert found.text(Opaque.DRIVER_VERSION) == "1.2"
    assert found.text(Opaque.PROJECT) == ""
    assert found.signed + found.signature == report(opaque=bytes.fromhex("03000400") + b"1.2\0")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        report(request="12e001ff"),
        report(request="11e000ff"),
        report(request="11e00101"),
        report(answer="117f0000"),
        report(count=1),
        report(count=3),
        report(blocks=bytes.fromhex("01010600010300aabbcc" + "01010500010200ddee")),
        report(blocks=bytes.fromhex("01020600010300aabbcc" + "02010500010200ddee")),
        report(blocks=bytes.fromhex("00010600010300aabbcc" + "02010500010200ddee")),
        report(blocks=bytes.fromhex("01010600010200aabbcc" + "02010500010200ddee")),
        report(opaque=bytes.fromhex("0300010041" + "0300010042")),
        report(opaque=bytes.fromhex("0300ff00")),
        report(tail=b"x"),
        report()[:-1],
        report(opaque=bytes(MAX_REPORT)),
    ],
    ids=[
        "nothing", "version", "unsigned", "one block", "an error", "too few", "too many", "twice", "specification",
        "index 0", "value size", "opaque twice", "opaque size", "tail", "cut", "large",
    ],
)  # fmt: skip
def test_another_shape_is_refused(data):
    with pytest.raises(FormatError, match="gpu report"):
        parse_gpu_report(data)


@pytest.mark.parametrize("text", [b"\xff", b"a\nb", b"x" * 33], ids=["not ASCII", "control", "long"])
def test_a_text_that_is_none_is_refused(text):
    opaque = (3).to_bytes(2, "little") + len(text).to_bytes(2, "little") + text
    with pytest.raises(FormatError, match="driver_version"):
        parse_gpu_report(report(opaque=opaque)).text(Opaque.DRIVER_VERSION)


def test_a_vbios_version_is_written_as_nvidia_writes_it():
    assert parse_gpu_report(report(opaque=bytes.fromhex("06000800009f009601000000"))).vbios_version == "96.00.9F.00.01"
    with pytest.raises(FormatError, match="8 are required"):
        _ = parse_gpu_report(report()).vbios_version


def test_the_bounds_are_inside():
    blocks = b"".join(bytes((index, 1, 4, 0, 1, 1, 0, 7)) for index in (1, 254))
    assert set(parse_gpu_report(report(blocks=blocks)).measurements) == {1, 254}
    with pytest.raises(FormatError, match="block 255"):
        parse_gpu_report(report(blocks=blocks.replace(bytes((254, 1)), bytes((255, 1)))))
    text = b"x" * 32
    opaque = (3).to_bytes(2, "little") + (32).to_bytes(2, "little") + text
    assert parse_gpu_report(report(opaque=opaque)).text(Opaque.DRIVER_VERSION) == text.decode()
    spaced = (17).to_bytes(2, "little") + (5).to_bytes(2, "little") + b"12X \0"
    assert parse_gpu_report(report(opaque=spaced)).text(Opaque.PROJECT) == "12X"


def test_a_report_has_a_largest_size():
    room = MAX_REPORT - len(report()) - 4
    field = (99).to_bytes(2, "little") + room.to_bytes(2, "little") + bytes(room)
    assert MAX_REPORT == 8_192
    assert parse_gpu_report(report(opaque=field)).opaque[99] == bytes(room)
    for tail in (b"x", bytes(100)):
        with pytest.raises(FormatError, match="at most 8192"):
            parse_gpu_report(report(opaque=field, tail=tail))


def test_what_is_signed_is_not_printed():
    shown = repr(parse_gpu_report(report()))
    assert "signed=" not in shown
    assert "signature=" not in shown


@given(st.binary(max_size=300))
def test_any_bytes_are_a_report_or_refused(data):
    for tried in (data, report()[:37] + data, report(blocks=data), report(opaque=data)):
        try:
            parse_gpu_report(tried)
        except FormatError:
            continue


@pytest.mark.nvidia
def test_nvidias_own_sample():
    need()
    found = parse_gpu_report(bytes.fromhex(read("nvidia/hopperAttestationReport.txt").decode()))
    assert (found.text(Opaque.DRIVER_VERSION), found.vbios_version) == ("550.90.07", "96.00.9F.00.01")
    assert len(found.measurements) == 64
    assert {len(value) for value in found.measurements.values()} == {48}
    assert [found.text(kind) for kind in (Opaque.PROJECT, Opaque.PROJECT_SKU, Opaque.CHIP_SKU)] == [
        "1010",
        "0200",
        "882",
    ]
