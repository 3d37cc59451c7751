# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.dryrun import x509
from cvmtool.errors import FormatError
from cvmtool.owner.der import INTEGER, OCTET_STRING, SEQUENCE, Der, context


def read(method, data):
    cursor = Der(data, "thing")
    value = getattr(cursor, method)()
    cursor.finish()
    return value


@given(st.integers(0, (1 << 160) - 1))
def test_integers(value):
    assert read("integer", x509.integer(value)) == value


@given(st.tuples(st.integers(0, 2), st.integers(0, 39)), st.lists(st.integers(0, 1 << 30), max_size=6))
def test_object_identifiers(first, rest):
    dotted = ".".join(map(str, (*first, *rest)))
    assert read("oid", x509.oid(dotted)) == dotted


@pytest.mark.parametrize(
    ("method", "data", "value"),
    [
        ("integer", "0215" + "00" + "ff" * 20, (1 << 160) - 1),
        ("boolean", "010100", False),
        ("boolean", "0101ff", True),
        ("bits", "030100", b""),
        ("bits", "0304000180ff", b"\x01\x80\xff"),
        ("oid", "06042a818001", "1.2.16385"),
        ("oid", "0603883703", "2.999.3"),
        ("oid", "0620" + "2b" + "01" * 31, "1.3" + ".1" * 31),
        ("text", "0c02c3a9", "é"),
        ("text", "130141", "A"),
        ("text", "160161", "a"),
    ],
)
def test_values(method, data, value):
    assert read(method, bytes.fromhex(data)) == value


@pytest.mark.parametrize(("number", "tag"), [(0, 0xA0), (1, 0xA1), (3, 0xA3)])
def test_tags_of_a_context(number, tag):
    assert context(number) == tag


@pytest.mark.parametrize(("data", "found"), [("0301", "has 0x03 at byte 0;"), ("", "has its end at byte 0;")])
def test_a_refusal_says_what_stands_there(data, found):
    with pytest.raises(FormatError, match=found):
        read("integer", bytes.fromhex(data))


@pytest.mark.parametrize(
    "time",
    [
        datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2049, 1, 2, tzinfo=UTC),
        datetime(2050, 1, 1, tzinfo=UTC),
    ],
)
def test_times(time):
    assert read("time", x509.time(time)) == time


@pytest.mark.parametrize(("text", "year"), [(b"49", 2049), (b"50", 1950), (b"99", 1999), (b"00", 2000)])
def test_two_digits_of_a_year(text, year):
    data = bytes((0x17, 13)) + text + b"0102030405Z"
    assert read("time", data) == datetime(year, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 129, 255, 256, 65535])
def test_contents_of_every_length_form(size):
    header = bytes((OCTET_STRING, size)) if size < 128 else None
    if header is None:
        width = (size.bit_length() + 7) // 8
        header = bytes((OCTET_STRING, 0x80 | width)) + size.to_bytes(width, "big")
    cursor = Der(header + bytes(size) + b"\x05\0", "thing")
    assert cursor.take(OCTET_STRING) == bytes(size)
    assert cursor.take(5) == b""
    cursor.finish()
    with pytest.raises(FormatError):
        Der((header + bytes(size))[: -1 if size else 1], "thing").take(OCTET_STRING)


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("integer", "0200"),
        ("integer", "02020001"),
        ("integer", "020180"),
        ("integer", "0216" + "01" * 22),
        ("integer", "028101" + "01"),
        ("integer", "0280"),
        ("integer", "02820001" + "01"),
        ("integer", "0283000001" + "01"),
        ("text", "0c820080" + "61" * 128),
        ("text", "0c83010000" + "61" * 65536),
        ("integer", "0202" + "01"),
        ("integer", "02"),
        ("integer", ""),
        ("integer", "0301" + "01"),
        ("integer", "020101" + "00"),
        ("boolean", "010101"),
        ("boolean", "0100"),
        ("bits", "030107"),
        ("bits", "0300"),
        ("oid", "0600"),
        ("oid", "060180"),
        ("oid", "06022b80"),
        ("oid", "06032b8001"),
        ("oid", "06028001"),
        ("oid", "060181"),
        ("oid", "06022b81"),
        ("oid", "0621" + "2b" + "01" * 32),
        ("text", "0c01ff"),
        ("text", "1302c3a9"),
        ("text", "1602c3a9"),
        ("text", "040161"),
        ("text", ""),
        ("time", "170d3235303731373137303434365b"),
        ("time", "170d3235313331373137303434365a"),
        ("time", "170b323530373137313730345a"),
        ("time", "170dff3530373137303434363131" + "5a"),
        ("time", "0400"),
        ("time", "180f32303235303731373234303030305a"),
        ("time", "170d3235303731373234303030305a"),
    ],
)
def test_another_spelling_is_refused(method, data):
    with pytest.raises(FormatError):
        read(method, bytes.fromhex(data))


def test_elements_nest_and_end():
    data = x509.sequence(x509.octets(b"a"), x509.integer(5))
    cursor = Der(data, "thing").enter(SEQUENCE)
    assert cursor.peek() == OCTET_STRING
    assert cursor.take(OCTET_STRING) == b"a"
    assert cursor.take_whole(INTEGER) == b"\x02\x01\x05"
    assert cursor.peek() is None
    cursor.finish()


@pytest.mark.parametrize("size", [0, 127, 128, 255, 256, 65535])
def test_lengths(size):
    assert Der(x509.octets(bytes(size)), "thing").take(OCTET_STRING) == bytes(size)


@given(st.binary(max_size=40), st.sampled_from(["integer", "boolean", "bits", "oid", "text", "time"]))
def test_any_bytes_give_a_value_or_format_error(data, method):
    with contextlib.suppress(FormatError):
        read(method, data)
