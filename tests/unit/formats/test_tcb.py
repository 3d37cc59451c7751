# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.tcb import Cpuid, ProductLine, Silicon, Tcb, parse_tcb

GENOA = Tcb(line=ProductLine.GENOA, bootloader=10, tee=1, snp=27, microcode=88)
TURIN = Tcb(line=ProductLine.TURIN, fmc=1, bootloader=2, tee=3, snp=4, microcode=71)


def test_each_layout_has_its_own_order():
    assert GENOA.encode() == bytes((10, 1, 0, 0, 0, 0, 27, 88))
    assert TURIN.encode() == bytes((1, 2, 3, 4, 0, 0, 0, 71))


@pytest.mark.parametrize("tcb", [GENOA, TURIN])
def test_round_trip(tcb):
    assert parse_tcb(tcb.encode(), tcb.line) == tcb


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (bytes(7), ProductLine.GENOA),
        (bytes(9), ProductLine.GENOA),
        *((bytes(8)[:at] + b"\1" + bytes(7 - at), ProductLine.MILAN) for at in (2, 3, 4, 5)),
        *((bytes(8)[:at] + b"\1" + bytes(7 - at), ProductLine.TURIN) for at in (4, 5, 6)),
    ],
)
def test_a_reserved_byte_or_another_size_is_refused(data, line):
    with pytest.raises(FormatError) as refusal:
        parse_tcb(data, line, field="launch_tcb")
    assert refusal.value.message.startswith("launch_tcb")
    if len(data) == 8:
        layout = [2, 3, 4, 5] if line is ProductLine.MILAN else [4, 5, 6]
        assert refusal.value.message.endswith(f"required: zero in bytes {layout} on {line}")


@pytest.mark.parametrize(
    ("line", "fmc", "snp", "message"),
    [
        (ProductLine.GENOA, 1, 1, "tcb fmc is 1 on Genoa; required: none"),
        (ProductLine.TURIN, None, 1, "tcb fmc is None on Turin; required: 0 to 255"),
        (ProductLine.GENOA, None, 256, "tcb snp is 256 on Genoa; required: 0 to 255"),
    ],
)
def test_a_part_that_the_line_lacks_or_that_is_no_byte_is_refused(line, fmc, snp, message):
    with pytest.raises(FormatError) as refusal:
        Tcb(line=line, fmc=fmc, bootloader=0, tee=0, snp=snp, microcode=0)
    assert refusal.value.message == message


@pytest.mark.parametrize("part", ["bootloader", "tee", "snp", "microcode"])
def test_one_lower_part_is_below_whatever_the_others_are(part):
    values = {**GENOA.components(), part: GENOA.components()[part] - 1}
    others = {name: 255 for name in values if name != part}
    assert Tcb(line=ProductLine.GENOA, **{**values, **others}).below(GENOA) == (part,)


def test_a_tcb_has_a_name_unless_it_is_given_one():
    with pytest.raises(FormatError, match=r"^tcb has 7 bytes"):
        parse_tcb(bytes(7), ProductLine.GENOA)


def test_equal_is_not_below():
    assert GENOA.below(GENOA) == ()
    assert TURIN.below(TURIN) == ()


def test_lines_cannot_be_compared():
    with pytest.raises(FormatError):
        TURIN.below(GENOA)


@pytest.mark.parametrize(
    ("family", "model", "stepping", "silicon"),
    [
        (0x19, 0x01, 1, Silicon.MILAN),
        (0x19, 0x0F, 2, Silicon.MILAN_X),
        (0x19, 0x11, 1, Silicon.GENOA),
        (0x19, 0x11, 2, Silicon.GENOA_X),
        (0x19, 0xA0, 2, Silicon.BERGAMO_SIENA),
        (0x19, 0xAF, 0, Silicon.BERGAMO_SIENA),
        (0x1A, 0x02, 1, Silicon.TURIN),
        (0x1A, 0x11, 0, Silicon.TURIN_DENSE),
        (0x19, 0x20, 0, None),
        (0x19, 0xB0, 0, None),
        (0x1A, 0x20, 0, None),
        (0x1A, 0x50, 0, None),
        (0x17, 0x31, 0, None),
        (0, 0, 0, None),
    ],
)
def test_silicon_by_cpuid(family, model, stepping, silicon):
    cpuid = Cpuid(family=family, model=model, stepping=stepping)
    assert cpuid.silicon is silicon
    assert cpuid.line is (None if silicon is None else silicon.line)


def test_bergamo_and_siena_are_endorsed_by_genoa():
    assert Silicon.BERGAMO_SIENA.line is ProductLine.GENOA


@given(st.binary(max_size=10), st.sampled_from(ProductLine))
def test_any_bytes_give_a_tcb_or_format_error(data, line):
    with contextlib.suppress(FormatError):
        assert parse_tcb(data, line).encode() == data
