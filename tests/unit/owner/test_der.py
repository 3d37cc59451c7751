# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.dryrun import x509
from cvmtool.errors import FormatError
from cvmtool.owner.der import INTEGER, OCTET_STRING, SEQUENCE, Der


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
        ("text", "0c01ff"),
        ("text", "1601ff"),
        ("text", "040161"),
        ("text", ""),
        ("time", "170d3235303731373137303434365b"),
        ("time", "170d3235313331373137303434365a"),
        ("time", "170b323530373137313730345a"),
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
